//! A guest that writes faster than the link is slowed down, and never stays slow.

use std::fs;

use anyhow::{Result, ensure};
use sterna_core::limits::WhenStuck;
use sterna_core::receipt::RamCheck;
use sterna_core::speed::VcpuSpeed;
use sterna_proto::message::ReasonCode;
use sterna_testkit::lab::GuestPlan;
use sterna_testkit::net::Host;
use sterna_testkit::recorder::{Bytes, Rate, Workload};

use crate::kit::{GUEST, Underway, World, until};

/// Moves that cannot converge at full speed, even if the guest gets half of its time only.
const STUCK: [&str; 8] = [
    "--algorithm",
    "pre-copy",
    "--bandwidth",
    "12MB/s",
    "--when-stuck",
    "throttle",
    "--max-downtime",
    "60ms",
];

pub(super) fn fast_guest() -> GuestPlan {
    let workload = Workload::new(Bytes::mebibytes(96))
        .rewrite(Bytes::mebibytes(48), Rate::mebibytes_per_second(60))
        .check_at_most(Rate::mebibytes_per_second(20));
    GuestPlan::new(GUEST, Bytes::mebibytes(192), workload)
}

#[test]
fn a_guest_faster_than_the_link_converges_and_runs_at_full_speed_where_it_arrives() -> Result<()> {
    let Some(world) = World::with("st-s-ok", &fast_guest())? else { return Ok(()) };
    converges(world)
}

/// Moves a [`fast_guest`] from host a to host b.
pub(super) fn converges(mut world: World) -> Result<()> {
    let words = [&STUCK[..], &["--verify"]].concat();
    let receipt = world.begin(Host::A, Host::B, &words)?.moved()?;
    ensure!(receipt.ram_digest == RamCheck::Equal, "{:?}", receipt.ram_digest);
    ensure!(receipt.limits.when_stuck == Some(WhenStuck::Throttle), "{:?}", receipt.limits);
    let slow = receipt.rounds.iter().filter(|round| round.vcpus < VcpuSpeed::FULL);
    ensure!(slow.count() > 0, "it was not slowed down: {:?}", receipt.rounds);
    let held_back: std::time::Duration = receipt.rounds.iter().map(|r| r.held_back).sum();
    ensure!(!held_back.is_zero(), "it was slowed down at no cost: {:?}", receipt.rounds);
    world.runs_only_on(Host::B)?;
    ensure!(!is_slow(world.qemu(Host::B)?)?, "it is slow where it arrived");
    world.nothing_is_wrong(Host::B)
}

#[test]
fn ctrl_c_gives_a_slow_guest_its_speed_back() -> Result<()> {
    let Some(mut world) = World::with("st-t-cc", &fast_guest())? else { return Ok(()) };
    let (underway, qemu) = begin_slowed(&mut world)?;
    underway.interrupt()?;
    underway.undone(5, ReasonCode::Cancelled, "cancelled")?;
    ensure!(!is_slow(qemu)?, "it is still slow");
    world.runs_only_on(Host::A)?;
    world.nothing_is_wrong(Host::A)
}

#[test]
fn the_next_agent_gives_a_slow_guest_its_speed_back() -> Result<()> {
    let Some(mut world) = World::with("st-t-sa", &fast_guest())? else { return Ok(()) };
    let (underway, qemu) = begin_slowed(&mut world)?;
    world.lab.kill_agent(Host::A)?;
    ensure!(is_slow(qemu)?, "nobody was there to change it");
    world.restart_agent(Host::A)?;
    world.follow(Host::A)?;
    underway.undone(4, ReasonCode::Agent, "agent was restarted")?;
    ensure!(!is_slow(qemu)?, "it is still slow");
    world.runs_only_on(Host::A)?;
    world.nothing_is_wrong(Host::A)
}

/// Begins a move and returns when the guest has been slowed down, with its hypervisor.
fn begin_slowed(world: &mut World) -> Result<(Underway, u32)> {
    let qemu = world.qemu(Host::A)?;
    // Downtime and goal that no speed reaches: it goes on for as long as it may.
    let words = [&STUCK[..], &["--downtime-goal", "0ms"]].concat();
    let underway = world.begin(Host::A, Host::B, &words)?;
    until("a guest that is slowed down", || Ok(is_slow(qemu)?.then_some(())))?;
    Ok((underway, qemu))
}

/// Whether any thread of a hypervisor is in a group that is not its process's own.
fn is_slow(qemu: u32) -> Result<bool> {
    let own = fs::read_to_string(format!("/proc/{qemu}/cgroup"))?;
    for task in fs::read_dir(format!("/proc/{qemu}/task"))? {
        let groups = fs::read_to_string(task?.path().join("cgroup")).unwrap_or_default();
        if !groups.is_empty() && groups != own {
            ensure!(groups.contains("sterna-"), "whose group is it in? {groups}");
            return Ok(true);
        }
    }
    Ok(false)
}
