//! Guests that are asked for memory before they are moved: caches are not sent, and whatever becomes of
//! the move the guest has all of its memory again.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use sterna_core::balloon::{BalloonEnd, Ballooning};
use sterna_core::receipt::{RamCheck, Receipt};
use sterna_proto::message::ReasonCode;
use sterna_testkit::lab::GuestPlan;
use sterna_testkit::net::Host;
use sterna_testkit::recorder::{Bytes, Command, DiskUse, Line, Rate, Workload};

use crate::kit::{GUEST, LIMIT, Underway, World, until};

/// The guest's RAM.
const MEMORY: Bytes = Bytes(512 << 20);
/// The disk that it reads, all of which it can cache.
const DISK: Bytes = Bytes(192 << 20);

/// What it comes to need, far more than it has in reserve.
const NEEDED: Bytes = Bytes(192 << 20);

/// Slow enough that copying takes minutes, in which a guest can take its memory back. Left to itself
/// the move would have such a guest go first, and its pages follow.
const SLOW: [&str; 5] = ["--algorithm", "pre-copy", "--balloon", "--bandwidth", "1MB/s"];

/// A guest that uses little of its memory and reads a disk over and over.
fn guest(disk: &Path) -> GuestPlan {
    let workload = Workload::new(Bytes::mebibytes(32))
        .rewrite(Bytes::mebibytes(8), Rate::mebibytes_per_second(2))
        .check_at_most(Rate::mebibytes_per_second(20))
        .disk(DiskUse::Read, Rate::mebibytes_per_second(24));
    let more = json!({ "disks": [{ "path": disk }] });
    GuestPlan { more, ..GuestPlan::new(GUEST, MEMORY, workload) }
}

/// Hosts with a guest that has all of its disk in its cache.
fn with_caches(prefix: &str) -> Result<Option<(World, tempfile::TempDir)>> {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let disk = folder.path().join("disk.raw");
    sterna_testkit::disk::fill(&disk, DISK)?;
    let Some(world) = World::with(prefix, &guest(&disk))? else { return Ok(None) };
    reads_its_disk(&world, 0)?;
    Ok(Some((world, folder)))
}

/// Waits until the guest has come to the end of its disk, and said so after its first `skip` lines.
fn reads_its_disk(world: &World, skip: usize) -> Result<usize> {
    let line = world.console.wait_for(skip, LIMIT, |line| matches!(line, Line::Disk { .. }))?;
    ensure!(matches!(line, Line::Disk { wrong: 0, .. }), "the guest says {line:?}");
    Ok(world.console.lines().len())
}

#[test]
fn caches_are_sent_unless_the_guest_is_asked_for_them() -> Result<()> {
    let Some((mut world, _disk)) = with_caches("st-i-ca")? else { return Ok(()) };
    let plain = world.moves_well_under_load(Host::A, Host::B)?;
    ensure!(plain.ballooning.is_none(), "{:?}", plain.ballooning);
    let asked = moves_inflated(&mut world, Host::B, Host::A, &[])?;
    let (without, with) = (plain.wire.payload, asked.wire.payload);
    println!("{without} bytes were sent, {with} after {:?}", asked.ballooning);
    ensure!(with + DISK.0 / 2 < without, "{with} bytes were sent, {without} without");
    let ballooning = given_back(&asked)?;
    ensure!(ballooning.freed_bytes > DISK.0 / 2, "{ballooning:?}");
    // It caches all of its disk again, from the beginning to the end.
    let half_read = reads_its_disk(&world, world.console.lines().len())?;
    reads_its_disk(&world, half_read)?;
    // Pages that follow the guest: it empties its balloon while they do.
    let words = ["--algorithm", "post-copy"];
    let followed = moves_inflated(&mut world, Host::A, Host::B, &words)?;
    println!("post-copy: {} bytes after {:?}", followed.wire.payload, followed.ballooning);
    ensure!(given_back(&followed)?.given_bytes > DISK.0 / 2, "{:?}", followed.ballooning);
    reads_its_disk(&world, world.console.lines().len())?;
    world.nothing_is_wrong(Host::B)
}

/// Moves a guest that is asked for memory; it then has all of it at the destination.
fn moves_inflated(world: &mut World, from: Host, to: Host, more: &[&str]) -> Result<Receipt> {
    let words = ["--balloon", "--verify", "--when-stuck", "stop-and-copy"];
    let receipt = world.begin(from, to, &[&words[..], more].concat())?.moved()?;
    ensure!(receipt.ram_digest == RamCheck::Equal, "RAM: {:?}", receipt.ram_digest);
    world.runs_only_on(to)?;
    empties_its_balloon(world, to)?;
    Ok(receipt)
}

fn given_back(receipt: &Receipt) -> Result<Ballooning> {
    receipt.ballooning.context("the guest was not asked")
}

fn empties_its_balloon(world: &World, host: Host) -> Result<()> {
    until("an empty balloon", || Ok((world.in_balloon(host)?.0 == 0).then_some(())))
}

#[test]
fn ctrl_c_gives_a_guest_its_memory_back() -> Result<()> {
    let Some((mut world, _disk)) = with_caches("st-i-cc")? else { return Ok(()) };
    let underway = begin_inflated(&mut world)?;
    underway.interrupt()?;
    let receipt = underway.undone(5, ReasonCode::Cancelled, "cancelled")?;
    ensure!(given_back(&receipt)?.given_bytes > DISK.0 / 2, "{:?}", receipt.ballooning);
    world.runs_only_on(Host::A)?;
    empties_its_balloon(&world, Host::A)?;
    world.nothing_is_wrong(Host::A)
}

#[test]
fn the_next_agent_gives_a_guest_its_memory_back() -> Result<()> {
    let Some((mut world, _disk)) = with_caches("st-i-sa")? else { return Ok(()) };
    let underway = begin_inflated(&mut world)?;
    world.lab.kill_agent(Host::A)?;
    ensure!(world.in_balloon(Host::A)?.0 > DISK.0 / 2, "nobody was there to change it");
    world.restart_agent(Host::A)?;
    world.follow(Host::A)?;
    underway.undone(4, ReasonCode::Agent, "agent was restarted")?;
    world.runs_only_on(Host::A)?;
    empties_its_balloon(&world, Host::A)?;
    world.nothing_is_wrong(Host::A)
}

#[test]
fn a_guest_that_needs_its_memory_before_the_end_of_the_move_takes_it_back_by_itself() -> Result<()>
{
    let Some((mut world, _disk)) = with_caches("st-i-ta")? else { return Ok(()) };
    let underway = begin_inflated(&mut world)?;
    let held = world.in_balloon(Host::A)?;
    let skip = world.console.lines().len();
    world.lab.type_line(Host::A, GUEST, &Command::Take(NEEDED).to_string())?;
    let taken = |line: &Line| matches!(line, Line::Taken { .. } | Line::Error(_));
    let line = world.console.wait_for(skip, LIMIT, taken)?;
    ensure!(line == Line::Taken { size: NEEDED }, "the guest says {line:?}");
    let left = world.in_balloon(Host::A)?;
    println!("{held} in the balloon, {left} after {NEEDED} were taken");
    ensure!(left < held, "{left} in the balloon");
    let stage = &world.show(&underway)?["progress"]["stage"];
    ensure!(stage == "copying", "too late to show anything: {stage}");
    underway.interrupt()?;
    underway.undone(5, ReasonCode::Cancelled, "cancelled")?;
    empties_its_balloon(&world, Host::A)?;
    let given = |line: &Line| matches!(line, Line::Given { .. });
    let line = world.ask(Host::A, Command::Give, given)?;
    ensure!(matches!(line, Line::Given { wrong: 0, .. }), "the guest says {line:?}");
    world.runs_only_on(Host::A)?;
    world.nothing_is_wrong(Host::A)
}

/// Begins a move and returns while the guest, which has given memory back, is copied.
fn begin_inflated(world: &mut World) -> Result<Underway> {
    let underway = world.begin(Host::A, Host::B, &SLOW)?;
    world.comes_to(&underway, "copying")?;
    let held = world.in_balloon(Host::A)?;
    ensure!(held.0 > DISK.0 / 2, "{held} in the balloon");
    Ok(underway)
}

#[test]
fn a_guest_that_cannot_be_asked_is_moved_without_or_not_at_all() -> Result<()> {
    let Some(world) = World::empty("st-i-no")? else { return Ok(()) };
    let start = |name: &str, balloon: bool| {
        let more = json!({
            "kernel": null, "initrd": null, "append": null, "networks": [], "balloon": balloon,
        });
        let workload = Workload::new(Bytes::mebibytes(1));
        let memory = Bytes::mebibytes(128);
        world.lab.start_guest(Host::A, &GuestPlan { name: name.into(), memory, workload, more })
    };
    start("none", false)?;
    let refused = world.lab.migrate(Host::A, Host::B, "none", &["--balloon"])?;
    ensure!(refused.exit != Some(0) && refused.receipt.is_none(), "{refused:?}");
    ensure!(refused.messages.contains("move it without --balloon"), "{}", refused.messages);
    let moved = world.lab.migrate(Host::A, Host::B, "none", &[])?;
    ensure!(moved.exit == Some(0), "{moved:?}");
    // It has no system, so no driver either.
    start("silent", true)?;
    let silent = world.lab.migrate(Host::A, Host::B, "silent", &["--balloon"])?;
    ensure!(silent.exit == Some(0), "{silent:?}");
    let ballooning = given_back(silent.receipt()?)?;
    ensure!(ballooning.end == BalloonEnd::Silent, "{ballooning:?}");
    ensure!(ballooning.asked_bytes == 0, "{ballooning:?}");
    Ok(())
}
