//! Guests whose RAM is made of ordinary pages, and of huge ones.
//!
//! The tracker's grain is the host's page: of a huge one a single write reports 512 pages. These are
//! the moves that are also made under KVM, where guests write memory by other ways than emulated
//! ones (`cargo xtask test --lane kvm`).

use anyhow::{Result, ensure};
use serde_json::json;
use sterna_core::receipt::Receipt;
use sterna_testkit::huge_pages::HugePages;
use sterna_testkit::lab::GuestPlan;
use sterna_testkit::net::Host;
use sterna_testkit::recorder::{Bytes, Rate, Workload};

use crate::kit::{GUEST, World};

const MEMORY: Bytes = Bytes(256 << 20);

/// Writes that come slowly, so that a processor that is emulated twice can keep up with them.
fn guest() -> GuestPlan {
    let workload = Workload::new(Bytes::mebibytes(48))
        .rewrite(Bytes::mebibytes(16), Rate::mebibytes_per_second(2))
        .check_at_most(Rate::mebibytes_per_second(8));
    GuestPlan::new(GUEST, MEMORY, workload)
}

#[test]
fn a_busy_guest_of_ordinary_pages_goes_there_and_back_whole() -> Result<()> {
    there_and_back("st-small", &guest())
}

#[test]
fn a_busy_guest_of_huge_pages_goes_there_and_back_whole() -> Result<()> {
    // While it moves it exists twice.
    let _pool = match HugePages::reserve(Bytes(2 * MEMORY.0)) {
        Ok(pool) => pool,
        Err(why) => {
            eprintln!("skipped: {why}");
            return Ok(());
        }
    };
    there_and_back("st-huge", &GuestPlan { more: json!({ "huge_pages": true }), ..guest() })
}

fn there_and_back(prefix: &str, plan: &GuestPlan) -> Result<()> {
    let Some(mut world) = World::with(prefix, plan)? else { return Ok(()) };
    for (from, to) in [(Host::A, Host::B), (Host::B, Host::A)] {
        let receipt = world.moves_well_under_load(from, to)?;
        ensure!(receipt.rounds.len() > 1, "nothing was written while it moved");
        tell(from, to, &receipt);
        world.runs_only_on(to)?;
        world.nothing_is_wrong(to)?;
    }
    Ok(())
}

fn tell(from: Host, to: Host, receipt: &Receipt) {
    let Some(downtime) = &receipt.downtime else { return };
    println!(
        "{} to {}: {} rounds, RAM {:?}, downtime {:.1?} ({downtime:?}), {:?}",
        from.name(),
        to.name(),
        receipt.rounds.len(),
        receipt.ram_digest,
        downtime.total,
        receipt.tracking,
    );
}
