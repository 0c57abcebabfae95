//! Calls of cargo from within cargo.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::paths;

/// Returns a call of the cargo that runs this program.
pub(crate) fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).current_dir(paths::workspace());
    command
}

/// Runs a program to its end.
///
/// # Errors
/// If it cannot be run or fails.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let shown = format!("{command:?}");
    let status = command.status().with_context(|| format!("cannot run {shown}"))?;
    if !status.success() {
        bail!("{shown} ended with {status}");
    }
    Ok(())
}

/// Builds the `sterna` program as it is shipped; returns where it is.
pub(crate) fn build_sterna() -> Result<PathBuf> {
    println!("building sterna");
    run(&mut cargo(&["build", "--quiet", "--release", "--package", "sterna"]))?;
    Ok(paths::target().join("release").join("sterna"))
}
