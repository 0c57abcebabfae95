//! `cargo xtask bench`: moves of real guests, ours and QEMU's own, side by side in one run.
//!
//! Every run boots a fresh guest, lets it work for a while (the baseline), moves it once, and
//! watches it from outside. Methods take turns run by run, so that whatever else the machine does
//! hits them alike. Results go to `target/bench/SUITE.json`.

mod loopback;
mod measure;
mod monitor;
mod ours;
mod scenario;
mod theirs;
mod usage;

use std::fs;

use anyhow::{Context, Result};
use serde::Serialize;
use sterna_testkit::net::LinkRate;

use crate::{cargo, guest_image, paths, setup};
use measure::Run;
use monitor::Channels;
use scenario::{Scenario, ScenarioArgs};

/// What to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct BenchArgs {
    /// Suite: `first`, `loopback` (memory alone, no link that limits), or `custom` for a scenario
    /// given by the options below
    #[arg(long, default_value = "first")]
    suite: String,
    /// Runs of each method in each scenario
    #[arg(long, default_value_t = 3)]
    runs: u32,
    /// Links: megabits a second, or `unshaped`; may be repeated
    #[arg(long = "link", default_values = ["1000", "unshaped"])]
    links: Vec<String>,
    /// Methods; may be repeated
    #[arg(long = "method", value_enum, default_values = ["sterna", "qemu-pre-copy"])]
    methods: Vec<Method>,
    #[command(flatten)]
    custom: ScenarioArgs,
}

/// How a guest is moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Method {
    /// Sterna's pre-copy, two streams, TLS
    Sterna,
    /// The same, with all RAM compared before the guest resumes
    SternaVerified,
    /// QEMU's pre-copy, no limit of bandwidth, no compression, no TLS
    QemuPreCopy,
    /// QEMU's multifd with two channels, no limit of bandwidth, no compression, no TLS
    QemuMultifd,
}

impl Method {
    fn name(self) -> &'static str {
        match self {
            Self::Sterna => "sterna pre-copy",
            Self::SternaVerified => "sterna pre-copy verified",
            Self::QemuPreCopy => "qemu pre-copy",
            Self::QemuMultifd => "qemu multifd",
        }
    }
}

/// Median, least and greatest of the runs that have a value.
#[derive(Clone, Copy, Debug, Serialize)]
struct Spread {
    median: f64,
    min: f64,
    max: f64,
}

/// One scenario on one link by one method.
#[derive(Debug, Serialize)]
struct Row {
    scenario: String,
    link: String,
    method: &'static str,
    runs: usize,
    /// Runs in which the guest was moved.
    moved: usize,
    /// Runs whose RAM digests were compared and equal.
    verified: usize,
    total_ms: Option<Spread>,
    downtime_ms: Option<Spread>,
    gap_udp_ms: Option<Spread>,
    gap_tick_ms: Option<Spread>,
    wire_bytes: Option<Spread>,
    lost_work_ms: Option<Spread>,
    agent_cpu_s: Option<Spread>,
    agent_rss_bytes: Option<Spread>,
}

/// Measures and prints; leaves the rows in `target/bench`.
pub(crate) fn run_bench(args: &BenchArgs) -> Result<()> {
    setup::run_setup()?;
    guest_image::run_guest()?;
    let rows = match args.suite.as_str() {
        "first" => measure_guests(args, &Scenario::first_suite())?,
        "custom" => measure_guests(args, &[args.custom.scenario()?])?,
        "loopback" => measure_loopback(args.runs)?,
        other => anyhow::bail!("there is no suite {other:?}: first, loopback and custom are there"),
    };
    let folder = paths::target().join("bench");
    fs::create_dir_all(&folder)?;
    let file = folder.join(format!("{}.json", args.suite));
    fs::write(&file, serde_json::to_vec_pretty(&rows)?)?;
    println!("\n{} rows in {}", rows.len(), file.display());
    Ok(())
}

fn link_rate(link: &str) -> Result<LinkRate> {
    if link == "unshaped" {
        return Ok(LinkRate::Unshaped);
    }
    let megabits = link.parse();
    Ok(LinkRate::megabits(megabits.with_context(|| format!("{link:?} is no link rate"))?))
}

/// Real guests, by every method on every link.
fn measure_guests(args: &BenchArgs, scenarios: &[Scenario]) -> Result<Vec<Row>> {
    let sterna = cargo::build_sterna()?;
    let mut rows = Vec::new();
    for link in &args.links {
        let rate = link_rate(link)?;
        for scenario in scenarios {
            rows.extend(measure_cell(args, scenario, (link, rate), &sterna)?);
        }
    }
    Ok(rows)
}

/// Memory alone, by both engines.
fn measure_loopback(count: u32) -> Result<Vec<Row>> {
    type Move = Box<dyn Fn() -> Result<Run>>;
    let program = loopback::build()?;
    let ours = |streams| {
        let program = program.clone();
        Box::new(move || loopback::ours(&program, streams)) as Move
    };
    let methods: [(&'static str, Move); 4] = [
        ("sterna, 1 stream", ours(1)),
        ("sterna, 2 streams", ours(2)),
        ("qemu pre-copy", Box::new(|| loopback::theirs(Channels::One))),
        ("qemu multifd", Box::new(|| loopback::theirs(Channels::Two))),
    ];
    println!("\n{} over {}", loopback::SCENARIO, loopback::LINK);
    let mut runs = methods.each_ref().map(|_| Vec::new());
    for number in 1..=count {
        for ((name, measure), runs) in methods.iter().zip(&mut runs) {
            let run = measure().with_context(|| (*name).to_owned())?;
            println!("  {number} {name:24} {}", run.line());
            runs.push(run);
        }
    }
    let rows = methods.iter().zip(&runs);
    Ok(rows.map(|((name, _), runs)| row(loopback::SCENARIO, loopback::LINK, name, runs)).collect())
}

/// All methods on one scenario and link, taking turns.
fn measure_cell(
    args: &BenchArgs,
    scenario: &Scenario,
    (link, rate): (&str, LinkRate),
    sterna: &std::path::Path,
) -> Result<Vec<Row>> {
    println!("\n{} over {link}", scenario.name);
    let mut runs: Vec<Vec<Run>> = args.methods.iter().map(|_| Vec::new()).collect();
    for number in 1..=args.runs {
        for (method, runs) in args.methods.iter().zip(&mut runs) {
            let run = match method {
                Method::Sterna => ours::run(scenario, rate, sterna, &[]),
                Method::SternaVerified => ours::run(scenario, rate, sterna, &["--verify"]),
                Method::QemuPreCopy => theirs::run(scenario, rate, Channels::One),
                Method::QemuMultifd => theirs::run(scenario, rate, Channels::Two),
            };
            let run = run.with_context(|| format!("{} of {}", method.name(), scenario.name))?;
            println!("  {number} {:24} {}", method.name(), run.line());
            runs.push(run);
        }
    }
    let link = if link == "unshaped" { link.into() } else { format!("{link} Mbit/s") };
    let rows = args.methods.iter().zip(&runs);
    Ok(rows.map(|(method, runs)| row(&scenario.name, &link, method.name(), runs)).collect())
}

fn row(scenario: &str, link: &str, method: &'static str, runs: &[Run]) -> Row {
    let spread = |value: fn(&Run) -> Option<f64>| spread(runs.iter().filter_map(value).collect());
    Row {
        scenario: scenario.into(),
        link: link.into(),
        method,
        runs: runs.len(),
        moved: runs.iter().filter(|run| run.moved).count(),
        verified: runs.iter().filter(|run| run.verified).count(),
        total_ms: spread(|run| run.total_ms),
        downtime_ms: spread(|run| run.downtime_ms),
        gap_udp_ms: spread(|run| run.gap_udp_ms),
        gap_tick_ms: spread(|run| run.gap_tick_ms),
        wire_bytes: spread(|run| run.wire_bytes),
        lost_work_ms: spread(|run| run.lost_work_ms),
        agent_cpu_s: spread(|run| run.agent_cpu_s),
        agent_rss_bytes: spread(|run| run.agent_rss_bytes),
    }
}

fn spread(mut values: Vec<f64>) -> Option<Spread> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let median = match values.len() {
        0 => return None,
        odd if odd % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    };
    Some(Spread { median, min: *values.first()?, max: *values.last()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_count_lies_between_the_middle_two() {
        let found = spread(vec![4.0, 1.0, 3.0, 2.0]).unwrap();
        assert!((found.median - 2.5).abs() < 1e-9 && found.min < 1.5 && found.max > 3.5);
        assert!((spread(vec![7.0]).unwrap().median - 7.0).abs() < 1e-9);
        assert!(spread(vec![]).is_none(), "no value is not zero");
    }

    #[test]
    fn a_link_is_megabits_or_unshaped() {
        assert_eq!(link_rate("100").unwrap(), LinkRate::megabits(100));
        assert_eq!(link_rate("unshaped").unwrap(), LinkRate::Unshaped);
        assert!(link_rate("fast").is_err());
    }
}
