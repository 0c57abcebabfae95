//! A move by Sterna.

use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use sterna_core::receipt::{Ending, RamCheck, Receipt};
use sterna_testkit::lab::{GuestPlan, Lab, Migrated};
use sterna_testkit::net::{Host, LinkRate};
use sterna_testkit::probe::{ConsoleLog, Window};

use super::measure::{End, Run, Watcher, millis};
use super::scenario::Scenario;
use super::usage::{Usage, as_float};

const GUEST: &str = "bench";

/// How Sterna is asked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked<'a> {
    pub(crate) program: &'a Path,
    /// Words of `sterna migrate`.
    pub(crate) words: &'a [&'a str],
    /// When a move that has not ended is given up.
    pub(crate) limit: Duration,
}

/// Boots a guest, moves it once, and says what was seen.
pub(crate) fn run(scenario: &Scenario, rate: LinkRate, asked: Asked<'_>) -> Result<Run> {
    let folder = tempfile::tempdir()?;
    let lab = Lab::in_namespaces("sterna-bo", rate, asked.program, folder.path())?;
    lab.make_taps()?;
    let plan = GuestPlan::new(GUEST, scenario.memory, scenario.workload.clone());
    lab.start_guest(Host::A, &plan)?;
    let console = ConsoleLog::new();
    lab.follow_console(Host::A, GUEST, &console)?;
    let topology = lab.topology()?;
    let (watcher, baseline) = Watcher::start(console, topology)?;
    let usage = Usage::of(&[lab.agent_pid(Host::A)?, lab.agent_pid(Host::B)?])?;
    let wire_before = topology.link_bytes(Host::A)?.sent.0;
    let following = lab.follow_arrival(Host::B, GUEST, &watcher.console);
    let begin = Instant::now();
    let migrated = migrate(&lab, asked)?;
    let window = Window::new(begin, Instant::now());
    let wire = topology.link_bytes(Host::A)?.sent.0 - wire_before;
    let (cpu, resident) = usage.finish()?;
    let mut run = match migrated {
        Some(migrated) => told(migrated.receipt()?),
        None => Run::default(),
    };
    run.wire_bytes = Some(as_float(wire));
    run.agent_cpu_s = Some(cpu);
    run.agent_rss_bytes = Some(resident);
    drop(following);
    watcher.finish(baseline, window, &mut run)?;
    Ok(run)
}

/// Moves the guest; `None` if that has not ended within the limit. The program that waits for the
/// end is left alone then: it ends with the agents of the lab.
fn migrate(lab: &Lab, asked: Asked<'_>) -> Result<Option<Migrated>> {
    let child = lab.begin_migrate(Host::A, Host::B, GUEST, asked.words)?;
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
