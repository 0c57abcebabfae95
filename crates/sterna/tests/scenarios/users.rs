//! Guests whose hypervisors are users of their own.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use sterna_core::receipt::RamCheck;
use sterna_testkit::lab::{GuestPlan, Hosts};
use sterna_testkit::net::Host;
use sterna_testkit::recorder::{Bytes, DiskUse, Line, Rate, Workload};

use super::slowed_down;
use crate::kit::{GUEST, LIMIT, PRE_COPY, World, until};

/// What the agents are told.
const UIDS: [&str; 2] = ["--guest-uids", "1900000100-1900000119"];
const FIRST: u32 = 1_900_000_100;
const LAST: u32 = 1_900_000_119;

const DISK: Bytes = Bytes(32 << 20);

/// The user that all threads of the guest's hypervisor on a host are, without any right but its own.
fn user(world: &World, host: Host) -> Result<u32> {
    let pid = world.qemu(host)?;
    let mut user = None;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        // One that has ended meanwhile does no harm.
        let Ok(status) = fs::read_to_string(thread?.path().join("status")) else { continue };
        let ids = status.lines().find_map(|line| line.strip_prefix("Uid:")).context("no ids")?;
        let ids = ids.split_whitespace().map(str::parse).collect::<Result<Vec<u32>, _>>()?;
        ensure!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
        ensure!(*user.get_or_insert(ids[0]) == ids[0], "threads of several users");
        ensure!(status.contains("CapEff:\t0000000000000000\n"), "{status}");
    }
    let user = user.context("no threads")?;
    ensure!((FIRST..=LAST).contains(&user), "its hypervisor is user {user}");
    Ok(user)
}

/// What belongs to the agent, or to another guest, is nothing that this user reaches.
fn reaches_nothing(world: &World, host: Host, user: u32) -> Result<()> {
    let folder = world.lab.folder(host);
    // As if nothing above it hid it.
    for path in [world.folder(), &folder] {
        fs::set_permissions(path, Permissions::from_mode(0o755))?;
    }
    let guest = format!("run/guests/{GUEST}");
    for path in ["run", "run/agent.sock", "run/guests", &guest, "state", "identity/host.key"] {
        let path = folder.join(path);
        ensure!(path.exists(), "{} is not there", path.display());
        let mut command = Command::new("head");
        command.args(["-c", "1"]).arg(&path).current_dir("/").uid(user).gid(user);
        let output = command.output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(said.contains("Permission denied"), "{}: {said}", path.display());
    }
    Ok(())
}

#[test]
fn a_guest_with_a_user_of_its_own_moves_by_all_ways_and_outlives_agents() -> Result<()> {
    let disks = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let disk = disks.path().join("disk.raw");
    sterna_testkit::disk::fill(&disk, DISK)?;
    // Root's alone, and so is the way to it.
    fs::set_permissions(&disk, Permissions::from_mode(0o600))?;
    fs::set_permissions(disks.path(), Permissions::from_mode(0o700))?;
    let workload = Workload::new(Bytes::mebibytes(64))
        .rewrite(Bytes::mebibytes(8), Rate::mebibytes_per_second(2))
        .check_at_most(Rate::mebibytes_per_second(20))
        .disk(DiskUse::Read, Rate::mebibytes_per_second(16));
    let more = json!({ "disks": [{ "path": disk }] });
    let plan = GuestPlan { more, ..GuestPlan::new(GUEST, Bytes::mebibytes(256), workload) };
    let Some(mut world) = World::of("st-u-all", Hosts::Two, &UIDS)? else { return Ok(()) };
    world.start(&plan)?;
    let reads = |world: &World| -> Result<()> {
        let skip = world.console.lines().len();
        world.console.wait_for(skip, LIMIT, |line| matches!(line, Line::Disk { .. }))?;
        Ok(())
    };
    reads(&world)?;
    let at_first = user(&world, Host::A)?;
    reaches_nothing(&world, Host::A, at_first)?;
    let ways: [&[&str]; 3] = [
        &PRE_COPY,
        &["--algorithm", "post-copy"],
        &["--algorithm", "native", "--native-mode", "multifd"],
    ];
    let (mut from, mut to) = (Host::A, Host::B);
    for way in ways {
        let native = way.contains(&"native");
        let verify: &[&str] =
            if native { &["--when-stuck", "stop-and-copy"] } else { &["--verify"] };
        let before = user(&world, from)?;
        let receipt = world.begin(from, to, &[way, verify].concat())?.moved()?;
        ensure!(native || receipt.ram_digest == RamCheck::Equal, "{:?}", receipt.ram_digest);
        ensure!(user(&world, to)? != before, "the user of a guest that is about to end");
        world.runs_only_on(to)?;
        reads(&world)?;
        let now = user(&world, to)?;
        world.lab.kill_agent(to)?;
        world.restart_agent(to)?;
        world.becomes(to, "running")?;
        ensure!(user(&world, to)? == now);
        (from, to) = (to, from);
    }
    reads(&world)?;
    world.runs_only_on(from)?;
    world.nothing_is_wrong(from)?;
    world.lab.run(from, &["vm", "stop", GUEST])?;
    world.lab.run(from, &["vm", "delete", GUEST])?;
    world.becomes_empty(from)?;
    until("no process of a guest's user", || {
        let users = sterna_sys::process::users()?;
        Ok(users.range(FIRST..=LAST).next().is_none().then_some(()))
    })
}

#[test]
fn a_guest_with_a_user_of_its_own_is_slowed_down_as_any() -> Result<()> {
    let Some(mut world) = World::of("st-u-sl", Hosts::Two, &UIDS)? else { return Ok(()) };
    world.start(&slowed_down::fast_guest())?;
    user(&world, Host::A)?;
    slowed_down::converges(world)
}
