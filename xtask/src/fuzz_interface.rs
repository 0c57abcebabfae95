//! `cargo xtask fuzz-interface`: schemathesis asks an agent for whatever `docs/openapi.json` allows and forbids.
//!
//! The agent is that of `sterna-agent`'s tests, with a hypervisor that starts nothing. Both run in a network of their
//! own, so that no host is called whose name or address was made up.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::cargo::{Program, build_unit_tests, run};
use crate::host;
use crate::packages::Apt;
use crate::paths;

/// What is installed by pip.
const REQUIREMENTS: &str = include_str!("../schemathesis/requirements.txt");
/// The test that serves.
const TEST: &str = "server::tests::served::a_command_that_asks_for_anything_ends_well";

/// A file that is made once the test has run the command that it was given.
const ASKED: &str = "asked";

/// For how long, and what is asked for.
#[derive(Debug, clap::Args)]
pub(crate) struct FuzzInterfaceArgs {
    /// How long to go on, in seconds
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// Decides what is asked for; drawn if it is not given
    #[arg(long)]
    seed: Option<u32>,
}

impl Default for FuzzInterfaceArgs {
    /// As part of all tests: always the same, so that no change fails for what was there before it.
    fn default() -> Self {
        Self { seconds: 60, seed: Some(1) }
    }
}

/// Builds the agent's tests and fuzzes the interface.
pub(crate) fn run_fuzz_interface(args: &FuzzInterfaceArgs) -> Result<()> {
    fuzz(&build_unit_tests("sterna-agent")?, args)
}

/// Fuzzes the interface, by one of these tests.
///
/// # Errors
/// If an answer was not as the document says; it has then been printed.
pub(crate) fn fuzz(tests: &[Program], args: &FuzzInterfaceArgs) -> Result<()> {
    let program = ensure_installed()?;
    let is_agent = |test: &&Program| test.is_test && test.name == "sterna_agent";
    let agent = tests.iter().find(is_agent).context("no test of the agent was built")?;
    let FuzzInterfaceArgs { seconds, seed } = *args;
    let seed = seed.unwrap_or_else(rand::random);
    let again = format!("cargo xtask fuzz-interface --seconds {seconds} --seed {seed}");
    println!("seed {seed}");
    let mut command = within_own_network();
    command.arg(&agent.path).args(["--ignored", "--exact", TEST, "--nocapture", "--quiet"]);
    command.env("STERNA_SERVE_FOR", asking(&program, seconds, seed)).env("RUST_BACKTRACE", "0");
    // A test of another name would be no test, and none that fails.
    let asked = folder().join(ASKED);
    let _was_there = fs::remove_file(&asked);
    let status = command.current_dir(&agent.package).status().context("cannot run unshare")?;
    ensure!(status.success(), "the interface is not as docs/openapi.json says; repeat by {again}");
    ensure!(asked.exists(), "nothing was asked: {TEST} is no test of the agent");
    Ok(())
}

/// What the shell runs that finds the interface at `$URL`.
fn asking(program: &Path, seconds: u32, seed: u32) -> String {
    let (folder, workspace) = (folder(), paths::workspace());
    format!(
        "cd '{}' && touch {ASKED} && exec '{}' --config-file '{}' run '{}' --url \"$URL\" --max-time {seconds} --seed {seed}",
        folder.display(),
        program.display(),
        workspace.join("xtask/schemathesis/schemathesis.toml").display(),
        workspace.join("docs/openapi.json").display(),
    )
}

/// A command to which a program is added that then sees a network with nobody else in it.
fn within_own_network() -> Command {
    let mut command = Command::new("unshare");
    if !host::is_root() {
        command.arg("--map-root-user");
    }
    command.args(["--net", "sh", "-c", "ip link set lo up && exec \"$@\"", "sh"]);
    command
}

fn folder() -> PathBuf {
    paths::target().join("schemathesis")
}

/// Installs schemathesis where it is not; returns the program.
///
/// # Errors
/// If Python or pip fail.
pub(crate) fn ensure_installed() -> Result<PathBuf> {
    let folder = folder();
    let (program, installed) = (folder.join("bin/schemathesis"), folder.join("installed.txt"));
    if program.exists() && fs::read_to_string(&installed).is_ok_and(|text| text == REQUIREMENTS) {
        return Ok(program);
    }
    println!("installing schemathesis into {}", folder.display());
    ensure_python()?;
    run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder))?;
    let requirements = paths::workspace().join("xtask/schemathesis/requirements.txt");
    let mut pip = Command::new(folder.join("bin/python"));
    pip.args(["-m", "pip", "install", "--quiet", "--requirement"]).arg(requirements);
    run(&mut pip)
        .context("schemathesis comes from PyPI, or from a mirror that PIP_INDEX_URL names")?;
    fs::write(&installed, REQUIREMENTS)?;
    Ok(program)
}

/// Debian has what a virtual environment needs in a package of its own.
fn ensure_python() -> Result<()> {
    let found = Command::new("python3").args(["-c", "import ensurepip, venv"]).output();
    if found.is_ok_and(|output| output.status.success()) {
        return Ok(());
    }
    ensure!(host::is_root(), "python3 with venv is missing: sudo apt-get install python3-venv");
    Apt::new()?.install(&["python3-venv"], None)
}
