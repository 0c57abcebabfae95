//! A guest that is defined, started, ended, edited, moved, started where it went, and deleted.

use std::fs;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sterna_testkit::lab::GuestPlan;
use sterna_testkit::net::Host;
use sterna_testkit::probe::ConsoleLog;
use sterna_testkit::recorder::{Bytes, Line, Rate, Workload};

use crate::kit::{GUEST, LIMIT, World};

/// A guest that fills this much of its memory.
fn guest(memory_mebibytes: u32, fill_mebibytes: u32) -> GuestPlan {
    let workload = Workload::new(Bytes::mebibytes(fill_mebibytes))
        .rewrite(Bytes::mebibytes(8), Rate::mebibytes_per_second(2))
        .check_at_most(Rate::mebibytes_per_second(20));
    GuestPlan::new(GUEST, Bytes::mebibytes(memory_mebibytes), workload)
}

/// Starts the guest that is defined, and waits until it has filled this much memory: a life of its own.
fn begins(world: &mut World, host: Host, fill_mebibytes: u32) -> Result<()> {
    world.console = ConsoleLog::new();
    world.lab.run(host, &["vm", "start", GUEST])?;
    world.follow(host)?;
    let begun = |line: &Line| matches!(line, Line::Ready { .. } | Line::Error(_));
    let line = world.console.wait_for(0, LIMIT, begun).context("the guest did not boot")?;
    let is_filled = |fill| fill == Bytes::mebibytes(fill_mebibytes);
    ensure!(matches!(line, Line::Ready { fill, .. } if is_filled(fill)), "it begins with {line:?}");
    Ok(())
}

fn stops(world: &World, host: Host) -> Result<()> {
    world.lab.run(host, &["vm", "stop", GUEST])?;
    world.becomes(host, "stopped")?;
    ensure!(world.qemus(host)?.is_empty(), "a hypervisor is left");
    let folder = world.lab.folder(host).join("run/guests").join(GUEST);
    ensure!(!folder.exists(), "{} is left", folder.display());
    Ok(())
}

/// The machine type that is written, and the one that runs.
fn machines(world: &World, host: Host) -> Result<(Value, Value)> {
    let of = |words: &[&str]| -> Result<Value> {
        let words = [&["vm", "show", GUEST, "--output", "json"], words].concat();
        let shown: Value = serde_json::from_str(&world.lab.run(host, &words)?)?;
        Ok(shown["definition"]["machine"].clone())
    };
    Ok((of(&["--definition"])?, of(&[])?))
}

#[test]
fn a_guest_is_edited_between_two_lives_and_goes_on_as_defined_where_it_went() -> Result<()> {
    let Some(mut world) = World::empty("st-def")? else { return Ok(()) };
    let file = world.lab.describe(Host::A, &guest(128, 16))?;
    let file = file.to_str().context("no text")?.to_owned();
    world.lab.run(Host::A, &["vm", "create", &file])?;
    world.becomes(Host::A, "stopped")?;
    ensure!(world.qemus(Host::A)?.is_empty(), "it was only defined");
    begins(&mut world, Host::A, 16)?;
    stops(&world, Host::A)?;
    // What QEMU said as it was asked to end, or nothing; but no error.
    world.lab.run(Host::A, &["vm", "logs", GUEST])?;

    // More than the first life had; it is filled, so it is there.
    world.lab.describe(Host::A, &guest(192, 88))?;
    world.lab.run(Host::A, &["vm", "edit", GUEST, "--file", &file])?;
    world.lab.kill_agent(Host::A)?;
    world.lab.start_agent(Host::A)?;
    world.becomes(Host::A, "stopped")?;
    let shown = world.lab.run(Host::A, &["vm", "show", GUEST, "--definition"])?;
    ensure!(shown.contains("memory = \"192MiB\""), "{shown}");
    fs::write(&file, shown.replace("vcpus = 1", "vcpus = 0"))?;
    let refused = world.lab.run(Host::A, &["vm", "edit", GUEST, "--file", &file]).unwrap_err();
    ensure!(format!("{refused:#}").contains("line 2, column 9"), "{refused:#}");
    begins(&mut world, Host::A, 88)?;

    world.moves_well(Host::A, Host::B)?;
    world.runs_only_on(Host::B)?;
    for words in [["vm", "start", GUEST], ["vm", "edit", GUEST], ["vm", "delete", GUEST]] {
        let refused = world.lab.run(Host::A, &words).unwrap_err();
        ensure!(format!("{refused:#}").contains("was moved to"), "{refused:#}");
    }
    let (written, runs) = machines(&world, Host::B)?;
    ensure!(written.is_null() && runs.is_string(), "{written} is written, {runs} runs");

    stops(&world, Host::B)?;
    begins(&mut world, Host::B, 88)?;
    world.nothing_is_wrong(Host::B)?;
    let refused = world.lab.run(Host::B, &["vm", "delete", GUEST]).unwrap_err();
    ensure!(format!("{refused:#}").contains("sterna vm stop"), "{refused:#}");
    stops(&world, Host::B)?;
    world.lab.run(Host::B, &["vm", "delete", GUEST])?;
    world.becomes_empty(Host::B)
}
