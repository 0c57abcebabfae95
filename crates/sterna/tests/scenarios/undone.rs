//! What undoes a move from a to b that is underway, at whatever stage: the guest runs on where it
//! was and can be moved afterwards.

use anyhow::{Context, Result};
use sterna_proto::message::ReasonCode;
use sterna_testkit::net::Host;

use crate::kit::{Underway, World};

pub(super) fn by_a_cancel(mut world: World, underway: Underway) -> Result<()> {
    underway.interrupt()?;
    underway.undone(5, ReasonCode::Cancelled, "cancelled")?;
    world.runs_on_and_moves_after_all()
}

/// By whoever is at the destination, who sees the move there under an id of its own.
pub(super) fn by_a_cancel_at_the_destination(mut world: World, underway: Underway) -> Result<()> {
    let moves = world.moves(Host::B)?;
    let id = moves.last().and_then(|shown| shown["id"].as_str()).context("no move is shown")?;
    world.lab.run(Host::B, &["moves", "cancel", id])?;
    underway.undone(5, ReasonCode::Cancelled, "cancelled at the destination")?;
    world.becomes_empty(Host::B)?;
    world.runs_on_and_moves_after_all()
}

/// The next agent takes the move back.
pub(super) fn by_a_killed_source_agent(mut world: World, underway: Underway) -> Result<()> {
    world.lab.kill_agent(Host::A)?;
    world.becomes_empty(Host::B)?;
    world.restart_agent(Host::A)?;
    world.follow(Host::A)?;
    underway.undone(4, ReasonCode::Agent, "agent was restarted")?;
    world.runs_on_and_moves_after_all()
}

pub(super) fn by_a_killed_destination_agent(mut world: World, underway: Underway) -> Result<()> {
    world.lab.kill_agent(Host::B)?;
    underway.undone(4, ReasonCode::LinkLost, "")?;
    world.ticks_and_answers()?;
    world.restart_agent(Host::B)?;
    world.runs_on_and_moves_after_all()
}

pub(super) fn by_a_killed_hypervisor_at_the_destination(
    mut world: World,
    underway: Underway,
) -> Result<()> {
    world.kill_qemu(Host::B)?;
    underway.undone(4, ReasonCode::Hypervisor, "signal: 9")?;
    world.runs_on_and_moves_after_all()
}

/// The link is cut at a host, and mended there afterwards.
pub(super) fn by_a_cut_link(mut world: World, underway: Underway, at: Host) -> Result<()> {
    world.lab.topology()?.cut(at)?;
    underway.undone(4, ReasonCode::LinkLost, "")?;
    world.runs_only_on(Host::A)?;
    world.lab.topology()?.mend(at)?;
    world.runs_on_and_moves_after_all()
}
