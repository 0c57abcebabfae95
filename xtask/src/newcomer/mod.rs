//! `cargo xtask newcomer`: from the package to the first move, on bare machines, by README's own commands.
//!
//! Two machines with a bare Debian are started, emulated, joined by a network of their own. What README says is typed
//! there by root, word for word, but for the code that `sterna host invite` says. Then it is looked whether the guest has
//! moved, and what becomes of it when its agent is restarted or removed.
//!
//! ```text
//! this machine ─┬─ machine a (TCG): Debian, systemd, the package ── agent ── guest ──┐ moves
//!               └─ machine b (TCG): the same                     ── agent ◀─────────┘
//! ```
//!
//! What they are made of lies in `target/newcomer` and is made once: remove that to take newer packages. Nothing reaches
//! outside: the packages that the guest's hypervisor is made of lie in the machines' apt caches. Needs root and Debian, with
//! 6 GB of disk and 3.5 GB of memory.

mod readme;
mod tree;
mod walk;

use std::time::Instant;

use anyhow::{Result, ensure};

use crate::{debian, host, lane, paths};

/// Walks a newcomer's path.
///
/// # Errors
/// If the machines cannot be made, a command of README's fails, or the guest is not where it should be.
pub(crate) fn run_newcomer() -> Result<()> {
    ensure!(host::is_root(), "the machines are built with their own users' files: run as root");
    lane::install_programs()?;
    let commands = readme::commands()?;
    let folder = paths::target().join("newcomer");
    let tree = tree::ensure(&folder)?;
    let package = debian::run_package()?;
    let began = Instant::now();
    walk::walk(&folder, &tree, &package, &commands)?;
    println!("── {} commands; it took {:.0?}", commands.typed(), began.elapsed());
    Ok(())
}
