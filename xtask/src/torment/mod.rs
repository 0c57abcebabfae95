//! `cargo xtask torment`: a guest is moved round a ring of three hosts while whatever can fail does.
//!
//! Each round begins a move, of an algorithm and with options that are drawn, and lets up to two faults strike while
//! it goes on; then everything is mended, and the guest must run in one place, whole, with nothing left anywhere else.
//! The seed decides what is drawn; when it strikes depends on the machine.
//!
//! The guest is a real one, emulated by QEMU, or a synthetic one in a program that passes for QEMU (`sterna-stand-in`): that one
//! moves within a fraction of a second, so a thousand of its moves take no longer than a hundred real ones.

mod clocks;
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

/// What is moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Kind {
    /// A Linux guest, in QEMU
    Real,
    /// Threads that write and check memory, in a program that passes for QEMU
    Synthetic,
}

impl Kind {
    /// Within this time after the move was begun faults begin to strike: so long it takes.
    fn strikes_within(self) -> Duration {
        match self {
            Self::Real => Duration::from_millis(4500),
            Self::Synthetic => Duration::from_millis(600),
        }
    }

    /// What is struck is mended after this at most. Of a real guest that is longer than it takes until it is in doubt.
    fn mended_within(self) -> Duration {
        match self {
            Self::Real => Duration::from_secs(12),
            Self::Synthetic => Duration::from_secs(4),
        }
    }

    fn algorithms(self) -> &'static [&'static str] {
        let all = &["auto", "pre-copy", "hybrid", "post-copy", "stop-and-copy", "native"];
        match self {
            Self::Real => all,
            // What passes for QEMU cannot migrate RAM by itself.
            Self::Synthetic => &all[..5],
        }
    }
}

/// How long it goes on, and what is drawn.
#[derive(Debug, clap::Args)]
pub(crate) struct TormentArgs {
    /// Moves to begin
    #[arg(long, default_value_t = 100)]
    moves: u32,
    /// Decides algorithms, options, faults and when they strike
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// What is moved
    #[arg(long, value_enum, default_value = "real")]
    guest: Kind,
}

/// Runs the campaign; ends at the first round after which something is wrong.
pub(crate) fn run_torment(args: &TormentArgs) -> Result<()> {
    setup::run_setup()?;
    guest_image::run_guest()?;
    let sterna = cargo::build_sterna()?;
    let hypervisor = match args.guest {
        Kind::Real => None,
        Kind::Synthetic => Some(cargo::build_program("sterna-stand-in")?),
    };
    campaign(&sterna, hypervisor.as_deref(), args)
}

/// As many rounds as a test may take, always the same ones.
pub(crate) fn run_short(sterna: &Path) -> Result<()> {
    campaign(sterna, None, &TormentArgs { moves: 6, seed: 1, guest: Kind::Real })
}

fn campaign(sterna: &Path, hypervisor: Option<&Path>, args: &TormentArgs) -> Result<()> {
    let folder = paths::target().join("torment");
    fs::create_dir_all(&folder)?;
    let state = tempfile::Builder::new().prefix("torment").tempdir()?;
    let mut ring = Ring::new(sterna, hypervisor, state.path())?;
    let mut report = Report::new(args.seed);
    let ended = (1..=args.moves).try_for_each(|number| {
        let mut drawn =
            StdRng::seed_from_u64(args.seed.wrapping_mul(1_000_003) + u64::from(number));
        round(&mut ring, number, (args.guest, &mut drawn), &mut report)
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
fn round(
    ring: &mut Ring,
    number: u32,
    (kind, drawn): (Kind, &mut StdRng),
    report: &mut Report,
) -> Result<()> {
    let to = *ring.others().choose(drawn).context("there are other hosts")?;
    let words = options(kind, drawn);
    let plans = Fault::plan(drawn, kind.strikes_within(), kind.mended_within());
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

fn options(kind: Kind, drawn: &mut StdRng) -> Vec<&'static str> {
    let algorithm = kind.algorithms().choose(drawn).copied().unwrap_or("auto");
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
