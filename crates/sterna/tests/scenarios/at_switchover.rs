//! Whatever fails while the guest stands still for its last pages, it runs on where it was.

use anyhow::{Result, ensure};
use sterna_core::receipt::RamCheck;
use sterna_proto::message::ReasonCode;
use sterna_testkit::net::Host;

use super::undone;
use crate::kit::{World, small_guest};

#[test]
fn a_paused_guest_without_agent_and_link_waits_for_the_destinations_word() -> Result<()> {
    let Some(mut world) = World::with("st-s-sa", &small_guest())? else { return Ok(()) };
    let underway = world.begin_switching()?;
    world.lab.kill_agent(Host::A)?;
    world.lab.topology()?.cut(Host::A)?;
    world.restart_agent(Host::A)?;
    world.follow(Host::A)?;
    world.comes_into_doubt(&underway)?;
    world.stands_still()?;
    world.lab.topology()?.mend(Host::A)?;
    underway.undone(4, ReasonCode::Agent, "")?;
    world.runs_on_and_moves_after_all()
}

#[test]
fn a_killed_destination_agent_gives_the_guest_back() -> Result<()> {
    let Some(mut world) = World::with("st-s-da", &small_guest())? else { return Ok(()) };
    let underway = world.begin_switching()?;
    undone::by_a_killed_destination_agent(world, underway)
}

#[test]
fn a_killed_hypervisor_at_the_source_no_longer_matters_once_it_has_saved_its_state() -> Result<()> {
    let Some(mut world) = World::with("st-s-sq", &small_guest())? else { return Ok(()) };
    let underway = world.begin_switching()?;
    world.kill_qemu(Host::A)?;
    // RAM and device state are all there is of the guest, and the agent has both.
    let receipt = underway.moved()?;
    ensure!(receipt.ram_digest == RamCheck::Equal, "RAM: {:?}", receipt.ram_digest);
    world.runs_only_on(Host::B)?;
    world.moves_well(Host::B, Host::A)?;
    world.nothing_is_wrong(Host::A)
}

#[test]
fn a_killed_hypervisor_at_the_destination_gives_the_guest_back() -> Result<()> {
    let Some(mut world) = World::with("st-s-dq", &small_guest())? else { return Ok(()) };
    let underway = world.begin_switching()?;
    undone::by_a_killed_hypervisor_at_the_destination(world, underway)
}

#[test]
fn a_cut_link_gives_the_guest_back() -> Result<()> {
    let Some(mut world) = World::with("st-s-ln", &small_guest())? else { return Ok(()) };
    let underway = world.begin_switching()?;
    undone::by_a_cut_link(world, underway, Host::B)
}

#[test]
fn ctrl_c_gives_the_guest_back() -> Result<()> {
    let Some(mut world) = World::with("st-s-cc", &small_guest())? else { return Ok(()) };
    let underway = world.begin_switching()?;
    undone::by_a_cancel(world, underway)
}
