//! A guest that gets a new hypervisor on its host.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sterna_testkit::lab::GUEST_ADDRESS;
use sterna_testkit::net::Host;
use sterna_testkit::probe::{UdpEcho, Window};

use crate::kit::{GUEST, World, small_guest};

/// Datagrams that may get no answer: one that the waiting process reads and one that the old one reads as it stops, and
/// what comes while the guest stands still beyond what is queued for it.
const LOST_MAX: usize = 4;

fn upgrade(world: &World, host: Host) -> Result<Value> {
    let words = ["vm", "upgrade", GUEST, "--verify", "--output", "json"];
    let view: Value = serde_json::from_str(&world.lab.run(host, &words)?)?;
    ensure!(view["ram_digest"] == "equal", "{view:#}");
    Ok(view)
}

#[test]
fn a_guest_goes_on_in_a_new_hypervisor_and_its_network_is_not_torn() -> Result<()> {
    let Some(mut world) = World::with("st-up", &small_guest())? else { return Ok(()) };
    let before = world.qemus(Host::A)?;
    // With packets on their way all the time: settings of the tap that change for a moment lose many.
    let echo = UdpEcho::start(world.lab.topology()?.client(), GUEST_ADDRESS, UdpEcho::PERIOD)?;
    let from = Instant::now();
    let view = upgrade(&world, Host::A)?;
    let to = Instant::now();
    let log = echo.finish()?;
    let window = Window { from, to };
    let (lost, gap) = (log.lost(window), world.tick_gap(window));
    let told = &view["gap_us"];
    println!(
        "RAM hashed twice: stood still for {told} us as told, {gap:?} by its ticks, {lost} datagrams lost"
    );
    world.runs_only_on(Host::A)?;
    let after = world.qemus(Host::A)?;
    ensure!(before != after, "the same process: {before:?}");
    ensure!(view["guest"]["pid"].as_u64() == after.first().map(|pid| u64::from(*pid)), "{view:#}");
    ensure!(lost <= LOST_MAX, "{lost} datagrams lost");
    world.nothing_is_wrong(Host::A)?;

    // Again, into the folder that the first one had; then like any other guest.
    upgrade(&world, Host::A)?;
    world.runs_only_on(Host::A)?;
    world.lab.kill_agent(Host::A)?;
    world.lab.start_agent(Host::A)?;
    world.follow(Host::A)?;
    world.runs_only_on(Host::A)?;
    world.moves_well(Host::A, Host::B)?;
    world.runs_only_on(Host::B)?;
    upgrade(&world, Host::B).context("after a move")?;
    world.runs_only_on(Host::B)?;
    world.nothing_is_wrong(Host::B)
}
