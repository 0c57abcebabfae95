//! Whatever fails once the source has given the guest away: it runs in one place or in none.

use anyhow::{Result, ensure};
use sterna_core::receipt::Ending;
use sterna_testkit::net::Host;

use crate::kit::{GUEST, World, large_guest};

#[test]
fn a_killed_source_agent_asks_again_and_learns_that_the_guest_has_moved() -> Result<()> {
    let Some(mut world) = World::with("st-m-sa", &large_guest())? else { return Ok(()) };
    let (underway, held) = world.hold_at_commitment()?;
    let (from, to) = (underway.from, underway.to);
    world.lab.kill_agent(from)?;
    world.restart_agent(from)?;
    world.becomes(from, "leaving")?;
    drop(held);
    underway.moved()?;
    runs_there_and_comes_back(world, from, to)
}

#[test]
fn a_killed_destination_agent_is_followed_by_one_that_finishes_the_move() -> Result<()> {
    let Some(mut world) = World::with("st-m-da", &large_guest())? else { return Ok(()) };
    let (underway, held) = world.hold_at_commitment()?;
    let (from, to) = (underway.from, underway.to);
    world.lab.kill_agent(to)?;
    drop(held);
    world.restart_agent(to)?;
    underway.moved()?;
    runs_there_and_comes_back(world, from, to)
}

#[test]
fn a_killed_hypervisor_at_the_source_no_longer_matters() -> Result<()> {
    let Some(mut world) = World::with("st-m-sq", &large_guest())? else { return Ok(()) };
    let (underway, held) = world.hold_at_commitment()?;
    let (from, to) = (underway.from, underway.to);
    world.kill_qemu(from)?;
    drop(held);
    underway.moved()?;
    runs_there_and_comes_back(world, from, to)
}

#[test]
fn a_guest_lost_at_the_destination_stays_paused_until_its_operator_says_so() -> Result<()> {
    let Some(mut world) = World::with("st-m-dq", &large_guest())? else { return Ok(()) };
    let (underway, held) = world.hold_at_commitment()?;
    let (from, to) = (underway.from, underway.to);
    world.kill_qemu(to)?;
    drop(held);
    let receipt = underway.ends(6)?;
    ensure!(matches!(receipt.ending, Ending::Lost { .. }), "{:?}", receipt.ending);
    world.becomes(from, "paused")?;
    world.becomes(to, "crashed")?;
    world.stands_still()?;
    let refused = world.lab.run(from, &["vm", "run", GUEST]).expect_err("it may have run there");
    ensure!(refused.to_string().contains("may have run"), "{refused:#}");
    world.stands_still()?;
    world.lab.take_away(to, GUEST)?;
    world.lab.run(from, &["vm", "run", GUEST, "--runs-nowhere-else"])?;
    world.runs_only_on(from)?;
    world.moves_well(from, to)?;
    world.runs_only_on(to)?;
    world.nothing_is_wrong(to)
}

#[test]
fn a_cut_link_leaves_the_source_in_doubt_and_its_guest_paused_until_it_can_ask() -> Result<()> {
    let Some(mut world) = World::with("st-m-ln", &large_guest())? else { return Ok(()) };
    let (underway, held) = world.hold_at_commitment()?;
    let (from, to) = (underway.from, underway.to);
    world.lab.topology()?.cut(from)?;
    drop(held);
    world.becomes(to, "running")?;
    world.comes_into_doubt(&underway)?;
    ensure!(world.qemus(from)?.len() == 1, "the source gave its copy up without being told to");
    underway.interrupt()?;
    world.ticks_and_answers()?;
    world.lab.topology()?.mend(from)?;
    underway.moved()?;
    runs_there_and_comes_back(world, from, to)
}

#[test]
fn a_doubt_is_over_when_the_operator_says_that_the_guest_runs_there() -> Result<()> {
    let Some(mut world) = World::with("st-m-rt", &large_guest())? else { return Ok(()) };
    let (underway, held) = world.hold_at_commitment()?;
    let (from, to) = (underway.from, underway.to);
    let resolve = ["migrate", "resolve", GUEST];
    let early = world.lab.run(from, &resolve).expect_err("there is no doubt yet");
    ensure!(early.to_string().contains("not in doubt"), "{early:#}");
    world.lab.topology()?.cut(from)?;
    drop(held);
    world.becomes(to, "running")?;
    world.comes_into_doubt(&underway)?;
    let shown = world.lab.sterna(from, &resolve)?.output()?;
    let text = String::from_utf8(shown.stdout)?;
    ensure!(shown.status.code() == Some(6) && text.contains(&underway.id), "{text}");
    ensure!(text.contains("--runs-there") && text.contains("--runs-nowhere-else"), "{text}");
    world.ticks_and_answers()?;
    world.lab.run(from, &[&resolve[..], &["--runs-there"]].concat())?;
    let receipt = underway.ends(6)?;
    ensure!(matches!(receipt.ending, Ending::Lost { .. }), "{:?}", receipt.ending);
    world.becomes_empty(from)?;
    world.lab.topology()?.mend(from)?;
    runs_there_and_comes_back(world, from, to)
}

#[test]
fn a_doubt_is_over_when_the_operator_says_that_the_guest_runs_nowhere_else() -> Result<()> {
    let Some(mut world) = World::with("st-m-rn", &large_guest())? else { return Ok(()) };
    let (underway, held) = world.hold_at_commitment()?;
    let (from, to) = (underway.from, underway.to);
    // The destination is off, and stays so.
    world.lab.topology()?.cut(from)?;
    world.lab.kill_agent(to)?;
    world.kill_qemu(to)?;
    drop(held);
    world.comes_into_doubt(&underway)?;
    world.stands_still()?;
    let resolve = ["migrate", "resolve", GUEST, "--runs-nowhere-else"];
    world.lab.run(from, &resolve)?;
    underway.ends(6)?;
    world.becomes(from, "running")?;
    world.ticks_and_answers()?;
    let again = world.lab.run(from, &resolve).expect_err("there is no doubt any more");
    ensure!(again.to_string().contains("not in doubt"), "{again:#}");
    // When it comes back it knows that it had the guest, and has it no longer.
    world.lab.topology()?.mend(from)?;
    world.restart_agent(to)?;
    world.becomes(to, "crashed")?;
    world.lab.take_away(to, GUEST)?;
    world.moves_well(from, to)?;
    world.runs_only_on(to)?;
    world.nothing_is_wrong(to)
}

fn runs_there_and_comes_back(mut world: World, from: Host, to: Host) -> Result<()> {
    world.runs_only_on(to)?;
    world.moves_well(to, from)?;
    world.runs_only_on(from)?;
    world.nothing_is_wrong(from)
}
