//! A move by Sterna.

use std::path::Path;
use std::time::Instant;

use anyhow::Result;
use sterna_core::receipt::{Ending, RamCheck};
use sterna_testkit::lab::{GuestPlan, Lab};
use sterna_testkit::net::{Host, LinkRate};
use sterna_testkit::probe::{ConsoleLog, Window};

use super::measure::{Run, Watcher, millis};
use super::scenario::Scenario;
use super::usage::Usage;

const GUEST: &str = "bench";

/// Boots a guest, moves it once, and says what was seen.
pub(crate) fn run(
    scenario: &Scenario,
    rate: LinkRate,
    sterna: &Path,
    more: &[&str],
) -> Result<Run> {
    let folder = tempfile::tempdir()?;
    let lab = Lab::in_namespaces("sterna-bo", rate, sterna, folder.path())?;
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
    // A guest that cannot converge shall be moved all the same: that is what is measured.
    let words = [&["--when-stuck", "stop-and-copy"], more].concat();
    let begin = Instant::now();
    let migrated = lab.migrate(Host::A, Host::B, GUEST, &words)?;
    let window = Window::new(begin, Instant::now());
    let wire = topology.link_bytes(Host::A)?.sent.0 - wire_before;
    let (cpu, resident) = usage.finish()?;
    let receipt = migrated.receipt()?;
    let mut run = Run {
        moved: receipt.ending == Ending::Moved,
        verified: receipt.ram_digest == RamCheck::Equal,
        total_ms: Some(millis(receipt.total)),
        downtime_ms: receipt.downtime.map(|downtime| millis(downtime.total)),
        wire_bytes: Some(f64::from(u32::try_from(wire / 1024)?) * 1024.0),
        agent_cpu_s: Some(cpu),
        agent_rss_bytes: Some(resident),
        ..Run::default()
    };
    drop(following);
    watcher.finish(baseline, window, &mut run)?;
    Ok(run)
}
