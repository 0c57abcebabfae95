//! Guests that run at the destination before their pages are there, and whatever fails meanwhile:
//! the guest waits, is never lost, and has every byte in the end.

use std::time::Duration;

use anyhow::{Result, ensure};
use sterna_core::receipt::{RamCheck, Receipt};
use sterna_testkit::lab::GuestPlan;
use sterna_testkit::net::Host;
use sterna_testkit::recorder::{Bytes, Rate, Workload};

use crate::kit::{GUEST, Underway, World, small_guest, until};

/// Pages follow for some ten seconds.
const SLOW: [&str; 5] = ["--algorithm", "post-copy", "--bandwidth", "14MB/s", "--verify"];

/// A guest that writes faster than most links carry.
fn fast_guest() -> GuestPlan {
    let workload = Workload::new(Bytes::mebibytes(128))
        .rewrite(Bytes::mebibytes(64), Rate::mebibytes_per_second(60))
        .check_at_most(Rate::mebibytes_per_second(20));
    GuestPlan::new(GUEST, Bytes::mebibytes(256), workload)
}

#[test]
fn a_guest_faster_than_the_link_goes_first_and_its_pages_follow_it() -> Result<()> {
    let Some(mut world) = World::with("st-f-ok", &fast_guest())? else { return Ok(()) };
    let slow = ["--bandwidth", "30MB/s", "--verify"];
    let ways: [&[&str]; 3] = [
        &["--algorithm", "post-copy"],
        &["--algorithm", "hybrid"],
        &["--when-stuck", "post-copy", "--max-downtime", "60ms"],
    ];
    let (mut from, mut to) = (Host::A, Host::B);
    for way in ways {
        let receipt = world.begin(from, to, &[way, &slow[..]].concat())?.moved()?;
        followed(&receipt)?;
        world.runs_only_on(to)?;
        world.nothing_is_wrong(to)?;
        (from, to) = (to, from);
    }
    // It is an ordinary guest again.
    world.moves_well_under_load(from, to)?;
    world.runs_only_on(to)?;
    world.nothing_is_wrong(to)
}

#[test]
fn a_link_that_is_cut_while_pages_follow_makes_the_guest_wait() -> Result<()> {
    let Some(mut world) = World::with("st-f-ln", &small_guest())? else { return Ok(()) };
    let underway = begin_following(&mut world)?;
    world.lab.topology()?.cut(Host::A)?;
    std::thread::sleep(Duration::from_secs(1));
    world.lab.topology()?.mend(Host::A)?;
    has_followed(world, underway)
}

#[test]
fn a_link_that_is_cut_for_a_minute_makes_the_guest_wait_for_a_minute() -> Result<()> {
    let Some(mut world) = World::with("st-f-l6", &small_guest())? else { return Ok(()) };
    let underway = begin_following(&mut world)?;
    world.lab.topology()?.cut(Host::A)?;
    std::thread::sleep(Duration::from_secs(60));
    let shown = world.show(&underway)?;
    ensure!(shown["progress"]["stage"] == "serving", "{shown}");
    let waiting = shown["progress"]["waiting"].as_str().unwrap_or_default();
    ensure!(waiting.contains("cannot be reached"), "the operator is told {waiting:?}");
    world.lab.topology()?.mend(Host::A)?;
    has_followed(world, underway)
}

#[test]
fn a_killed_source_agent_is_followed_by_one_that_sends_the_rest() -> Result<()> {
    let Some(mut world) = World::with("st-f-sa", &small_guest())? else { return Ok(()) };
    let underway = begin_following(&mut world)?;
    world.lab.kill_agent(Host::A)?;
    world.restart_agent(Host::A)?;
    has_followed(world, underway)
}

#[test]
fn a_killed_destination_agent_is_followed_by_one_that_takes_the_faults_over() -> Result<()> {
    let Some(mut world) = World::with("st-f-da", &small_guest())? else { return Ok(()) };
    let underway = begin_following(&mut world)?;
    world.lab.kill_agent(Host::B)?;
    world.restart_agent(Host::B)?;
    has_followed(world, underway)
}

#[test]
fn both_agents_killed_at_once_are_followed_by_two_that_finish_the_move() -> Result<()> {
    let Some(mut world) = World::with("st-f-2a", &small_guest())? else { return Ok(()) };
    let underway = begin_following(&mut world)?;
    world.lab.kill_agent(Host::A)?;
    world.lab.kill_agent(Host::B)?;
    world.restart_agent(Host::A)?;
    world.restart_agent(Host::B)?;
    has_followed(world, underway)
}

#[test]
fn a_killed_hypervisor_at_the_source_takes_no_page_with_it() -> Result<()> {
    let Some(mut world) = World::with("st-f-sq", &small_guest())? else { return Ok(()) };
    let underway = begin_following(&mut world)?;
    world.kill_qemu(Host::A)?;
    has_followed(world, underway)
}

#[test]
fn a_guest_that_ends_at_the_destination_while_its_pages_follow_is_waited_for_no_longer()
-> Result<()> {
    let Some(mut world) = World::with("st-f-dq", &small_guest())? else { return Ok(()) };
    let underway = begin_following(&mut world)?;
    world.kill_qemu(Host::B)?;
    underway.moved()?;
    world.becomes(Host::B, "crashed")?;
    world.becomes_empty(Host::A)?;
    world.stands_still()
}

#[test]
fn a_source_that_is_lost_with_its_pages_is_named_and_the_guest_stops() -> Result<()> {
    let Some(mut world) = World::with("st-f-ls", &small_guest())? else { return Ok(()) };
    let underway = begin_following(&mut world)?;
    // As a host that reboots: neither agent nor hypervisor has the RAM any more.
    world.lab.kill_agent(Host::A)?;
    world.kill_qemu(Host::A)?;
    world.restart_agent(Host::A)?;
    let receipt = underway.ends(6)?;
    let sterna_core::receipt::Ending::Lost { reason } = &receipt.ending else {
        anyhow::bail!("{:?}", receipt.ending)
    };
    ensure!(reason.detail.contains("ended while no agent was there"), "{reason}");
    world.becomes(Host::B, "crashed")?;
    world.stands_still()?;
    until("no hypervisor on b", || Ok(world.qemus(Host::B)?.is_empty().then_some(())))
}

/// Begins a move and returns while pages follow the guest, which runs at the destination; they
/// follow for seconds on.
fn begin_following(world: &mut World) -> Result<Underway> {
    let underway = world.begin(Host::A, Host::B, &SLOW)?;
    world.comes_to(&underway, "serving")?;
    Ok(underway)
}

fn has_followed(mut world: World, underway: Underway) -> Result<()> {
    let receipt = underway.moved()?;
    ensure!(receipt.ram_digest != RamCheck::Different, "RAM: {:?}", receipt.ram_digest);
    world.runs_only_on(Host::B)?;
    world.nothing_is_wrong(Host::B)?;
    // What one side forgot with its agent does not keep the guest from moving on.
    world.moves_well(Host::B, Host::A)?;
    world.runs_only_on(Host::A)?;
    world.nothing_is_wrong(Host::A)
}

fn followed(receipt: &Receipt) -> Result<()> {
    ensure!(receipt.ram_digest == RamCheck::Equal, "RAM: {:?}", receipt.ram_digest);
    let following = receipt.following.unwrap_or_default();
    ensure!(following.pages.raw.0 > 0, "nothing followed: {receipt:?}");
    Ok(())
}
