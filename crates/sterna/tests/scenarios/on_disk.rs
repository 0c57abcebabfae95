//! Guests whose cache of their disk is read from that disk where they go.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use serde_json::json;
use sterna_core::receipt::{RamCheck, Receipt, Round};
use sterna_page::PageCount;
use sterna_testkit::lab::GuestPlan;
use sterna_testkit::net::Host;
use sterna_testkit::recorder::{Bytes, DiskUse, Line, Rate, Workload};
use tempfile::TempDir;

use crate::kit::{GUEST, LIMIT, PRE_COPY, World};

/// What does not repeat and cannot be compressed: only the disk spares it.
const DISK: Bytes = Bytes(64 << 20);

/// A disk for two hosts.
struct Shared {
    folder: TempDir,
}

impl Shared {
    fn new() -> Result<Self> {
        // Beside the binaries: not every memory file system can be read past its cache.
        let shared = Self { folder: tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))? };
        sterna_testkit::disk::fill(&shared.disk(), DISK)?;
        Ok(shared)
    }

    fn disk(&self) -> PathBuf {
        self.folder.path().join("disk.raw")
    }

    /// A guest on host a that has read all of the disk, and goes on comparing what it has read.
    fn guest(&self, prefix: &str) -> Result<Option<World>> {
        let workload = Workload::new(Bytes::mebibytes(64))
            .rewrite(Bytes::mebibytes(8), Rate::mebibytes_per_second(2))
            .check_at_most(Rate::mebibytes_per_second(20))
            .disk(DiskUse::Read, Rate::mebibytes_per_second(16));
        let more = json!({ "disks": [{ "path": self.disk() }] });
        let guest = GuestPlan { more, ..GuestPlan::new(GUEST, Bytes::mebibytes(256), workload) };
        let Some(world) = World::with(prefix, &guest)? else { return Ok(None) };
        world.console.wait_for(0, LIMIT, |line| matches!(line, Line::Disk { .. }))?;
        Ok(Some(world))
    }
}

/// It reads what it has read before, so the disk's content is that of its cache.
fn reads_on(world: &World) -> Result<()> {
    let skip = world.console.lines().len();
    world.console.wait_for(skip, LIMIT, |line| matches!(line, Line::Disk { .. }))?;
    Ok(())
}

fn sum(receipt: &Receipt, of: impl Fn(&Round) -> PageCount) -> PageCount {
    receipt.rounds.iter().fold(PageCount::ZERO, |all, round| all + of(round))
}

const CODED: [&str; 4] = ["--verify", "--compress", "auto", "--bandwidth"];

#[test]
fn what_a_guest_has_cached_of_its_disk_is_read_there() -> Result<()> {
    let shared = Shared::new()?;
    let Some(mut world) = shared.guest("st-d-rd")? else { return Ok(()) };
    let words = [&PRE_COPY[..], &CODED, &["12MB/s"]].concat();
    let receipt = world.begin(Host::A, Host::B, &words)?.moved()?;
    ensure!(receipt.ram_digest == RamCheck::Equal, "RAM: {:?}", receipt.ram_digest);
    let on_disk = sum(&receipt, |round| round.pages.on_disk);
    let lacking = sum(&receipt, |round| round.lacking);
    println!("{} bytes, {on_disk:?} on disk, {lacking:?} lacking", receipt.wire.sockets);
    ensure!(on_disk.bytes() > DISK.0 * 9 / 10, "{receipt:#?}");
    ensure!(lacking.bytes() < DISK.0 / 100, "{receipt:#?}");
    reads_on(&world)?;
    // Its hypervisor there has dropped what the host had cached; but the agent knows where it has read.
    let back = world.begin(Host::B, Host::A, &words)?.moved()?;
    ensure!(back.ram_digest == RamCheck::Equal, "RAM: {:?}", back.ram_digest);
    let on_disk = sum(&back, |round| round.pages.on_disk);
    println!("back: {} bytes, {on_disk:?} on disk", back.wire.sockets);
    ensure!(on_disk.bytes() > DISK.0 * 8 / 10, "{back:#?}");
    reads_on(&world)?;
    world.runs_only_on(Host::A)?;
    world.nothing_is_wrong(Host::A)
}

#[test]
fn blocks_that_change_after_they_were_looked_at_cost_bytes_and_nothing_else() -> Result<()> {
    let shared = Shared::new()?;
    let Some(mut world) = shared.guest("st-d-ch")? else { return Ok(()) };
    let words = [&PRE_COPY[..], &CODED, &["3MB/s"]].concat();
    let underway = world.begin(Host::A, Host::B, &words)?;
    world.has_copied_in(&underway, "copying")?;
    // By nobody whom the guest knows: it has the old content in its cache, and must keep it.
    let disk = OpenOptions::new().write(true).open(shared.disk())?;
    disk.write_all_at(&vec![0x55; usize::try_from(DISK.0)?], 0)?;
    let receipt = underway.moved()?;
    ensure!(receipt.ram_digest == RamCheck::Equal, "RAM: {:?}", receipt.ram_digest);
    let on_disk = sum(&receipt, |round| round.pages.on_disk);
    let lacking = sum(&receipt, |round| round.lacking);
    println!("{} bytes, {on_disk:?} on disk, {lacking:?} lacking", receipt.wire.sockets);
    ensure!(lacking.bytes() > DISK.0 / 10, "{receipt:#?}");
    reads_on(&world)?;
    world.runs_only_on(Host::B)?;
    world.nothing_is_wrong(Host::B)
}
