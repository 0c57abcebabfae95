//! `cargo xtask guest`: the kernel and initramfs of the test guest.
//!
//! ```text
//! packages/*.deb ─ dpkg-deb ─▶ root/ ──▶ vmlinuz
//!                               │ modules, busybox
//! guest/ ─ cargo ─▶ recorder ───┴───────▶ initrd.gz
//! ```
//!
//! All of it lies in `target/guest`. The packages are downloaded once and kept; remove
//! `target/guest` to take newer ones. The recorder is built every time (cargo knows whether that
//! means anything), and the initramfs is written only if its bytes changed: it holds no times,
//! no owner and no inode numbers of this machine. Needs apt, but neither root nor an installed
//! kernel.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::initramfs;
use crate::packages::{self, Apt};
use crate::paths;

/// Debian's kernel for virtual machines: small, with all virtio drivers as modules.
const KERNEL_META: &str = "linux-image-cloud-amd64";
/// The guest's userland beside the recorder.
const BUSYBOX: &str = "busybox-static";
/// What the guest needs: disk, network, console, balloon, all of virtio on PCI.
const MODULES: [&str; 5] =
    ["virtio_pci", "virtio_blk", "virtio_net", "virtio_console", "virtio_balloon"];
/// What the recorder is built for. Naming it keeps the static libc away from build scripts and
/// procedural macros, which cannot be linked so.
const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// A built guest image.
#[derive(Debug)]
pub(crate) struct GuestImage {
    /// Where `vmlinuz` and `initrd.gz` are.
    pub(crate) folder: PathBuf,
}

/// Builds the guest image and says where it is.
///
/// # Errors
/// If a package cannot be downloaded or the recorder cannot be built.
pub(crate) fn run_guest() -> Result<()> {
    let image = ensure()?;
    println!("guest image: {}", image.folder.display());
    Ok(())
}

/// Brings the guest image up to date; quick if it is.
///
/// # Errors
/// If a package cannot be downloaded or the recorder cannot be built.
pub(crate) fn ensure() -> Result<GuestImage> {
    let folder = paths::guest();
    let root = folder.join("root");
    if !folder.join("vmlinuz").exists() {
        unpack_packages(&folder, &root)?;
    }
    let recorder = build_recorder()?;
    let archive = initramfs::build(&initramfs::Contents {
        init: &paths::workspace().join("guest/init"),
        busybox: &root.join("bin/busybox"),
        files: &[("flight-recorder", &recorder)],
        modules: &MODULES,
        modules_folder: &modules_folder(&root)?,
    })?;
    write_if_changed(&folder.join("initrd.gz"), &archive)?;
    Ok(GuestImage { folder })
}

/// Downloads and unpacks kernel and busybox; the kernel image comes last, as the sign of success.
fn unpack_packages(folder: &Path, root: &Path) -> Result<()> {
    let mut apt = Apt::new()?;
    let kept = folder.join("packages");
    if root.exists() {
        fs::remove_dir_all(root).with_context(|| format!("cannot remove {}", root.display()))?;
    }
    fs::create_dir_all(root).with_context(|| format!("cannot make {}", root.display()))?;
    for package in [apt.kernel_behind(KERNEL_META)?, BUSYBOX.to_owned()] {
        let file = match packages::package_file(&package, &kept)? {
            Some(file) => file,
            None => apt.download(&package, &kept)?,
        };
        packages::unpack(&file, root)?;
    }
    let kernel = only_entry(&root.join("boot"), "vmlinuz-")?;
    fs::copy(&kernel, folder.join("vmlinuz"))
        .with_context(|| format!("cannot copy {}", kernel.display()))?;
    Ok(())
}

/// Returns the folder of the kernel's modules, wherever the release puts `lib`.
pub(crate) fn modules_folder(root: &Path) -> Result<PathBuf> {
    let places = ["lib/modules", "usr/lib/modules"].map(|place| root.join(place));
    let place = places.iter().find(|place| place.exists());
    only_entry(place.context("the kernel package holds no modules")?, "")
}

/// Returns the one entry of a folder whose name starts with `prefix`.
pub(crate) fn only_entry(folder: &Path, prefix: &str) -> Result<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            found.push(entry.path());
        }
    }
    ensure!(found.len() == 1, "{} {prefix}* in {}, not one", found.len(), folder.display());
    Ok(found.remove(0))
}

/// Builds the flight recorder as a program that needs no library of the guest.
fn build_recorder() -> Result<PathBuf> {
    let target = paths::target().join("guest-build");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command
        .current_dir(paths::workspace())
        .args(["build", "--quiet", "--release", "--package", "sterna-guest"])
        .args(["--bin", "flight-recorder", "--target", TRIPLE])
        .arg("--target-dir")
        .arg(&target)
        .env("CARGO_PROFILE_RELEASE_STRIP", "true")
        .env_remove("RUSTFLAGS")
        .env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static");
    let status = command.status().context("cannot start cargo")?;
    ensure!(status.success(), "building the flight recorder: {status}");
    Ok(target.join(TRIPLE).join("release/flight-recorder"))
}

/// Writes a file unless it already has these bytes, so that its time tells of real changes.
pub(crate) fn write_if_changed(path: &Path, bytes: &[u8]) -> Result<()> {
    if fs::read(path).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    println!("writing {} ({} KiB)", path.display(), bytes.len() / 1024);
    let partial = path.with_extension("partial");
    fs::write(&partial, bytes).with_context(|| format!("cannot write {}", partial.display()))?;
    fs::rename(&partial, path).with_context(|| format!("cannot write {}", path.display()))
}
