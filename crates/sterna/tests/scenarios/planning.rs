//! What a move will cost is said beforehand, and compared with what it did cost.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sterna_core::receipt::{RamCheck, Receipt};
use sterna_testkit::lab::GuestPlan;
use sterna_testkit::net::Host;
use sterna_testkit::recorder::{Bytes, Rate, Workload};

use crate::kit::{GUEST, World, small_guest, until};

/// A plan as JSON, and the exit code.
pub(super) fn plan(world: &World, terms: &[&str]) -> Result<(Value, Option<i32>)> {
    let to = world.lab.address(Host::B);
    let words = [&["plan", GUEST, "--to", &to, "--output", "json"], terms].concat();
    let output = world.lab.sterna(Host::A, &words)?.output()?;
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    let plan = serde_json::from_slice(&output.stdout).context(told)?;
    Ok((plan, output.status.code()))
}

fn methods(receipt: &Receipt) -> Vec<String> {
    receipt.choices.iter().map(|choice| choice.method.to_string()).collect()
}

#[test]
fn a_guest_is_planned_moved_and_compared_with_the_plan() -> Result<()> {
    let Some(mut world) = World::with("st-p-ok", &small_guest())? else { return Ok(()) };
    let terms = ["--bandwidth", "40MB/s"];
    let (seen, code) = plan(&world, &terms)?;
    ensure!(code == Some(0) && seen["feasible"] == true, "{code:?} {seen:#}");
    ensure!(seen["refused"].as_array().is_some_and(Vec::is_empty), "{seen:#}");
    ensure!(seen["choice"]["algorithm"] == "pre-copy", "{seen:#}");
    ensure!(seen["choice"]["forecasts"].as_array().is_some_and(|all| all.len() > 4), "{seen:#}");
    let written = seen["dirty_bytes_per_second"].as_f64().unwrap_or(0.0);
    ensure!(written > 0.0, "it was seen to write nothing: {seen:#}");
    world.runs_only_on(Host::A)?;
    let words = [&terms[..], &["--verify"]].concat();
    let receipt = world.begin(Host::A, Host::B, &words)?.moved()?;
    ensure!(receipt.ram_digest == RamCheck::Equal, "{:?}", receipt.ram_digest);
    let [planned, ..] = &receipt.choices[..] else { anyhow::bail!("{receipt:#?}") };
    ensure!(planned.after.is_zero(), "the plan comes first: {:?}", methods(&receipt));
    world.runs_only_on(Host::B)?;
    let history = world.lab.run(Host::A, &["history", "--output", "json"])?;
    let history: Value = serde_json::from_str(&history)?;
    let foreseen = &history["moves"][0]["total"]["foreseen"];
    let expected = planned.forecast().map(|forecast| forecast.total_us.expected);
    ensure!(foreseen.as_u64() == expected && expected.is_some(), "{history:#}");
    println!("{}", world.lab.run(Host::A, &["history"])?);
    world.nothing_is_wrong(Host::B)
}

#[test]
fn a_guest_faster_than_the_link_is_moved_by_what_was_planned() -> Result<()> {
    let workload = Workload::new(Bytes::mebibytes(96))
        .rewrite(Bytes::mebibytes(48), Rate::mebibytes_per_second(60))
        .check_at_most(Rate::mebibytes_per_second(20));
    let guest = GuestPlan::new(GUEST, Bytes::mebibytes(192), workload);
    let Some(mut world) = World::with("st-p-fa", &guest)? else { return Ok(()) };
    let terms = ["--bandwidth", "12MB/s", "--max-downtime", "100ms"];
    let (refused, code) = plan(&world, &[&terms[..], &["--when-stuck", "abort"]].concat())?;
    ensure!(code == Some(3) && refused["feasible"] == false, "{code:?} {refused:#}");
    let (seen, code) = plan(&world, &terms)?;
    ensure!(code == Some(0) && seen["feasible"] == true, "{code:?} {seen:#}");
    ensure!(seen["choice"]["algorithm"] != "pre-copy", "{seen:#}");
    let receipt = world.begin(Host::A, Host::B, &[&terms[..], &["--verify"]].concat())?.moved()?;
    ensure!(receipt.ram_digest == RamCheck::Equal, "{:?}", receipt.ram_digest);
    ensure!(receipt.following.is_some(), "nothing followed: {:?}", methods(&receipt));
    let once = seen["copying_once_us"].as_u64().unwrap_or(0);
    println!("copying once {once} µs, total {:?}, by {:?}", receipt.total, methods(&receipt));
    world.runs_only_on(Host::B)?;
    world.nothing_is_wrong(Host::B)
}

#[test]
fn an_agent_that_is_killed_while_it_plans_leaves_a_guest_that_runs_and_moves() -> Result<()> {
    let Some(mut world) = World::with("st-p-ka", &small_guest())? else { return Ok(()) };
    let to = world.lab.address(Host::B);
    let words = ["plan", GUEST, "--to", &to, "--observe", "30s"];
    let mut planning = world.lab.sterna(Host::A, &words)?.spawn()?;
    // To tell a guest to run that runs does nothing, and is refused meanwhile.
    until("a guest that is looked at", || {
        let refused = world.lab.run(Host::A, &["vm", "run", GUEST]);
        let busy = refused.is_err_and(|error| format!("{error:#}").contains("being planned"));
        Ok(busy.then_some(()))
    })?;
    // The link is tried first, then pages are tracked.
    std::thread::sleep(Duration::from_secs(2));
    world.lab.kill_agent(Host::A)?;
    ensure!(!planning.wait()?.success(), "nobody was there to answer");
    world.restart_agent(Host::A)?;
    world.follow(Host::A)?;
    world.runs_only_on(Host::A)?;
    world.moves_well(Host::A, Host::B)?;
    world.runs_only_on(Host::B)?;
    world.nothing_is_wrong(Host::B)
}
