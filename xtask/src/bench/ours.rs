//! A move by Sterna.

use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use sterna_core::receipt::{Ending, RamCheck, Receipt};
use sterna_testkit::lab::{GuestPlan, Hosts, Lab, Migrated};
use sterna_testkit::net::{Host, LinkRate};
use sterna_testkit::probe::{ConsoleLog, Window};
use sterna_testkit::recorder::{Command, Line, Rate, Seed, Share};

use super::bound;
use super::measure::{BOOT_LIMIT, End, Run, Watcher, millis};
use super::scenario::{Journey, Scenario};
use super::usage::{Usage, as_float};

const GUEST: &str = "bench";
const SIBLING: &str = "sibling";
/// In how many pages siblings differ.
const OWN: Share = Share::QUARTER;
/// The seed of what the first sibling has of its own.
const SIBLINGS_SEED: u64 = 2;
/// How fast a guest rewrites its working set while it is away: as fast as an emulated one may.
const REWRITING: Rate = Rate(32 << 20);

/// How Sterna is asked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked<'a> {
    pub(crate) program: &'a Path,
    /// Words of `sterna migrate`.
    pub(crate) words: &'a [&'a str],
    /// When a move that has not ended is given up.
    pub(crate) limit: Duration,
}

/// Boots a guest, moves it, and says what was seen of the move that is measured.
pub(crate) fn run(scenario: &Scenario, rate: LinkRate, asked: Asked<'_>) -> Result<Run> {
    let folder = tempfile::tempdir()?;
    let options: &[&str] = match scenario.journey {
        Journey::Away | Journey::AfterSiblings(_) => &[],
        Journey::Back => &["--keep-images", "8GB"],
    };
    let program = (asked.program, folder.path());
    let lab = Lab::with("sterna-bo", (Hosts::Two, rate), options, program)?;
    lab.make_taps()?;
    let mut plan = GuestPlan::new(GUEST, scenario.memory, scenario.workload.clone());
    plan.more = json!({ "group": "bench" });
    if let Some(path) = &scenario.disk {
        plan.more["disks"] = json!([{ "path": path }]);
    }
    if let Journey::AfterSiblings(siblings) = scenario.journey {
        for number in 0..siblings {
            let seed = Seed(SIBLINGS_SEED + u64::from(number));
            let workload = plan.workload.clone().own(OWN, seed);
            let more = json!({ "group": "bench", "networks": null });
            let name = format!("{SIBLING}-{number}");
            sibling_goes(&lab, &GuestPlan { name, workload, more, ..plan.clone() }, asked.words)?;
        }
    }
    lab.start_guest(Host::A, &plan)?;
    let console = ConsoleLog::new();
    lab.follow_console(Host::A, GUEST, &console)?;
    let (from, to) = match scenario.journey {
        Journey::Away | Journey::AfterSiblings(_) => (Host::A, Host::B),
        Journey::Back => {
            go_away(&lab, scenario, &console, asked.words)?;
            (Host::B, Host::A)
        }
    };
    let topology = lab.topology()?;
    let (watcher, baseline) = Watcher::start(console, topology, &scenario.workload)?;
    let bound =
        scenario.bound.then(|| bound::bytes(topology.host(from)?, scenario.disk.as_deref()));
    let bound = bound.transpose()?;
    let usage = Usage::of(&[lab.agent_pid(Host::A)?, lab.agent_pid(Host::B)?])?;
    let wire_before = topology.link_bytes(from)?.sent.0;
    let following = lab.follow_arrival(to, GUEST, &watcher.console);
    let begin = Instant::now();
    let migrated = migrate(&lab, (from, to), asked)?;
    let window = Window::new(begin, Instant::now());
    let wire = topology.link_bytes(from)?.sent.0 - wire_before;
    let (cpu, resident) = usage.finish()?;
    let mut run = match migrated {
        Some(migrated) => told(migrated.receipt()?),
        None => Run::default(),
    };
    run.wire_bytes = Some(as_float(wire));
    run.bound_bytes = bound.map(as_float);
    run.agent_cpu_s = Some(cpu);
    run.agent_rss_bytes = Some(resident);
    drop(following);
    watcher.finish(baseline, window, &mut run)?;
    Ok(run)
}

/// Boots a guest and moves it from a to b, where it stays.
fn sibling_goes(lab: &Lab, sibling: &GuestPlan, words: &[&str]) -> Result<()> {
    lab.start_guest(Host::A, sibling)?;
    let console = ConsoleLog::new();
    lab.follow_console(Host::A, &sibling.name, &console)?;
    console.wait_for(0, BOOT_LIMIT, |line| matches!(line, Line::Ready { .. }))?;
    let migrated = lab.migrate(Host::A, Host::B, &sibling.name, words)?;
    ensure!(migrated.receipt()?.ending == Ending::Moved, "the sibling was not moved");
    Ok(())
}

/// Moves the guest from a to b, waits until a has kept it, and lets it rewrite its working set once.
fn go_away(lab: &Lab, scenario: &Scenario, console: &ConsoleLog, words: &[&str]) -> Result<()> {
    console.wait_for_ticks(100, BOOT_LIMIT)?;
    let following = lab.follow_arrival(Host::B, GUEST, console);
    let migrated = lab.migrate(Host::A, Host::B, GUEST, words)?;
    ensure!(migrated.receipt()?.ending == Ending::Moved, "the guest was not moved away");
    until("an image of the guest", || {
        let kept = lab.run(Host::A, &["images", "list", "--output", "json"])?;
        Ok(serde_json::from_str::<Vec<Value>>(&kept)?.len() == 1)
    })?;
    let written = || console.ticks().samples().last().map_or(0, |sample| sample.tick.written);
    let until_written = written() + u64::from(scenario.workload.working_set().pages());
    lab.type_line(Host::B, GUEST, &Command::Rate(REWRITING).to_string())?;
    until("a working set that was rewritten", || Ok(written() >= until_written))?;
    lab.type_line(Host::B, GUEST, &Command::Rate(Rate(0)).to_string())?;
    // It is followed to the next host by whoever measures.
    drop(following);
    Ok(())
}

fn until(what: &str, mut is: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + BOOT_LIMIT;
    while !is()? {
        ensure!(Instant::now() < deadline, "{what}: not within {BOOT_LIMIT:?}");
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// Moves the guest; `None` if that has not ended within the limit. The program that waits for the
/// end is left alone then: it ends with the agents of the lab.
fn migrate(lab: &Lab, (from, to): (Host, Host), asked: Asked<'_>) -> Result<Option<Migrated>> {
    let child = lab.begin_migrate(from, to, GUEST, asked.words)?;
    let (sender, ended) = mpsc::channel();
    // Nobody listens any more to an end that comes too late.
    thread::spawn(move || sender.send(Lab::finish_migrate(child)).ok());
    ended.recv_timeout(asked.limit).ok().transpose()
}

/// What the receipt says.
fn told(receipt: &Receipt) -> Run {
    let following = receipt.following;
    let waits = following.map(|following| following.waits).filter(|waits| waits.pages > 0);
    let wait = |micros: Option<u64>| Some(millis(Duration::from_micros(micros?)));
    let slowest = receipt.rounds.iter().map(|round| round.vcpus).min();
    let moved = receipt.ending == Ending::Moved;
    let foreseen = receipt.foreseen().filter(|_| moved);
    let total = receipt.total.saturating_sub(receipt.compared_for());
    let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    Run {
        end: match &receipt.ending {
            Ending::Moved => End::Moved,
            Ending::Undone { reasons } => {
                let reasons: Vec<String> = reasons.iter().map(ToString::to_string).collect();
                End::NotMoved(format!("undone: {}", reasons.join("; ")))
            }
            Ending::GuestGone { reason } => End::Broken(format!("the guest is gone: {reason}")),
            Ending::Stuck { cause, reason } => End::Broken(format!("stuck: {cause}; {reason}")),
            Ending::Lost { reason } => End::Broken(format!("lost: {reason}")),
        },
        verified: receipt.ram_digest == RamCheck::Equal,
        total_ms: moved.then(|| millis(receipt.total)),
        downtime_ms: receipt.downtime.map(|downtime| millis(downtime.total)),
        throttle_percent: slowest.map(|speed| f64::from(100 - speed.as_percent())),
        held_back_ms: Some(millis(receipt.rounds.iter().map(|round| round.held_back).sum())),
        following_ms: following.map(|following| millis(following.took)),
        waited_pages: following.map(|following| as_float(following.waits.pages)),
        wait_median_ms: wait(waits.map(|waits| waits.median_us)),
        wait_p99_ms: wait(waits.map(|waits| waits.p99_us)),
        wait_longest_ms: wait(waits.map(|waits| waits.longest_us)),
        total_error_percent: foreseen
            .and_then(|forecast| forecast.total_us.error(micros(total)))
            .map(|error| error * 100.0),
        downtime_error_percent: foreseen
            .and_then(|forecast| forecast.downtime_us.error(micros(receipt.downtime_uncompared())))
            .map(|error| error * 100.0),
        chosen: receipt.choices.iter().map(|choice| choice.method.to_string()).collect(),
        receipt: Some(receipt.clone()),
        ..Run::default()
    }
}
