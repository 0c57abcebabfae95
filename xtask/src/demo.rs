//! `cargo xtask demo`: a real guest moves between two hosts on this machine, and back.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use sterna_core::receipt::{Ending, Receipt};
use sterna_report::{About, Measured, MoveReport};
use sterna_testkit::lab::{GUEST_ADDRESS, GuestPlan, Lab, Place};
use sterna_testkit::net::{Host, LinkRate};
use sterna_testkit::probe::{ConsoleLog, UdpEcho, Window};
use sterna_testkit::recorder::{Bytes, Line, Rate, Workload};

use crate::{cargo, guest_image, paths, setup};

const GUEST: &str = "demo";
const MIB: u64 = 1 << 20;

/// How long an emulated guest may take to boot and to fill its memory.
const BOOT_LIMIT: Duration = Duration::from_secs(120);
/// How long the guest is watched before and after each move.
const QUIET: Duration = Duration::from_secs(3);

/// Runs the demo; leaves `receipts.json` and `report.html` in `target/demo`.
pub(crate) fn run_demo() -> Result<()> {
    setup::run_setup()?;
    guest_image::run_guest()?;
    let sterna = cargo::build_sterna()?;
    let folder = paths::target().join("demo");
    fs::create_dir_all(&folder)?;
    let state = tempfile::tempdir()?;

    println!("two hosts, a and b, joined by a link of 1 Gbit/s; an agent on each");
    let lab = Lab::anywhere("sterna-demo", LinkRate::megabits(1000), &sterna, state.path())?;
    lab.make_taps()?;
    let console = ConsoleLog::new();
    start_guest(&lab, &console)?;
    let echo = match &lab.place {
        Place::Namespaces(topology) => {
            Some(UdpEcho::start(topology.client(), GUEST_ADDRESS, UdpEcho::PERIOD)?)
        }
        Place::Loopback => None,
    };
    let mut moves = Vec::new();
    for (from, to) in [(Host::A, Host::B), (Host::B, Host::A)] {
        std::thread::sleep(QUIET);
        let _following = lab.follow_arrival(to, GUEST, &console);
        moves.push(one_move(&lab, from, to)?);
    }
    std::thread::sleep(QUIET);
    let reports = measured(moves, &console, echo)?;
    let complaints = console.complaints();
    drop(lab);
    write(&folder, &reports)?;
    for line in &complaints {
        println!("the guest complains: {line:?}");
    }
    let wrong = reports.iter().any(|report| report.receipt.ending != Ending::Moved);
    if wrong || !complaints.is_empty() {
        bail!("the demo did not go as it should; see {}", folder.display());
    }
    println!("the guest found no wrong byte; report: {}", folder.join("report.html").display());
    Ok(())
}

fn start_guest(lab: &Lab, console: &ConsoleLog) -> Result<()> {
    println!("a guest of 1 GiB: 512 MiB in use, 50 MB/s written over 256 MiB of it");
    let workload = Workload::new(Bytes(512 * MIB)).rewrite(Bytes(256 * MIB), Rate(50_000_000));
    lab.start_guest(Host::A, &GuestPlan::new(GUEST, Bytes(1024 * MIB), workload))?;
    lab.follow_console(Host::A, GUEST, console)?;
    console.wait_for(0, BOOT_LIMIT, |line| matches!(line, Line::Ready { .. }))?;
    console.wait_for_ticks(100, BOOT_LIMIT)
}

/// A move and when it happened.
struct Moved {
    receipt: Receipt,
    window: Window,
}

/// Moves the guest with the program's own progress bar on this terminal.
fn one_move(lab: &Lab, from: Host, to: Host) -> Result<Moved> {
    println!("\nmoving {GUEST} from {} to {}", from.name(), to.name());
    let address = lab.address(to);
    let id = uuid::Uuid::new_v4().to_string();
    let begin = Instant::now();
    let words = ["migrate", GUEST, "--to", &address, "--verify", "--id", &id];
    let status = lab.sterna(from, &words)?.status()?;
    let window = Window::new(begin, Instant::now());
    let view = lab.run(from, &["moves", "show", &id, "--output", "json"])?;
    let view: serde_json::Value = serde_json::from_str(&view)?;
    let receipt = serde_json::from_value(view["receipt"].clone())
        .with_context(|| format!("no receipt of a move that ended with {status}: {view}"))?;
    Ok(Moved { receipt, window })
}

fn measured(
    moves: Vec<Moved>,
    console: &ConsoleLog,
    echo: Option<UdpEcho>,
) -> Result<Vec<MoveReport>> {
    let echo = echo.map(UdpEcho::finish).transpose()?;
    let ticks = console.ticks();
    let report = |moved: Moved| {
        let gap_udp = echo.as_ref().map(|log| log.longest_gap(moved.window));
        let gap_tick = ticks.longest_gap(moved.window);
        let measured = Measured { gap_udp, gap_tick: Some(gap_tick), ..Measured::default() };
        if let Some(gap) = gap_udp {
            println!(
                "{} → {}: longest gap seen from outside {gap:.1?}, on the console {gap_tick:.1?}",
                moved.receipt.source, moved.receipt.destination,
            );
        }
        MoveReport { receipt: moved.receipt, measured: Some(measured) }
    };
    Ok(moves.into_iter().map(report).collect())
}

fn write(folder: &Path, reports: &[MoveReport]) -> Result<()> {
    let receipts: Vec<&Receipt> = reports.iter().map(|report| &report.receipt).collect();
    fs::write(folder.join("receipts.json"), serde_json::to_vec_pretty(&receipts)?)?;
    let about = About {
        title: "Sterna demo".into(),
        host: vec!["Two hosts on one machine, an emulated guest of 1 GiB.".into()],
        generated: String::new(),
        link: "1 Gbit/s, shaped".into(),
    };
    fs::write(folder.join("report.html"), sterna_report::html(reports, &about))?;
    Ok(())
}
