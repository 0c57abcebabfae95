//! The host's agent: it keeps guests, moves them, and answers for both after a crash.
//!
//! ```text
//!   operator ──unix socket──┐                    ┌── guest task ── hypervisor
//!                           ├─ server ─ requests ┼── guest task ── hypervisor
//!   cluster ──HTTPS─────────┘                    └── guest task ── hypervisor
//!                                                        │ leaves: a thread of the engine
//!   other hosts ──TLS── engine's listener ── AgentHost ──┘ arrives: threads of the engine
//!                                                │
//!                                             journal
//! ```
//!
//! One task owns each guest (`guest`); all else sends it requests. Whatever must be known after a
//! crash is in the `journal` before it is acted upon, and `recovery` reads it. The engine moves
//! pages; the agent only begins moves, takes guests in for it (`host`) and keeps its records.
//!
//! **Guests outlive agents.** An agent that ends, in whatever way, ends no guest. One that is asked
//! to end (SIGTERM, SIGINT) first cancels the moves to other hosts and waits a while until all have
//! ended; what has not is settled by the next agent.
//!
//! **An idle agent sleeps.** Once an hour it sees to its certificate; all else is waited for: processes are watched by pidfd, consoles
//! and callers by their sockets.
//!
//! **Not here.** Whether a move converges, what its stages are and who owns a guest after a failure
//! is decided in `sterna-core`. Which host a guest should go to is the caller's.

#![forbid(unsafe_code)]

mod agent;
mod console;
mod drain;
mod events;
#[cfg(test)]
mod fake;
#[doc(hidden)]
pub mod fuzzing;
mod guest;
mod guests;
mod host;
mod hypervisor;
mod images;
mod journal;
mod known;
mod logs;
mod membership;
mod metrics;
mod moves;
mod qemu;
mod queue;
mod records;
mod recovery;
mod reload;
mod server;
mod settings;
mod users;

pub use journal::JournalError;
pub use qemu::examine;
pub use settings::{MoveLimits, PeerArguments, ReadLimits, SOCKET_FILE, Settings};
pub use users::{GuestUsers, GuestUsersError, SUGGESTED as GUEST_USERS_SUGGESTED};

use agent::{Agent, Parts};
use host::AgentHost;
use membership::Door;
use sd_notify::NotifyState;
use server::{Caller, Origin, TlsListener, connections, router};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use sterna_api::{Finding, Verdict};
use sterna_core::limits::StageLimits;
use sterna_engine::destination::Listener;
use sterna_engine::identity::{Identity, IdentityError};
use sterna_known::ImageError;
use tokio::runtime::Runtime;

/// How long threads that still run when the agent ends are waited for.
const THREADS_END_MAX: Duration = Duration::from_secs(1);

/// Why an agent cannot work.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// A folder cannot be made.
    #[error("cannot make the folder {folder}")]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The operating system refuses threads or signals.
    #[error("cannot set up the agent's tasks")]
    Runtime(#[source] io::Error),
    /// The journal cannot be used.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// There is no identity.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// RAM of guests that have left cannot be kept, or not removed.
    #[error(transparent)]
    Images(#[from] ImageError),
    /// The users of guests are somebody's.
    #[error(transparent)]
    GuestUsers(#[from] GuestUsersError),
    /// There is no hypervisor.
    #[error("this host has no usable hypervisor: {0}")]
    Hypervisor(String),
    /// An address cannot be listened on.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address or path.
        address: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Runs an agent until it is asked to end by SIGTERM or SIGINT. Guests run on. On SIGHUP it reads anew how many
/// moves there may be, its certificate, and which certificates are no longer accepted.
///
/// # Errors
/// When it cannot begin, or a server fails.
pub fn serve(settings: Settings, read_limits: ReadLimits) -> Result<(), AgentError> {
    make_folder(&settings.runtime)?;
    make_folder(&settings.state)?;
    let journal = journal::Journal::open(&settings.state)?;
    let identity = Identity::load(&settings.identity)?;
    let users = settings.guest_users.as_ref();
    users.map(GuestUsers::check).transpose()?;
    let hypervisor =
        qemu::Qemu::find(settings.qemu.as_deref(), &settings.runtime, users, settings.tracker)
            .map_err(|findings| AgentError::Hypervisor(in_words(&findings)))?;
    let runtime = Runtime::new().map_err(AgentError::Runtime)?;
    let images = images::open(&settings)?;
    let (hypervisor, handle) = (Arc::new(hypervisor), runtime.handle().clone());
    let parts = Parts { identity, journal, hypervisor, images, runtime: handle };
    let agent = Arc::new(Agent::new(settings, parts));
    let ended = runtime.block_on(run(agent, read_limits));
    runtime.shutdown_timeout(THREADS_END_MAX);
    ended
}

/// What is missing, and how to get it.
fn in_words(findings: &[Finding]) -> String {
    let missing = findings.iter().filter(|finding| finding.verdict == Verdict::Missing);
    let words = missing.map(|finding| match &finding.remedy {
        Some(remedy) => format!("{} (remedy: {remedy})", finding.detail),
        None => finding.detail.clone(),
    });
    words.collect::<Vec<_>>().join("; ")
}

fn make_folder(folder: &PathBuf) -> Result<(), AgentError> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.map_err(|source| AgentError::Folder { folder: folder.clone(), source })
}

async fn run(agent: Arc<Agent>, read_limits: ReadLimits) -> Result<(), AgentError> {
    let hang_up = reload::hang_up().map_err(AgentError::Runtime)?;
    for finding in agent.hypervisor.findings() {
        tracing::info!(check = %finding.check, verdict = ?finding.verdict,
            detail = %finding.detail, "host");
    }
    let recovered = tokio::task::spawn_blocking({
        let agent = Arc::clone(&agent);
        move || recovery::recover(&agent)
    });
    recovered.await.map_err(|error| AgentError::Runtime(error.into()))??;

    let socket = agent.settings.runtime.join(SOCKET_FILE);
    let local = server::bind(&socket)
        .await
        .map_err(|source| AgentError::Listen { address: socket.display().to_string(), source })?;
    let api = SocketAddr::new(agent.settings.listen, agent.settings.api_port);
    let network = TlsListener::bind(api, agent.identity.clone())
        .await
        .map_err(|source| AgentError::Listen { address: api.to_string(), source })?;
    let joining = SocketAddr::new(agent.settings.listen, agent.settings.join_port);
    let door = Door::bind(joining, &agent)
        .await
        .map_err(|source| AgentError::Listen { address: joining.to_string(), source })?;
    let _arrivals = arrivals(&agent)?;
    tracing::info!(name = %agent.settings.name, %api, move_port = agent.settings.move_port,
        socket = %socket.display(), guests = agent.guests.all().len(), "ready");
    // Whoever has started the unit may now ask. Where no systemd waits for the word this does nothing.
    if let Err(error) = sd_notify::notify(&[NotifyState::Ready]) {
        tracing::warn!(%error, "systemd does not hear that the agent is ready");
    }

    let by_operator = router(Arc::clone(&agent), Origin::Local);
    let by_network = router(Arc::clone(&agent), Origin::Network);
    let limits = connections::Limits::USUAL;
    tokio::select! {
        () = connections::serve(local, by_operator, limits, |_| None) => {}
        () = connections::serve(network, by_network, limits, |tls| Some(Caller::of(tls))) => {}
        never = reload::when_asked(&agent, &read_limits, hang_up) => match never {},
        () = door.serve(&agent) => {}
        never = membership::keep(&agent) => match never {},
        ended = drain::when_asked(&agent) => ended.map_err(AgentError::Runtime)?,
    }
    // A socket that is left behind would only cost the next caller a clearer message.
    let _ = std::fs::remove_file(&socket);
    Ok(())
}

fn arrivals(agent: &Arc<Agent>) -> Result<Listener, AgentError> {
    let address = SocketAddr::new(agent.settings.move_listen, agent.settings.move_port);
    let host = Arc::new(AgentHost(Arc::clone(agent)));
    Listener::bind(address, &agent.identity, host, StageLimits::default())
        .map_err(|source| AgentError::Listen { address: address.to_string(), source })
}
