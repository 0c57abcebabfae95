//! A guest that gets a new hypervisor on its host.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sterna_testkit::lab::GUEST_ADDRESS;
use sterna_testkit::net::Host;
use sterna_testkit::probe::{EchoLog, UdpEcho, Window};

use crate::kit::{GUEST, LIMIT, World, small_guest};

/// Datagrams that may get no answer before the guest stands still: one that the waiting process reads, and one that the
/// old one reads as it stops. (How many are lost later is up to buffers: the guest is behind by then.)
const LOST_MAX: usize = 2;

fn upgrade(world: &World, host: Host, more: &[&str]) -> Result<Value> {
    let words = [&["vm", "upgrade", GUEST, "--output", "json"], more].concat();
    Ok(serde_json::from_str(&world.lab.run(host, &words)?)?)
}

/// As [`upgrade`], and compares all of the guest's RAM.
fn upgrade_well(world: &World, host: Host) -> Result<()> {
    let view = upgrade(world, host, &["--verify"])?;
    ensure!(view["ram_digest"] == "equal", "{view:#}");
    world.runs_only_on(host)
}

/// When the longest time without an answer began.
fn stood_still_from(log: &EchoLog) -> Instant {
    let mut answers: Vec<_> =
        log.exchanges.iter().filter_map(|exchange| exchange.answered).collect();
    answers.sort_unstable();
    let longest = answers.windows(2).max_by_key(|pair| pair[1] - pair[0]);
    longest.expect("the guest has answered").first().copied().expect("two answers")
}

#[test]
fn a_guest_goes_on_in_a_new_hypervisor_and_its_network_is_not_torn() -> Result<()> {
    let Some(mut world) = World::with("st-up", &small_guest())? else { return Ok(()) };
    let before = world.qemus(Host::A)?;
    // With packets on their way all the time: settings of the tap that change for a moment lose many.
    let echo = UdpEcho::start(world.lab.topology()?.client(), GUEST_ADDRESS, UdpEcho::PERIOD)?;
    let from = Instant::now();
    let view = upgrade(&world, Host::A, &[])?;
    let to = Instant::now();
    let log = echo.finish()?;
    let window = Window { from, to };
    let (lost, gap) = (log.lost(window), world.tick_gap(window));
    let told = &view["gap_us"];
    let while_it_ran = log.lost(Window { from, to: stood_still_from(&log) });
    println!(
        "stood still for {told} us as told, {gap:?} by its ticks; {lost} datagrams lost, \
        {while_it_ran} of them before"
    );
    world.runs_only_on(Host::A)?;
    let after = world.qemus(Host::A)?;
    ensure!(before != after, "the same process: {before:?}");
    ensure!(view["guest"]["pid"].as_u64() == after.first().map(|pid| u64::from(*pid)), "{view:#}");
    ensure!(while_it_ran <= LOST_MAX, "{while_it_ran} datagrams lost while the guest ran");
    world.nothing_is_wrong(Host::A)?;

    // Again, into the folder that the first one had; then like any other guest.
    upgrade_well(&world, Host::A)?;
    world.lab.kill_agent(Host::A)?;
    world.lab.start_agent(Host::A)?;
    world.follow(Host::A)?;
    world.runs_only_on(Host::A)?;
    world.moves_well(Host::A, Host::B)?;
    world.runs_only_on(Host::B)?;
    upgrade_well(&world, Host::B).context("after a move")?;
    world.nothing_is_wrong(Host::B)
}

/// When an agent is killed: so long after the new process is being started, or after the guest, which stands still by then,
/// is being loaded into it.
const KILLED: [(Stage, Duration); 5] = [
    (Stage::Starting, Duration::ZERO),
    (Stage::Starting, Duration::from_millis(60)),
    (Stage::Loading, Duration::ZERO),
    (Stage::Loading, Duration::from_millis(5)),
    (Stage::Loading, Duration::from_millis(40)),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Starting,
    Loading,
}

/// Waits for a stage of an upgrade, as the mark that taps are in use by another process tells.
fn comes_to(stage: Stage, world: &World) -> Result<()> {
    let guests = world.lab.folder(Host::A).join("run/guests");
    let marks = [GUEST.to_owned(), format!("{GUEST}@")]
        .map(|folder| guests.join(folder).join("taps-in-use"));
    let marked = |there: bool| -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        while marks.iter().any(|mark| mark.exists()) != there {
            ensure!(Instant::now() < deadline, "the upgrade does not come to {stage:?}");
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    };
    marked(true)?;
    if stage == Stage::Loading { marked(false) } else { Ok(()) }
}

#[test]
fn an_agent_that_is_killed_meanwhile_leaves_a_guest_that_runs_once() -> Result<()> {
    let Some(mut world) = World::with("st-upkill", &small_guest())? else { return Ok(()) };
    let mut before = world.qemus(Host::A)?;
    for (stage, killed_after) in KILLED {
        let mut asked = world.lab.sterna(Host::A, &["vm", "upgrade", GUEST])?;
        let mut asked = asked.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        comes_to(stage, &world)?;
        std::thread::sleep(killed_after);
        world.lab.kill_agent(Host::A)?;
        asked.wait()?;
        world.lab.start_agent(Host::A)?;
        world.follow(Host::A)?;
        world
            .runs_only_on(Host::A)
            .with_context(|| format!("killed {killed_after:?} after {stage:?}"))?;
        let after = world.qemus(Host::A)?;
        println!(
            "killed {killed_after:?} after {stage:?}: {}",
            if before == after { "as it was" } else { "upgraded" }
        );
        before = after;
    }
    world.nothing_is_wrong(Host::A)
}
