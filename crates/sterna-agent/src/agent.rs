//! What all parts of an agent share.

use crate::events::Events;
use crate::guests::Guests;
use crate::hypervisor::Hypervisor;
use crate::journal::{Journal, JournalError};
use crate::logs::Logs;
use crate::membership::{Directory, Invitations};
use crate::metrics::Metrics;
use crate::moves::Moves;
use crate::queue::Queue;
use crate::server::Relays;
use crate::settings::{MoveLimits, Settings};
use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use sterna_api::{ApiError, ErrorCode};
use sterna_core::journal::SourceRecord;
use sterna_engine::identity::{Identity, IdentityError};
use sterna_engine::{Bandwidth, SourceJournal};
use sterna_known::{ImageStore, Places};
use sterna_proto::message::{AttemptId, GuestId};
use sterna_vmm::VmmError;
use tokio::runtime::Handle;
use tokio::sync::watch;

/// An agent's parts.
pub(crate) struct Agent {
    pub(crate) settings: Settings,
    pub(crate) identity: Identity,
    pub(crate) journal: Arc<Journal>,
    pub(crate) hypervisor: Arc<dyn Hypervisor>,
    pub(crate) guests: Arc<Guests>,
    pub(crate) moves: Moves,
    /// Whose turn it is to leave.
    pub(crate) queue: Arc<Queue>,
    /// What all moves from here may send together.
    pub(crate) bandwidth: Arc<Bandwidth>,
    limits: Mutex<MoveLimits>,
    pub(crate) metrics: Metrics,
    pub(crate) events: Arc<Events>,
    /// What hypervisors have said that have ended.
    pub(crate) logs: Arc<Logs>,
    /// RAM of guests that have left, if this host keeps it.
    pub(crate) images: Option<Arc<ImageStore>>,
    /// Where the disks of guests that have come were read.
    pub(crate) disk_places: Mutex<HashMap<GuestId, Places>>,
    /// Where tasks are started from threads that are none of the runtime's.
    pub(crate) runtime: Handle,
    /// Hosts that may join.
    pub(crate) invitations: Invitations,
    /// Held by whoever uses the authority, or changes what is revoked.
    pub(crate) authority: tokio::sync::Mutex<()>,
    /// Where other hosts of the cluster are, as far as the authority's host was asked.
    pub(crate) directory: Directory,
    /// Users that are passed on to other hosts.
    pub(crate) relays: Relays,
    /// Says each time that certificates were read again.
    pub(crate) identity_read: watch::Sender<()>,
    ending: AtomicBool,
}

/// What an agent is made of.
pub(crate) struct Parts {
    pub(crate) identity: Identity,
    pub(crate) journal: Journal,
    pub(crate) hypervisor: Arc<dyn Hypervisor>,
    pub(crate) images: Option<Arc<ImageStore>>,
    pub(crate) runtime: Handle,
}

impl Agent {
    /// An agent without guests.
    pub(crate) fn new(settings: Settings, parts: Parts) -> Self {
        let Parts { identity, journal, hypervisor, images, runtime } = parts;
        let limits = settings.moves.clone();
        Self {
            queue: Arc::new(Queue::new(&limits)),
            bandwidth: Arc::new(Bandwidth::new(limits.bandwidth_bytes_per_second)),
            limits: Mutex::new(limits),
            identity,
            journal: Arc::new(journal),
            hypervisor,
            guests: Arc::default(),
            moves: Moves::default(),
            metrics: Metrics::default(),
            events: Arc::default(),
            logs: Arc::new(Logs::in_state(&settings.state)),
            images,
            disk_places: Mutex::default(),
            runtime,
            invitations: Invitations::default(),
            authority: tokio::sync::Mutex::default(),
            directory: Directory::default(),
            relays: Relays::default(),
            identity_read: watch::Sender::default(),
            ending: AtomicBool::new(false),
            settings,
        }
    }

    /// How many moves there may be now.
    pub(crate) fn limits(&self) -> MoveLimits {
        self.limits.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes how many moves there may be. Those that are under way go on, within the new bandwidth.
    pub(crate) fn set_limits(&self, limits: MoveLimits) {
        self.queue.set_limits(&limits);
        self.bandwidth.set(limits.bandwidth_bytes_per_second);
        *self.limits.lock().unwrap_or_else(PoisonError::into_inner) = limits;
    }

    /// Reads this host's certificates again, and which ones are no longer accepted.
    pub(crate) fn reload_identity(&self) -> Result<(), IdentityError> {
        self.identity.reload()?;
        self.identity_read.send_replace(());
        Ok(())
    }

    /// No move begins from now on.
    pub(crate) fn end(&self) {
        self.ending.store(true, Ordering::Release);
    }

    /// Whether the agent is about to end.
    pub(crate) fn is_ending(&self) -> bool {
        self.ending.load(Ordering::Acquire)
    }

    /// Uses the journal, whose writes block, from a task.
    pub(crate) async fn with_journal<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Journal) -> Result<T, JournalError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let journal = Arc::clone(&self.journal);
        blocking(move || work(&journal).map_err(|e| journal_error(&e))).await
    }
}

/// Runs what blocks on a thread where that is allowed.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let ended = tokio::task::spawn_blocking(work).await;
    ended.unwrap_or_else(|error| Err(ApiError::from_chain(ErrorCode::Internal, &error)))
}

/// A journal's error as callers see it.
pub(crate) fn journal_error(error: &JournalError) -> ApiError {
    let hint = "look for a full or failing disk under the agent's state folder";
    ApiError::from_chain(ErrorCode::Internal, error).hint(hint)
}

/// A hypervisor's error as callers see it.
pub(crate) fn vmm_error(error: &VmmError) -> ApiError {
    ApiError::from_chain(ErrorCode::Hypervisor, error)
        .hint("`sterna doctor` shows whether this host has all that guests need")
}

/// The source's half of the journal, as the engine wants it.
#[derive(Debug)]
pub(crate) struct Records(pub(crate) Arc<Journal>);

impl SourceJournal for Records {
    fn record(&self, attempt: AttemptId, record: &SourceRecord) -> io::Result<()> {
        self.0.record_source(attempt, record)?;
        tracing::info!(%attempt, role = "source", ?record, "recorded");
        Ok(())
    }
}
