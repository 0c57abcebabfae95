//! Who belongs to the cluster: invite, list, renew, revoke.

use super::answer::{Body, Raw, Refusal, Segment};
use super::roles::Caller;
use crate::agent::Agent;
use crate::membership::{
    INVITED_MAX, VALID, adopt, newest, pki_error, revoked_here, spread, with_authority,
};
use axum::extract::State;
use axum::extract::connect_info::ConnectInfo;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::{Extension, Json};
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};
use sterna_api::{
    ApiError, Certificate, ClusterHost, ErrorCode, HostRevoked, InvitationView, InviteRequest,
    NotTold, RenewRequest, address, paths,
};
use sterna_engine::identity::CERTIFICATE_FILE;
use sterna_pki::{HostCertificate, JoinCode, Secret, Subject, Validity};

pub(super) async fn list(
    State(agent): State<Arc<Agent>>,
) -> Result<Json<Vec<ClusterHost>>, Refusal> {
    let hosts = with_authority(&agent, |authority| authority.hosts()).await?;
    Ok(Json(newest(hosts).into_iter().map(view).collect()))
}

fn view(host: HostCertificate) -> ClusterHost {
    let until = host.validity.until.unix_timestamp_nanos() / 1_000_000;
    let Subject { name, addresses } = host.subject;
    ClusterHost { name, addresses, until_unix_ms: u64::try_from(until).unwrap_or_default() }
}

pub(super) async fn invite(
    State(agent): State<Arc<Agent>>,
    Body(request): Body<InviteRequest>,
) -> Result<impl IntoResponse, Refusal> {
    let InviteRequest { name, addresses, at } = request;
    let subject = Subject { name: name.clone(), addresses };
    let checked = subject.clone();
    let (authority, hosts) = with_authority(&agent, move |authority| {
        checked.check()?;
        Ok((authority.certificate_der()?, authority.hosts()?))
    })
    .await?;
    if hosts.iter().any(|host| host.subject.name == name) {
        let message = format!("{name} is a host of the cluster");
        let hint = format!("`sterna host revoke {name}` first, if it has lost its key");
        return Err(ApiError::new(ErrorCode::AlreadyExists, message).hint(hint).into());
    }
    let at = match at {
        Some(at) => at,
        None => reached_at(&agent)?,
    };
    // What the other host would not understand it is not given.
    address::split(&at, paths::JOIN_PORT)
        .map_err(|error| ApiError::new(ErrorCode::Invalid, error))?;
    let secret = Secret::draw();
    if !agent.invitations.add(&secret, subject, Instant::now()) {
        let message = format!("{INVITED_MAX} hosts are invited already");
        return Err(ApiError::new(ErrorCode::WrongState, message).into());
    }
    let until = (SystemTime::now() + VALID).duration_since(UNIX_EPOCH).unwrap_or_default();
    tracing::info!(name, "a host is invited");
    let view = InvitationView {
        name,
        code: JoinCode::new(at, &authority, secret).to_string(),
        until_unix_ms: u64::try_from(until.as_millis()).unwrap_or(u64::MAX),
    };
    Ok((StatusCode::CREATED, Json(view)))
}

/// Where this host says that it is reached.
fn reached_at(agent: &Agent) -> Result<String, ApiError> {
    let path = agent.settings.identity.join(CERTIFICATE_FILE);
    let Subject { name, addresses } =
        HostCertificate::read(&path).map_err(|error| pki_error(&error))?.subject;
    let host = addresses.first().map_or(name, ToString::to_string);
    Ok(match agent.settings.join_port {
        paths::JOIN_PORT => host,
        port => address::join(&host, port),
    })
}

/// Gives a host a certificate that follows the one it calls with: the same name and addresses, of the key that it
/// sends.
pub(super) async fn renew(
    State(agent): State<Arc<Agent>>,
    caller: Option<Extension<ConnectInfo<Caller>>>,
    Body(RenewRequest { request }): Body<RenewRequest>,
) -> Result<Json<Certificate>, Refusal> {
    let held = caller.as_ref().and_then(|Extension(ConnectInfo(caller))| caller.certificate());
    let held = held.map(HostCertificate::parse).transpose().map_err(|error| pki_error(&error))?;
    let Some(Some(HostCertificate { subject, .. })) = held else {
        let message = "only a host can have its certificate renewed";
        return Err(ApiError::new(ErrorCode::Forbidden, message).into());
    };
    let name = subject.name.clone();
    let signed = with_authority(&agent, move |authority| {
        authority.sign_request(&request, &subject, Validity::renewed())
    });
    let certificate = signed.await?;
    tracing::info!(name, "a host's certificate was renewed");
    Ok(Json(Certificate { certificate }))
}

/// Revokes all certificates of a host, and tells all other hosts at once.
pub(super) async fn revoke(
    State(agent): State<Arc<Agent>>,
    Segment(name): Segment<String>,
) -> Result<Json<HostRevoked>, Refusal> {
    let own = HostCertificate::read(&agent.settings.identity.join(CERTIFICATE_FILE));
    if own.map_err(|error| pki_error(&error))?.subject.name == name {
        let message = "this is the host that has the authority: it cannot revoke itself";
        return Err(ApiError::new(ErrorCode::WrongState, message).into());
    }
    let host = name.clone();
    let (count, list, others) = with_authority(&agent, move |authority| {
        let (its, others): (Vec<_>, Vec<_>) =
            authority.hosts()?.into_iter().partition(|one| one.subject.name == host);
        let serials: Vec<_> = its.into_iter().map(|one| one.serial).collect();
        let list = match serials.len() {
            0 => None,
            _ => Some(authority.revoke(serials.clone())?),
        };
        Ok((serials.len(), list, newest(others)))
    })
    .await?;
    let Some(list) = list else {
        let message = format!("no host of the cluster is named {name}");
        let hint = "`sterna host list` shows them";
        return Err(ApiError::new(ErrorCode::NotFound, message).hint(hint).into());
    };
    tracing::warn!(name, certificates = count, "a host was revoked");
    adopt(&agent, list.pem().to_owned()).await?;
    let (mut told, mut not_told) = (Vec::new(), Vec::new());
    for (host, result) in spread(&agent, &others, &list).await {
        match result {
            Ok(()) => told.push(host),
            Err(error) => not_told.push(NotTold { host, why: error.to_string() }),
        }
    }
    Ok(Json(HostRevoked { name, certificates: count, told, not_told }))
}

pub(super) async fn revoked(State(agent): State<Arc<Agent>>) -> Result<String, Refusal> {
    let list = revoked_here(&agent.settings.identity).map_err(|error| pki_error(&error))?;
    let none = || ApiError::new(ErrorCode::NotFound, "no certificate was revoked");
    Ok(list.ok_or_else(none)?.pem().to_owned())
}

pub(super) async fn learn(
    State(agent): State<Arc<Agent>>,
    Raw(list): Raw,
) -> Result<StatusCode, Refusal> {
    let not_text = |_| ApiError::new(ErrorCode::BadRequest, "a list of certificates is text");
    let list = String::from_utf8(list.into()).map_err(not_text)?;
    adopt(&agent, list).await?;
    Ok(StatusCode::NO_CONTENT)
}
