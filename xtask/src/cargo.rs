//! Calls of cargo from within cargo.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

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
    build_program("sterna")
}

/// Builds the program of a package, as it would be shipped; returns where it is.
pub(crate) fn build_program(package: &str) -> Result<PathBuf> {
    println!("building {package}");
    run(&mut cargo(&["build", "--quiet", "--release", "--package", package]))?;
    Ok(paths::target().join("release").join(package))
}

/// A program that cargo built.
#[derive(Debug)]
pub(crate) struct Program {
    /// Name of the target.
    pub(crate) name: String,
    /// Whether it runs tests.
    pub(crate) is_test: bool,
    /// The folder of its package.
    pub(crate) package: PathBuf,
    pub(crate) path: PathBuf,
}

/// Builds all tests and the programs they start, all of the workspace at once: building part after part
/// would build most dependencies twice, with other features each.
///
/// # Errors
/// If something does not build.
pub(crate) fn build_tests() -> Result<Vec<Program>> {
    build(&["--workspace"])
}

/// Builds all tests of some packages, and their programs.
///
/// # Errors
/// If something does not build.
pub(crate) fn build_tests_of(packages: &[&str]) -> Result<Vec<Program>> {
    let words: Vec<&str> = packages.iter().flat_map(|name| ["--package", *name]).collect();
    build(&words)
}

/// Builds the unit tests of one package.
///
/// # Errors
/// If something does not build.
pub(crate) fn build_unit_tests(package: &str) -> Result<Vec<Program>> {
    build(&["--package", package, "--lib"])
}

fn build(which: &[&str]) -> Result<Vec<Program>> {
    let mut command = cargo(&["test", "--no-run", "--quiet"]);
    command.args(which);
    command.args(["--message-format", "json-render-diagnostics"]);
    let output = command.stderr(Stdio::inherit()).output().context("cannot run cargo")?;
    ensure!(output.status.success(), "building the tests ended with {}", output.status);
    let messages = String::from_utf8(output.stdout)?;
    let mut programs = Vec::new();
    for line in messages.lines() {
        programs.extend(program(&serde_json::from_str(line)?));
    }
    Ok(programs)
}

/// Reads one of cargo's messages, if it is of a program.
fn program(message: &Value) -> Option<Program> {
    let manifest = PathBuf::from(message["manifest_path"].as_str()?);
    Some(Program {
        name: message["target"]["name"].as_str()?.to_owned(),
        is_test: message["profile"]["test"].as_bool()?,
        package: manifest.parent()?.to_owned(),
        path: message["executable"].as_str()?.into(),
    })
}
