//! Moves that never begin, and say why.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sterna_core::receipt::Ending;
use sterna_proto::message::ReasonCode;
use sterna_testkit::lab::{GuestPlan, guest_state};
use sterna_testkit::net::Host;
use sterna_testkit::recorder::{Bytes, Workload};

use super::planning::plan;
use crate::kit::{GUEST, STERNA, World, small_guest};

#[test]
fn a_host_of_another_authority_is_given_nothing() -> Result<()> {
    let Some(mut world) = World::with("st-r-ca", &small_guest())? else { return Ok(()) };
    let identity = foreign_identity(&world)?;
    let other = world.replace_agent(Host::B, &identity, None)?;
    let underway = world.begin(Host::A, Host::B, &[])?;
    let receipt = underway.undone(4, ReasonCode::LinkLost, "certificate")?;
    ensure!(receipt.rounds.is_empty() && receipt.downtime.is_none(), "{receipt:?}");
    ensure!(world.moves(Host::B)?.is_empty(), "it reached the other host");
    drop(other);
    world.lab.start_agent(Host::B)?;
    world.runs_on_and_moves_after_all()
}

/// An identity of the same name, signed by nobody that host a knows.
fn foreign_identity(world: &World) -> Result<PathBuf> {
    let authority = world.folder().join("foreign");
    let identity = world.folder().join("foreign-b");
    let address = world.lab.address(Host::B);
    let run = |words: &[&Path]| -> Result<()> {
        let output = Command::new(STERNA).arg("pki").args(words).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "sterna pki {words:?}: {said}");
        Ok(())
    };
    let (b, at, out) = (Path::new("b"), Path::new("--address"), Path::new("--out"));
    run(&[Path::new("init"), &authority])?;
    run(&[Path::new("host"), &authority, b, at, Path::new(&address), out, &identity])?;
    Ok(identity)
}

#[test]
fn a_destination_that_promised_its_memory_to_another_guest_takes_no_more() -> Result<()> {
    let Some(mut world) = World::empty("st-r-mem")? else { return Ok(()) };
    let bytes = most_of_the_memory()?;
    // Guests without a system: they touch next to nothing of what they have.
    for name in [GUEST, "other"] {
        let more = json!({ "kernel": null, "initrd": null, "append": null, "networks": [] });
        let workload = Workload::new(Bytes::mebibytes(1));
        let plan = GuestPlan { name: name.into(), memory: bytes, workload, more };
        world.lab.start_guest(Host::A, &plan)?;
    }
    let first = world.begin(Host::A, Host::B, &["--bandwidth", "10kB/s"])?;
    world.comes_to(&first, "copying")?;
    let second = world.lab.migrate(Host::A, Host::B, "other", &[])?;
    let receipt = second.receipt()?;
    let Ending::Undone { reasons } = &receipt.ending else { anyhow::bail!("{receipt:?}") };
    ensure!(second.exit == Some(3), "exit {:?}", second.exit);
    ensure!(reasons.iter().all(|reason| reason.code == ReasonCode::NoRoom), "{reasons:?}");
    ensure!(guest_state(&world.lab, Host::A, "other").as_deref() == Some("running"));
    first.interrupt()?;
    first.undone(5, ReasonCode::Cancelled, "")?;
    let third = world.lab.migrate(Host::A, Host::B, "other", &[])?;
    ensure!(third.exit == Some(0), "with the memory free again: {:?}", third.receipt()?.ending);
    Ok(())
}

/// Six tenths of what is free, in whole MiB: once, but not twice.
fn most_of_the_memory() -> Result<Bytes> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kibibytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    let mebibytes = kibibytes.context("no MemAvailable")? / 1024;
    Ok(Bytes::mebibytes(u32::try_from(mebibytes * 6 / 10)?))
}

#[test]
fn a_destination_without_the_machine_type_refuses_and_says_which() -> Result<()> {
    let more = json!({ "machine": "pc-q35-7.2" });
    let guest = GuestPlan { more, ..small_guest() };
    let Some(mut world) = World::with("st-r-mt", &guest)? else { return Ok(()) };
    let qemu = qemu_without(&world, "pc-q35-7.2")?;
    let identity = world.lab.folder(Host::B).join("identity");
    let _other = world.replace_agent(Host::B, &identity, Some(&qemu))?;
    let (planned, code) = plan(&world, &["--observe", "100ms"])?;
    ensure!(code == Some(3) && planned["feasible"] == false, "{code:?} {planned:#}");
    let refused = planned["refused"].as_array().context("no list of refusals")?;
    let told = |reason: &Value| reason.to_string().contains("pc-q35-7.2");
    ensure!(refused.iter().any(told), "{planned:#}");
    let underway = world.begin(Host::A, Host::B, &[])?;
    let receipt = underway.undone(4, ReasonCode::Hypervisor, "pc-q35-7.2")?;
    ensure!(receipt.downtime.is_none() && receipt.rounds.is_empty(), "{receipt:?}");
    world.runs_only_on(Host::A)?;
    world.nothing_is_wrong(Host::A)
}

/// A QEMU that refuses one machine type as a QEMU does that never had it.
fn qemu_without(world: &World, machine: &str) -> Result<PathBuf> {
    let path = world.folder().join("qemu-without");
    let script = format!(
        "#!/bin/sh\nfor word; do case $word in {machine},*)\n\
         echo \"qemu: unsupported machine type: {machine}\" >&2; exit 1;; esac; done\n\
         exec qemu-system-x86_64 \"$@\"\n"
    );
    fs::write(&path, script)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(path)
}

#[test]
fn a_guest_with_memory_out_of_reach_is_refused_with_every_reason_before_anything_begins()
-> Result<()> {
    let arguments = [
        "-object",
        "memory-backend-ram,id=private,size=16M",
        "-object",
        "memory-backend-memfd,id=foreign,size=1M,share=on",
        "-device",
        "ivshmem-plain,memdev=foreign,master=on",
    ];
    let plan = GuestPlan { more: json!({ "qemu_args": arguments }), ..small_guest() };
    let Some(world) = World::with("st-r-ram", &plan)? else { return Ok(()) };
    let refused = world.lab.migrate(Host::A, Host::B, GUEST, &[])?;
    ensure!(refused.exit == Some(3), "exit {:?}: {}", refused.exit, refused.messages);
    for word in ["private", "foreign", "ivshmem"] {
        ensure!(refused.messages.contains(word), "no word of {word}: {}", refused.messages);
    }
    for host in [Host::A, Host::B] {
        ensure!(world.moves(host)?.is_empty(), "a move was begun on {}", host.name());
    }
    world.runs_only_on(Host::A)?;
    world.nothing_is_wrong(Host::A)
}
