//! Whether the kernel can track a guest's writes, and who may.

use super::{Finding, Verdict};
use sterna_page::{PAGE_SIZE, PAGE_SIZE_BYTES, PageNumber, RamBlock, RamLayout};
use sterna_sys::AddressRange;
use sterna_sys::memory::{Access, GuestMemory, HugePages, create_shared};
use sterna_sys::pagemap::{AfterScan, Pagemap};
use sterna_sys::uffd::Userfaultfd;

const TRACKING: &str = "write tracking";
const USERFAULTFD: &str = "userfaultfd";

/// Tracks a few pages of this process and looks whether the right one is reported.
pub(super) fn tracking() -> Finding {
    match track() {
        Ok(reported) if reported == [TRIED] => {
            let detail = format!("exact, on Linux {}", release());
            Finding::good(TRACKING, detail)
        }
        Ok(reported) => {
            let detail = format!("page {TRIED} was written, {reported:?} reported");
            Finding::bad(TRACKING, Verdict::Missing, detail, "use another kernel")
        }
        Err(error) => {
            let detail = format!("Linux {}: {error}", release());
            Finding::bad(TRACKING, Verdict::Missing, detail, "use Linux 6.7 or later")
        }
    }
}

const PAGES: u64 = 8;
const TRIED: u64 = 5;

fn track() -> Result<Vec<u64>, Box<dyn std::error::Error>> {
    let size_bytes = PAGES * PAGE_SIZE_BYTES;
    let block = RamBlock { name: "probe".into(), size_bytes, host_page_bytes: PAGE_SIZE_BYTES };
    let file = create_shared("sterna-probe", size_bytes, HugePages::No)?;
    let memory = GuestMemory::map(RamLayout::new(vec![block])?, vec![file], Access::ReadWrite)?;
    let range = memory.addresses().next().ok_or("nothing was mapped")?;
    let uffd = Userfaultfd::create()?;
    uffd.register_write_protect(range)?;
    uffd.write_protect(range)?;
    memory.write(PageNumber(TRIED), &[1; PAGE_SIZE])?;
    let mut reported = Vec::new();
    let add = |written: AddressRange| {
        let first = (written.start() - range.start()) / PAGE_SIZE_BYTES;
        reported.extend(first..first + written.bytes() / PAGE_SIZE_BYTES);
    };
    Pagemap::open(std::process::id())?.scan_written(range, AfterScan::Forget, add)?;
    Ok(reported)
}

fn release() -> String {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease");
    release.map_or_else(|_| "of unknown release".into(), |text| text.trim().to_owned())
}

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
