//! `cargo xtask test`: everything, quick tests first.

use std::process::Command;

use anyhow::{Context as _, Result};

use crate::cargo::{Program, build_tests, cargo, run};
use crate::lane::{self, Lane};
use crate::{fuzz_interface, guest_image, setup, torment};

/// Which tests to run.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct TestArgs {
    /// Stop before the tests with real guests
    #[arg(long)]
    quick: bool,
    /// Instead run what needs KVM, inside a machine that is emulated with it
    #[arg(long, value_enum, conflicts_with = "quick")]
    lane: Option<Lane>,
}

/// Packages whose tests start hypervisors, network namespaces or agents, by their folders. Those of all
/// others need nothing but a kernel.
const REAL: [&str; 5] = ["sterna-vmm", "sterna-agent", "sterna-testkit", "sterna", "xtask"];

/// Runs the tests; the first crate that fails ends it.
pub(crate) fn run_test(args: &TestArgs) -> Result<()> {
    if let Some(lane) = args.lane {
        return lane::run_lane(lane);
    }
    setup::run_setup()?;
    println!("── building all tests");
    let mut tests = build_tests()?;
    let sterna = tests.iter().find(|program| !program.is_test && program.name == "sterna");
    let sterna = sterna.context("no `sterna` was built")?.path.clone();
    tests.retain(|program| program.is_test);
    // Cargo builds side by side and tells in the order in which it is done.
    tests.sort_by(|a, b| (place(a), &a.path).cmp(&(place(b), &b.path)));
    let (real, quick): (Vec<_>, Vec<_>) = tests.iter().partition(|test| place(test).is_some());
    println!("── tests of pure crates, tracker and engine");
    quick.into_iter().try_for_each(|test| run_one(test, &[]))?;
    run(&mut cargo(&["test", "--workspace", "--doc", "--quiet"]))?;
    if args.quick {
        return Ok(());
    }
    guest_image::run_guest()?;
    println!("── tests with real hypervisors, hosts and guests");
    // One at a time: emulated guests share two cores as it is.
    real.into_iter().try_for_each(|test| run_one(test, &["--test-threads", "1"]))?;
    println!("── whatever can be asked of an agent");
    fuzz_interface::fuzz(&tests, &fuzz_interface::FuzzInterfaceArgs::default())?;
    println!("── a guest that is moved while whatever can fail does");
    torment::run_short(&sterna)
}

/// The place of a test's package among those that need more than a kernel.
fn place(test: &Program) -> Option<usize> {
    let folder = test.package.file_name()?;
    REAL.iter().position(|name| folder == *name)
}

/// Runs one program of tests, from where cargo would.
fn run_one(test: &Program, arguments: &[&str]) -> Result<()> {
    let package = test.package.file_name().unwrap_or_default().to_string_lossy();
    println!("{package}: {}", test.name);
    let mut command = Command::new(&test.path);
    run(command.current_dir(&test.package).args(arguments).arg("--quiet"))
}
