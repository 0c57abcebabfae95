//! Moves of the guest: begun, watched, ended.

use std::process::Child;

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use sterna_core::receipt::{Ending, RamCheck, Receipt, TrackedBy};
use sterna_proto::message::ReasonCode;
use sterna_testkit::lab::{Lab, Migrated};
use sterna_testkit::net::Host;
use sterna_testkit::probe::MoveUnderway;
use uuid::Uuid;

use super::{GUEST, World, until};

/// Slow enough that copying a small guest takes many seconds.
const SLOW: [&str; 2] = ["--bandwidth", "24MB/s"];

/// What is tested at a stage of pre-copy must not depend on what is chosen.
pub(crate) const PRE_COPY: [&str; 2] = ["--algorithm", "pre-copy"];

/// A move that goes on in the background.
pub(crate) struct Underway {
    pub(crate) id: String,
    pub(crate) from: Host,
    pub(crate) to: Host,
    child: Child,
    known: MoveUnderway,
}

impl World {
    /// Begins to move the guest, and follows its console at the destination.
    pub(crate) fn begin(&mut self, from: Host, to: Host, more: &[&str]) -> Result<Underway> {
        self.follow_arrival(to);
        let id = Uuid::new_v4().to_string();
        let words = [&["--id", &id], more].concat();
        let known = self.moves.begin();
        let child = self.lab.begin_migrate(from, to, GUEST, &words)?;
        Ok(Underway { id, from, to, child, known })
    }

    /// Begins a move and returns when pages have been copied; it then copies for seconds on.
    pub(crate) fn begin_copying(&mut self) -> Result<Underway> {
        self.begin_copying_by(&PRE_COPY)
    }

    /// As [`World::begin_copying`], with more words.
    pub(crate) fn begin_copying_by(&mut self, more: &[&str]) -> Result<Underway> {
        let underway = self.begin(Host::A, Host::B, &[&SLOW[..], more].concat())?;
        self.has_copied_in(&underway, "copying")?;
        Ok(underway)
    }

    /// Waits until a move that is in this stage has copied pages.
    pub(crate) fn has_copied_in(&self, underway: &Underway, stage: &str) -> Result<()> {
        until(&format!("pages that are copied while {stage}"), || {
            let progress = &self.show(underway)?["progress"];
            let copied = progress["ram_done_bytes"].as_u64().unwrap_or(0);
            Ok((progress["stage"] == stage && copied > 8 << 20).then_some(()))
        })
    }

    /// Begins a move and returns in the midst of its switchover, with the guest paused; it then
    /// copies for seconds on.
    pub(crate) fn begin_switching(&mut self) -> Result<Underway> {
        let words = [&SLOW[..], &["--algorithm", "stop-and-copy", "--verify"]].concat();
        let underway = self.begin(Host::A, Host::B, &words)?;
        self.has_copied_in(&underway, "switching over")?;
        self.stands_still()?;
        Ok(underway)
    }

    /// How a move stands, as its source says; nothing while it does not answer.
    pub(crate) fn show(&self, underway: &Underway) -> Result<Value> {
        let shown =
            self.lab.run(underway.from, &["moves", "show", &underway.id, "--output", "json"]);
        Ok(shown.ok().map_or(Ok(Value::Null), |text| serde_json::from_str(&text))?)
    }

    /// Waits until the source says that a move is in this stage.
    pub(crate) fn comes_to(&self, underway: &Underway, stage: &str) -> Result<()> {
        until(&format!("the stage {stage}"), || {
            Ok((self.show(underway)?["progress"]["stage"] == stage).then_some(()))
        })
    }

    /// Waits until the source says that it does not know where the guest runs.
    pub(crate) fn comes_into_doubt(&self, underway: &Underway) -> Result<()> {
        self.becomes(underway.from, "in-doubt")?;
        let shown = self.show(underway)?;
        ensure!(shown["state"] == "in-doubt", "the move is shown as {shown}");
        Ok(())
    }

    /// Moves the guest and compares all of its RAM.
    pub(crate) fn moves_well(&mut self, from: Host, to: Host) -> Result<Receipt> {
        let receipt = self.begin(from, to, &["--verify"])?.moved()?;
        ensure!(receipt.ram_digest == RamCheck::Equal, "RAM: {:?}", receipt.ram_digest);
        let tracked_by = receipt.tracking.by.map(TrackedBy::name);
        let asked = sterna_testkit::tracker::wanted();
        ensure!(asked.is_none() || tracked_by == asked, "tracked by {tracked_by:?}");
        Ok(receipt)
    }

    /// As [`World::moves_well`], but pauses the guest rather than give up where its writes do not
    /// let the move converge: how soon it does is not the subject then.
    pub(crate) fn moves_well_under_load(&mut self, from: Host, to: Host) -> Result<Receipt> {
        let words = ["--verify", "--when-stuck", "stop-and-copy"];
        let receipt = self.begin(from, to, &words)?.moved()?;
        ensure!(receipt.ram_digest == RamCheck::Equal, "RAM: {:?}", receipt.ram_digest);
        Ok(receipt)
    }

    /// After a move from a to b that failed: the guest runs on at a and nothing is left of it at
    /// b; then it moves after all, and is whole.
    pub(crate) fn runs_on_and_moves_after_all(&mut self) -> Result<()> {
        self.runs_only_on(Host::A)?;
        self.moves_well(Host::A, Host::B)?;
        self.runs_only_on(Host::B)?;
        self.nothing_is_wrong(Host::B)
    }
}

impl Underway {
    /// What Ctrl-C does to the program.
    pub(crate) fn interrupt(&self) -> Result<()> {
        let id = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        Ok(kill_process(id.context("no process")?, Signal::INT)?)
    }

    /// Waits for the end, which must be this exit code and come with a receipt.
    pub(crate) fn ends(self, exit: i32) -> Result<Receipt> {
        let migrated: Migrated = Lab::finish_migrate(self.child)?;
        let receipt = migrated.receipt()?.clone();
        self.known.ended(&receipt);
        ensure!(migrated.exit == Some(exit), "exit {:?}: {:?}", migrated.exit, receipt.ending);
        Ok(receipt)
    }

    /// Waits for the end, which must be that the guest was moved.
    pub(crate) fn moved(self) -> Result<Receipt> {
        let receipt = self.ends(0)?;
        ensure!(receipt.ending == Ending::Moved, "{:?}", receipt.ending);
        Ok(receipt)
    }

    /// Waits for the end, which must be that the move was undone for a reason of this code whose
    /// words contain `text`.
    pub(crate) fn undone(self, exit: i32, code: ReasonCode, text: &str) -> Result<Receipt> {
        let receipt = self.ends(exit)?;
        let Ending::Undone { reasons } = &receipt.ending else {
            anyhow::bail!("not undone but {:?}", receipt.ending);
        };
        let fits = reasons.iter().any(|reason| reason.code == code && reason.detail.contains(text));
        ensure!(fits, "{reasons:?} do not say {code:?}: {text}");
        Ok(receipt)
    }
}
