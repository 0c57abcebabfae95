//! A guest that its operator pauses.

use anyhow::{Result, ensure};
use serde_json::Value;
use sterna_testkit::net::Host;

use crate::kit::{GUEST, World, small_guest};

/// What `sterna vm check` says of the guest and of a host, and its exit code.
fn check(world: &World, to: &str) -> Result<(Value, Option<i32>)> {
    let words = ["vm", "check", GUEST, "--to", to, "--output", "json"];
    let output = world.lab.sterna(Host::A, &words)?.output()?;
    Ok((serde_json::from_slice(&output.stdout)?, output.status.code()))
}

#[test]
fn a_paused_guest_stays_so_whatever_becomes_of_the_agent_and_does_not_leave() -> Result<()> {
    let Some(mut world) = World::with("st-pause", &small_guest())? else { return Ok(()) };
    let to = world.lab.address(Host::B);
    let (seen, exit) = check(&world, &to)?;
    ensure!(exit == Some(0) && seen["bound"] == Value::Array(vec![]), "{exit:?} {seen:#}");
    ensure!(seen["hosts"][0]["refused"] == Value::Array(vec![]), "{seen:#}");
    // Nobody listens there.
    let (seen, exit) = check(&world, &format!("{to}:9"))?;
    ensure!(exit == Some(3) && seen["hosts"][0]["refused"][0]["code"] == "link-lost", "{seen:#}");

    world.lab.run(Host::A, &["vm", "pause", GUEST])?;
    world.becomes(Host::A, "paused")?;
    world.stands_still()?;

    let (seen, exit) = check(&world, &to)?;
    ensure!(exit == Some(3) && seen["bound"][0]["detail"].to_string().contains("does not run"));
    let refused = world.lab.run(Host::A, &["migrate", GUEST, "--to", &to]).unwrap_err();
    ensure!(format!("{refused:#}").contains("sterna vm run web"), "{refused:#}");

    world.lab.kill_agent(Host::A)?;
    world.lab.start_agent(Host::A)?;
    world.becomes(Host::A, "paused")?;
    world.stands_still()?;

    world.lab.run(Host::A, &["vm", "run", GUEST])?;
    world.follow(Host::A)?;
    world.runs_only_on(Host::A)?;
    world.moves_well(Host::A, Host::B)?;
    world.runs_only_on(Host::B)?;
    world.nothing_is_wrong(Host::B)
}
