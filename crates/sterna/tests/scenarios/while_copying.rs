//! Whatever fails while pages are copied, the guest runs on and can be moved afterwards.

use anyhow::{Result, ensure};
use sterna_core::receipt::Ending;
use sterna_proto::message::ReasonCode;
use sterna_testkit::net::Host;

use super::undone;
use crate::kit::{World, small_guest};

#[test]
fn a_killed_source_agent_leaves_the_guest_running_and_the_next_one_takes_the_move_back()
-> Result<()> {
    let Some(mut world) = World::with("st-c-sa", &small_guest())? else { return Ok(()) };
    let underway = world.begin_copying()?;
    undone::by_a_killed_source_agent(world, underway)
}

#[test]
fn a_killed_destination_agent_undoes_the_move_and_the_next_one_clears_up() -> Result<()> {
    let Some(mut world) = World::with("st-c-da", &small_guest())? else { return Ok(()) };
    let underway = world.begin_copying()?;
    world.lab.kill_agent(Host::B)?;
    underway.undone(4, ReasonCode::LinkLost, "")?;
    world.ticks_and_answers()?;
    ensure!(!world.qemus(Host::B)?.is_empty(), "nobody was there to end the hypervisor");
    world.restart_agent(Host::B)?;
    world.runs_on_and_moves_after_all()
}

#[test]
fn a_move_is_cancelled_at_its_destination_too() -> Result<()> {
    let Some(mut world) = World::with("st-c-cd", &small_guest())? else { return Ok(()) };
    let underway = world.begin_copying()?;
    undone::by_a_cancel_at_the_destination(world, underway)
}

#[test]
fn a_guest_whose_hypervisor_is_killed_is_gone_and_nothing_of_it_is_left_elsewhere() -> Result<()> {
    let Some(mut world) = World::with("st-c-sq", &small_guest())? else { return Ok(()) };
    let underway = world.begin_copying()?;
    world.kill_qemu(Host::A)?;
    let receipt = underway.ends(6)?;
    ensure!(matches!(receipt.ending, Ending::GuestGone { .. }), "{:?}", receipt.ending);
    world.becomes(Host::A, "crashed")?;
    world.becomes_empty(Host::B)?;
    world.stands_still()
}

#[test]
fn a_killed_hypervisor_at_the_destination_undoes_the_move() -> Result<()> {
    let Some(mut world) = World::with("st-c-dq", &small_guest())? else { return Ok(()) };
    let underway = world.begin_copying()?;
    undone::by_a_killed_hypervisor_at_the_destination(world, underway)
}

#[test]
fn a_cut_link_undoes_the_move_and_a_mended_one_carries_the_next() -> Result<()> {
    let Some(mut world) = World::with("st-c-ln", &small_guest())? else { return Ok(()) };
    let underway = world.begin_copying()?;
    undone::by_a_cut_link(world, underway, Host::A)
}

#[test]
fn ctrl_c_cancels_the_move_and_the_next_one_succeeds() -> Result<()> {
    let Some(mut world) = World::with("st-c-cc", &small_guest())? else { return Ok(()) };
    let underway = world.begin_copying()?;
    undone::by_a_cancel(world, underway)
}
