//! What a bare machine is made of: Debian's smallest system with systemd and a kernel, and a unit that types.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::guest_image::only_entry;
use crate::host::Distribution;
use crate::{machine, packages, paths};

/// The release that README names.
const CODENAME: &str = "trixie";

/// What a host has that was set up with as little as possible.
const PACKAGES: &str = "systemd-sysv,udev,dbus,iproute2,initramfs-tools,linux-image-amd64";

/// What README's first command installs beside the package: it lies in the machines' apt cache.
const CACHED: &str = "qemu-system-x86";

/// Bytes of a machine's disk; what is not used takes no room.
const DISK_BYTES: u64 = 3 << 30;

/// Has a newcomer's answers given: yes, and no more questions.
const APT_SETTINGS: &str =
    "APT::Get::Assume-Yes \"true\";\nDPkg::Options { \"--force-confdef\"; };\n";

const UNIT_NAME: &str = "machine-port.service";
const UNIT: &str = "[Unit]\nDescription=Types what a newcomer types\n[Service]\n\
    Environment=HOME=/root\nWorkingDirectory=/root\nExecStart=/bin/sh /root/machine-port\n";

/// What a machine boots from.
#[derive(Debug)]
pub(super) struct Tree {
    pub(super) kernel: PathBuf,
    pub(super) initramfs: PathBuf,
    /// The root disk, never to be written.
    pub(super) disk: PathBuf,
}

/// Returns what lies below `folder`, made if it is not there.
///
/// # Errors
/// If this is not Debian or mmdebstrap fails.
pub(super) fn ensure(folder: &Path) -> Result<Tree> {
    let (root, disk) = (folder.join("root"), folder.join("root.ext4"));
    if !disk.exists() {
        let distribution = Distribution::of_this_host();
        ensure!(distribution.id == "debian", "bare machines can be made on Debian only");
        println!("making a bare {CODENAME}: some minutes");
        if root.exists() {
            fs::remove_dir_all(&root)?;
        }
        fs::create_dir_all(folder)?;
        // One mirror has all releases.
        let mirror = packages::mirror(&distribution.codename)?;
        packages::run(&mut mmdebstrap(&mirror, &root))?;
        put(&root, "etc/apt/apt.conf.d/90newcomer", APT_SETTINGS)?;
        let script = paths::workspace().join(machine::PORT_SCRIPT);
        put(&root, "root/machine-port", &fs::read_to_string(script)?)?;
        put(&root, &format!("etc/systemd/system/{UNIT_NAME}"), UNIT)?;
        let wanted = root.join("etc/systemd/system/multi-user.target.wants").join(UNIT_NAME);
        symlink(Path::new("..").join(UNIT_NAME), wanted).context("cannot have the unit started")?;
        put(&root, "etc/modules", "virtio_console\n")?;
        machine::make_disk(&root, &disk, DISK_BYTES)?;
    }
    let boot = root.join("boot");
    let (kernel, initramfs) = (only_entry(&boot, "vmlinuz-")?, only_entry(&boot, "initrd.img-")?);
    Ok(Tree { kernel, initramfs, disk })
}

fn mmdebstrap(mirror: &str, root: &Path) -> Command {
    let mut command = Command::new("mmdebstrap");
    command.args(["--quiet", "--mode=root", "--variant=minbase", "--skip=cleanup/apt"]);
    command.arg("--aptopt=APT::Install-Recommends \"false\"");
    for left_out in ["doc", "man", "locale"] {
        command.arg(format!("--dpkgopt=path-exclude=/usr/share/{left_out}/*"));
    }
    let download = "apt-get install --yes --no-install-recommends --download-only";
    command.arg(format!("--customize-hook=chroot \"$1\" {download} {CACHED}"));
    command.arg(format!("--include={PACKAGES}")).arg(CODENAME).arg(root);
    command.arg(format!("deb {mirror} {CODENAME} main"));
    command
}

fn put(root: &Path, path: &str, content: &str) -> Result<()> {
    let path = root.join(path);
    fs::create_dir_all(path.parent().context("a path in the tree")?)?;
    fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))
}
