//! `cargo xtask test`: everything, quick tests first.

use anyhow::Result;

use crate::cargo::{cargo, run};
use crate::lane::{self, Lane};
use crate::{guest_image, setup};

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

/// Crates whose tests need nothing but a kernel.
const QUICK: [&str; 9] = [
    "sterna-page",
    "sterna-proto",
    "sterna-core",
    "sterna-sys",
    "sterna-engine",
    "sterna-api",
    "sterna-report",
    "sterna-guest",
    "sterna-fuzz",
];

/// Crates whose tests start hypervisors, network namespaces or agents.
const REAL: [&str; 5] = ["sterna-vmm", "sterna-agent", "sterna-testkit", "sterna", "xtask"];

/// Runs the tests; the first crate that fails ends it.
pub(crate) fn run_test(args: &TestArgs) -> Result<()> {
    if let Some(lane) = args.lane {
        return lane::run_lane(lane);
    }
    setup::run_setup()?;
    println!("── tests of pure crates, tracker and engine");
    tests(&QUICK, &[])?;
    if args.quick {
        return Ok(());
    }
    guest_image::run_guest()?;
    println!("── tests with real hypervisors, hosts and guests");
    // One at a time: emulated guests share two cores as it is.
    tests(&REAL, &["--", "--test-threads", "1"])
}

fn tests(crates: &[&str], more: &[&str]) -> Result<()> {
    let mut command = cargo(&["test", "--quiet"]);
    for name in crates {
        command.args(["--package", name]);
    }
    run(command.args(more))
}
