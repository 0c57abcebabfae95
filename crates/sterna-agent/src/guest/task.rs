//! The task that owns a guest.

use super::define::definition_view;
use super::exit::Exit;
use super::plan::Planned;
use super::{Guest, REQUESTS_MAX, Request, Terminal};
use crate::agent::{Agent, blocking, vmm_error};
use crate::console::Console;
use crate::hypervisor::{GuestProcess, Intervention, Running};
use crate::moves::Move;
use crate::records::{Elsewhere, GuestRecord, Place};
use std::sync::Arc;
use sterna_api::{ApiError, Direction, ErrorCode, GuestState, GuestView, Happened, RunGuest};
use sterna_proto::message::AttemptId;
use sterna_sys::memory::GuestMemory;
use tokio::sync::mpsc;

/// Whether a move has the guest.
#[derive(Debug)]
pub(crate) enum Activity {
    /// None has.
    Idle,
    /// None has, but the guest is looked at for one.
    Planning,
    /// This one has.
    Moving(Arc<Move>),
}

/// Whether the task goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    Continue,
    End,
}

/// Owns a guest.
pub(crate) struct Task {
    pub(super) agent: Arc<Agent>,
    pub(super) guest: Guest,
    pub(super) record: GuestRecord,
    pub(super) process: Option<Arc<dyn GuestProcess>>,
    pub(super) activity: Activity,
    /// The newest plan of a move.
    pub(super) planned: Option<Box<Planned>>,
    pub(super) exit: Exit,
    pub(super) console: Option<Console>,
    /// What was told last of what the guest does.
    told: Option<GuestState>,
}

impl Task {
    /// Starts the task of a guest and attaches its console. Must be called within the runtime.
    pub(crate) fn start(
        agent: &Arc<Agent>,
        record: GuestRecord,
        process: Option<Arc<dyn GuestProcess>>,
        activity: Activity,
    ) -> Guest {
        let (requests, inbox) = mpsc::channel(REQUESTS_MAX);
        let guest = Guest { id: record.id, name: record.definition.name.clone(), requests };
        let watch =
            |process: &Arc<dyn GuestProcess>| Exit::of_process(process.as_ref(), &guest.name);
        let exit = process.as_ref().map(watch).unwrap_or_default();
        let console = process.as_ref().map(|process| Console::attach(process.console()));
        let agent = Arc::clone(agent);
        let task = Self {
            agent,
            guest: guest.clone(),
            record,
            process,
            activity,
            planned: None,
            exit,
            console,
            told: None,
        };
        tokio::spawn(task.serve(inbox));
        guest
    }

    async fn serve(mut self, mut inbox: mpsc::Receiver<Request>) {
        self.tell_state().await;
        loop {
            let mut changes = true;
            let next = tokio::select! {
                request = inbox.recv() => match request {
                    Some(request) => {
                        changes = request.may_change_state();
                        self.handle(request).await
                    }
                    None => Next::End,
                },
                () = self.exit.wait() => {
                    self.exit = Exit::default();
                    self.exited().await;
                    Next::Continue
                }
            };
            if changes {
                self.tell_state().await;
            }
            if next == Next::End {
                break;
            }
        }
        self.agent.guests.remove(&self.guest.name, self.guest.id);
        let (name, id) = (self.guest.name.clone(), self.guest.id);
        self.agent.events.tell(Happened::GuestGone { name, id });
    }

    /// Tells what the guest does, if that is news.
    async fn tell_state(&mut self) {
        let state = self.state().await;
        if self.told.as_ref() != Some(&state) {
            let (name, id) = (self.guest.name.clone(), self.guest.id);
            self.agent.events.tell(Happened::Guest { name, id, state: state.clone() });
            self.told = Some(state);
        }
    }

    async fn handle(&mut self, request: Request) -> Next {
        // A caller that no longer waits for its answer is no error.
        match request {
            Request::View(reply) => drop(reply.send(self.view().await)),
            Request::Console(reply) => drop(reply.send(self.terminal())),
            Request::Run(run, reply) => drop(reply.send(self.run(run).await)),
            Request::Intervene(how, reply) => drop(reply.send(self.intervene(how).await)),
            Request::Upgrade(request, reply) => drop(reply.send(self.upgrade(request).await)),
            Request::Migrate(request, reply) => drop(reply.send(self.migrate(*request).await)),
            Request::Plan(request, reply) => self.plan(*request, reply).await,
            Request::Check(request, reply) => self.check(request, reply).await,
            Request::Planned(planned) => {
                if let Activity::Planning = self.activity {
                    self.activity = Activity::Idle;
                }
                self.planned = planned.or(self.planned.take());
            }
            Request::Arriving(attempt, reply) => drop(reply.send(self.arriving(attempt))),
            Request::Ram(group, reply) => drop(reply.send(self.ram_for(&group))),
            Request::Stop(reply) => drop(reply.send(self.stop().await)),
            Request::Start(request, reply) => drop(reply.send(self.start_defined(request).await)),
            Request::Definition(reply) => drop(reply.send(definition_view(&self.record))),
            Request::Edit(request, reply) => drop(reply.send(self.edit(*request).await)),
            Request::Log(reply) => drop(reply.send(self.log())),
            Request::Delete(reply) => {
                let deleted = self.delete().await;
                let next = if deleted.is_ok() { Next::End } else { Next::Continue };
                drop(reply.send(deleted));
                return next;
            }
            Request::MayRunElsewhere(reply) => drop(reply.send(self.may_run_elsewhere())),
            Request::Concede(host, reply) => {
                let conceded = self.concede(host).await;
                let next = if conceded.is_ok() { Next::End } else { Next::Continue };
                drop(reply.send(conceded));
                return next;
            }
            Request::Left(outgoing, receipt) => return self.left(*outgoing, receipt).await,
            Request::Arrived(attempt, ending) if self.arrives_by(attempt) => {
                return self.arrived(ending).await;
            }
            Request::Arrived(..) => {}
        }
        Next::Continue
    }

    pub(super) async fn view(&self) -> GuestView {
        GuestView {
            name: self.guest.name.clone(),
            id: self.guest.id,
            state: self.state().await,
            epoch: self.record.epoch,
            pid: self.process.as_ref().map(|process| process.pid()),
            hypervisor: self.process.as_ref().and_then(|process| process.version()),
            memory_bytes: self.record.definition.memory_bytes,
            current_move: match &self.activity {
                Activity::Idle | Activity::Planning => None,
                Activity::Moving(entry) => Some(entry.id),
            },
            definition: self.record.definition.clone(),
        }
    }

    async fn state(&self) -> GuestState {
        if let Activity::Moving(entry) = &self.activity {
            return match (entry.direction, entry.doubt()) {
                (Direction::Incoming, _) => GuestState::Arriving,
                (Direction::Outgoing, None) if entry.watch.waits() => GuestState::Running,
                (Direction::Outgoing, Some(reason)) => GuestState::InDoubt { reason },
                (Direction::Outgoing, None) => GuestState::Leaving,
            };
        }
        match &self.record.place {
            // Its hypervisor answers one at a time.
            Place::Here if matches!(self.activity, Activity::Planning) => GuestState::Running,
            Place::Here => self.ask_whether_it_runs().await,
            Place::Arriving { .. } => GuestState::Arriving,
            Place::Paused { reason, .. } => GuestState::Paused { reason: reason.clone() },
            Place::Crashed { reason } => GuestState::Crashed { reason: reason.clone() },
            Place::Stopped { reason } => GuestState::Stopped { reason: reason.clone() },
            Place::Elsewhere { host } => {
                GuestState::Stopped { reason: format!("it was moved to {host}") }
            }
        }
    }

    async fn ask_whether_it_runs(&self) -> GuestState {
        let Some(process) = self.process.clone() else {
            return GuestState::Crashed { reason: "it has no hypervisor".into() };
        };
        match blocking(move || process.running().map_err(|e| vmm_error(&e))).await {
            Ok(Running::Yes) => GuestState::Running,
            Ok(Running::No(reason)) => GuestState::Paused { reason },
            Err(error) => GuestState::Paused { reason: error.message },
        }
    }

    fn terminal(&self) -> Result<Terminal, ApiError> {
        let console = self.console.as_ref().ok_or_else(|| {
            ApiError::new(ErrorCode::WrongState, format!("{} has no console", self.guest.name))
        })?;
        Ok(Terminal { output: console.read(), input: console.input() })
    }

    /// The process of a guest that arrives by this attempt.
    fn arriving(&self, attempt: AttemptId) -> Option<Arc<dyn GuestProcess>> {
        self.process.clone().filter(|_| self.arrives_by(attempt))
    }

    /// The guest's RAM, for another of this group.
    fn ram_for(&self, group: &str) -> Option<Arc<GuestMemory>> {
        let of_group = self.record.definition.group.as_deref() == Some(group);
        let rests =
            self.record.place == Place::Here && !matches!(self.activity, Activity::Moving(_));
        self.process.as_ref().filter(|_| of_group && rests).map(|process| process.memory())
    }

    fn arrives_by(&self, attempt: AttemptId) -> bool {
        matches!(&self.record.place, Place::Arriving { attempt: by, .. } if *by == attempt)
    }

    async fn run(&mut self, run: RunGuest) -> Result<GuestView, ApiError> {
        self.idle("be told to run")?;
        match &self.record.place {
            Place::Paused { elsewhere: Elsewhere::MayHaveRun, reason }
                if !run.runs_nowhere_else =>
            {
                let message = format!("another host may have run {}: {reason}", self.guest.name);
                return Err(ApiError::new(ErrorCode::WrongState, message).hint(
                    "make sure that it runs nowhere else, then say so with --runs-nowhere-else",
                ));
            }
            Place::Paused { .. } | Place::Here => {}
            _ => return Err(self.wrong_state("be told to run").await),
        }
        let Some(process) = self.process.clone() else {
            let hint = format!(
                "it has no hypervisor any more: start it anew with `sterna vm start {}`",
                self.guest.name
            );
            return Err(self.wrong_state("be told to run").await.hint(hint));
        };
        blocking(move || process.run().map_err(|e| vmm_error(&e))).await?;
        self.become_place(Place::Here).await?;
        tracing::info!(guest = %self.guest.name, "runs on request");
        Ok(self.view().await)
    }

    async fn intervene(&mut self, how: Intervention) -> Result<GuestView, ApiError> {
        let what = match how {
            Intervention::Pause => "be paused",
            Intervention::Reset => "be reset",
            Intervention::Shutdown => "be shut down",
        };
        self.idle(what)?;
        let (Place::Here, Some(process)) = (&self.record.place, self.process.clone()) else {
            return Err(self.wrong_state(what).await);
        };
        blocking(move || process.intervene(how).map_err(|e| vmm_error(&e))).await?;
        tracing::info!(guest = %self.guest.name, ?how, "done on request");
        Ok(self.view().await)
    }

    /// Refuses what cannot be done while a move has the guest, or one is planned.
    pub(super) fn idle(&self, what: &str) -> Result<(), ApiError> {
        let entry = match &self.activity {
            Activity::Idle => return Ok(()),
            Activity::Planning => {
                let message =
                    format!("{} cannot {what}: a move of it is being planned", self.guest.name);
                return Err(ApiError::new(ErrorCode::WrongState, message)
                    .hint("wait until that is done: it takes some seconds"));
            }
            Activity::Moving(entry) => entry,
        };
        let message = format!("{} cannot {what}: it is on the move {}", self.guest.name, entry.id);
        let hint = format!("wait for it, or cancel it with `sterna moves cancel {}`", entry.id);
        Err(ApiError::new(ErrorCode::WrongState, message).hint(hint))
    }

    pub(super) async fn wrong_state(&self, what: &str) -> ApiError {
        let state = self.state().await;
        let message = format!("{} cannot {what}: it is {}", self.guest.name, state.word());
        ApiError::new(ErrorCode::WrongState, message)
    }
}
