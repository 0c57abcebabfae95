//! Pages that the guest gave back to its host: before a move they are not sent, and during one what
//! was sent of them is taken back.

use anyhow::{Context, Result, ensure};
use serde_json::json;
use sterna_core::receipt::{RamCheck, Receipt};
use sterna_testkit::lab::GuestPlan;
use sterna_testkit::net::Host;
use sterna_testkit::recorder::{Bytes, Command, Line, Rate, Workload};

use crate::kit::{GUEST, PRE_COPY, World, until};

/// The guest's RAM: so small that it uses most of it.
const MEMORY: Bytes = Bytes(288 << 20);
/// What the guest takes beside its fill.
const TAKEN: Bytes = Bytes(96 << 20);
/// What it takes anew after that was given back.
const TAKEN_AGAIN: Bytes = Bytes(80 << 20);
/// What it may come to use meanwhile for other things.
const SLACK: u64 = 16 << 20;

fn guest() -> GuestPlan {
    let workload = Workload::new(Bytes::mebibytes(32))
        .rewrite(Bytes::mebibytes(8), Rate::mebibytes_per_second(2))
        .check_at_most(Rate::mebibytes_per_second(20));
    GuestPlan::new(GUEST, MEMORY, workload)
}

#[test]
fn memory_that_was_given_back_before_the_move_is_not_sent() -> Result<()> {
    let Some(mut world) = World::with("st-f-bf", &guest())? else { return Ok(()) };
    take(&world, Host::A, TAKEN)?;
    let full = world.ram_that_exists(Host::A)?;
    give(&world, Host::A)?;
    shrinks(&world, Host::A, full)?;
    let exists = world.ram_that_exists(Host::A)?;
    let receipt = world.moves_well_under_load(Host::A, Host::B)?;
    let (sent, arrived) = (to_be_sent(&receipt)?, world.ram_that_exists(Host::B)?);
    println!("{full} bytes existed, then {exists}; {sent} were to be sent, {arrived} arrived");
    ensure!(sent <= exists.0 + SLACK, "{sent} bytes were to be sent, {exists} existed");
    ensure!(sent + TAKEN.0 / 4 < full.0, "{sent} bytes were to be sent, {full} had existed");
    ensure!(arrived.0 <= exists.0 + SLACK, "of {exists} bytes became {arrived}");
    world.runs_only_on(Host::B)?;
    world.nothing_is_wrong(Host::B)
}

#[test]
fn memory_that_is_given_back_and_taken_again_while_it_is_copied_arrives_whole() -> Result<()> {
    let Some(mut world) = World::with("st-f-wh", &guest())? else { return Ok(()) };
    take(&world, Host::A, TAKEN)?;
    let full = world.ram_that_exists(Host::A)?;
    let unused = MEMORY.0 - full.0;
    ensure!(unused < TAKEN_AGAIN.0, "with {unused} bytes unused it need not be the same again");
    // While the last third is sent there are ten seconds to give back and take again. Some of what
    // was taken has been sent by then, wherever in RAM it is.
    let last = TAKEN.0 * 2 / 3;
    let words = ["--verify", "--bandwidth", "6MB/s", "--when-stuck", "stop-and-copy"];
    let underway = world.begin(Host::A, Host::B, &[&PRE_COPY[..], &words].concat())?;
    until("pages that are copied", || {
        let copied = world.show(&underway)?["progress"]["ram_done_bytes"].as_u64().unwrap_or(0);
        Ok((copied + last > full.0).then_some(()))
    })?;
    give(&world, Host::A)?;
    shrinks(&world, Host::A, full)?;
    take(&world, Host::A, TAKEN_AGAIN)?;
    let progress = &world.show(&underway)?["progress"];
    ensure!(progress["stage"] == "copying", "too late to show anything: {progress}");
    let receipt = underway.moved()?;
    ensure!(receipt.ram_digest == RamCheck::Equal, "RAM: {:?}", receipt.ram_digest);
    let taken_back = taken_back(&receipt);
    println!("{full} bytes existed, {taken_back} were taken back");
    ensure!(taken_back > TAKEN.0 / 8, "{taken_back} bytes were taken back");
    world.runs_only_on(Host::B)?;
    give(&world, Host::B)?;
    world.nothing_is_wrong(Host::B)
}

#[test]
fn without_a_balloon_all_is_sent_that_was_ever_used() -> Result<()> {
    let plan = GuestPlan { more: json!({ "balloon": false }), ..guest() };
    let Some(mut world) = World::with("st-f-no", &plan)? else { return Ok(()) };
    take(&world, Host::A, TAKEN)?;
    let full = world.ram_that_exists(Host::A)?;
    give(&world, Host::A)?;
    let receipt = world.moves_well_under_load(Host::A, Host::B)?;
    let sent = to_be_sent(&receipt)?;
    ensure!(sent >= full.0, "{sent} bytes were to be sent, {full} existed");
    ensure!(taken_back(&receipt) == 0, "{:?}", receipt.rounds);
    world.runs_only_on(Host::B)?;
    world.nothing_is_wrong(Host::B)
}

/// Lets the guest take memory, and waits until it has filled it.
fn take(world: &World, host: Host, size: Bytes) -> Result<()> {
    let taken = |line: &Line| *line == Line::Taken { size };
    world.ask(host, Command::Take(size), taken).map(drop)
}

/// Lets the guest give back what it took; it must have found it whole.
fn give(world: &World, host: Host) -> Result<()> {
    let given = |line: &Line| matches!(line, Line::Given { .. });
    let line = world.ask(host, Command::Give, given)?;
    ensure!(matches!(line, Line::Given { wrong: 0, .. }), "the guest says {line:?}");
    Ok(())
}

/// Waits until less exists of the guest's RAM than there was, by half of what the guest took at
/// least: its kernel reports only what is free in pieces of 2 MiB.
fn shrinks(world: &World, host: Host, full: Bytes) -> Result<()> {
    until("memory that the host got back", || {
        let exists = world.ram_that_exists(host)?;
        Ok((exists.0 + TAKEN.0 / 2 < full.0).then_some(()))
    })
}

/// Bytes of the pages that existed when the move began.
fn to_be_sent(receipt: &Receipt) -> Result<u64> {
    let first = receipt.rounds.first().context("no round")?.pages;
    Ok((first.raw + first.zero + first.postponed + first.unsent).bytes())
}

/// Bytes of the pages that were sent and taken back.
fn taken_back(receipt: &Receipt) -> u64 {
    receipt.rounds.iter().map(|round| round.pages.absent.bytes()).sum()
}
