//! The HTTP interface, over a unix socket and over HTTPS.
//!
//! The unix socket is for this host's operator: its file mode decides who may. Over HTTPS both
//! sides have certificates of the cluster's authority, and a user's says what its holder may do
//! ([`roles`]); callers from there cannot give a guest hypervisor arguments, unless the agent was told that they may.
//! Users from there are passed on to other hosts of the cluster if they ask for it ([`relay`]).

mod answer;
mod cluster;
pub(crate) mod connections;
mod console;
mod define;
mod doubt;
mod events;
mod guests;
mod images;
mod log;
mod moves;
mod relay;
mod roles;
mod routes;
#[cfg(test)]
mod tests;
mod tls;

pub(crate) use relay::Relays;
pub(crate) use roles::Caller;
pub(crate) use tls::TlsListener;

use crate::agent::Agent;
use crate::metrics;
use answer::Refusal;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json, Router};
use routes::Routes;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use sterna_api::{ApiError, ErrorCode, HostInfo, paths};
use tokio::net::{UnixListener, UnixStream};

/// Where a request comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// This host's operator, through the unix socket.
    Local,
    /// Another holder of a certificate of the cluster.
    Network,
}

/// The interface's routes.
pub(crate) fn router(agent: Arc<Agent>, origin: Origin) -> Router {
    let checked = Arc::clone(&agent);
    let check = move |request: Request, next: Next| {
        roles::check(Arc::clone(&checked), origin, request, next)
    };
    Routes::new()
        .get(paths::HOST, host)
        .get(paths::METRICS, measured)
        .get(paths::EVENTS, events::read)
        .get(paths::GUESTS, guests::list)
        .post(paths::GUESTS, guests::start)
        .get(paths::GUEST, guests::show)
        .delete(paths::GUEST, define::delete)
        .post(paths::DEFINITIONS, define::define)
        .get(paths::DEFINITION, define::show)
        .put(paths::DEFINITION, define::edit)
        .post(paths::START, define::start)
        .post(paths::STOP, define::stop)
        .get(paths::LOG, log::read)
        .get(paths::CONSOLE, console::read)
        .post(paths::CONSOLE, console::write)
        .post(paths::RUN, guests::run)
        .post(paths::PAUSE, guests::pause)
        .post(paths::RESET, guests::reset)
        .post(paths::SHUTDOWN, guests::shut_down)
        .post(paths::UPGRADE, guests::upgrade)
        .post(paths::CHECK, moves::check)
        .post(paths::PLAN, moves::plan)
        .post(paths::GUEST_MOVES, moves::begin)
        .get(paths::DOUBT, doubt::show)
        .post(paths::DOUBT, doubt::resolve)
        .get(paths::MOVES, moves::list)
        .get(paths::MOVE, moves::show)
        .delete(paths::MOVE, moves::cancel)
        .get(paths::IMAGES, images::list)
        .delete(paths::IMAGE, images::remove)
        .get(paths::REVOKED, cluster::revoked)
        .put(paths::REVOKED, cluster::learn)
        .get(paths::HOSTS, cluster::list)
        .delete(paths::CLUSTER_HOST, cluster::revoke)
        .post(paths::INVITATIONS, cluster::invite)
        .post(paths::CERTIFICATES, cluster::renew)
        .all()
        .fallback(elsewhere)
        .method_not_allowed_fallback(async || {
            Refusal(ApiError::new(ErrorCode::MethodNotAllowed, "not with this method"))
        })
        .layer(DefaultBodyLimit::max(paths::REQUEST_BYTES_MAX))
        .layer(Extension(origin))
        .layer(from_fn(check))
        .with_state(agent)
}

async fn host(State(agent): State<Arc<Agent>>) -> Json<HostInfo> {
    Json(HostInfo {
        name: agent.settings.name.clone(),
        version: env!("CARGO_PKG_VERSION").into(),
        journal: agent.journal.id().0.to_string(),
        move_port: agent.settings.move_port,
        guests: agent.guests.all().len(),
        findings: agent.hypervisor.findings(),
    })
}

/// What is no path of the interface: another host, or nothing.
async fn elsewhere(
    State(agent): State<Arc<Agent>>,
    Extension(origin): Extension<Origin>,
    request: Request,
) -> Result<Response, Refusal> {
    match relay::target(&request) {
        Some(target) => relay::connect(agent, origin, target, request).await,
        None => Err(ApiError::new(ErrorCode::NotFound, "there is no such path").into()),
    }
}

async fn measured(State(agent): State<Arc<Agent>>) -> Result<impl IntoResponse, Refusal> {
    let text = metrics::text(&agent).await;
    let text = text.map_err(|error| ApiError::from_chain(ErrorCode::Internal, &error))?;
    Ok(([(CONTENT_TYPE, metrics::CONTENT_TYPE)], text))
}

/// Listens on a unix socket that only this user may use. A socket left by an agent that was killed
/// is replaced; one that answers is not.
pub(crate) async fn bind(path: &Path) -> io::Result<UnixListener> {
    if UnixStream::connect(path).await.is_ok() {
        return Err(io::Error::new(io::ErrorKind::AddrInUse, "another agent serves this socket"));
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(path)?;
    // The folder is this user's alone, so nobody connects before the mode is set.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}
