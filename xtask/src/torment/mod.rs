//! `cargo xtask torment`: a real guest is moved round a ring of three hosts while whatever can fail does.
//!
//! Each round begins a move, of an algorithm and with options that are drawn, and lets up to two faults strike while
//! it goes on; then everything is mended, and the guest must run in one place, whole, with nothing left anywhere else.
//! The seed decides what is drawn; when it strikes depends on the machine.

mod fault;
mod report;
mod ring;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};

use crate::{cargo, guest_image, paths, setup};
use fault::{Fault, Plan, Strike};
use report::Report;
use ring::Ring;

/// Within this time after the move was begun faults begin to strike: so long copying takes.
const STRIKES_WITHIN: Duration = Duration::from_millis(4500);
/// What is struck is mended after this at most. Longer than it takes until a guest is in doubt.
const MENDED_WITHIN: Duration = Duration::from_secs(12);

/// How long it goes on, and what is drawn.
#[derive(Debug, clap::Args)]
pub(crate) struct TormentArgs {
    /// Moves to begin
    #[arg(long, default_value_t = 100)]
    moves: u32,
    /// Decides algorithms, options, faults and when they strike
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Runs the campaign; ends at the first round after which something is wrong.
pub(crate) fn run_torment(args: &TormentArgs) -> Result<()> {
    setup::run_setup()?;
    guest_image::run_guest()?;
    campaign(&cargo::build_sterna()?, args)
}

/// As many rounds as a test may take, always the same ones.
pub(crate) fn run_short(sterna: &Path) -> Result<()> {
    campaign(sterna, &TormentArgs { moves: 6, seed: 1 })
}

fn campaign(sterna: &Path, args: &TormentArgs) -> Result<()> {
    let folder = paths::target().join("torment");
    fs::create_dir_all(&folder)?;
    let state = tempfile::Builder::new().prefix("torment").tempdir()?;
    let mut ring = Ring::new(sterna, state.path())?;
    let mut report = Report::new(args.seed);
    let ended = (1..=args.moves).try_for_each(|number| {
        let mut drawn =
            StdRng::seed_from_u64(args.seed.wrapping_mul(1_000_003) + u64::from(number));
        round(&mut ring, number, &mut drawn, &mut report)
            .with_context(|| format!("round {number} of seed {}", args.seed))
    });
    fs::write(folder.join("report.md"), report.text())?;
    println!("{}", report.text());
    if ended.is_err() {
        // Agents' logs and journals, for whoever has to find out why.
        println!("what the hosts left is in {}", state.keep().display());
    }
    ended
}

/// One move, what strikes meanwhile, and what must hold afterwards.
fn round(ring: &mut Ring, number: u32, drawn: &mut StdRng, report: &mut Report) -> Result<()> {
    let to = *ring.others().choose(drawn).context("there are other hosts")?;
    let words = options(drawn);
    let plans = Fault::plan(drawn, STRIKES_WITHIN, MENDED_WITHIN);
    let shown: Vec<_> = plans.iter().map(ToString::to_string).collect();
    println!(
        "{number}: {} → {} {} [{}]",
        ring.at().name(),
        to.name(),
        words.join(" "),
        shown.join(", ")
    );
    let began = Instant::now();
    let mut underway = ring.begin(to, &words)?;
    for (at, strike) in timeline(plans) {
        std::thread::sleep(at.saturating_sub(began.elapsed()));
        let stage = ring.stage(&underway);
        match strike {
            Strike::Begin(fault) => {
                if ring.strike(fault, &mut underway)? {
                    report.struck(fault, &stage);
                }
            }
            Strike::End(fault) => ring.mend(fault, &underway)?,
        }
    }
    let ending = ring.settle(underway)?;
    println!("   {ending} after {:.1?}", began.elapsed());
    report.ended(&ending);
    Ok(())
}

/// What strikes and is mended, in the order of time.
fn timeline(plans: Vec<Plan>) -> Vec<(Duration, Strike)> {
    let mut all = Vec::new();
    for Plan { fault, begins, ends } in plans {
        all.push((begins, Strike::Begin(fault)));
        all.extend(ends.map(|ends| (ends, Strike::End(fault))));
    }
    all.sort_by_key(|(at, _)| *at);
    all
}

fn options(drawn: &mut StdRng) -> Vec<&'static str> {
    let algorithms = ["auto", "pre-copy", "hybrid", "post-copy", "stop-and-copy", "native"];
    let algorithm = algorithms.choose(drawn).copied().unwrap_or("auto");
    let mut words = vec!["--algorithm", algorithm];
    // QEMU's own way has neither, with the guest's balloon.
    if algorithm == "native" {
        return words;
    }
    if drawn.random_bool(0.3) {
        words.push("--verify");
    }
    if drawn.random_bool(0.5) {
        words.extend(["--compress", "auto"]);
    }
    words
}
