//! More moves than a host may make at once.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use sterna_proto::message::ReasonCode;
use sterna_testkit::lab::{GuestPlan, Hosts, guest_state};
use sterna_testkit::net::Host;
use sterna_testkit::recorder::{Bytes, Workload};
use uuid::Uuid;

use crate::kit::{PRE_COPY, World, small_guest, until};

/// A guest beside the one that is watched.
fn beside(name: &str) -> GuestPlan {
    let workload = Workload::new(Bytes::mebibytes(16));
    let plan = GuestPlan::new(name, Bytes::mebibytes(128), workload);
    GuestPlan { more: json!({ "networks": null }), ..plan }
}

/// Asks for a move from host a, and returns its id.
fn ask(world: &World, guest: &str, priority: &str) -> Result<String> {
    let (id, to) = (Uuid::new_v4().to_string(), world.lab.address(Host::B));
    let words = ["migrate", guest, "--to", &to, "--id", &id, "--priority", priority, "--detach"];
    world.lab.run(Host::A, &words)?;
    Ok(id)
}

fn show(world: &World, id: &str) -> Result<Value> {
    Ok(serde_json::from_str(&world.lab.run(Host::A, &["moves", "show", id, "--output", "json"])?)?)
}

/// Waits until a move says that it waits for this.
fn waits(world: &World, id: &str, why: &str) -> Result<()> {
    until(why, || {
        let progress = &show(world, id)?["progress"];
        Ok((progress["stage"] == "waiting" && progress["waiting"] == why).then_some(()))
    })
}

fn runs(world: &World, host: Host, guest: &str) -> bool {
    guest_state(&world.lab, host, guest).as_deref() == Some("running")
}

fn reads_again(world: &World, file: &Path, text: &str) -> Result<()> {
    fs::write(file, text)?;
    let pid = i32::try_from(world.lab.agent_pid(Host::A)?)?;
    Ok(kill_process(Pid::from_raw(pid).context("no process")?, Signal::HUP)?)
}

#[test]
fn moves_wait_for_their_turn_by_priority_until_the_host_allows_more() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("agent.toml");
    fs::write(&file, "[moves]\nfrom-here = 1\n")?;
    let options = ["--config", file.to_str().context("no text")?];
    let Some(mut world) = World::of("st-q", Hosts::Two, &options)? else { return Ok(()) };
    world.start(&small_guest())?;
    for name in ["patient", "urgent"] {
        world.lab.start_guest(Host::A, &beside(name))?;
    }
    // It copies for half a minute at least.
    let slow = [&PRE_COPY[..], &["--bandwidth", "4MB/s"]].concat();
    let underway = world.begin(Host::A, Host::B, &slow)?;
    world.has_copied_in(&underway, "copying")?;

    let patient = ask(&world, "patient", "low")?;
    waits(&world, &patient, "one move from this host is under way")?;
    let urgent = ask(&world, "urgent", "high")?;
    waits(&world, &urgent, "one move from this host is under way")?;
    waits(&world, &patient, "one move from this host is under way, and one waits ahead of it")?;
    ensure!(runs(&world, Host::A, "patient"));

    // One that waits can be cancelled, and nothing has happened to its guest.
    world.lab.run(Host::A, &["moves", "cancel", &patient])?;
    let ended = until("the end of a move that waits", || {
        let shown = show(&world, &patient)?;
        Ok((shown["state"] == "ended").then_some(shown))
    })?;
    ensure!(ended["receipt"]["result"] == "undone", "{ended:#}");
    ensure!(runs(&world, Host::A, "patient"));

    // A file that cannot be used changes nothing; the log says where the error is.
    reads_again(&world, &file, "[moves]\nfrom-here = 0\n")?;
    until("the error in the log", || {
        let log = fs::read_to_string(world.lab.folder(Host::A).join("agent.log"))?;
        Ok(log.contains("line 2, column 13").then_some(()))
    })?;
    waits(&world, &urgent, "one move from this host is under way")?;

    reads_again(&world, &file, "[moves]\nfrom-here = 2\n")?;
    let ended = until("the move that waited", || {
        let shown = show(&world, &urgent)?;
        Ok((shown["state"] == "ended").then_some(shown))
    })?;
    ensure!(ended["receipt"]["result"] == "moved", "{ended:#}");
    ensure!(runs(&world, Host::B, "urgent"));

    // Meanwhile the first has gone on as if nobody else were there.
    underway.interrupt()?;
    underway.undone(5, ReasonCode::Cancelled, "")?;
    world.lab.take_away(Host::A, "patient")?;
    world.lab.take_away(Host::B, "urgent")?;
    world.runs_only_on(Host::A)?;
    world.nothing_is_wrong(Host::A)
}

#[test]
fn a_host_takes_no_more_guests_at_once_than_it_wants() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("agent.toml");
    fs::write(&file, "[moves]\nto-here = 1\n")?;
    let options = ["--config", file.to_str().context("no text")?];
    let Some(mut world) = World::of("st-q-in", Hosts::Two, &options)? else { return Ok(()) };
    world.start(&small_guest())?;
    world.lab.start_guest(Host::A, &beside("other"))?;
    let slow = [&PRE_COPY[..], &["--bandwidth", "4MB/s"]].concat();
    let underway = world.begin(Host::A, Host::B, &slow)?;
    world.has_copied_in(&underway, "copying")?;
    let other = ask(&world, "other", "normal")?;
    let ended = until("the refusal", || {
        let shown = show(&world, &other)?;
        Ok((shown["state"] == "ended").then_some(shown))
    })?;
    ensure!(ended["summary"].as_str().is_some_and(|s| s.contains("to-here")), "{ended:#}");
    ensure!(runs(&world, Host::A, "other"));
    underway.interrupt()?;
    underway.undone(5, ReasonCode::Cancelled, "")?;
    // Once nobody arrives any more there is room.
    let again = ask(&world, "other", "normal")?;
    until("the other guest at its destination", || {
        Ok((show(&world, &again)?["receipt"]["result"] == "moved").then_some(()))
    })?;
    world.lab.take_away(Host::B, "other")?;
    world.runs_only_on(Host::A)?;
    world.nothing_is_wrong(Host::A)
}
