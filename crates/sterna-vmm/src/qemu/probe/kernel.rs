//! Who may have a userfaultfd that serves missing pages.

use super::{Finding, Verdict};

const USERFAULTFD: &str = "userfaultfd";

/// Whether QEMU's userfaultfd will see faults that the kernel takes for it: KVM's own writes are
/// tracked without, but serving missing pages needs it.
pub(super) fn userfaultfd() -> Finding {
    let allowed = std::fs::read_to_string("/proc/sys/vm/unprivileged_userfaultfd");
    let unprivileged = allowed.is_ok_and(|text| text.trim() == "1");
    if unprivileged || rustix::process::geteuid().is_root() {
        return Finding::good(USERFAULTFD, "for faults in user and kernel mode");
    }
    let device = rustix::fs::Access::READ_OK | rustix::fs::Access::WRITE_OK;
    if rustix::fs::access("/dev/userfaultfd", device).is_ok() {
        return Finding::good(USERFAULTFD, "through /dev/userfaultfd");
    }
    let detail = "for faults in user mode only: enough to track writes, not for post-copy";
    let remedy = "give QEMU's group read and write access to /dev/userfaultfd";
    Finding::bad(USERFAULTFD, Verdict::Warning, detail, remedy)
}
