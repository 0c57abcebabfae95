//! What a QEMU inherits open: what has no name, and, if it runs as a user of its own, what only root can open.
//!
//! Measured with QEMU 10.0.2: an image is opened once, for reading and writing, also by a QEMU that waits for a guest; it
//! is not opened anew when the guest becomes active. So one descriptor for each disk is enough, if its flags are the very
//! ones that QEMU would open it with. Image locks belong to what was opened, not to the process: each QEMU gets a
//! disk opened for itself, and nothing here keeps it open.

use super::command_line::{Descriptors, Numbers};
use super::images;
use crate::tracking::system;
use crate::{Accelerator, DiskCache, DiskDefinition, GuestDefinition, NetworkDefinition, VmmError};
use rustix::fs::{MemfdFlags, OFlags, memfd_create};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use sterna_sys::{preload, tap};

/// Bytes of a kernel or an initial RAM disk at most.
const BOOT_FILE_BYTES_MAX: u64 = 1 << 30;

/// The right of everybody to read a file.
const READABLE_BY_OTHERS: u32 = 0o004;

/// What QEMU inherits.
#[derive(Debug)]
pub(super) struct Inherited {
    /// The guest's RAM.
    pub(super) ram: OwnedFd,
    /// A socket whose other end is the first to speak to the monitor.
    pub(super) first_monitor: OwnedFd,
    /// Open taps for the definition's networks in their order; none if QEMU is to open them.
    pub(super) taps: Vec<OwnedFd>,
    /// What it would open by itself, were it root.
    pub(super) opened: Option<Opened>,
}

/// What was opened for a QEMU that may not do so itself.
#[derive(Debug)]
pub(super) struct Opened {
    /// The device that makes userfaultfds.
    userfaultfd: OwnedFd,
    nothing: OwnedFd,
    kvm: Option<OwnedFd>,
    kernel: Option<OwnedFd>,
    initrd: Option<OwnedFd>,
    /// In the order of the definition.
    disks: Vec<OwnedFd>,
}

impl Inherited {
    /// The numbers that all of it will have in QEMU.
    pub(super) fn numbers(&self) -> Descriptors {
        let number = |descriptor: &OwnedFd| descriptor.as_raw_fd();
        let opened = self.opened.as_ref().map(|opened| Numbers {
            nothing: number(&opened.nothing),
            kvm: opened.kvm.as_ref().map(number),
            kernel: opened.kernel.as_ref().map(number),
            initrd: opened.initrd.as_ref().map(number),
            disks: opened.disks.iter().map(number).collect(),
        });
        Descriptors {
            ram: number(&self.ram),
            first_monitor: number(&self.first_monitor),
            taps: self.taps.iter().map(number).collect(),
            opened,
        }
    }

    /// The number of the device that makes userfaultfds, if QEMU needs to be given it.
    pub(super) fn userfaultfd(&self) -> Option<i32> {
        self.opened.as_ref().map(|opened| opened.userfaultfd.as_raw_fd())
    }

    /// All of it, to be handed down.
    pub(super) fn into_descriptors(self) -> Vec<OwnedFd> {
        let mut all = vec![self.ram, self.first_monitor];
        all.extend(self.taps);
        if let Some(opened) = self.opened {
            all.extend([opened.userfaultfd, opened.nothing]);
            all.extend(opened.kvm.into_iter().chain(opened.kernel).chain(opened.initrd));
            all.extend(opened.disks);
        }
        all
    }
}

impl Opened {
    /// Opens what a guest of this resolved definition needs.
    pub(super) fn of(definition: &GuestDefinition) -> Result<Self, VmmError> {
        let device = |path: &str| OpenOptions::new().read(true).write(true).open(path);
        let on_kvm = matches!(definition.accelerator, Accelerator::Kvm | Accelerator::KvmUnproven);
        let kvm = on_kvm.then(|| device("/dev/kvm")).transpose();
        let boot = |path: &Option<std::path::PathBuf>| path.as_deref().map(boot_file).transpose();
        let disks = definition.disks.iter().map(disk).collect::<Result<_, _>>()?;
        Ok(Self {
            userfaultfd: device(preload::DEVICE)
                .map_err(system("opening /dev/userfaultfd"))?
                .into(),
            nothing: device("/dev/null").map_err(system("opening /dev/null"))?.into(),
            kvm: kvm.map_err(system("opening /dev/kvm"))?.map(OwnedFd::from),
            kernel: boot(&definition.kernel)?,
            initrd: boot(&definition.initrd)?,
            disks,
        })
    }
}

/// Opens the taps of a guest, in the order of its networks.
pub(super) fn taps(definition: &GuestDefinition) -> Result<Vec<OwnedFd>, VmmError> {
    let open = |network: &NetworkDefinition| {
        let name = &network.tap;
        tap::open(name).map_err(|error| refused(format!("tap device {name}: {error}")))
    };
    definition.networks.iter().map(open).collect()
}

fn refused(detail: String) -> VmmError {
    VmmError::Refused { operation: "opening what the guest needs", detail }
}

/// Opens a disk as QEMU would: it takes a descriptor only if it has the flags that it asks for.
fn disk(disk: &DiskDefinition) -> Result<OwnedFd, VmmError> {
    let path = disk.path.display();
    let failed = |error: io::Error| refused(format!("disk {path}: {error}"));
    let direct = match disk.cache {
        DiskCache::Writeback => OFlags::empty(),
        DiskCache::None => OFlags::DIRECT,
    };
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(direct.bits().cast_signed());
    // Looked at first: to open a device of another kind may do something.
    let kind = disk.path.metadata().map_err(failed)?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(refused(format!("disk {path} is neither a file nor a block device")));
    }
    if disk.format == "qcow2" {
        images::stands_alone(&disk.path).map_err(|why| refused(format!("disk {path}: {why}")))?;
    }
    Ok(options.open(&disk.path).map_err(failed)?.into())
}

/// Opens a kernel or an initial RAM disk. QEMU opens it anew by its descriptor, for which everybody must be allowed to
/// read it; of one that they may not it gets a copy, which takes memory while the guest runs.
fn boot_file(path: &Path) -> Result<OwnedFd, VmmError> {
    let shown = path.display();
    let failed = |error: io::Error| refused(format!("{shown}: {error}"));
    let nonblocking = OFlags::NONBLOCK.bits().cast_signed();
    let file =
        OpenOptions::new().read(true).custom_flags(nonblocking).open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() || metadata.len() > BOOT_FILE_BYTES_MAX {
        let limit = BOOT_FILE_BYTES_MAX;
        return Err(refused(format!("{shown} is no file of {limit} bytes at most")));
    }
    if metadata.mode() & READABLE_BY_OTHERS != 0 {
        return Ok(file.into());
    }
    let copy = memfd_create("boot-file", MemfdFlags::CLOEXEC).map_err(io::Error::from);
    let mut copy = File::from(copy.map_err(failed)?);
    io::copy(&mut file.take(BOOT_FILE_BYTES_MAX), &mut copy).map_err(failed)?;
    copy.rewind().map_err(failed)?;
    Ok(copy.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn what_is_no_disk_or_no_kernel_is_not_opened() {
        let folder = tempfile::tempdir().unwrap();
        let of = |path: &Path| DiskDefinition {
            path: path.to_owned(),
            format: "raw".into(),
            cache: DiskCache::Writeback,
            iops_max: None,
        };
        for path in [folder.path(), Path::new("/dev/null"), Path::new("/nowhere/a")] {
            assert!(disk(&of(path)).is_err() && boot_file(path).is_err(), "{path:?}");
        }
        let image = folder.path().join("image");
        std::fs::write(&image, "x").unwrap();
        disk(&of(&image)).unwrap();
    }

    #[test]
    fn a_kernel_that_others_may_not_read_is_copied() {
        let folder = tempfile::tempdir().unwrap();
        let kernel = folder.path().join("kernel");
        std::fs::write(&kernel, "kernel").unwrap();
        for (mode, copied) in [(0o644, false), (0o600, true)] {
            std::fs::set_permissions(&kernel, PermissionsExt::from_mode(mode)).unwrap();
            let opened = boot_file(&kernel).unwrap();
            let link = std::fs::read_link(format!("/proc/self/fd/{}", opened.as_raw_fd())).unwrap();
            assert_eq!(link != kernel, copied, "{link:?}");
            assert_eq!(io::read_to_string(File::from(opened)).unwrap(), "kernel");
        }
    }
}
