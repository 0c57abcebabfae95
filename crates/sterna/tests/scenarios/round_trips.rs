//! Moves of which none goes wrong.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use sterna_core::receipt::RamCheck;
use sterna_testkit::lab::{GUEST_ADDRESS, GuestPlan};
use sterna_testkit::net::Host;
use sterna_testkit::probe::{UdpEcho, Window};
use sterna_testkit::recorder::{Bytes, Rate, Workload};

use crate::kit::{GUEST, PRE_COPY, World};

const MOVES: usize = 10;
/// After this time without a word a control connection is taken for dead.
const SILENCE: Duration = Duration::from_secs(5);

#[test]
fn a_busy_guest_goes_there_and_back_ten_times_and_no_byte_of_it_is_wrong() -> Result<()> {
    let workload = Workload::new(Bytes::mebibytes(320))
        .rewrite(Bytes::mebibytes(256), Rate(50_000_000))
        .check_at_most(Rate::mebibytes_per_second(50));
    let plan = GuestPlan::new(GUEST, Bytes::mebibytes(512), workload);
    let Some(mut world) = World::with("st-ten", &plan)? else { return Ok(()) };
    let echo = UdpEcho::start(world.lab.topology()?.client(), GUEST_ADDRESS, UdpEcho::PERIOD)?;
    let (mut from, mut to) = (Host::A, Host::B);
    let mut downtimes: Vec<(Window, Duration)> = Vec::new();
    for number in 0..MOVES {
        let begin = Instant::now();
        // By whatever costs least: the machine may be busy, and not every move converges.
        let receipt = world.begin(from, to, &["--verify"])?.moved()?;
        ensure!(receipt.ram_digest == RamCheck::Equal, "move {number}: {:?}", receipt.ram_digest);
        world.ticks_and_answers()?;
        let downtime = receipt.downtime.unwrap_or_default();
        downtimes.push((Window::new(begin, Instant::now()), downtime.total));
        (from, to) = (to, from);
    }
    world.runs_only_on(from)?;
    world.nothing_is_wrong(from)?;
    let echo = echo.finish()?;
    for (number, (window, downtime)) in downtimes.iter().enumerate() {
        let (ticks, answers) = (world.tick_gap(*window), echo.longest_gap(*window));
        println!("move {number}: downtime {downtime:.1?}, ticks {ticks:.1?}, UDP {answers:.1?}");
        // Between two ticks or answers is more than the downtime, but for what the guest still did
        // after its vCPUs were counted as stopped and before they were counted as running.
        let least = *downtime / 2;
        ensure!(ticks >= least && answers >= least, "move {number} was not noticed: {least:?}");
    }
    Ok(())
}

#[test]
fn a_round_of_single_pages_may_last_longer_than_a_peer_may_be_silent() -> Result<()> {
    // During the first round of 17 s some two of three pages are written, here and there: the second
    // has no long runs, and takes about eleven seconds, eight if the guest gets half of its time.
    let workload = Workload::new(Bytes::mebibytes(160))
        .rewrite(Bytes::mebibytes(160), Rate::mebibytes_per_second(12))
        .check_at_most(Rate::mebibytes_per_second(20));
    let plan = GuestPlan::new(GUEST, Bytes::mebibytes(256), workload);
    let Some(mut world) = World::with("st-long", &plan)? else { return Ok(()) };
    let words = ["--bandwidth", "10MB/s", "--max-rounds", "2", "--when-stuck", "stop-and-copy"];
    let receipt = world.begin(Host::A, Host::B, &[&PRE_COPY[..], &words].concat())?.moved()?;
    let longest = receipt.rounds.iter().skip(1).map(|round| round.took).max();
    ensure!(longest > Some(SILENCE), "the longest round took {longest:?}");
    world.runs_only_on(Host::B)?;
    world.nothing_is_wrong(Host::B)
}
