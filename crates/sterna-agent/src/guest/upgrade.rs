//! A running guest comes to another process of its host, in the same RAM.
//!
//! | on record | noted | the guest | whoever comes after an agent that was killed |
//! |---|---|---|---|
//! | nothing | | runs in the old process; a new one is prepared | ends the new one, which is not on record |
//! | [`Upgrade::UnderWay`] | | stands still in the old one; its state is saved and loaded | ends the new one, lets the old one run |
//! | [`Upgrade::UnderWay`] | the new one | is the new one's, which lets it run | lets the new one run, ends the old one |
//! | nothing | | runs in the new one; the old one has ended | |
//!
//! Both have the same RAM, so once the new one may have run the old one never does again: what it knows of its devices
//! is of the past. It takes the guest back only if the new one has ended without ever having run.

mod note;
#[cfg(test)]
mod tests;

pub(crate) use note::Note;

use super::task::Task;
use crate::agent::{Agent, blocking, journal_error, vmm_error};
use crate::hypervisor::{GuestProcess, Prepared, Running, on_record};
use crate::records::{Elsewhere, GuestRecord, Place, Upgrade};
use std::sync::Arc;
use std::time::{Duration, Instant};
use sterna_api::{ApiError, ErrorCode, UpgradeRequest, UpgradeView};
use sterna_core::receipt::RamCheck;
use sterna_engine::ram_digest;
use sterna_sys::memory::GuestMemory;
use sterna_vmm::{Source, VmmError};

impl Task {
    /// Gives the guest a new process. Everybody else who asks something of it waits meanwhile, about a second.
    pub(super) async fn upgrade(
        &mut self,
        request: UpgradeRequest,
    ) -> Result<UpgradeView, ApiError> {
        if self.agent.is_ending() {
            return Err(ApiError::new(ErrorCode::ShuttingDown, "the agent is about to end"));
        }
        self.idle("be upgraded")?;
        let (Place::Here, Some(old)) = (&self.record.place, self.process.clone()) else {
            return Err(self.wrong_state("be upgraded").await);
        };
        let from = old.version();
        let upgrading = blocking({
            let (agent, record) = (Arc::clone(&self.agent), self.record.clone());
            move || Upgrading::prepare(agent, record, old, request)
        })
        .await?;
        let to = upgrading.new.process.version();
        // Before it runs, so that not a word of it is lost.
        let path = upgrading.new.process.console().to_owned();
        let second = self.console.as_ref().map(|console| console.connect(&path));
        let ended = tokio::task::spawn_blocking(move || upgrading.hand_over()).await;
        let After { record, process, result } = ended.unwrap_or_else(|error| self.failed(&error));
        let other = record.process != self.record.process;
        (self.record, self.process) = (record, process);
        if other {
            if let (Some(console), Some(second)) = (&mut self.console, second) {
                console.follow(second);
            }
            self.look_again().await;
        }
        let Gap { gap, ram_digest } = result.inspect_err(|error| {
            tracing::error!(guest = %self.guest.name, %error, "not upgraded");
        })?;
        tracing::info!(guest = %self.guest.name, ?gap, from, to, "upgraded");
        let gap_us = u64::try_from(gap.as_micros()).unwrap_or(u64::MAX);
        Ok(UpgradeView { guest: self.view().await, gap_us, from, to, ram_digest })
    }

    /// The thread that hands over has failed: what it had come to is on record.
    fn failed(&self, error: &tokio::task::JoinError) -> After {
        let mut record = self.record.clone();
        let reason = "the thread of its upgrade failed; a restart of the agent settles it".into();
        record.place = Place::Paused { reason, elsewhere: Elsewhere::MayHaveRun };
        let result = Err(ApiError::from_chain(ErrorCode::Internal, error));
        After { record, process: self.process.clone(), result }
    }
}

/// A guest with its two processes.
struct Upgrading {
    agent: Arc<Agent>,
    record: GuestRecord,
    old: Arc<dyn GuestProcess>,
    source: Box<dyn Source>,
    new: Prepared,
    verify: bool,
}

/// Where the guest is after that.
struct After {
    record: GuestRecord,
    process: Option<Arc<dyn GuestProcess>>,
    result: Result<Gap, ApiError>,
}

/// What it was like for the guest.
struct Gap {
    /// For how long it stood still.
    gap: Duration,
    ram_digest: RamCheck,
}

/// Why the guest is not with its new process.
enum Failure {
    /// It never was.
    Before(ApiError),
    /// It may be, on record; it has not run there.
    Committing(ApiError),
    /// It is, and may have run there.
    Committed(VmmError),
}

impl Upgrading {
    /// Starts the new process. The guest runs on.
    fn prepare(
        agent: Arc<Agent>,
        record: GuestRecord,
        old: Arc<dyn GuestProcess>,
        request: UpgradeRequest,
    ) -> Result<Self, ApiError> {
        let name = &record.definition.name;
        if let Running::No(why) = old.running().map_err(|error| vmm_error(&error))? {
            let message = format!("{name} cannot be upgraded: it does not run ({why})");
            let hint = format!("let it run first, with `sterna vm run {name}`");
            return Err(ApiError::new(ErrorCode::WrongState, message).hint(hint));
        }
        let reasons = agent.hypervisor.objections(&record.definition);
        if !reasons.is_empty() {
            let message = "this host's hypervisor cannot run the guest";
            return Err(ApiError::new(ErrorCode::Unable, message).reasons(reasons));
        }
        let mut source = old.source().map_err(|error| vmm_error(&error))?;
        let reasons = source.immovable().map_err(|error| vmm_error(&error))?;
        if !reasons.is_empty() {
            return Err(super::leave::immovable(&reasons));
        }
        let new = agent.hypervisor.prepare_beside(&old.record());
        let new = new.map_err(|error| vmm_error(&error))?;
        Ok(Self { agent, record, old, source, new, verify: request.verify })
    }

    /// Hands the guest over, or lets it run on where it is.
    fn hand_over(mut self) -> After {
        match self.try_to() {
            Ok(gap) => self.done(gap),
            Err(Failure::Before(error)) => {
                let runs = self.stay();
                self.taken_back(error, runs)
            }
            Err(Failure::Committing(error)) => {
                let runs = self.undo();
                self.taken_back(error, runs)
            }
            Err(Failure::Committed(error)) => self.lost(&error),
        }
    }

    fn try_to(&mut self) -> Result<Gap, Failure> {
        let before = |error: &VmmError| Failure::Before(vmm_error(error));
        let new = self.new.process.record();
        let under_way = Upgrade::UnderWay { new: new.clone() };
        self.write(|record| record.upgrade = Some(under_way)).map_err(Failure::Before)?;
        let asked = Instant::now();
        let pause = self.source.pause().map_err(|error| before(&error))?;
        let stood_still = asked + pause.lead;
        let guest = self.record.definition.name.clone();
        let step = |done| tracing::debug!(%guest, at = ?stood_still.elapsed(), "upgrade: {done}");
        step("paused");
        let memory = self.source.memory();
        let digest = self.digest(&memory).map_err(Failure::Before)?;
        let state = self.source.save_device_state().map_err(|error| before(&error))?;
        step("saved");
        self.new.destination.load_device_state(&state).map_err(|error| before(&error))?;
        step("loaded");
        let ram_digest = match (digest, self.digest(&memory).map_err(Failure::Before)?) {
            (None, _) | (_, None) => RamCheck::NotChecked,
            (Some(old), Some(new)) if old == new => RamCheck::Equal,
            (Some(_), Some(_)) => {
                let message = "RAM was changed while the new process loaded the guest's state";
                return Err(Failure::Before(ApiError::new(ErrorCode::Hypervisor, message)));
            }
        };
        let noted = self.note().write(&new);
        noted.map_err(|error| {
            Failure::Committing(ApiError::from_chain(ErrorCode::Internal, &error))
        })?;
        step("noted");
        match self.new.destination.activate() {
            Ok(()) => Ok(Gap { gap: stood_still.elapsed(), ram_digest }),
            // It has answered, so nothing is on its way that could still let it run.
            Err(error @ VmmError::Refused { .. }) if self.new_stands_still() => {
                Err(Failure::Committing(vmm_error(&error)))
            }
            Err(error) => Err(Failure::Committed(error)),
        }
    }

    fn new_stands_still(&self) -> bool {
        matches!(self.new.process.running(), Ok(Running::No(_)))
    }

    fn digest(&self, memory: &GuestMemory) -> Result<Option<sterna_page::RamDigest>, ApiError> {
        let digest = self.verify.then(|| ram_digest(memory)).transpose();
        digest.map_err(|error| ApiError::from_chain(ErrorCode::Internal, &error))
    }

    fn write(&mut self, change: impl FnOnce(&mut GuestRecord)) -> Result<(), ApiError> {
        change(&mut self.record);
        self.agent.journal.put_guest(&self.record).map_err(|error| journal_error(&error))
    }

    fn note(&self) -> Note {
        Note::of(&self.agent.settings.runtime, self.record.id)
    }

    /// It runs in its new process.
    fn done(mut self, gap: Gap) -> After {
        let name = self.record.definition.name.clone();
        if let Err(error) = self.new.destination.settle() {
            tracing::warn!(guest = %name, %error, "the new hypervisor has not settled");
        }
        on_record(self.new.process.as_ref());
        self.end_old();
        After { record: self.record, process: Some(self.new.process), result: Ok(gap) }
    }

    /// What is left of the old process goes, now or with the next agent.
    fn end_old(&mut self) {
        let name = self.record.definition.name.clone();
        let ended = self.source.release().map_err(|error| vmm_error(&error));
        let (old, new) = (self.old.record(), self.new.process.record());
        let upgrade = ended.is_err().then_some(Upgrade::HandedOver { old });
        let written = self.write(|record| {
            record.process = Some(new);
            record.upgrade = upgrade;
        });
        if written.is_ok() {
            self.note().forget();
        }
        if let Err(error) = ended.and(written) {
            tracing::error!(guest = %name, pid = self.old.pid(), %error,
                "the former hypervisor, or a note of it, may be left until the agent's next start");
        }
    }

    /// The guest was never handed over, so it runs on in the old process whatever becomes of the record: a next agent
    /// lets it run as well.
    fn stay(&mut self) -> Result<(), ApiError> {
        self.end_new()?;
        self.resume_old()?;
        if let Err(error) = self.write_back() {
            tracing::error!(guest = %self.record.definition.name, %error, "cannot record");
        }
        Ok(())
    }

    /// That the guest is handed over may be noted, by which a next agent would end the old process: so that is undone
    /// before the guest runs on in it.
    fn undo(&mut self) -> Result<(), ApiError> {
        self.end_new()?;
        let removed = self.note().remove();
        removed.map_err(|error| ApiError::from_chain(ErrorCode::Internal, &error))?;
        self.write_back()?;
        self.resume_old()
    }

    /// Ends the new process, in which the guest has not run.
    fn end_new(&mut self) -> Result<(), ApiError> {
        self.new.destination.discard().map_err(|error| vmm_error(&error))
    }

    fn resume_old(&mut self) -> Result<(), ApiError> {
        self.source.resume().map_err(|error| vmm_error(&error))
    }

    fn write_back(&mut self) -> Result<(), ApiError> {
        let old = self.old.record();
        self.write(|record| {
            record.process = Some(old);
            record.upgrade = None;
        })
    }

    /// The guest is with its old process, and runs there unless that failed.
    fn taken_back(mut self, mut error: ApiError, runs: Result<(), ApiError>) -> After {
        if let Err(why) = runs {
            let reason = format!("its upgrade was given up, and not undone: {why}");
            let name = &self.record.definition.name;
            error = error.hint(format!("{reason}; try `sterna vm run {name}`"));
            self.record.process = Some(self.old.record());
            self.record.upgrade = None;
            self.record.place = Place::Paused { reason, elsewhere: Elsewhere::No };
        }
        After { record: self.record, process: Some(self.old), result: Err(error) }
    }

    /// The guest is with its new process, which does not say that it runs. If it has ended, the guest's task sees that.
    fn lost(mut self, error: &VmmError) -> After {
        on_record(self.new.process.as_ref());
        self.end_old();
        let process = Some(self.new.process);
        After { record: self.record, process, result: Err(vmm_error(error)) }
    }
}
