//! `cargo xtask ci`: formatting, lints, licences, documentation, and all tests.

use std::process::Command;

use anyhow::Result;

use crate::cargo::{cargo, run};
use crate::{setup, test};

/// Runs every check; the first that fails ends it.
pub(crate) fn run_ci() -> Result<()> {
    setup::run_setup()?;
    step("format");
    run(&mut cargo(&["fmt", "--all", "--check"]))?;
    step("lints");
    let lints = ["clippy", "--workspace", "--all-targets", "--quiet", "--", "--deny", "warnings"];
    run(&mut cargo(&lints))?;
    step("documentation");
    let mut doc = cargo(&["doc", "--workspace", "--no-deps", "--quiet"]);
    run(doc.env("RUSTDOCFLAGS", "--deny warnings"))?;
    licences()?;
    test::run_test(&test::TestArgs::default())
}

/// Licences, bans and sources of dependencies; skipped, aloud, where cargo-deny is not installed.
fn licences() -> Result<()> {
    step("dependencies");
    let found = Command::new("cargo-deny").arg("--version").output();
    if !found.is_ok_and(|output| output.status.success()) {
        println!("skipped: cargo-deny is not installed (cargo install --locked cargo-deny)");
        return Ok(());
    }
    run(&mut cargo(&["deny", "check", "licenses", "bans", "sources"]))
}

fn step(name: &str) {
    println!("── {name}");
}
