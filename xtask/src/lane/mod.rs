//! `cargo xtask test --lane kvm`: tests under KVM on a machine that need not have it.
//!
//! QEMU emulates AMD's virtualization with nested paging. So a Linux host that runs emulated has a
//! KVM of its own, and the QEMU inside it gives guests to it: slow, but with KVM's real way of
//! writing guest memory.
//!
//! ```text
//! this machine ── QEMU (TCG, emulates SVM)
//!                  └─ the lane's machine: Debian, kvm_amd; the workspace at its own path
//!                      ├─ agent a ── QEMU (KVM) ── guest ──┐ moves
//!                      └─ agent b ── QEMU (KVM) ◀──────────┘
//! ```
//!
//! What it is made of lies in `target/lane` and is made once: remove that to take newer packages.
//! `target/lane/console.log` is what its kernel said. The machine's disk is never written: each run
//! starts from the same state. Needs root and Debian, with some 5 GB of disk and 7 GB of memory.

mod boot;
mod checks;
mod image;
mod root;

use std::time::Instant;

use anyhow::{Result, ensure};

use crate::packages::Apt;
use crate::{guest_image, host, paths, setup};

/// A kind of machine that tests can be run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Lane {
    /// KVM, with guests that really run on it.
    Kvm,
}

/// Programs that making the machine takes, each with its package.
const PROGRAMS: [(&str, &str); 3] =
    [("mmdebstrap", "mmdebstrap"), ("mkfs.ext4", "e2fsprogs"), ("xz", "xz-utils")];

/// Runs a lane's tests; the first that fails ends it.
///
/// # Errors
/// If the machine cannot be made or a test fails.
pub(crate) fn run_lane(lane: Lane) -> Result<()> {
    let Lane::Kvm = lane;
    ensure!(host::is_root(), "the lane's machine is built with its own users' files: run as root");
    setup::run_setup()?;
    guest_image::run_guest()?;
    install_programs()?;
    let folder = paths::target().join("lane");
    let root = root::ensure(&folder)?;
    let image = image::ensure(&folder, &root)?;
    println!("── building what runs inside");
    let programs = checks::build()?;
    let began = Instant::now();
    let mut mishaps = checks::Mishaps::default();
    let outcome = checks::run(&image, &programs, &mut mishaps);
    println!("── the lane took {:.0?}; {mishaps}", began.elapsed());
    outcome
}

/// Installs what making a machine takes.
///
/// # Errors
/// If apt fails.
pub(crate) fn install_programs() -> Result<()> {
    let missing = PROGRAMS.iter().filter(|(program, _)| !host::has_program(program));
    let missing: Vec<&str> = missing.map(|(_, package)| *package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    println!("missing: {}", missing.join(", "));
    Apt::new()?.install(&missing, None)
}
