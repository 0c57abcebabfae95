//! Guests whose hot pages go last.

use anyhow::{Context, Result, ensure};
use sterna_core::receipt::{RamCheck, Receipt};
use sterna_page::PageCount;
use sterna_testkit::lab::GuestPlan;
use sterna_testkit::net::Host;
use sterna_testkit::recorder::{Bytes, Rate, Share, Workload};

use crate::kit::{GUEST, World};

/// Moves that cannot converge: what is held back is known by the third round.
const STUCK: [&str; 9] = [
    "--algorithm",
    "pre-copy",
    "--bandwidth",
    "24MB/s",
    "--when-stuck",
    "stop-and-copy",
    "--max-downtime",
    "1s",
    "--verify",
];

/// A guest that writes nine times of ten to a tenth of what it writes at all.
fn hot_guest() -> Result<GuestPlan> {
    let workload = Workload::new(Bytes::mebibytes(64))
        .locality(Share::new(0.9).context("a share")?)
        .rewrite(Bytes::mebibytes(40), Rate::mebibytes_per_second(50))
        .check_at_most(Rate::mebibytes_per_second(10));
    Ok(GuestPlan::new(GUEST, Bytes::mebibytes(160), workload))
}

#[test]
fn pages_that_were_held_back_arrive_whichever_predictor_chose_them() -> Result<()> {
    let Some(mut world) = World::with("st-h-ok", &hot_guest()?)? else { return Ok(()) };
    let plain = moved(&mut world, Host::A, Host::B, "none")?;
    ensure!(withheld(&plain) == PageCount::ZERO, "{:?}", plain.rounds);
    for (predictor, from, to) in [("lru", Host::B, Host::A), ("aged", Host::A, Host::B)] {
        let receipt = moved(&mut world, from, to, predictor)?;
        ensure!(withheld(&receipt) > PageCount::ZERO, "{predictor} held nothing back");
    }
    world.nothing_is_wrong(Host::B)
}

fn moved(world: &mut World, from: Host, to: Host, predictor: &str) -> Result<Receipt> {
    let words = [&STUCK[..], &["--hold-back", predictor]].concat();
    let receipt = world.begin(from, to, &words)?.moved()?;
    ensure!(receipt.ram_digest == RamCheck::Equal, "{:?}", receipt.ram_digest);
    world.runs_only_on(to)?;
    let copying = receipt.downtime.map(|downtime| downtime.copy);
    println!(
        "{predictor}: {} rounds, {} MiB sent, {copying:?} of copying at the pause, {:?} held back",
        receipt.rounds.len(),
        receipt.wire.payload >> 20,
        withheld(&receipt)
    );
    Ok(receipt)
}

fn withheld(receipt: &Receipt) -> PageCount {
    receipt.rounds.iter().fold(PageCount::ZERO, |all, round| all + round.pages.withheld)
}
