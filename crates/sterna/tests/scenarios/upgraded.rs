//! A guest that gets a new hypervisor on its host.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sterna_testkit::lab::GUEST_ADDRESS;
use sterna_testkit::net::Host;
use sterna_testkit::probe::{EchoLog, UdpEcho, Window};

use crate::kit::{GUEST, World, small_guest};

/// Datagrams that may get no answer before the guest stands still: one that the waiting process reads, and one that the
/// old one reads as it stops. (How many are lost later is up to buffers: the guest is behind by then.)
const LOST_MAX: usize = 2;

fn upgrade(world: &World, host: Host, more: &[&str]) -> Result<Value> {
    let words = [&["vm", "upgrade", GUEST, "--output", "json"], more].concat();
    Ok(serde_json::from_str(&world.lab.run(host, &words)?)?)
}

/// As [`upgrade`], and compares all of the guest's RAM.
fn upgrade_well(world: &World, host: Host) -> Result<()> {
    let view = upgrade(world, host, &["--verify"])?;
    ensure!(view["ram_digest"] == "equal", "{view:#}");
    world.runs_only_on(host)
}

/// When the longest time without an answer began.
fn stood_still_from(log: &EchoLog) -> Instant {
    let mut answers: Vec<_> =
        log.exchanges.iter().filter_map(|exchange| exchange.answered).collect();
    answers.sort_unstable();
    let longest = answers.windows(2).max_by_key(|pair| pair[1] - pair[0]);
    longest.expect("the guest has answered").first().copied().expect("two answers")
}

#[test]
fn a_guest_goes_on_in_a_new_hypervisor_and_its_network_is_not_torn() -> Result<()> {
    let Some(mut world) = World::with("st-up", &small_guest())? else { return Ok(()) };
    let before = world.qemus(Host::A)?;
    // With packets on their way all the time: settings of the tap that change for a moment lose many.
    let echo = UdpEcho::start(world.lab.topology()?.client(), GUEST_ADDRESS, UdpEcho::PERIOD)?;
    let from = Instant::now();
    let view = upgrade(&world, Host::A, &[])?;
    let to = Instant::now();
    let log = echo.finish()?;
    let window = Window { from, to };
    let (lost, gap) = (log.lost(window), world.tick_gap(window));
    let told = &view["gap_us"];
    let while_it_ran = log.lost(Window { from, to: stood_still_from(&log) });
    println!(
        "stood still for {told} us as told, {gap:?} by its ticks; {lost} datagrams lost, \
        {while_it_ran} of them before"
    );
    world.runs_only_on(Host::A)?;
    let after = world.qemus(Host::A)?;
    ensure!(before != after, "the same process: {before:?}");
    ensure!(view["guest"]["pid"].as_u64() == after.first().map(|pid| u64::from(*pid)), "{view:#}");
    ensure!(while_it_ran <= LOST_MAX, "{while_it_ran} datagrams lost while the guest ran");
    world.nothing_is_wrong(Host::A)?;

    // Again, into the folder that the first one had; then like any other guest.
    upgrade_well(&world, Host::A)?;
    world.lab.kill_agent(Host::A)?;
    world.lab.start_agent(Host::A)?;
    world.follow(Host::A)?;
    world.runs_only_on(Host::A)?;
    world.moves_well(Host::A, Host::B)?;
    world.runs_only_on(Host::B)?;
    upgrade_well(&world, Host::B).context("after a move")?;
    world.nothing_is_wrong(Host::B)
}
