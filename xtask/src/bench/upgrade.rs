//! How long a guest stands still when it gets a new hypervisor on its host.
//!
//! One guest boots and is given one new hypervisor after another, each compared in three ways: what the agent tells, the
//! longest time without a tick on its console, and the longest time without an answer over its network. Of each upgrade
//! there is a row:
//!
//! ```text
//! target/bench/NAME.json   all rows
//! ```

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use serde_json::Value;
use sterna_testkit::lab::{GUEST_ADDRESS, GuestPlan, Hosts, Lab};
use sterna_testkit::net::{Host, LinkRate};
use sterna_testkit::probe::{ConsoleLog, UdpEcho, Window};
use sterna_testkit::recorder::{Command, Line};

use super::measure::{BOOT_LIMIT, millis};
use super::scenario::Scenario;

const GUEST: &str = "bench";
/// How long the guest is watched before an upgrade and after it.
const AROUND: Duration = Duration::from_secs(2);

/// What one upgrade showed.
#[derive(Debug, Serialize)]
struct Row {
    number: u32,
    told_ms: f64,
    gap_tick_ms: f64,
    gap_udp_ms: f64,
    /// The longest time without a tick while nothing was done to the guest.
    usual_gap_tick_ms: f64,
    lost_datagrams: usize,
    load: Option<f64>,
}

/// Upgrades a guest so many times, and leaves what was seen in `folder`.
///
/// # Errors
/// If an upgrade failed, or the guest is not well afterwards.
pub(crate) fn measure(
    program: &Path,
    scenario: &Scenario,
    runs: u32,
    folder: &Path,
    name: &str,
) -> Result<()> {
    fs::create_dir_all(folder)?;
    let runtime = tempfile::tempdir()?;
    let hosts = (Hosts::Two, LinkRate::Unshaped);
    let lab = Lab::with("sterna-bu", hosts, &[], (program, runtime.path()))?;
    lab.make_taps()?;
    let plan = GuestPlan::new(GUEST, scenario.memory, scenario.workload.clone());
    lab.start_guest(Host::A, &plan)?;
    let console = ConsoleLog::new();
    lab.follow_console(Host::A, GUEST, &console)?;
    console.wait_for(0, BOOT_LIMIT, |line| matches!(line, Line::Ready { .. }))?;
    let mut rows = Vec::new();
    for number in 1..=runs {
        let row = upgrade(&lab, &console, number)?;
        println!("{row:?}");
        rows.push(row);
        fs::write(folder.join(format!("{name}.json")), serde_json::to_vec_pretty(&rows)?)?;
    }
    let skip = console.lines().len();
    lab.type_line(Host::A, GUEST, &Command::Check.to_string())?;
    let checked = console.wait_for(skip, BOOT_LIMIT, |l| matches!(l, Line::Checked { .. }))?;
    ensure!(matches!(checked, Line::Checked { wrong: 0, .. }), "the guest says {checked:?}");
    Ok(())
}

fn upgrade(lab: &Lab, console: &ConsoleLog, number: u32) -> Result<Row> {
    let load = super::load();
    let echo = UdpEcho::start(lab.topology()?.client(), GUEST_ADDRESS, UdpEcho::PERIOD)?;
    let watched = Instant::now();
    thread::sleep(AROUND);
    let begin = Instant::now();
    let told = lab.run(Host::A, &["vm", "upgrade", GUEST, "--output", "json"])?;
    thread::sleep(AROUND);
    let window = Window::new(begin, Instant::now());
    let log = echo.finish()?;
    let told: Value = serde_json::from_str(&told)?;
    let gap_us = told["gap_us"].as_u64().context("no gap is told")?;
    let gap = |window| console.ticks().longest_gap(window);
    Ok(Row {
        number,
        told_ms: millis(Duration::from_micros(gap_us)),
        gap_tick_ms: millis(gap(window)),
        gap_udp_ms: millis(log.longest_gap(window)),
        usual_gap_tick_ms: millis(gap(Window::new(watched, begin))),
        lost_datagrams: log.lost(window),
        load,
    })
}
