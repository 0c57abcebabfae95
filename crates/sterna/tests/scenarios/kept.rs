//! Guests that come to where their pages are already: kept when they left, or those of another guest.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sterna_core::receipt::{Ending, RamCheck, Receipt};
use sterna_page::PageCount;
use sterna_testkit::lab::{GuestPlan, Hosts};
use sterna_testkit::net::Host;
use sterna_testkit::probe::ConsoleLog;
use sterna_testkit::recorder::Line;

use crate::kit::{GUEST, LIMIT, PRE_COPY, Underway, World, small_guest, until};

const KEEP: [&str; 2] = ["--keep-images", "2GB"];

/// On a link on which it pays that the destination gets pages by itself.
const SPARING: [&str; 5] = ["--verify", "--compress", "auto", "--bandwidth", "25MB/s"];

/// Hosts that keep images, and the guest on host a.
fn world(prefix: &str, hosts: Hosts) -> Result<Option<World>> {
    let Some(mut world) = World::of(prefix, hosts, &KEEP)? else { return Ok(None) };
    world.start(&small_guest())?;
    Ok(Some(world))
}

fn images(world: &World, host: Host) -> Result<Vec<Value>> {
    Ok(serde_json::from_str(&world.lab.run(host, &["images", "list", "--output", "json"])?)?)
}

/// Moves the guest, compares all of its RAM, and waits until it is kept where it was.
fn leaves(world: &mut World, from: Host, to: Host) -> Result<Receipt> {
    let words = [&PRE_COPY[..], &SPARING].concat();
    let receipt = world.begin(from, to, &words)?.moved()?;
    ensure!(receipt.ram_digest == RamCheck::Equal, "RAM: {:?}", receipt.ram_digest);
    until("an image of the guest", || {
        let kept = images(world, from)?;
        Ok(kept.iter().any(|image| image["name"] == GUEST).then_some(()))
    })?;
    Ok(receipt)
}

/// The file of the one image on a host.
fn file(world: &World, host: Host) -> Result<PathBuf> {
    let mut entries = fs::read_dir(world.lab.folder(host).join("state/images"))?;
    Ok(entries.next().context("no image")??.path())
}

/// Pages that the destination was to get by itself, and could not.
fn lacking(receipt: &Receipt) -> PageCount {
    receipt.rounds.iter().fold(PageCount::ZERO, |all, round| all + round.lacking)
}

/// Pages that the destination was to get by itself.
fn known(receipt: &Receipt) -> PageCount {
    receipt.rounds.iter().fold(PageCount::ZERO, |all, round| all + round.pages.known)
}

fn comes_back_slowly(world: &mut World) -> Result<Underway> {
    let words = ["--verify", "--compress", "auto", "--bandwidth", "3MB/s"];
    let underway = world.begin(Host::B, Host::A, &[&PRE_COPY[..], &words].concat())?;
    world.has_copied_in(&underway, "copying")?;
    Ok(underway)
}

#[test]
fn a_guest_that_comes_back_after_two_hosts_is_sent_only_what_changed() -> Result<()> {
    let Some(mut world) = world("st-k-3", Hosts::Three)? else { return Ok(()) };
    let first = leaves(&mut world, Host::A, Host::B)?;
    ensure!(known(&first) == PageCount::ZERO, "{first:#?}");
    let second = leaves(&mut world, Host::B, Host::C)?;
    ensure!(known(&second) == PageCount::ZERO, "{second:#?}");
    let back = leaves(&mut world, Host::C, Host::A)?;
    println!(
        "first {} bytes, back {} with {:?} known",
        first.wire.sockets,
        back.wire.sockets,
        known(&back)
    );
    ensure!(known(&back).bytes() > 64 << 20, "{back:#?}");
    ensure!(back.wire.sockets < first.wire.sockets * 3 / 10, "{back:#?}");
    world.runs_only_on(Host::A)?;
    // What was kept of it grows old where it runs.
    ensure!(images(&world, Host::A)?.is_empty(), "{:?}", images(&world, Host::A)?);
    ensure!(images(&world, Host::B)?.len() == 1 && images(&world, Host::C)?.len() == 1);
    world.nothing_is_wrong(Host::A)
}

#[test]
fn an_image_that_was_damaged_costs_bytes_and_nothing_else() -> Result<()> {
    let Some(mut world) = world("st-k-dm", Hosts::Two)? else { return Ok(()) };
    leaves(&mut world, Host::A, Host::B)?;
    let path = file(&world, Host::A)?;
    let length = fs::metadata(&path)?.len();
    let image = OpenOptions::new().write(true).open(&path)?;
    image.write_all_at(&vec![0x55; usize::try_from(length / 4)?], length / 4)?;
    let back = leaves(&mut world, Host::B, Host::A)?;
    println!("{:?} known, {:?} lacking", known(&back), lacking(&back));
    ensure!(known(&back).bytes() > 32 << 20 && lacking(&back).bytes() > 8 << 20, "{back:#?}");
    world.runs_only_on(Host::A)?;
    world.nothing_is_wrong(Host::A)
}

#[test]
fn an_image_that_is_dropped_during_the_move_costs_bytes_and_nothing_else() -> Result<()> {
    let Some(mut world) = world("st-k-dr", Hosts::Two)? else { return Ok(()) };
    leaves(&mut world, Host::A, Host::B)?;
    let underway = comes_back_slowly(&mut world)?;
    world.lab.run(Host::A, &["images", "drop", GUEST])?;
    ensure!(images(&world, Host::A)?.is_empty(), "{:?}", images(&world, Host::A)?);
    let back = underway.moved()?;
    ensure!(back.ram_digest == RamCheck::Equal, "RAM: {:?}", back.ram_digest);
    println!("{:?} known, {:?} lacking", known(&back), lacking(&back));
    ensure!(lacking(&back) > PageCount::ZERO, "{back:#?}");
    world.runs_only_on(Host::A)?;
    world.nothing_is_wrong(Host::A)
}

#[test]
fn a_guest_is_sent_only_what_others_of_its_group_do_not_have() -> Result<()> {
    let Some(mut world) = World::empty("st-k-sb")? else { return Ok(()) };
    let of = |group: &str| GuestPlan { more: json!({ "group": group }), ..small_guest() };
    world.start(&of("tenant"))?;
    // As the first, but for its name and network.
    for (name, group) in [("twin", "tenant"), ("stranger", "another")] {
        let more = json!({ "group": group, "networks": null });
        world.lab.start_guest(Host::A, &GuestPlan { name: name.into(), more, ..small_guest() })?;
        let begun = |line: &Line| matches!(line, Line::Ready { .. });
        let console = ConsoleLog::new();
        world.lab.follow_console(Host::A, name, &console)?;
        console.wait_for(0, LIMIT, begun)?;
    }
    let words = [&PRE_COPY[..], &SPARING].concat();
    let first = world.begin(Host::A, Host::B, &words)?.moved()?;
    let mut others = Vec::new();
    for name in ["stranger", "twin"] {
        let migrated = world.lab.migrate(Host::A, Host::B, name, &words)?;
        let receipt = migrated.receipt()?.clone();
        ensure!(receipt.ending == Ending::Moved, "{:?}", receipt.ending);
        ensure!(receipt.ram_digest == RamCheck::Equal, "RAM: {:?}", receipt.ram_digest);
        others.push(receipt);
    }
    let [stranger, twin] = &others[..] else { unreachable!("two have moved") };
    println!(
        "first {} bytes, twin {}, {:?} known",
        first.wire.sockets,
        twin.wire.sockets,
        known(twin)
    );
    ensure!(known(stranger) == PageCount::ZERO, "{stranger:#?}");
    ensure!(
        known(twin).bytes() > 64 << 20 && twin.wire.sockets < first.wire.sockets / 2,
        "{twin:#?}"
    );
    // Nothing of the guest was taken from it that gave the pages.
    world.nothing_is_wrong(Host::B)
}
