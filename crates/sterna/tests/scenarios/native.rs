//! QEMU copies the guest by itself, inside a move like any other.

use anyhow::{Context, Result, ensure};
use serde_json::json;
use sterna_core::algorithm::AlgorithmName;
use sterna_core::receipt::{Ending, RamCheck, StopReason};
use sterna_core::speed::VcpuSpeed;
use sterna_proto::message::NativeMode;
use sterna_testkit::lab::GuestPlan;
use sterna_testkit::net::Host;

use super::undone;
use crate::kit::{GUEST, World, large_guest, small_guest};

const NATIVE: [&str; 2] = ["--algorithm", "native"];

/// A guest that gives nothing back, so that its RAM can be compared.
fn without_balloon(plan: GuestPlan) -> GuestPlan {
    GuestPlan { more: json!({ "balloon": false }), ..plan }
}

#[test]
fn a_busy_guest_goes_there_and_back_natively_in_every_mode_and_no_byte_of_it_is_wrong() -> Result<()>
{
    let plan = without_balloon(small_guest());
    let Some(mut world) = World::with("st-n-all", &plan)? else { return Ok(()) };
    let (mut from, mut to) = (Host::A, Host::B);
    let modes = [
        ("pre-copy", NativeMode::PreCopy),
        ("xbzrle", NativeMode::Xbzrle),
        ("multifd", NativeMode::Multifd),
        ("multifd-zstd", NativeMode::MultifdZstd),
    ];
    for (name, mode) in modes {
        // How soon it converges is not the subject, and the machine may be busy.
        let more = ["--verify", "--when-stuck", "stop-and-copy", "--native-mode", name];
        let receipt = world.begin(from, to, &[&NATIVE[..], &more].concat())?.moved()?;
        ensure!(receipt.ram_digest == RamCheck::Equal, "{name}: {:?}", receipt.ram_digest);
        ensure!(receipt.algorithm == AlgorithmName::Native && receipt.native_mode == Some(mode));
        let downtime = receipt.downtime.context("no downtime")?;
        ensure!(downtime.total >= downtime.copy, "{name}: {downtime:?}");
        let (pages, bytes) = receipt
            .rounds
            .iter()
            .fold((0, 0), |(pages, bytes), round| (pages + round.pages.raw.0, bytes + round.bytes));
        println!("{name}: {pages} pages, {bytes} bytes, {:?}", receipt.downtime);
        ensure!(pages * 4096 > 100 << 20, "{name}: only {pages} pages were sent");
        ensure!(receipt.wire.sockets > bytes, "{name}: {:?}, {bytes}", receipt.wire);
        world.ticks_and_answers()?;
        (from, to) = (to, from);
    }
    // And in our own way, which finds nothing left of theirs.
    world.moves_well_under_load(from, to)?;
    world.runs_only_on(to)?;
    world.nothing_is_wrong(to)
}

#[test]
fn a_native_move_that_is_cancelled_leaves_the_guest_running() -> Result<()> {
    let Some(mut world) = World::with("st-n-cc", &small_guest())? else { return Ok(()) };
    let underway = world.begin_copying_by(&NATIVE)?;
    undone::by_a_cancel(world, underway)
}

#[test]
fn a_killed_source_agent_leaves_a_guest_running_that_moves_natively() -> Result<()> {
    let Some(mut world) = World::with("st-n-sa", &small_guest())? else { return Ok(()) };
    let underway = world.begin_copying_by(&NATIVE)?;
    undone::by_a_killed_source_agent(world, underway)
}

#[test]
fn a_killed_destination_agent_undoes_a_native_move() -> Result<()> {
    let Some(mut world) = World::with("st-n-da", &small_guest())? else { return Ok(()) };
    let underway = world.begin_copying_by(&NATIVE)?;
    undone::by_a_killed_destination_agent(world, underway)
}

#[test]
fn a_killed_hypervisor_at_the_destination_undoes_a_native_move() -> Result<()> {
    let Some(mut world) = World::with("st-n-dq", &small_guest())? else { return Ok(()) };
    let underway = world.begin_copying_by(&NATIVE)?;
    undone::by_a_killed_hypervisor_at_the_destination(world, underway)
}

#[test]
fn a_cut_link_undoes_a_native_move() -> Result<()> {
    let Some(mut world) = World::with("st-n-ln", &small_guest())? else { return Ok(()) };
    let underway = world.begin_copying_by(&NATIVE)?;
    undone::by_a_cut_link(world, underway, Host::A)
}

#[test]
fn a_guest_that_its_hypervisor_slows_down_says_so_in_its_receipt_and_runs_on_at_full_speed()
-> Result<()> {
    let Some(mut world) = World::with("st-n-ac", &small_guest())? else { return Ok(()) };
    // Slower than the guest writes.
    let words = ["--bandwidth", "5MB/s", "--max-downtime", "50ms", "--when-stuck", "throttle"];
    let underway = world.begin(Host::A, Host::B, &[&NATIVE[..], &words].concat())?;
    let receipt = underway.moved()?;
    ensure!(receipt.stopped == Some(StopReason::ByHypervisor), "{:?}", receipt.stopped);
    let slowest = receipt.rounds.iter().map(|round| round.vcpus).min();
    println!("{} rounds, slowest {slowest:?}", receipt.rounds.len());
    ensure!(slowest < Some(VcpuSpeed::FULL), "{:?}", receipt.rounds);
    world.runs_only_on(Host::B)?;
    world.nothing_is_wrong(Host::B)
}

#[test]
fn a_guest_with_private_memory_is_refused_with_a_hint_and_moved_natively() -> Result<()> {
    let memory = small_guest().memory;
    let backend = format!("memory-backend-ram,id=private,size={}M", memory.0 >> 20);
    let arguments = ["-object", &backend, "-machine", "memory-backend=private"];
    let plan = GuestPlan { more: json!({ "qemu_args": arguments }), ..small_guest() };
    let Some(mut world) = World::with("st-n-ram", &plan)? else { return Ok(()) };
    let refused = world.lab.migrate(Host::A, Host::B, GUEST, &[])?;
    ensure!(refused.exit == Some(3), "exit {:?}: {}", refused.exit, refused.messages);
    for word in ["private", "--algorithm native"] {
        ensure!(refused.messages.contains(word), "no word of {word}: {}", refused.messages);
    }
    let words = [&NATIVE[..], &["--verify"]].concat();
    let refused = world.lab.migrate(Host::A, Host::B, GUEST, &words)?;
    ensure!(refused.exit == Some(3), "exit {:?}: {}", refused.exit, refused.messages);
    ensure!(refused.messages.contains("--verify"), "{}", refused.messages);
    let words = [&NATIVE[..], &["--when-stuck", "stop-and-copy"]].concat();
    let receipt = world.begin(Host::A, Host::B, &words)?.moved()?;
    ensure!(receipt.ram_digest == RamCheck::NotChecked, "{:?}", receipt.ram_digest);
    world.runs_only_on(Host::B)?;
    world.nothing_is_wrong(Host::B)
}

/// All RAM within the downtime: paused at once, then copied for some time, then hashed.
const AT_ONCE: [&str; 4] = ["--max-downtime", "60s", "--verify", "--bandwidth=24MB/s"];

#[test]
fn a_killed_source_agent_at_a_native_switchover_gives_the_guest_back() -> Result<()> {
    let plan = without_balloon(large_guest());
    let Some(mut world) = World::with("st-n-ssa", &plan)? else { return Ok(()) };
    let underway = world.begin(Host::A, Host::B, &[&NATIVE[..], &AT_ONCE].concat())?;
    world.comes_to(&underway, "switching over")?;
    world.lab.kill_agent(Host::A)?;
    world.restart_agent(Host::A)?;
    world.follow(Host::A)?;
    // It runs again by itself, or waits for the word of the destination.
    let receipt = underway.ends(4)?;
    ensure!(matches!(receipt.ending, Ending::Undone { .. }), "{:?}", receipt.ending);
    world.runs_on_and_moves_after_all()
}

#[test]
fn a_killed_destination_agent_at_a_native_switchover_gives_the_guest_back() -> Result<()> {
    let plan = without_balloon(large_guest());
    let Some(mut world) = World::with("st-n-sda", &plan)? else { return Ok(()) };
    let underway = world.begin(Host::A, Host::B, &[&NATIVE[..], &AT_ONCE].concat())?;
    world.comes_to(&underway, "switching over")?;
    undone::by_a_killed_destination_agent(world, underway)
}
