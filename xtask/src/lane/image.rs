//! Kernel, initramfs and disk of the lane's machine, made of its root tree.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::guest_image::{modules_folder, only_entry, write_if_changed};
use crate::{initramfs, machine, paths};

/// Bytes of the disk; what is not used takes no room.
const DISK_BYTES: u64 = 3 << 30;

/// What the root disk takes. ext4 asks for its checksum by a name that no module's list tells.
const MODULES: [&str; 4] = ["virtio_pci", "virtio_blk", "crc32c_generic", "ext4"];

/// What a machine boots from.
#[derive(Debug)]
pub(super) struct Image {
    /// Where all of it lies.
    pub(super) folder: PathBuf,
    /// The kernel.
    pub(super) kernel: PathBuf,
    /// The initramfs.
    pub(super) initramfs: PathBuf,
    /// The root disk, never to be written.
    pub(super) disk: PathBuf,
}

/// Returns the image below `folder`, brought up to date with the tree `root`.
///
/// # Errors
/// If the tree holds no kernel or the disk cannot be made.
pub(super) fn ensure(folder: &Path, root: &Path) -> Result<Image> {
    let image = Image {
        folder: folder.to_path_buf(),
        kernel: only_entry(&root.join("boot"), "vmlinuz-")?,
        initramfs: folder.join("initramfs.gz"),
        disk: folder.join("root.ext4"),
    };
    let scripts = paths::workspace().join("xtask/src/lane");
    let archive = initramfs::build(&initramfs::Contents {
        init: &scripts.join("initramfs-init"),
        busybox: &paths::guest().join("root/bin/busybox"),
        files: &[
            ("host-init", &scripts.join("host-init")),
            ("machine-port", &paths::workspace().join(machine::PORT_SCRIPT)),
        ],
        modules: &MODULES,
        modules_folder: &modules_folder(root)?,
    })?;
    write_if_changed(&image.initramfs, &archive)?;
    if is_newer(&folder.join(super::root::STAMP), &image.disk) {
        machine::make_disk(root, &image.disk, DISK_BYTES)?;
    }
    Ok(image)
}

/// Whether `disk` is missing or older than the stamp of the tree it is made of.
fn is_newer(stamp: &Path, disk: &Path) -> bool {
    let time = |path: &Path| fs::metadata(path).and_then(|found| found.modified()).ok();
    time(disk) < time(stamp)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_is_missing_is_made() {
        let folder = tempfile::tempdir().unwrap();
        let (stamp, disk) = (folder.path().join("stamp"), folder.path().join("disk"));
        fs::write(&stamp, "").unwrap();
        assert!(is_newer(&stamp, &disk));
        fs::write(&disk, "").unwrap();
        assert!(!is_newer(&stamp, &disk));
    }
}
