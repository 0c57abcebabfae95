//! Who may do what.
//!
//! | | viewer | operator | admin, host, unix socket |
//! |---|---|---|---|
//! | look at the host, its guests, moves, images, events, metrics | yes | yes | yes |
//! | check, plan, begin and cancel moves; drop images; read what hypervisors say | – | yes | yes |
//! | all else: define, edit, delete, start, end, pause, reset guests; their consoles | – | – | yes |
//! | invite and revoke hosts | – | – | yes, but no host |
//! | be passed on to another host | yes | yes | admin, but no host, nor over the unix socket |
//!
//! What each operation needs stands in the table of operations (`sterna_api::OPERATIONS`).
//!
//! A host of the cluster may do nearly all of it, as it may hand over any guest anyway. It may not say who is a host: a
//! host that was taken over, and is revoked, must not have let others in. Whatever is not in the table is for an admin.

use super::Origin;
use super::answer::Refusal;
use crate::agent::Agent;
use axum::extract::connect_info::ConnectInfo;
use axum::extract::{MatchedPath, Request};
use axum::http::Method;
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use rustls::pki_types::CertificateDer;
use std::sync::Arc;
use sterna_api::{ApiError, ErrorCode, Hosts, Operation, Role, operation};
use sterna_engine::identity::{Identity, Peer, UserRole, peer};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

/// Who is at the other end of a connection.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    pub(super) peer: Option<Peer>,
    certificate: Option<CertificateDer<'static>>,
}

impl Caller {
    /// Who is at the other end, by the certificate that the handshake has verified.
    pub(crate) fn of(stream: &TlsStream<TcpStream>) -> Self {
        let (_, tls) = stream.get_ref();
        let chain = tls.peer_certificates();
        let certificate = chain.and_then(|chain| chain.first()).cloned();
        Self { peer: chain.and_then(peer), certificate }
    }
}

/// The least role that a request needs.
fn needed(method: &Method, path: &str) -> UserRole {
    match known(method, path).map_or(Role::Admin, |operation| operation.role) {
        Role::Viewer => UserRole::Viewer,
        Role::Operator => UserRole::Operator,
        Role::Admin => UserRole::Admin,
    }
}

/// Whether a request is one that no host may make.
fn is_for_people(method: &Method, path: &str) -> bool {
    known(method, path).is_some_and(|operation| operation.hosts == Hosts::Refused)
}

/// The operation that a request is. Asking for the head alone is asking.
fn known(method: &Method, path: &str) -> Option<&'static Operation> {
    operation(if method == Method::HEAD { "GET" } else { method.as_str() }, path)
}

/// Lets a request pass if its caller may make it.
pub(super) async fn check(
    agent: Arc<Agent>,
    origin: Origin,
    request: Request,
    next: Next,
) -> Response {
    // Where there is no such path there is nothing to be allowed.
    if let Some(path) = request.extensions().get::<MatchedPath>() {
        let needed = needed(request.method(), path.as_str());
        let caller = request.extensions().get::<ConnectInfo<Caller>>().map(|info| &info.0);
        let for_people = is_for_people(request.method(), path.as_str());
        let allowed = allow(origin, caller, needed, for_people);
        if let Err(error) = allowed.and_then(|()| accept(&agent.identity, caller)) {
            return Refusal(error).into_response();
        }
    }
    next.run(request).await
}

fn allow(
    origin: Origin,
    caller: Option<&Caller>,
    needed: UserRole,
    for_people: bool,
) -> Result<(), ApiError> {
    if origin == Origin::Local {
        return Ok(());
    }
    let who = match caller.and_then(|caller| caller.peer.as_ref()) {
        Some(Peer::Host(_)) if !for_people => return Ok(()),
        Some(Peer::Host(name)) => format!("the host {name}"),
        Some(Peer::User { role, .. }) if *role >= needed => return Ok(()),
        Some(Peer::User { name, role }) => format!("{name}, whose role is {role}"),
        None => "a caller whose certificate has no role that is known here".into(),
    };
    let message = format!("this is not for {who}: it needs the role {needed}");
    let hint = format!("`sterna pki user --role {needed}` makes a certificate of that role");
    Err(ApiError::new(ErrorCode::Forbidden, message).hint(hint))
}

/// Refuses whose certificate was revoked since the connection was made.
fn accept(identity: &Identity, caller: Option<&Caller>) -> Result<(), ApiError> {
    let certificate = caller.and_then(|caller| caller.certificate.as_ref());
    match certificate.is_some_and(|certificate| identity.is_revoked(certificate)) {
        true => Err(ApiError::new(ErrorCode::Forbidden, "the certificate was revoked")),
        false => Ok(()),
    }
}

/// The name of a user who may be passed on to other hosts: whatever the role, as these decide by the same certificate.
pub(super) fn passed_on(
    identity: &Identity,
    origin: Origin,
    caller: Option<&Caller>,
) -> Result<String, ApiError> {
    let who = match caller.and_then(|caller| caller.peer.as_ref()) {
        _ if origin == Origin::Local => "callers of the unix socket".to_owned(),
        Some(Peer::User { name, .. }) => return accept(identity, caller).map(|()| name.clone()),
        Some(Peer::Host(name)) => format!("the host {name}"),
        None => "a caller whose certificate has no role that is known here".into(),
    };
    let message = format!("only users are passed on to other hosts, and not {who}");
    Err(ApiError::new(ErrorCode::Forbidden, message)
        .hint("from a host of the cluster ask the other one itself: without --via")
        .hint("`sterna pki user` makes a user's certificate, for --identity"))
}

impl Caller {
    /// The caller's certificate, which the handshake has verified.
    pub(super) fn certificate(&self) -> Option<&CertificateDer<'static>> {
        self.certificate.as_ref()
    }
}

#[cfg(test)]
impl Caller {
    /// One whose certificate is nobody's concern.
    pub(super) fn with(peer: Option<Peer>) -> Self {
        Self { peer, certificate: None }
    }

    /// One who has proved to hold this certificate.
    pub(crate) fn holding(certificate: CertificateDer<'static>) -> Self {
        Self { peer: peer(std::slice::from_ref(&certificate)), certificate: Some(certificate) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sterna_api::paths;
    use sterna_engine::identity::PeerName;

    #[test]
    fn what_nobody_thought_of_is_for_an_admin() {
        for (method, path, role) in [
            (Method::GET, paths::GUESTS, UserRole::Viewer),
            (Method::GET, paths::METRICS, UserRole::Viewer),
            (Method::GET, paths::EVENTS, UserRole::Viewer),
            (Method::HEAD, paths::EVENTS, UserRole::Viewer),
            (Method::HEAD, paths::CONSOLE, UserRole::Admin),
            (Method::GET, paths::CONSOLE, UserRole::Admin),
            (Method::POST, paths::CONSOLE, UserRole::Admin),
            (Method::POST, paths::GUESTS, UserRole::Admin),
            (Method::DELETE, paths::GUEST, UserRole::Admin),
            (Method::POST, paths::DEFINITIONS, UserRole::Admin),
            (Method::GET, paths::DEFINITION, UserRole::Viewer),
            (Method::PUT, paths::DEFINITION, UserRole::Admin),
            (Method::POST, paths::START, UserRole::Admin),
            (Method::POST, paths::STOP, UserRole::Admin),
            (Method::GET, paths::LOG, UserRole::Operator),
            (Method::POST, paths::RUN, UserRole::Admin),
            (Method::POST, paths::PAUSE, UserRole::Admin),
            (Method::POST, paths::PLAN, UserRole::Operator),
            (Method::POST, paths::GUEST_MOVES, UserRole::Operator),
            (Method::POST, paths::UPGRADE, UserRole::Operator),
            (Method::DELETE, paths::MOVE, UserRole::Operator),
            (Method::DELETE, paths::IMAGE, UserRole::Operator),
            (Method::POST, paths::INVITATIONS, UserRole::Admin),
            (Method::DELETE, paths::CLUSTER_HOST, UserRole::Admin),
            (Method::PUT, paths::REVOKED, UserRole::Admin),
            (Method::POST, "/v1/later", UserRole::Admin),
            (Method::PUT, paths::MOVES, UserRole::Admin),
        ] {
            assert_eq!(needed(&method, path), role, "{method} {path}");
        }
    }

    #[test]
    fn a_role_allows_what_lower_ones_do_and_no_more() {
        let user = |role| Caller::with(Some(Peer::User { name: "alice".into(), role }));
        let roles = [UserRole::Viewer, UserRole::Operator, UserRole::Admin];
        for (rank, role) in roles.into_iter().enumerate() {
            for (needed_rank, needed) in roles.into_iter().enumerate() {
                let allowed = allow(Origin::Network, Some(&user(role)), needed, false).is_ok();
                assert_eq!(allowed, rank >= needed_rank, "{role} for {needed}");
            }
        }
        let host = Caller::with(Some(Peer::Host(PeerName("b".into()))));
        assert!(allow(Origin::Network, Some(&host), UserRole::Admin, false).is_ok());
        assert!(allow(Origin::Local, None, UserRole::Admin, true).is_ok());
        let admin = user(UserRole::Admin);
        assert!(allow(Origin::Network, Some(&admin), UserRole::Admin, true).is_ok());
        assert!(allow(Origin::Network, Some(&host), UserRole::Admin, true).is_err());
        assert!(is_for_people(&Method::POST, paths::INVITATIONS));
        assert!(is_for_people(&Method::DELETE, paths::CLUSTER_HOST));
        assert!(!is_for_people(&Method::PUT, paths::REVOKED));
        assert!(!is_for_people(&Method::POST, paths::CERTIFICATES));
        for nobody in [None, Some(&Caller::with(None))] {
            let error = allow(Origin::Network, nobody, UserRole::Viewer, false).unwrap_err();
            assert_eq!(error.code, ErrorCode::Forbidden);
        }
        let error = allow(Origin::Network, Some(&user(UserRole::Viewer)), UserRole::Admin, false);
        let words = error.unwrap_err().to_string();
        assert_eq!(words, "this is not for alice, whose role is viewer: it needs the role admin");
    }
}
