//! A guest that is started, ended, edited and deleted.
//!
//! ```text
//!   define ─▶ Stopped ──start──▶ Here ──stop, power-off──▶ Stopped
//!                ▲  └──edit──┐     └── its hypervisor ends ─▶ Crashed ──start──▶ Here
//!                └───────────┘
//!   Stopped | Crashed ──delete──▶ forgotten, but for the number of its newest attempt
//! ```
//!
//! What runs is what its definition was resolved to when it was started; what is edited, and what the next start
//! resolves anew, is what its operator wrote ([`GuestRecord::written`]).
//!
//! **Guarantee.** A guest of which another host may run a copy, or has one that its operator may let run, is started
//! only on an operator's word, and not edited.
//!
//! [`GuestRecord::written`]: crate::records::GuestRecord::written

use super::exit::Exit;
use super::task::{Activity, Task};
use crate::agent::{blocking, vmm_error};
use crate::console::Console;
use crate::hypervisor::on_record;
use crate::records::{Elsewhere, GuestRecord, Place};
use std::path::PathBuf;
use std::sync::Arc;
use sterna_api::{
    ApiError, DefinitionView, EditGuest, ErrorCode, GuestView, Happened, StartDefined,
};
use sterna_core::journal::DestinationRecord;
use sterna_proto::message::AttemptId;
use sterna_vmm::GuestDefinition;

/// What is put in the place of a guest that was ended, or never started.
pub(crate) const NEVER_STARTED: &str = "it has not been started yet";
const ON_REQUEST: &str = "on request";

/// Which of all definitions one is.
fn version(definition: &GuestDefinition) -> String {
    let text = serde_json::to_vec(definition).expect("a definition is made of texts and numbers");
    blake3::hash(&text).to_hex()[..32].to_owned()
}

/// A guest's definition, as callers see it.
pub(crate) fn definition_view(record: &GuestRecord) -> DefinitionView {
    let definition = record.written();
    let (guest, id) = (definition.name.clone(), record.id);
    DefinitionView { guest, id, version: version(&definition), definition }
}

impl Task {
    /// Starts the guest by what its operator wrote, unless it runs.
    pub(super) async fn start_defined(
        &mut self,
        request: StartDefined,
    ) -> Result<GuestView, ApiError> {
        if let Activity::Moving(_) = self.activity {
            self.idle("be started")?;
        }
        if self.record.place == Place::Here && self.process.is_some() {
            return Ok(self.view().await);
        }
        self.idle("be started")?;
        let in_doubt = match &self.record.place {
            Place::Stopped { .. } | Place::Crashed { .. } => self.source_may_have_it().await?,
            // Its hypervisor has ended; whether it runs elsewhere is as unknown as before.
            Place::Paused { elsewhere: Elsewhere::MayHaveRun, .. } if self.has_no_process() => true,
            Place::Paused { elsewhere: Elsewhere::MayHaveRun, .. } => {
                return Err(self.in_doubt("be started"));
            }
            Place::Paused { .. } => {
                let hint = format!("let it run on with `sterna vm run {}`", self.guest.name);
                return Err(self.wrong_state("be started").await.hint(hint));
            }
            _ => return Err(self.wrong_state("be started").await),
        };
        if in_doubt && !request.runs_nowhere_else {
            return Err(self.taken_over_in_doubt("be started"));
        }
        let mut record = self.record.clone();
        if in_doubt {
            // What is said of the attempt in doubt is no longer said of this guest.
            record.epoch = record.epoch.next();
        }
        let memory_bytes = record.definition.memory_bytes;
        self.agent.guests.promise(&self.guest.name, memory_bytes);
        let started = self.launch(record).await;
        self.agent.guests.promise(&self.guest.name, 0);
        started?;
        Ok(self.view().await)
    }

    fn has_no_process(&self) -> bool {
        self.process.is_none() && self.record.process.is_none()
    }

    /// Whether the host that the guest came from may still have it: it came by an attempt by which it was taken over,
    /// and by which it is not known to have run.
    async fn source_may_have_it(&self) -> Result<bool, ApiError> {
        let attempt = AttemptId { guest: self.guest.id, epoch: self.record.epoch };
        let incoming = self.agent.with_journal(move |journal| journal.incoming(attempt)).await?;
        Ok(incoming.is_some_and(|incoming| incoming.record != Some(DestinationRecord::Active)))
    }

    /// Starts a hypervisor, and has it on record before anybody hears of it. What fails leaves all as it was.
    async fn launch(&mut self, mut record: GuestRecord) -> Result<(), ApiError> {
        // What was left of the one before could not be ended then.
        self.end_process().await?;
        let (agent, id, definition) = (Arc::clone(&self.agent), record.id, record.written());
        let wishes = definition.wishes();
        let process = blocking(move || {
            let reasons = agent.unfit(id, &definition);
            if !reasons.is_empty() {
                let error = ApiError::new(ErrorCode::Unable, "this host cannot run the guest");
                return Err(error.reasons(reasons));
            }
            agent.hypervisor.start(&definition).map_err(|error| vmm_error(&error))
        })
        .await?;
        record.definition = process.definition();
        record.wishes = Some(wishes);
        record.process = Some(process.record());
        record.place = Place::Here;
        let written = record.clone();
        if let Err(error) =
            self.agent.with_journal(move |journal| journal.put_guest(&written)).await
        {
            blocking(move || process.end().map_err(|error| vmm_error(&error))).await?;
            return Err(error);
        }
        on_record(process.as_ref());
        tracing::info!(guest = %self.guest.name, pid = process.pid(), "started again");
        self.record = record;
        self.exit = Exit::of_process(process.as_ref(), &self.guest.name);
        self.console = Some(Console::attach(process.console()));
        self.process = Some(process);
        Ok(())
    }

    /// Ends the guest at once; its definition stays.
    pub(super) async fn stop(&mut self) -> Result<GuestView, ApiError> {
        self.idle("be stopped")?;
        match &self.record.place {
            Place::Here | Place::Paused { elsewhere: Elsewhere::No, .. } => {}
            // It does not run; why it crashed is told until it is started again.
            Place::Stopped { .. } | Place::Crashed { .. } => return Ok(self.view().await),
            Place::Paused { .. } => return Err(self.in_doubt("be stopped")),
            Place::Arriving { .. } | Place::Elsewhere { .. } => {
                return Err(self.wrong_state("be stopped").await);
            }
        }
        self.end_process_and_keep_log().await?;
        self.console = None;
        self.become_place(Place::Stopped { reason: ON_REQUEST.into() }).await?;
        tracing::info!(guest = %self.guest.name, "stopped on request");
        Ok(self.view().await)
    }

    /// Puts another definition in place of what the operator wrote.
    pub(super) async fn edit(&mut self, request: EditGuest) -> Result<DefinitionView, ApiError> {
        let EditGuest { version, definition } = request;
        self.idle("be edited")?;
        match &self.record.place {
            Place::Stopped { .. } | Place::Crashed { .. } => {}
            Place::Paused { elsewhere: Elsewhere::MayHaveRun, .. } => {
                return Err(self.in_doubt("be edited"));
            }
            _ => return Err(self.ask_to_stop("be edited").await),
        }
        let now = definition_view(&self.record);
        if now.definition == definition {
            return Ok(now);
        }
        if now.version != version {
            let message = format!("{} was edited by somebody else meanwhile", self.guest.name);
            let hint = format!(
                "look at what it is now with `sterna vm show {} --definition`, and edit that",
                self.guest.name
            );
            return Err(ApiError::new(ErrorCode::Changed, message).hint(hint));
        }
        if definition.name != self.guest.name {
            let message =
                format!("{} cannot be called {} from now on", self.guest.name, definition.name);
            return Err(ApiError::new(ErrorCode::Invalid, message)
                .hint("define a guest of that name, and delete this one"));
        }
        if self.source_may_have_it().await? {
            return Err(self.taken_over_in_doubt("be edited"));
        }
        let record =
            GuestRecord { wishes: Some(definition.wishes()), definition, ..self.record.clone() };
        let written = record.clone();
        self.agent.with_journal(move |journal| journal.put_guest(&written)).await?;
        self.record = record;
        tracing::info!(guest = %self.guest.name, "edited");
        self.agent.tell_definition(&self.record);
        Ok(definition_view(&self.record))
    }

    /// Forgets the guest.
    pub(super) async fn delete(&mut self) -> Result<GuestView, ApiError> {
        self.idle("be deleted")?;
        match &self.record.place {
            Place::Stopped { .. } | Place::Crashed { .. } => {}
            Place::Paused { elsewhere: Elsewhere::MayHaveRun, .. } => {
                return Err(self.in_doubt("be deleted"));
            }
            _ => return Err(self.ask_to_stop("be deleted").await),
        }
        self.end_process().await?;
        let id = self.guest.id;
        self.agent.with_journal(move |journal| journal.delete_guest(id)).await?;
        self.agent.logs.forget(id);
        tracing::info!(guest = %self.guest.name, %id, "deleted");
        let view = self.view().await;
        // Before the caller hears of it: the name is free.
        self.agent.guests.remove(&self.guest.name, id);
        Ok(view)
    }

    /// Where its hypervisor writes what it says; nowhere if it has none.
    pub(super) fn log(&self) -> Option<PathBuf> {
        self.process.as_ref().and_then(|process| self.agent.hypervisor.log(&process.record()))
    }

    async fn ask_to_stop(&self, what: &str) -> ApiError {
        let hint = format!("end it first, with `sterna vm stop {}`", self.guest.name);
        self.wrong_state(what).await.hint(hint)
    }

    fn in_doubt(&self, what: &str) -> ApiError {
        let hint =
            format!("find out, then say so with `sterna migrate resolve {}`", self.guest.name);
        self.may_be_elsewhere(what).hint(hint)
    }

    /// As [`Self::in_doubt`], where nothing is left here that could run on.
    fn taken_over_in_doubt(&self, what: &str) -> ApiError {
        let hint = format!(
            "make sure that it runs nowhere else, and will not, then start it with \
             `sterna vm start {} --runs-nowhere-else`",
            self.guest.name
        );
        self.may_be_elsewhere(what).hint(hint)
    }

    fn may_be_elsewhere(&self, what: &str) -> ApiError {
        let message = format!(
            "{} cannot {what}: another host may run it, or have it paused",
            self.guest.name
        );
        ApiError::new(ErrorCode::WrongState, message)
    }
}

impl crate::agent::Agent {
    /// Tells that a guest's definition is new, or another.
    pub(crate) fn tell_definition(&self, record: &GuestRecord) {
        let DefinitionView { guest, id, version, .. } = definition_view(record);
        self.events.tell(Happened::GuestDefined { name: guest, id, version });
    }
}
