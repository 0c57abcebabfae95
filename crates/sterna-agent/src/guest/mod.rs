//! One task owns each guest of this host; everyone else sends it requests.
//!
//! ```text
//!   start ─▶ Here ──migrate──▶ Here, leaving ──┬─▶ Elsewhere   (task ends)
//!              ▲                               ├─▶ Here        (undone)
//!              │ Active                        └─▶ Paused | Crashed
//!   reserve ─▶ Arriving ──────────────────────────▶ as before  (discarded; task ends)
//!   Stopped: see `define`
//! ```
//!
//! A guest whose hypervisor ends while a move has it is left to the move, which finds out by
//! itself and says how it ended; only then is the guest marked. The task never asks the hypervisor
//! anything while a move may be talking to it.

mod check;
pub(crate) mod define;
mod exit;
pub(crate) mod leave;
mod plan;
mod settle;
mod task;
pub(crate) mod upgrade;

pub(crate) use task::{Activity, Task};

use crate::console::Reader;
use crate::hypervisor::{GuestProcess, Intervention};
use crate::records::OutgoingRecord;
use std::path::PathBuf;
use std::sync::Arc;
use sterna_api::{
    ApiError, CheckRequest, CheckView, DefinitionView, EditGuest, ErrorCode, GuestView,
    MoveRequest, PlanRequest, PlanView, RunGuest, StartDefined, UpgradeRequest, UpgradeView,
};
use sterna_core::destination::Ending;
use sterna_core::receipt::Receipt;
use sterna_proto::message::{AttemptId, GuestId};
use sterna_sys::memory::GuestMemory;
use tokio::sync::{mpsc, oneshot};

/// Requests that wait for a guest's task.
const REQUESTS_MAX: usize = 32;

/// What a guest's task is asked or told.
#[derive(Debug)]
pub(crate) enum Request {
    View(oneshot::Sender<GuestView>),
    Console(oneshot::Sender<Result<Terminal, ApiError>>),
    Stop(oneshot::Sender<Result<GuestView, ApiError>>),
    Start(StartDefined, oneshot::Sender<Result<GuestView, ApiError>>),
    Definition(oneshot::Sender<DefinitionView>),
    Edit(Box<EditGuest>, oneshot::Sender<Result<DefinitionView, ApiError>>),
    Delete(oneshot::Sender<Result<GuestView, ApiError>>),
    /// Where the hypervisor writes its log, if there is one.
    Log(oneshot::Sender<Option<PathBuf>>),
    Run(RunGuest, oneshot::Sender<Result<GuestView, ApiError>>),
    Intervene(Intervention, oneshot::Sender<Result<GuestView, ApiError>>),
    Upgrade(UpgradeRequest, oneshot::Sender<Result<UpgradeView, ApiError>>),
    Migrate(Box<MoveRequest>, oneshot::Sender<Result<Arc<crate::moves::Move>, ApiError>>),
    Plan(Box<PlanRequest>, oneshot::Sender<Result<PlanView, ApiError>>),
    Check(CheckRequest, oneshot::Sender<Result<CheckView, ApiError>>),
    /// Planning, or checking, has ended, well or not.
    Planned(Option<Box<plan::Planned>>),
    /// The guest's process, if it arrives by this attempt: a guest that runs here must never be
    /// given to whoever asks about another attempt, as it would be discarded.
    Arriving(AttemptId, oneshot::Sender<Option<Arc<dyn GuestProcess>>>),
    /// The RAM of the guest, if it is of this group and no move has it.
    Ram(String, oneshot::Sender<Option<Arc<GuestMemory>>>),
    /// Whether the guest is in doubt, or stays paused because another host may have run it.
    MayRunElsewhere(oneshot::Sender<bool>),
    /// The guest runs at this host, as an operator has found out: what is left of it here is ended.
    Concede(String, oneshot::Sender<Result<GuestView, ApiError>>),
    /// A move to another host has ended; without a receipt if its thread failed.
    Left(Box<OutgoingRecord>, Option<Box<Receipt>>),
    /// A move to this host has ended; means nothing unless the guest arrives by it.
    Arrived(AttemptId, Ending),
}

impl Request {
    /// Whether the guest may do something else after it.
    fn may_change_state(&self) -> bool {
        match self {
            Self::Stop(_)
            | Self::Start(..)
            | Self::Delete(_)
            | Self::Run(..)
            | Self::Intervene(..)
            | Self::Upgrade(..)
            | Self::Migrate(..)
            | Self::Concede(..)
            | Self::Left(..)
            | Self::Arrived(..) => true,
            Self::View(_)
            | Self::Console(_)
            | Self::Definition(_)
            | Self::Edit(..)
            | Self::Log(_)
            | Self::Plan(..)
            | Self::Check(..)
            | Self::Planned(_)
            | Self::Arriving(..)
            | Self::MayRunElsewhere(_)
            | Self::Ram(..) => false,
        }
    }
}

/// Both directions of a console.
#[derive(Debug)]
pub(crate) struct Terminal {
    pub(crate) output: Reader,
    pub(crate) input: mpsc::Sender<Vec<u8>>,
}

/// A guest, to those who do not own it.
#[derive(Clone, Debug)]
pub(crate) struct Guest {
    pub(crate) id: GuestId,
    pub(crate) name: String,
    requests: mpsc::Sender<Request>,
}

impl Guest {
    /// Asks the guest's task from another task.
    ///
    /// # Errors
    /// When the guest has just gone.
    pub(crate) async fn ask<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<T>) -> Request,
    ) -> Result<T, ApiError> {
        let gone = || ApiError::new(ErrorCode::NotFound, format!("guest {} has gone", self.name));
        let (reply, answer) = oneshot::channel();
        self.requests.send(request(reply)).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())
    }

    /// Asks the guest's task from a thread; `None` when the guest has just gone.
    pub(crate) fn ask_blocking<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<T>) -> Request,
    ) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.requests.blocking_send(request(reply)).ok()?;
        answer.blocking_recv().ok()
    }

    /// Tells the guest's task from another task. A task that has ended needs no telling.
    pub(crate) async fn tell(&self, request: Request) {
        let _ = self.requests.send(request).await;
    }

    /// Tells the guest's task from a thread. A task that has ended needs no telling.
    pub(crate) fn tell_blocking(&self, request: Request) {
        let _ = self.requests.blocking_send(request);
    }
}
