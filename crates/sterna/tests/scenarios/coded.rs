//! Pages that are sent in fewer bytes than they have.

use anyhow::{Result, ensure};
use sterna_core::receipt::{RamCheck, Receipt};
use sterna_page::PageCount;
use sterna_testkit::lab::GuestPlan;
use sterna_testkit::net::Host;
use sterna_testkit::recorder::{Bytes, Mix, Rate, Workload, WriteSize};

use crate::kit::{GUEST, PRE_COPY, World, small_guest};

/// Bytes of what coders were given, and of what they made of it.
fn coded(receipt: &Receipt) -> (u64, u64) {
    let coders = receipt.coders.each();
    let pages = coders.iter().fold(PageCount::ZERO, |all, (_, coder)| all + coder.pages);
    (pages.bytes(), coders.iter().map(|(_, coder)| coder.bytes).sum())
}

#[test]
fn pages_go_in_fewer_bytes_before_and_after_the_guest() -> Result<()> {
    let Some(mut world) = World::with("st-c-ok", &small_guest())? else { return Ok(()) };
    let words = ["--verify", "--compress", "auto", "--bandwidth", "12MB/s", "--algorithm"];
    let (mut from, mut to) = (Host::A, Host::B);
    for algorithm in ["pre-copy", "post-copy"] {
        let receipt = world.begin(from, to, &[&words[..], &[algorithm]].concat())?.moved()?;
        ensure!(receipt.ram_digest == RamCheck::Equal, "RAM: {:?}", receipt.ram_digest);
        let (given, made) = coded(&receipt);
        println!("{algorithm}: {given} bytes in {made}, {:?}", receipt.coders);
        // Pages like others are in the guest's mix; none is referred to once the guest writes there.
        let same = receipt.rounds.iter().fold(PageCount::ZERO, |all, round| all + round.pages.same);
        ensure!((same > PageCount::ZERO) == (algorithm == "pre-copy"), "{receipt:#?}");
        // A quarter of what the guest has is noise, and much of the rest is text.
        ensure!(given > 16 << 20 && made < given * 3 / 4, "{receipt:#?}");
        world.runs_only_on(to)?;
        world.nothing_is_wrong(to)?;
        (from, to) = (to, from);
    }
    Ok(())
}

#[test]
fn pages_that_change_a_little_go_as_what_has_changed() -> Result<()> {
    let plan = small_guest();
    let workload = plan.workload.write_size(WriteSize::Words(4));
    let Some(mut world) = World::with("st-c-dl", &GuestPlan { workload, ..plan })? else {
        return Ok(());
    };
    let words = ["--verify", "--compress", "auto", "--bandwidth", "12MB/s"];
    let receipt = world.begin(Host::A, Host::B, &[&PRE_COPY[..], &words].concat())?.moved()?;
    ensure!(receipt.ram_digest == RamCheck::Equal, "RAM: {:?}", receipt.ram_digest);
    let changed = receipt.rounds.iter().fold(PageCount::ZERO, |all, r| all + r.pages.changed);
    println!("{changed:?} in part, in {} rounds", receipt.rounds.len());
    ensure!(changed > PageCount(100), "{receipt:#?}");
    world.runs_only_on(Host::B)?;
    world.nothing_is_wrong(Host::B)
}

#[test]
fn pages_that_others_refer_to_change_while_they_move() -> Result<()> {
    // Copies of 64 pages, of which half are rewritten all the time, as other copies.
    let mix = "text:10,dup:90".parse::<Mix>()?;
    let workload = Workload::new(Bytes::mebibytes(128))
        .mix(mix)
        .rewrite(Bytes::mebibytes(64), Rate::mebibytes_per_second(16))
        .check_at_most(Rate::mebibytes_per_second(20));
    let plan = GuestPlan::new(GUEST, Bytes::mebibytes(256), workload);
    let Some(mut world) = World::with("st-c-du", &plan)? else { return Ok(()) };
    let words = ["--verify", "--compress", "auto", "--bandwidth", "4MB/s"];
    let receipt = world.begin(Host::A, Host::B, &[&PRE_COPY[..], &words].concat())?.moved()?;
    ensure!(receipt.ram_digest == RamCheck::Equal, "RAM: {:?}", receipt.ram_digest);
    let same: Vec<u64> = receipt.rounds.iter().map(|round| round.pages.same.0).collect();
    println!("pages as others by round: {same:?}");
    ensure!(same.iter().filter(|pages| **pages > 1000).count() > 1, "{receipt:#?}");
    world.runs_only_on(Host::B)?;
    world.nothing_is_wrong(Host::B)
}
