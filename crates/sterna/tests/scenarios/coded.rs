//! Pages that are sent in fewer bytes than they have.

use anyhow::{Result, ensure};
use sterna_core::receipt::{RamCheck, Receipt};
use sterna_page::PageCount;
use sterna_testkit::net::Host;

use crate::kit::{World, small_guest};

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
