//! `cargo xtask bench`: moves of real guests, ours and QEMU's own, side by side in one run.
//!
//! Every run boots a fresh guest, lets it work for a while (the baseline), moves it once, and
//! watches it from outside. Methods take turns run by run, so that whatever else the machine does
//! hits them alike. A move that has not ended within `--give-up-after` is recorded as given up, one
//! that failed with its reason. Results go to `target/bench`; see [`results`]. The suite `working-set`
//! records guests and moves none; see [`working_set`].

mod bound;
mod bytes;
mod interface;
mod loopback;
mod measure;
mod method;
mod monitor;
mod ours;
mod pool;
mod results;
mod scenario;
mod theirs;
mod upgrade;
mod usage;
mod working_set;

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use sterna_testkit::net::LinkRate;

use crate::{cargo, guest_image, paths, setup};
use measure::Run;
use method::{By, Kind, Method};
use ours::Asked;
use pool::{Matrix, PoolArgs};
use results::{Place, Results};
use scenario::{Scenario, ScenarioArgs};

/// What to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct BenchArgs {
    /// Suite
    #[arg(long, value_enum, default_value = "first")]
    suite: Suite,
    /// Name of the results, that of the suite if not given; earlier ones of the same name go
    #[arg(long)]
    name: Option<String>,
    /// Runs of each method in each scenario; 3 if not given, in `working-set` 1
    #[arg(long)]
    runs: Option<u32>,
    /// Links: megabits a second, or `unshaped`; may be repeated; 1000 if not given, in `first` and
    /// `custom` both, in `working-set` 150, in `bytes` 100 and both
    #[arg(long = "link")]
    links: Vec<String>,
    /// Methods; may be repeated; in `pool` all but variants if not given, in `bytes` those that
    /// differ in bytes, else sterna and qemu-pre-copy
    #[arg(long = "method", value_enum)]
    methods: Vec<Method>,
    /// Only scenarios whose name contains this; may be repeated
    #[arg(long = "only", value_name = "TEXT")]
    only: Vec<String>,
    /// Seconds after which a move that has not ended is given up
    #[arg(long, default_value_t = 60)]
    give_up_after: u64,
    /// Seconds for which the guests of `working-set` are recorded
    #[arg(long, default_value_t = 30)]
    record_for: u64,
    #[command(flatten)]
    pool: PoolArgs,
    #[command(flatten)]
    custom: ScenarioArgs,
}

/// What is measured in one go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Suite {
    /// The table of the first live move
    First,
    /// Memory alone, no link that limits
    Loopback,
    /// Guests that write more and more of what the link carries, by every algorithm; all of it takes
    /// hours, `--ratio`, `--set`, `--locality` and `--method` choose
    Pool,
    /// What holding pages back could save of guests that write more than the link carries, and what
    /// part of it each predictor reaches; computed from bitmaps of guests that are not moved
    WorkingSet,
    /// How many bytes guests need by what their pages hold and what the destination has of them
    Bytes,
    /// How long a guest stands still that gets a new hypervisor on its host; the guest is given by the options
    Upgrade,
    /// How long the interface takes to answer, and how much memory the agent has, with 500 guests; `--runs` is how often
    /// each question is asked
    Interface,
    /// One scenario, given by the options
    Custom,
}

impl Suite {
    fn name(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Loopback => "loopback",
            Self::Pool => "pool",
            Self::WorkingSet => "working-set",
            Self::Bytes => "bytes",
            Self::Upgrade => "upgrade",
            Self::Interface => "interface",
            Self::Custom => "custom",
        }
    }
}

/// A scenario on a link.
struct Case {
    scenario: Scenario,
    rate: LinkRate,
    /// As it is shown.
    link: String,
}

impl BenchArgs {
    fn links(&self) -> Vec<&str> {
        match (&self.links[..], self.suite) {
            ([], Suite::Pool) => vec!["1000"],
            ([], Suite::WorkingSet) => vec!["150"],
            ([], Suite::Bytes) => vec!["100", "1000", "unshaped"],
            ([], _) => vec!["1000", "unshaped"],
            (chosen, _) => chosen.iter().map(String::as_str).collect(),
        }
    }

    fn methods(&self) -> &[Method] {
        match (&self.methods[..], self.suite) {
            ([], Suite::Pool) => &Method::POOL,
            ([], Suite::Bytes) => &Method::BYTES,
            ([], _) => &[Method::Sterna, Method::QemuPreCopy],
            (chosen, _) => chosen,
        }
    }

    fn scenarios(&self, link: LinkRate) -> Result<Vec<Scenario>> {
        match self.suite {
            Suite::First => Ok(Scenario::first_suite()),
            Suite::Pool => self.pool.scenarios(&Matrix::POOL, &self.custom, link),
            Suite::WorkingSet => self.pool.scenarios(&Matrix::WORKING_SET, &self.custom, link),
            Suite::Bytes => bytes::scenarios(&bytes::system_disk()?),
            Suite::Custom | Suite::Upgrade => Ok(vec![self.custom.scenario()?]),
            Suite::Loopback | Suite::Interface => Ok(Vec::new()),
        }
    }

    /// Every scenario on every link.
    fn cases(&self) -> Result<Vec<Case>> {
        let mut cases = Vec::new();
        for link in self.links() {
            let rate = link_rate(link)?;
            let link =
                if rate == LinkRate::Unshaped { link.into() } else { format!("{link} Mbit/s") };
            let asked = |scenario: &Scenario| {
                self.only.is_empty() || self.only.iter().any(|text| scenario.name.contains(text))
            };
            let scenarios = self.scenarios(rate)?.into_iter().filter(asked);
            cases.extend(scenarios.map(|scenario| Case { scenario, rate, link: link.clone() }));
        }
        Ok(cases)
    }

    fn runs(&self) -> u32 {
        self.runs.unwrap_or(if self.suite == Suite::WorkingSet { 1 } else { 3 })
    }

    fn limit(&self) -> Duration {
        Duration::from_secs(self.give_up_after)
    }
}

/// Measures and prints; leaves what was seen in `target/bench`.
pub(crate) fn run_bench(args: &BenchArgs) -> Result<()> {
    setup::run_setup()?;
    guest_image::run_guest()?;
    let name = args.name.as_deref().unwrap_or(args.suite.name());
    let folder = paths::target().join("bench");
    if args.suite == Suite::WorkingSet {
        let record_for = Duration::from_secs(args.record_for);
        return working_set::measure(&args.cases()?, args.runs(), record_for, &folder, name);
    }
    if args.suite == Suite::Upgrade {
        let (program, scenario) = (cargo::build_sterna()?, args.custom.scenario()?);
        return upgrade::measure(&program, &scenario, args.runs(), &folder, name);
    }
    if args.suite == Suite::Interface {
        let programs = (cargo::build_sterna()?, cargo::build_program("sterna-stand-in")?);
        let asked = usize::try_from(args.runs.unwrap_or(1000))?;
        return interface::measure((&programs.0, &programs.1), asked, &folder, name);
    }
    let mut results = Results::begin(folder, name)?;
    match args.suite {
        Suite::Loopback => measure_loopback(args, &mut results)?,
        _ => measure_guests(args, &mut results)?,
    }
    results.finish()
}

fn link_rate(link: &str) -> Result<LinkRate> {
    if link == "unshaped" {
        return Ok(LinkRate::Unshaped);
    }
    let megabits = link.parse();
    Ok(LinkRate::megabits(megabits.with_context(|| format!("{link:?} is no link rate"))?))
}

/// Real guests, by every method on every link. Everything is run once before anything is run again:
/// a bench that is stopped has some of all.
fn measure_guests(args: &BenchArgs, results: &mut Results) -> Result<()> {
    let sterna = cargo::build_sterna()?;
    let cases = args.cases()?;
    for number in 1..=args.runs() {
        for Case { scenario, rate, link } in &cases {
            println!("\n{} over {link}", scenario.name);
            for method in args.methods() {
                let place = Place { scenario: &scenario.name, link, method: method.name() };
                let run = measure_one(*method, scenario, *rate, (&sterna, args.limit()));
                results.add(place, number, run)?;
            }
            results.write_page()?;
        }
    }
    Ok(())
}

/// One run; one that broke is a result too, and those that come after it may go well.
fn measure_one(
    method: Method,
    scenario: &Scenario,
    rate: LinkRate,
    (program, limit): (&Path, Duration),
) -> Run {
    let load = load();
    let run = match method.by() {
        By::Sterna(words) => ours::run(scenario, rate, Asked { program, words, limit }),
        By::Qemu(kind) => theirs::run(scenario, rate, kind, limit),
    };
    Run { load, ..run.unwrap_or_else(|error| Run::broken(&error)) }
}

/// The machine's load over the last minute.
fn load() -> Option<f64> {
    fs::read_to_string("/proc/loadavg").ok()?.split_whitespace().next()?.parse().ok()
}

/// Memory alone, by both engines.
fn measure_loopback(args: &BenchArgs, results: &mut Results) -> Result<()> {
    type Move = Box<dyn Fn() -> Result<Run>>;
    let program = loopback::build()?;
    let ours = |streams| {
        let program = program.clone();
        Box::new(move || loopback::ours(&program, streams)) as Move
    };
    let limit = args.limit();
    let theirs = |kind| Box::new(move || loopback::theirs(kind, limit)) as Move;
    let methods: [(&'static str, Move); 4] = [
        ("sterna, 1 stream", ours(1)),
        ("sterna, 2 streams", ours(2)),
        ("qemu pre-copy", theirs(Kind::PreCopy)),
        ("qemu multifd", theirs(Kind::Multifd)),
    ];
    println!("\n{} over {}", loopback::SCENARIO, loopback::LINK);
    for number in 1..=args.runs() {
        for (method, measure) in &methods {
            let place = Place { scenario: loopback::SCENARIO, link: loopback::LINK, method };
            let run = measure().unwrap_or_else(|error| Run::broken(&error));
            results.add(place, number, run)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_megabits_or_unshaped() {
        assert_eq!(link_rate("100").unwrap(), LinkRate::megabits(100));
        assert_eq!(link_rate("unshaped").unwrap(), LinkRate::Unshaped);
        assert!(link_rate("fast").is_err());
    }
}
