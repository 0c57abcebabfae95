//! `cargo xtask compat`: agents of an earlier commit and of this one, with real guests.
//!
//! Whoever upgrades hosts one by one has both for a while, and may have to go back. So there are two builds of the program,
//! `old` and `new`, each with its own commands, and two hosts that have the one or the other:
//!
//! ```text
//! moves       a: old   b: new     a guest there and back, by each algorithm
//! restarts    a: old → new → old  under a guest that runs, which is then given a new hypervisor, and moved
//! midst       both: old → new, and back, at either end of a move that is copying, being committed, or followed by pages
//! ```
//!
//! After each step the guest runs in one place, is listed there by both programs, finds all its memory as it wrote it, and
//! has lived one life. An old agent may refuse the journal of a new one, if it says so and nothing is lost.

mod midst;
mod moves;
mod pair;
mod releases;
mod restarts;

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use sterna_testkit::net::namespaces_allowed;

use crate::{guest_image, setup};
use midst::{Midst, Side, Stage};
use pair::{Ended, Pair};
use releases::Releases;

/// What is compared with what is here.
#[derive(Debug, clap::Args)]
pub(crate) struct CompatArgs {
    /// The earlier commit: mostly the last release
    #[arg(long, value_name = "REVISION", default_value = "HEAD~1")]
    base: String,
    /// Only trials whose names contain this
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
}

/// One guest, from its start to its end.
#[derive(Clone, Copy, Debug)]
enum Trial {
    Moves,
    Restarts(Ended),
    Midst(Midst),
}

impl Trial {
    fn all() -> Vec<Self> {
        let restarts = [Ended::Orderly, Ended::Killed].map(Self::Restarts);
        let midst = Stage::ALL.into_iter().flat_map(|stage| {
            Side::BOTH.map(|side| Self::Midst(Midst { stage, side, ended: Ended::Killed }))
        });
        let orderly = Midst { stage: Stage::Copying, side: Side::Source, ended: Ended::Orderly };
        let all = std::iter::once(Self::Moves).chain(restarts).chain(midst);
        all.chain([Self::Midst(orderly)]).collect()
    }

    fn name(self) -> String {
        match self {
            Self::Moves => "moves between an old agent and a new one".into(),
            Self::Restarts(ended) => format!("restarts under a guest, the agent {ended}"),
            Self::Midst(Midst { stage, side, ended }) => {
                format!("midst of a move, {stage}, the {side}'s agent {ended}")
            }
        }
    }

    fn run(self, releases: &Releases) -> Result<()> {
        match self {
            Self::Moves => moves::run(Pair::with_guest(releases, &pair::small())?),
            Self::Restarts(ended) => {
                restarts::run(Pair::with_guest(releases, &pair::small())?, ended)
            }
            Self::Midst(midst) => midst.run(Pair::with_guest(releases, &midst.stage.guest())?),
        }
    }
}

/// Runs all trials; the first that fails ends it.
///
/// # Errors
/// If a program cannot be built or a trial fails.
pub(crate) fn run_compat(args: &CompatArgs) -> Result<()> {
    setup::run_setup()?;
    guest_image::run_guest()?;
    namespaces_allowed().context("two hosts on this machine take network namespaces")?;
    let releases = Releases::build(&args.base)?;
    let trials = Trial::all().into_iter().filter(|trial| trial.name().contains(&args.only));
    let trials: Vec<Trial> = trials.collect();
    ensure!(!trials.is_empty(), "no trial's name contains {:?}", args.only);
    let began = Instant::now();
    for (number, trial) in trials.iter().enumerate() {
        println!("── {}/{}: {}", number + 1, trials.len(), trial.name());
        let began = Instant::now();
        trial.run(&releases).with_context(|| trial.name())?;
        println!("   passed after {:.0?}", began.elapsed());
    }
    println!("{} and this one go together: {:.0?}", releases.base, began.elapsed());
    Ok(())
}
