//! The HTTP interface, over a unix socket and over HTTPS.
//!
//! The unix socket is for this host's operator: its file mode decides who may. Over HTTPS both
//! sides have certificates of the cluster's authority, and a user's says what its holder may do
//! ([`roles`]); callers from there cannot give a guest hypervisor arguments, unless the agent was told that they may.

mod answer;
mod cluster;
mod console;
mod doubt;
mod events;
mod guests;
mod images;
mod moves;
mod roles;
#[cfg(test)]
mod tests;
mod tls;

pub(crate) use roles::Caller;
pub(crate) use tls::TlsListener;

use crate::agent::Agent;
use crate::metrics;
use answer::Refusal;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::middleware::{Next, from_fn};
use axum::response::IntoResponse;
use axum::routing::{delete, get, post};
use axum::{Extension, Json, Router};
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
    Router::new()
        .route(paths::HOST, get(host))
        .route(paths::METRICS, get(measured))
        .route(paths::EVENTS, get(events::read))
        .route(paths::GUESTS, get(guests::list).post(guests::start))
        .route(paths::GUEST, get(guests::show).delete(guests::stop))
        .route(paths::CONSOLE, get(console::read).post(console::write))
        .route(paths::RUN, post(guests::run))
        .route(paths::PAUSE, post(guests::pause))
        .route(paths::RESET, post(guests::reset))
        .route(paths::SHUTDOWN, post(guests::shut_down))
        .route(paths::UPGRADE, post(guests::upgrade))
        .route(paths::CHECK, post(moves::check))
        .route(paths::PLAN, post(moves::plan))
        .route(paths::GUEST_MOVES, post(moves::begin))
        .route(paths::DOUBT, get(doubt::show).post(doubt::resolve))
        .route(paths::MOVES, get(moves::list))
        .route(paths::MOVE, get(moves::show).delete(moves::cancel))
        .route(paths::IMAGES, get(images::list))
        .route(paths::IMAGE, delete(images::remove))
        .route(paths::REVOKED, get(cluster::revoked).put(cluster::learn))
        .route(paths::HOSTS, get(cluster::list))
        .route(paths::CLUSTER_HOST, delete(cluster::revoke))
        .route(paths::INVITATIONS, post(cluster::invite))
        .route(paths::CERTIFICATES, post(cluster::renew))
        .fallback(async || Refusal(ApiError::new(ErrorCode::NotFound, "there is no such path")))
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
