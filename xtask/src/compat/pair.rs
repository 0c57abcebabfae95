//! Two hosts with the one program or the other, the guest that moves between them, and what must hold after each step.

use std::collections::BTreeMap;
use std::fmt;
use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use sterna_core::receipt::{Ending, RamCheck, Receipt};
use sterna_testkit::lab::{Following, GuestPlan, Lab, guest_state};
use sterna_testkit::net::{Host, LinkRate};
use sterna_testkit::probe::{ConsoleLog, MoveLog, MoveUnderway};
use sterna_testkit::recorder::{Bytes, Line, Rate, Workload};
use tempfile::TempDir;
use uuid::Uuid;

use super::releases::{Age, Releases};

pub(super) const GUEST: &str = "compat";
/// Within this everything happens that must: it bounds a trial that fails.
pub(super) const LIMIT: Duration = Duration::from_secs(240);
const INTERVAL: Duration = Duration::from_millis(30);
/// Longer than a reader that waits for a guest's console takes to look again.
const LOOKED: Duration = Duration::from_millis(300);
/// What an agent says of a journal that a newer one has written.
const NEWER_JOURNAL: &str = "this release knows up to";

/// How an agent ends before another takes its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// As its unit ends it.
    Orderly,
    /// As `kill -9` does.
    Killed,
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Orderly => "ended",
            Self::Killed => "killed",
        })
    }
}

/// Whether another agent took a host over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(super) enum Replaced {
    Yes,
    /// It is older and does not read the journal, and said so; the one that was there runs again.
    Refused,
}

/// A guest that is small, so that many trials can have one.
pub(super) fn small() -> GuestPlan {
    guest(128, 256)
}

/// A guest large enough that hashing its RAM takes many times as long as noticing that it begins.
pub(super) fn large() -> GuestPlan {
    guest(560, 768)
}

fn guest(fill: u32, memory: u32) -> GuestPlan {
    let workload = Workload::new(Bytes::mebibytes(fill))
        .rewrite(Bytes::mebibytes(16), Rate::mebibytes_per_second(4))
        .check_at_most(Rate::mebibytes_per_second(20));
    GuestPlan::new(GUEST, Bytes::mebibytes(memory), workload)
}

/// Looks again and again until something is there.
pub(super) fn until<T>(what: &str, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        ensure!(Instant::now() < deadline, "{what}: not within {LIMIT:?}");
        std::thread::sleep(INTERVAL);
    }
}

/// The hosts a and b, both with the old program at first, and the guest, at first on a.
pub(super) struct Pair<'a> {
    releases: &'a Releases,
    pub(super) lab: Lab,
    ages: BTreeMap<Host, Age>,
    console: ConsoleLog,
    moves: MoveLog,
    following: BTreeMap<Host, Following>,
    /// Where the guest is.
    pub(super) at: Host,
    _folder: TempDir,
}

/// A move that was begun.
pub(super) struct Underway {
    pub(super) id: String,
    pub(super) from: Host,
    pub(super) to: Host,
    child: Child,
    known: MoveUnderway,
}

impl<'a> Pair<'a> {
    pub(super) fn with_guest(releases: &'a Releases, plan: &GuestPlan) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("compat").tempdir()?;
        let old = releases.program(Age::Old);
        let lab = Lab::in_namespaces("sterna-cp", LinkRate::Unshaped, old, folder.path())?;
        lab.make_taps()?;
        let (console, moves, following) = (ConsoleLog::new(), MoveLog::default(), BTreeMap::new());
        let ages = BTreeMap::from([(Host::A, Age::Old), (Host::B, Age::Old)]);
        let (at, _folder) = (Host::A, folder);
        let mut pair = Self { releases, lab, ages, console, moves, following, at, _folder };
        pair.follow(Host::A);
        pair.lab.start_guest(Host::A, plan)?;
        let begun = |line: &Line| matches!(line, Line::Ready { .. } | Line::Error(_));
        let line = pair.console.wait_for(0, LIMIT, begun).context("the guest did not boot")?;
        ensure!(matches!(line, Line::Ready { .. }), "the guest does not begin: {line:?}");
        pair.console.wait_for_ticks(100, LIMIT)?;
        Ok(pair)
    }

    /// The host on which the guest is not.
    pub(super) fn other(&self) -> Host {
        if self.at == Host::A { Host::B } else { Host::A }
    }

    /// Which program a host has.
    pub(super) fn age(&self, host: Host) -> Age {
        self.ages.get(&host).copied().unwrap_or(Age::Old)
    }

    /// Reads the guest's console on a host, also of agents that are started anew, until the guest leaves. One reader that
    /// still waits there is enough: two would hear all twice.
    fn follow(&mut self, host: Host) {
        if self.following.get(&host).is_none_or(Following::is_over) {
            let following = self.lab.follow_arrival(host, GUEST, &self.console);
            self.following.insert(host, following);
        }
    }

    /// Ends a host's agent and starts one of the other program in its place, on the same folders.
    pub(super) fn replace(&mut self, host: Host, ended: Ended) -> Result<Replaced> {
        match ended {
            Ended::Orderly => self.lab.end_agent(host)?,
            Ended::Killed => self.lab.kill_agent(host)?,
        }
        self.start_other(host)
    }

    /// Starts an agent of the other program on a host that has none; where that one is older and cannot read what the newer
    /// one has left, and says so, the newer one again.
    pub(super) fn start_other(&mut self, host: Host) -> Result<Replaced> {
        let was = self.age(host);
        let age = was.other();
        // Its reader is of the program that was, and may not be done yet: two would hear all twice.
        if self.following.remove(&host).is_some() {
            std::thread::sleep(LOOKED);
        }
        self.lab.install(host, self.releases.program(age));
        let replaced = match self.lab.start_agent(host) {
            Ok(()) => {
                self.ages.insert(host, age);
                println!("   {}: the {was} agent gave way to the {age} one", host.name());
                Replaced::Yes
            }
            Err(refused) => {
                let refused = format!("{refused:#}");
                ensure!(age == Age::Old && refused.contains(NEWER_JOURNAL), "{refused}");
                println!("   {}: the old agent refuses: {}", host.name(), refused.trim());
                self.lab.install(host, self.releases.program(was));
                self.lab.start_agent(host)?;
                Replaced::Refused
            }
        };
        self.follow(host);
        Ok(replaced)
    }

    /// Begins to move the guest to the other host.
    pub(super) fn begin(&mut self, words: &[&str]) -> Result<Underway> {
        let (from, to) = (self.at, self.other());
        self.follow(to);
        let id = Uuid::new_v4().to_string();
        let known = self.moves.begin();
        let words = [&["--id", &id], words].concat();
        let child = self.lab.begin_migrate(from, to, GUEST, &words)?;
        Ok(Underway { id, from, to, child, known })
    }

    /// Moves the guest to the other host and sees that it is whole there.
    pub(super) fn moves_well(&mut self, words: &[&str]) -> Result<Receipt> {
        let underway = self.begin(words)?;
        self.has_moved(underway)
    }

    /// Waits until a move has ended, which must have taken the guest there.
    pub(super) fn has_moved(&mut self, underway: Underway) -> Result<Receipt> {
        let (from, to) = (underway.from, underway.to);
        let receipt = underway.ends()?;
        ensure!(receipt.ending == Ending::Moved, "the move ended so: {:?}", receipt.ending);
        ensure!(receipt.ram_digest != RamCheck::Different, "RAM is not the same");
        self.at = to;
        self.runs_in_one_place()?;
        println!(
            "   moved from {} ({}) to {} ({}), {}, RAM {:?}",
            from.name(),
            self.age(from),
            to.name(),
            self.age(to),
            receipt.algorithm,
            receipt.ram_digest
        );
        Ok(receipt)
    }

    /// Waits until a move has ended, which must have been undone.
    pub(super) fn was_undone(&mut self, underway: Underway) -> Result<()> {
        let receipt = underway.ends()?;
        let Ending::Undone { reasons } = &receipt.ending else {
            bail!("the move ended so: {:?}", receipt.ending);
        };
        let reasons: Vec<_> = reasons.iter().map(ToString::to_string).collect();
        println!("   undone: {}", reasons.join("; "));
        self.runs_in_one_place()
    }

    /// How a move stands, as its source says; nothing while that does not answer.
    pub(super) fn show(&self, underway: &Underway) -> Result<Value> {
        let words = ["moves", "show", &underway.id, "--output", "json"];
        let shown = self.lab.run(underway.from, &words);
        Ok(shown.ok().map_or(Ok(Value::Null), |text| serde_json::from_str(&text))?)
    }

    /// The guest runs where it must be, whole; both programs list it there; nothing of it is anywhere else.
    pub(super) fn runs_in_one_place(&mut self) -> Result<()> {
        let (at, other) = (self.at, self.other());
        until(&format!("the guest running on {}", at.name()), || {
            Ok((guest_state(&self.lab, at, GUEST).as_deref() == Some("running")).then_some(()))
        })
        .with_context(|| format!("it is {:?}", guest_state(&self.lab, at, GUEST)))?;
        until(&format!("nothing left on {}", other.name()), || {
            let guests = self.lab.run(other, &["vm", "list", "--output", "json"])?;
            let guests: Vec<Value> = serde_json::from_str(&guests)?;
            Ok((guests.is_empty() && self.lab.hypervisors(other)?.is_empty()).then_some(()))
        })?;
        let hypervisors = self.lab.hypervisors(at)?;
        ensure!(hypervisors.len() == 1, "hypervisors on {}: {hypervisors:?}", at.name());
        self.is_listed_by_both()?;
        self.lab.guest_is_whole((at, GUEST), &self.console, &self.moves.moves(), LIMIT)
    }

    /// After the package was replaced, and before the agent is, commands are of the other program.
    fn is_listed_by_both(&mut self) -> Result<()> {
        let (at, was) = (self.at, self.age(self.at));
        for age in [was.other(), was] {
            self.lab.install(at, self.releases.program(age));
            let said = self.lab.run(at, &["vm", "list", "--output", "json"]);
            let said = said.with_context(|| format!("{age} commands, {was} agent"))?;
            let guests: Vec<Value> = serde_json::from_str(&said)?;
            let is_listed =
                guests.iter().any(|guest| guest["name"] == GUEST && guest["state"] == "running");
            ensure!(is_listed, "{age} commands do not list the guest of the {was} agent: {said}");
        }
        Ok(())
    }
}

impl Underway {
    fn ends(self) -> Result<Receipt> {
        let migrated = Lab::finish_migrate(self.child)?;
        let receipt = migrated.receipt()?.clone();
        self.known.ended(&receipt);
        Ok(receipt)
    }
}
