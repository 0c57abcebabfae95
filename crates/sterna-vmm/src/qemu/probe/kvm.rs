//! Whether KVM really runs guests here.
//!
//! That `/dev/kvm` opens says little: in a virtual machine it may be a paravirtual stand-in that
//! runs firmware but no stock Linux guest. So two things must hold: the processor shows hardware
//! virtualization, and a small guest makes progress.

use super::{COUNTED_FROM, Finding, Verdict, boot_image};
use crate::qemu::{QemuBinary, QemuGuest, StartMode};
use crate::tracking::system;
use crate::{Accelerator, GuestDefinition, VmmError};
use std::path::Path;
use std::time::{Duration, Instant};
use sterna_page::{PAGE_SIZE, PAGE_SIZE_BYTES, PageNumber};

const NAME: &str = "kvm";

/// How long the small guest may take from power-on to its first written page.
const PROGRESS_LIMIT: Duration = Duration::from_secs(10);

/// Looks whether guests may be given to KVM.
pub(super) fn check(binary: &QemuBinary, scratch: &Path) -> Finding {
    let slow = "; guests are emulated, which is slow";
    let access = rustix::fs::Access::READ_OK | rustix::fs::Access::WRITE_OK;
    if let Err(error) = rustix::fs::access("/dev/kvm", access) {
        let detail = format!("/dev/kvm: {error}{slow}");
        let remedy = "load kvm_intel or kvm_amd and give this user access to /dev/kvm";
        return Finding::bad(NAME, Verdict::Warning, detail, remedy);
    }
    if !has_hardware_virtualization() {
        let detail =
            format!("/dev/kvm is there, but the processor shows neither vmx nor svm{slow}");
        let remedy = "enable (nested) virtualization in the firmware or the outer hypervisor";
        return Finding::bad(NAME, Verdict::Warning, detail, remedy);
    }
    match run_small_guest(binary, scratch) {
        Ok(took) => Finding::good(NAME, format!("a guest ran within {took:.0?}")),
        Err(error) => {
            let detail = format!("a small guest did not run: {error}{slow}");
            Finding::bad(NAME, Verdict::Warning, detail, "look into the kernel log for kvm")
        }
    }
}

/// Other architectures do not show it in a flag; there the small guest alone decides.
fn has_hardware_virtualization() -> bool {
    if !cfg!(target_arch = "x86_64") {
        return true;
    }
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let mut flags = text.lines().filter(|line| line.starts_with("flags"));
    flags.next().is_some_and(|line| line.split_whitespace().any(|f| f == "vmx" || f == "svm"))
}

/// Boots the smallest guest under KVM, whatever KVM that is, and waits until it has written a page.
/// Returns how long that took; it says nothing of stock guests. `scratch` is as for
/// [`super::probe`].
///
/// # Errors
/// When it does not start, or makes no progress within some seconds.
pub fn run_small_guest(binary: &QemuBinary, scratch: &Path) -> Result<Duration, VmmError> {
    let image = scratch.join("kvm-probe.img");
    std::fs::write(&image, boot_image(16)).map_err(system("writing a boot sector"))?;
    let definition = serde_json::json!({
        "name": "kvm-probe", "memory_bytes": 32 << 20,
        "disks": [{ "path": image.to_string_lossy() }],
    });
    let definition: GuestDefinition = serde_json::from_value(definition)
        .map_err(|e| VmmError::Refused { operation: "defining a guest", detail: e.to_string() })?;
    let definition = GuestDefinition { accelerator: Accelerator::KvmUnproven, ..definition };
    let start = Instant::now();
    let folder = scratch.join("kvm-probe");
    let guest = QemuGuest::start(binary, &definition, folder, StartMode::Run)?;
    let progress = await_progress(&guest);
    let ended = guest.kill();
    let _ = std::fs::remove_file(&image);
    progress.and(ended).map(|()| start.elapsed())
}

fn await_progress(guest: &QemuGuest) -> Result<(), VmmError> {
    let first = PageNumber(COUNTED_FROM / PAGE_SIZE_BYTES);
    let deadline = Instant::now() + PROGRESS_LIMIT;
    let mut page = [0; PAGE_SIZE];
    while Instant::now() < deadline {
        guest.memory().read(first, &mut page)?;
        // The firmware may have left something there; the guest counts on and on.
        if u32::from_le_bytes([page[0], page[1], page[2], page[3]]) > 1000 && page[4..8] == [0; 4] {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Err(VmmError::TimedOut { operation: "running a small guest", limit: PROGRESS_LIMIT })
}
