//! An agent of one program takes over from one of the other in the midst of a move.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use sterna_testkit::lab::{GuestPlan, Stopped};
use sterna_testkit::net::Host;

use super::pair::{self, Ended, LIMIT, Pair, Replaced, Underway, until};

/// Copying takes seconds.
const COPYING: [&str; 4] = ["--algorithm", "pre-copy", "--bandwidth", "24MB/s"];
/// Pages follow for some ten seconds.
const FOLLOWING: [&str; 5] = ["--algorithm", "post-copy", "--bandwidth", "14MB/s", "--verify"];
/// Both sides hash RAM after the device state was sent.
const COMMITTING: [&str; 3] = ["--algorithm", "pre-copy", "--verify"];
/// Copied before the agent is replaced, in bytes.
const COPIED: u64 = 8 << 20;

/// After the state was saved it is sent, with the last pages.
const STATE_SENT: Duration = Duration::from_millis(30);
/// Within this time a destination has hashed RAM and loaded the state, or was never told to.
const HASHED: Duration = Duration::from_secs(10);
/// After the state was read QEMU says so.
const LOAD_SAID: Duration = Duration::from_millis(100);
/// How often a move is begun anew that was over before it could be held.
const TRIES: u32 = 4;

/// How far the move has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Pages are copied; the guest is the source's.
    Copying,
    /// The source has given the guest away; the destination has it on record, and does not run it yet.
    Committing,
    /// The guest runs at the destination, and its pages follow.
    Following,
}

/// Whose agent is replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Source,
    Destination,
}

/// One kind of interruption.
#[derive(Clone, Copy, Debug)]
pub(super) struct Midst {
    pub(super) stage: Stage,
    pub(super) side: Side,
    pub(super) ended: Ended,
}

impl Stage {
    pub(super) const ALL: [Self; 3] = [Self::Copying, Self::Committing, Self::Following];

    /// A guest of which this stage lasts long enough.
    pub(super) fn guest(self) -> GuestPlan {
        match self {
            Self::Copying | Self::Following => pair::small(),
            Self::Committing => pair::large(),
        }
    }
}

impl Side {
    pub(super) const BOTH: [Self; 2] = [Self::Source, Self::Destination];

    fn of(self, underway: &Underway) -> Host {
        match self {
            Self::Source => underway.from,
            Self::Destination => underway.to,
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Copying => "copying",
            Self::Committing => "committing",
            Self::Following => "pages following",
        })
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Source => "source",
            Self::Destination => "destination",
        })
    }
}

impl Midst {
    /// Upgrades an agent in the midst of a move between old ones; then takes that back, in the midst of a move between
    /// new ones.
    pub(super) fn run(self, mut pair: Pair) -> Result<()> {
        let upgraded = self.strike(&mut pair)?;
        ensure!(upgraded == Replaced::Yes, "an upgrade was refused");
        let (here, there) = (pair.at, pair.other());
        if pair.age(here) != pair.age(there) {
            let old = if pair.age(here) == super::releases::Age::Old { here } else { there };
            ensure!(pair.replace(old, Ended::Orderly)? == Replaced::Yes, "an upgrade was refused");
        }
        let _either = self.strike(&mut pair)?;
        pair.moves_well(&COMMITTING).map(drop)
    }

    /// Replaces an agent in the midst of a move, which must end as it does where the agent stays the same.
    fn strike(self, pair: &mut Pair) -> Result<Replaced> {
        match self.stage {
            Stage::Copying => {
                let underway = copying(pair)?;
                let replaced = pair.replace(self.side.of(&underway), self.ended)?;
                pair.was_undone(underway)?;
                Ok(replaced)
            }
            Stage::Committing => {
                let (underway, held) = committing(pair)?;
                let host = self.side.of(&underway);
                pair.lab.kill_agent(host)?;
                drop(held);
                let replaced = pair.start_other(host)?;
                pair.has_moved(underway)?;
                Ok(replaced)
            }
            Stage::Following => {
                let underway = following(pair)?;
                let replaced = pair.replace(self.side.of(&underway), self.ended)?;
                pair.has_moved(underway)?;
                Ok(replaced)
            }
        }
    }
}

fn copying(pair: &mut Pair) -> Result<Underway> {
    let underway = pair.begin(&COPYING)?;
    until("pages that are copied", || {
        let progress = &pair.show(&underway)?["progress"];
        let copied = progress["ram_done_bytes"].as_u64().unwrap_or(0);
        Ok((progress["stage"] == "copying" && copied > COPIED).then_some(()))
    })?;
    Ok(underway)
}

fn following(pair: &mut Pair) -> Result<Underway> {
    let underway = pair.begin(&FOLLOWING)?;
    until("pages that follow", || {
        Ok((pair.show(&underway)?["progress"]["stage"] == "serving").then_some(()))
    })?;
    Ok(underway)
}

/// Begins a move and holds it between `Commit` and `Active`: the destination's hypervisor, stopped just before, does not let
/// the guest run until the returned value is dropped.
///
/// For that the source's agent stands still while it hashes RAM, until the destination, which has hashed too, has loaded the
/// state and waits for the word. The guest may have changed hosts before.
fn committing(pair: &mut Pair) -> Result<(Underway, Stopped)> {
    for _ in 0..TRIES {
        let underway = pair.begin(&COMMITTING)?;
        let (from, to) = (underway.from, underway.to);
        let what = "one hypervisor at the destination";
        let hypervisor = until(what, || Ok(pair.lab.hypervisors(to)?.first().copied()))?;
        let saved = pair.lab.has_transferred(from, pair::GUEST, Instant::now() + LIMIT)?;
        std::thread::sleep(STATE_SENT);
        let agent = Stopped::stop(pair.lab.agent_pid(from)?)?;
        let loaded = saved && pair.lab.has_transferred(to, pair::GUEST, Instant::now() + HASHED)?;
        std::thread::sleep(LOAD_SAID);
        let stopped = Stopped::stop(hypervisor)?;
        drop(agent);
        if loaded && is_committing(pair, &underway)? {
            return Ok((underway, stopped));
        }
        drop(stopped);
        pair.has_moved(underway)?;
    }
    bail!("none of {TRIES} moves could be held")
}

/// Waits until a move is at its commitment; `false` if it is over instead.
fn is_committing(pair: &Pair, underway: &Underway) -> Result<bool> {
    until("the stage committing, or the end", || {
        let shown = pair.show(underway)?;
        if shown["progress"]["stage"] == "committing" {
            return Ok(Some(true));
        }
        Ok((shown["state"] == "ended").then_some(false))
    })
}
