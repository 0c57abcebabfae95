//! What becomes of a guest when a move of it has ended, or its hypervisor has.

use super::exit::Exit;
use super::task::{Activity, Next, Task};
use crate::agent::{blocking, vmm_error};
use crate::hypervisor::Ended;
use crate::logs;
use crate::moves::{Move, Outcome};
use crate::records::{Elsewhere, OutgoingRecord, Place};
use sterna_api::{ApiError, GuestView};
use sterna_core::destination::Ending;
use sterna_core::receipt::{Ending as SourceEnding, Receipt};
use sterna_proto::message::Reason;

impl Task {
    /// The hypervisor's process has ended by itself.
    pub(super) async fn exited(&mut self) {
        if let Activity::Moving(_) = self.activity {
            return;
        }
        let Some(process) = self.process.clone() else { return };
        let ended = tokio::task::spawn_blocking(move || process.post_mortem()).await;
        let place = match (ended, &self.record.place) {
            // What is not known of it is as unknown as before.
            (_, Place::Paused { elsewhere: Elsewhere::MayHaveRun, reason }) => {
                let reason = format!("{reason}; what was left of it here has ended");
                Place::Paused { reason, elsewhere: Elsewhere::MayHaveRun }
            }
            (Ok(Ended::PoweredOff), _) => {
                Place::Stopped { reason: "its system powered off".into() }
            }
            (Ok(Ended::Crashed(reason)), _) => Place::Crashed { reason },
            (Err(error), _) => Place::Crashed { reason: error.to_string() },
        };
        tracing::warn!(guest = %self.guest.name, ?place, "the hypervisor has ended");
        if let Err(error) = self.end_process_and_keep_log().await {
            tracing::error!(guest = %self.guest.name, %error, "cannot remove what is left of it");
        }
        self.process = None;
        self.record.process = None;
        self.settle(place).await;
    }

    pub(super) async fn end_process(&mut self) -> Result<(), ApiError> {
        if let Some(process) = self.process.clone() {
            blocking(move || process.end().map_err(|e| vmm_error(&e))).await?;
        }
        self.process = None;
        self.exit = Exit::default();
        self.record.process = None;
        Ok(())
    }

    /// As [`Self::end_process`], of a guest that stays here.
    pub(super) async fn end_process_and_keep_log(&mut self) -> Result<(), ApiError> {
        let log = self.process.as_ref().and_then(|process| self.agent.open_log(&process.record()));
        self.end_process().await?;
        if let Some(mut log) = log {
            // Its file is gone by now; what it said while it ended is in it.
            self.agent.logs.keep(self.guest.id, &logs::tail(&mut log).unwrap_or_default());
        }
        Ok(())
    }

    pub(super) async fn become_place(&mut self, place: Place) -> Result<(), ApiError> {
        if let Place::Stopped { .. } = place {
            // Its next start chooses anew.
            self.record.definition = self.record.written();
        }
        self.record.place = place;
        let record = self.record.clone();
        self.agent.with_journal(move |journal| journal.put_guest(&record)).await
    }

    /// Takes note of a place. If it cannot be recorded, what the journal says of the move still
    /// leads a later agent to the same place.
    async fn settle(&mut self, place: Place) {
        if let Err(error) = self.become_place(place).await {
            tracing::error!(guest = %self.guest.name, %error, "cannot record");
        }
    }

    /// A move to another host has ended.
    pub(super) async fn left(
        &mut self,
        mut outgoing: OutgoingRecord,
        receipt: Option<Box<Receipt>>,
    ) -> Next {
        let entry = match std::mem::replace(&mut self.activity, Activity::Idle) {
            Activity::Moving(entry) => entry,
            Activity::Idle | Activity::Planning => return Next::Continue,
        };
        let Some(receipt) = receipt else {
            let reason = "the move's thread failed; a restart of the agent settles it".to_owned();
            self.record.place =
                Place::Paused { reason: reason.clone(), elsewhere: Elsewhere::MayHaveRun };
            self.end_move(&entry, Outcome::Summary(reason));
            return Next::Continue;
        };
        tracing::info!(guest = %self.guest.name, attempt = %receipt.attempt, role = "source",
            ending = ?receipt.ending, "move ended");
        self.agent.metrics.left(&receipt);
        let place = place_after(&receipt);
        let moved = matches!(place, Place::Elsewhere { .. });
        let ended = match place {
            Place::Elsewhere { .. } => self.end_process().await,
            Place::Crashed { .. } => self.end_process_and_keep_log().await,
            _ => Ok(()),
        };
        if let Err(error) = ended {
            tracing::error!(guest = %self.guest.name, %error, "cannot end the hypervisor");
        }
        self.record.place = place;
        outgoing.receipt = Some(receipt.clone());
        let record = self.record.clone();
        let written = self.agent.with_journal(move |journal| {
            // What was recorded meanwhile is in the journal, not in our copy.
            journal.end_outgoing(&record, outgoing)
        });
        if let Err(error) = written.await {
            tracing::error!(guest = %self.guest.name, %error, "cannot record");
        }
        if moved {
            self.agent.logs.forget(self.guest.id);
            self.agent.guests.remove(&self.guest.name, self.guest.id);
        }
        self.end_move(&entry, Outcome::Receipt(receipt));
        if moved { Next::End } else { self.look_again().await }
    }

    /// A move to this host has ended.
    pub(super) async fn arrived(&mut self, ending: Ending) -> Next {
        let entry = match std::mem::replace(&mut self.activity, Activity::Idle) {
            Activity::Moving(entry) => Some(entry),
            Activity::Idle | Activity::Planning => None,
        };
        tracing::info!(guest = %self.guest.name, role = "destination", ?ending, "move ended");
        self.agent.metrics.arrived(&ending);
        let (summary, next) = match ending {
            Ending::Active => {
                self.agent.guests.arrived(&self.guest.name);
                self.settle(Place::Here).await;
                ("arrived".to_owned(), self.look_again().await)
            }
            Ending::Discarded(reason) => {
                self.discarded().await;
                (format!("discarded: {reason}"), Next::End)
            }
            Ending::Lost(reason) => (format!("lost: {reason}"), self.lost(reason).await),
        };
        if let Some(entry) = entry {
            self.end_move(&entry, Outcome::Summary(summary));
        }
        next
    }

    /// Whether another host may run the guest, or may have run it.
    pub(super) fn may_run_elsewhere(&self) -> bool {
        match &self.activity {
            Activity::Moving(entry) => entry.doubt().is_some(),
            Activity::Idle | Activity::Planning => {
                matches!(self.record.place, Place::Paused { elsewhere: Elsewhere::MayHaveRun, .. })
            }
        }
    }

    /// Another host runs the guest, as an operator says; what is left of it here is ended.
    pub(super) async fn concede(&mut self, host: String) -> Result<GuestView, ApiError> {
        self.idle("be given up")?;
        if !self.may_run_elsewhere() {
            return Err(self.wrong_state("be given up").await);
        }
        // First on record: if that fails the guest is still here.
        self.become_place(Place::Elsewhere { host }).await?;
        self.end_process().await?;
        self.agent.logs.forget(self.guest.id);
        tracing::warn!(guest = %self.guest.name, place = ?self.record.place, "given up on request");
        Ok(self.view().await)
    }

    fn end_move(&self, entry: &Move, outcome: Outcome) {
        entry.end(outcome);
        self.agent.events.tell_of(entry);
    }

    /// The guest stays where it was; what was known of it before is true again.
    async fn discarded(&mut self) {
        if let Err(error) = self.end_process().await {
            tracing::error!(guest = %self.guest.name, %error, "cannot end the hypervisor");
        }
        let Place::Arriving { before, .. } = &self.record.place else { return };
        let (before, id) = (before.clone(), self.guest.id);
        let restored = self.agent.with_journal(move |journal| match before {
            Some(before) => journal.put_guest(&before),
            None => journal.remove_guest(id),
        });
        if let Err(error) = restored.await {
            tracing::error!(guest = %self.guest.name, %error, "cannot record");
        }
        self.agent.guests.remove(&self.guest.name, self.guest.id);
    }

    /// The guest is ours and does not run; its process is ended, so that this is certain.
    async fn lost(&mut self, reason: Reason) -> Next {
        if let Err(error) = self.end_process_and_keep_log().await {
            tracing::error!(guest = %self.guest.name, %error, "cannot end the hypervisor");
        }
        self.settle(Place::Crashed { reason: reason.to_string() }).await;
        Next::Continue
    }

    /// Catches up with an end of the process that came while a move had the guest.
    pub(super) async fn look_again(&mut self) -> Next {
        let watched = self.process.as_ref().map(|process| process.pidfd().and_then(Exit::of));
        match watched {
            Some(Ok(exit)) => self.exit = exit,
            Some(Err(_)) => self.exited().await,
            None => {}
        }
        Next::Continue
    }
}

/// Where a guest is after a move to another host has ended.
fn place_after(receipt: &Receipt) -> Place {
    match &receipt.ending {
        SourceEnding::Moved => Place::Elsewhere { host: receipt.destination.clone() },
        SourceEnding::Undone { .. } => Place::Here,
        SourceEnding::GuestGone { reason } => Place::Crashed { reason: reason.to_string() },
        SourceEnding::Stuck { cause, reason } => {
            let reason = format!("{reason} (after {cause})");
            Place::Paused { reason, elsewhere: Elsewhere::No }
        }
        SourceEnding::Lost { reason } => {
            Place::Paused { reason: reason.to_string(), elsewhere: Elsewhere::MayHaveRun }
        }
    }
}
