//! The root tree of the lane's machine: this host's own Debian release, so that what was built
//! here runs there, with a kernel and a QEMU that are new enough.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::host::Distribution;
use crate::packages;

/// What comes with the release.
const PACKAGES: [&str; 2] = ["kmod", "iproute2"];

/// What must be newer than in some releases. The generic kernel: the one for virtual machines has
/// no KVM.
const NEWER_PACKAGES: [&str; 6] = [
    "linux-image-amd64",
    "qemu-system-x86",
    "qemu-system-common",
    "qemu-system-data",
    // Tests make disks with it.
    "qemu-utils",
    "seabios",
];

/// Written when a tree is whole: what it was made of.
pub(super) const STAMP: &str = "root.packages";

/// Returns the tree below `folder`, made if it is not there.
///
/// # Errors
/// If this is not Debian or mmdebstrap fails.
pub(super) fn ensure(folder: &Path) -> Result<PathBuf> {
    let distribution = Distribution::of_this_host();
    ensure!(distribution.id == "debian", "the lane's machine can be made on Debian only");
    let (root, stamp) = (folder.join("root"), folder.join(STAMP));
    let wanted = format!("{} {}", distribution.codename, include(&distribution.codename));
    if fs::read_to_string(&stamp).is_ok_and(|found| found == wanted) {
        println!("ok: root tree {}", root.display());
        return Ok(root);
    }
    println!("making a root tree of {wanted}: about a minute");
    if root.exists() {
        fs::remove_dir_all(&root).with_context(|| format!("cannot remove {}", root.display()))?;
    }
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    packages::run(&mut mmdebstrap(&distribution.codename, &root)?)?;
    fs::write(&stamp, wanted).with_context(|| format!("cannot write {}", stamp.display()))?;
    Ok(root)
}

/// The packages in mmdebstrap's notation.
fn include(codename: &str) -> String {
    let newer = backports(codename).map(|suite| format!("/{suite}")).unwrap_or_default();
    let newer = NEWER_PACKAGES.map(|package| format!("{package}{newer}"));
    let plain = PACKAGES.map(str::to_owned);
    [&plain[..], &newer[..]].concat().join(",")
}

/// The suite that has what is too old in a release, if something is.
fn backports(codename: &str) -> Option<&'static str> {
    (codename == "bookworm").then_some("bookworm-backports")
}

fn mmdebstrap(codename: &str, root: &Path) -> Result<Command> {
    let mirror = packages::mirror(codename)?;
    let mut command = Command::new("mmdebstrap");
    command.args(["--quiet", "--mode=root", "--variant=minbase"]);
    command.arg("--aptopt=APT::Install-Recommends \"false\"");
    for left_out in ["doc", "man", "locale"] {
        command.arg(format!("--dpkgopt=path-exclude=/usr/share/{left_out}/*"));
    }
    command.arg(format!("--include={}", include(codename))).arg(codename).arg(root);
    for suite in std::iter::once(codename).chain(backports(codename)) {
        command.arg(format!("deb {mirror} {suite} main"));
    }
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_old_release_takes_its_kernel_from_backports() {
        assert!(include("bookworm").contains("linux-image-amd64/bookworm-backports"));
        assert!(include("bookworm").starts_with("kmod,iproute2,"));
        assert!(!include("trixie").contains("backports"));
    }
}
