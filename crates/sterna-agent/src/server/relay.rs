//! Relays: a user who reaches this host reaches any other host of the cluster through it.
//!
//! `CONNECT HOST:PORT` makes the connection one that passes bytes on, as with any HTTPS proxy. In it the user speaks
//! TLS with the other host, which decides by the user's own certificate: this one reads nothing of that, and can say
//! nothing in the user's name.
//!
//! Where it goes is a name that the cluster's authority has signed, at the addresses that were signed with it, and the
//! port of the interface: so nobody gets into this host's network by it. Hosts are not passed on: they reach each
//! other by themselves, and one that was taken over shall gain nothing.
//!
//! A relay ends with either end, with the agent, and when the user's certificate is revoked. It holds its connection's
//! place ([`super::connections`]) and one of its own, and has a buffer for each direction. Silence is no reason to end
//! it, as a console may be silent for days; an end that is gone is noticed by TCP.

use super::Origin;
use super::answer::Refusal;
use super::connections::{Held, Hold, Place};
use super::roles::{self, Caller};
use super::tls::prepare;
use crate::agent::Agent;
use crate::membership::{directly, find};
use axum::extract::Request;
use axum::extract::connect_info::ConnectInfo;
use axum::http::header::CONNECTION;
use axum::http::uri::Authority;
use axum::http::{HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse as _, Response};
use futures_util::future::select;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use rustls::pki_types::CertificateDer;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use sterna_api::{ApiError, ErrorCode, address};
use sterna_pki::Subject;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// Relays of all users.
pub(super) const ALL_MAX: usize = 64;

/// Relays of one certificate.
pub(super) const OF_ONE_MAX: usize = 16;

/// How long the other host may take to be connected, at all of its addresses together.
const CONNECT_MAX: Duration = Duration::from_secs(10);

/// How long one end may go on after the other has said that nothing more comes.
const LINGER_MAX: Duration = Duration::from_secs(10);

/// Bytes that are passed on at once, in each direction: what TLS has in one record.
const BUFFER_BYTES: usize = 16 << 10;

/// How many relays there are.
#[derive(Debug)]
pub(crate) struct Relays {
    places: Arc<Semaphore>,
    held: Arc<Held>,
}

impl Default for Relays {
    fn default() -> Self {
        Self { places: Arc::new(Semaphore::new(ALL_MAX)), held: Arc::default() }
    }
}

impl Relays {
    /// A place for one more, of the holder of a certificate.
    fn place(
        &self,
        certificate: Option<&CertificateDer<'_>>,
    ) -> Result<(OwnedSemaphorePermit, Option<Hold>), ApiError> {
        let too_many = |message: String, hint: &str| {
            Err(ApiError::new(ErrorCode::TooMany, message).hint(hint))
        };
        let hold = certificate.map(|one| self.held.hold(one, OF_ONE_MAX));
        if let Some(None) = hold {
            let message = format!("more than {OF_ONE_MAX} relays with this certificate");
            return too_many(message, "close some of them first");
        }
        match Arc::clone(&self.places).try_acquire_owned() {
            Ok(place) => Ok((place, hold.flatten())),
            Err(_) => too_many(
                format!("more than {ALL_MAX} relays"),
                "try again later, or through another host",
            ),
        }
    }
}

/// Where a request wants to be passed on to; nowhere if it is one for this host.
pub(super) fn target(request: &Request) -> Option<Authority> {
    let is_elsewhere = request.method() == Method::CONNECT && request.uri().path().is_empty();
    request.uri().authority().filter(|_| is_elsewhere).cloned()
}

/// Passes a user on to another host.
pub(super) async fn connect(
    agent: Arc<Agent>,
    origin: Origin,
    target: Authority,
    request: Request,
) -> Result<Response, Refusal> {
    match begin(agent, origin, &target, request).await {
        Ok(()) => Ok(StatusCode::OK.into_response()),
        // Whatever the caller may have said already was for the other host.
        Err(error) => {
            let mut refused = Refusal(error).into_response();
            refused.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            Ok(refused)
        }
    }
}

async fn begin(
    agent: Arc<Agent>,
    origin: Origin,
    target: &Authority,
    mut request: Request,
) -> Result<(), ApiError> {
    let caller = request.extensions_mut().remove::<ConnectInfo<Caller>>().map(|info| info.0);
    let user = roles::passed_on(&agent.identity, origin, caller.as_ref())?;
    if agent.is_ending() {
        return Err(ApiError::new(ErrorCode::ShuttingDown, "the agent is about to end")
            .hint("try again when it has begun anew, or through another host"));
    }
    let name = host_name(target, agent.settings.api_port)?;
    let certificate = caller.and_then(|caller| caller.certificate().cloned());
    let place = agent.relays.place(certificate.as_ref())?;
    let host = find(&agent, &name).await?;
    let stream = reach(&agent, &host).await?;
    agent.metrics.passed_on();
    tracing::info!(user, host = name, "a user is passed on");
    let connection = request.extensions_mut().remove::<Place>();
    let upgrade = hyper::upgrade::on(request);
    tokio::spawn(async move {
        Relay { agent, user, name, certificate }.run(upgrade, stream).await;
        drop((place, connection));
    });
    Ok(())
}

/// The host that is meant, if it is its interface.
fn host_name(target: &Authority, api_port: u16) -> Result<String, ApiError> {
    let split = address::split(target.as_str(), api_port);
    let (host, port) = split.map_err(|error| ApiError::new(ErrorCode::BadRequest, error))?;
    if port != api_port {
        let message = format!("users are passed on to port {api_port} of hosts, and not to {port}");
        return Err(ApiError::new(ErrorCode::Forbidden, message).hint(
            "name the host without a port, unless all agents have another one (--api-port)",
        ));
    }
    Ok(host.to_ascii_lowercase())
}

/// A connection to the interface of a host, at the first of its addresses that takes it.
async fn reach(agent: &Agent, host: &Subject) -> Result<TcpStream, ApiError> {
    let Subject { name, addresses } = host;
    let mut hosts: Vec<_> = addresses.iter().map(ToString::to_string).collect();
    if hosts.is_empty() {
        hosts.push(name.clone());
    }
    let most = CONNECT_MAX / u32::try_from(hosts.len()).unwrap_or(u32::MAX);
    let port = agent.settings.api_port;
    let mut tried = Vec::new();
    for host in hosts {
        let at = address::join(&host, port);
        let failed = match timeout(most, TcpStream::connect(&at)).await {
            Ok(Ok(stream)) => match prepare(&stream) {
                Ok(()) => return Ok(stream),
                Err(error) => error.to_string(),
            },
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {} ms", most.as_millis()),
        };
        tried.push(format!("{at}: {failed}"));
    }
    let (here, tried) = (&agent.settings.name, tried.join("; "));
    let message = format!("{name} cannot be reached from {here} ({tried})");
    Err(ApiError::new(ErrorCode::Unreachable, message)
        .hint(format!("see that the agent of {name} runs, and that nothing closes port {port}"))
        .hint(directly(name)))
}

/// A user and the host that the user is passed on to.
struct Relay {
    agent: Arc<Agent>,
    user: String,
    name: String,
    certificate: Option<CertificateDer<'static>>,
}

impl Relay {
    /// Passes on what comes from either end, until one of them is gone or the user's certificate is revoked.
    async fn run(self, upgrade: OnUpgrade, host: TcpStream) {
        let (sent, received) = (AtomicU64::new(0), AtomicU64::new(0));
        let begun = Instant::now();
        let passed = async {
            let caller = upgrade.await.map_err(io::Error::other)?;
            pass_both(TokioIo::new(caller), host, &sent, &received).await
        };
        let why = tokio::select! {
            ended = passed => match ended {
                Ok(()) => "closed".into(),
                // Most programs end without a word of TLS.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => "closed".into(),
                Err(error) => error.to_string(),
            },
            () = self.revoked() => "the user's certificate was revoked".into(),
        };
        let Self { user, name, .. } = &self;
        let (sent_bytes, received_bytes) = (sent.into_inner(), received.into_inner());
        let seconds = begun.elapsed().as_secs_f64();
        tracing::info!(
            user,
            host = name,
            sent_bytes,
            received_bytes,
            seconds,
            why,
            "a user is passed on no longer"
        );
    }

    async fn revoked(&self) {
        let Some(certificate) = &self.certificate else { return std::future::pending().await };
        let mut reads = self.agent.identity_read.subscribe();
        while !self.agent.identity.is_revoked(certificate) {
            if reads.changed().await.is_err() {
                // The sender is the agent's, which lives.
                return std::future::pending().await;
            }
        }
    }
}

/// Passes on what comes from a caller and from a host. After one of them has ended, the other has little time to say what it
/// still has.
async fn pass_both(
    caller: impl AsyncRead + AsyncWrite,
    host: TcpStream,
    sent: &AtomicU64,
    received: &AtomicU64,
) -> io::Result<()> {
    let (from_caller, to_caller) = tokio::io::split(caller);
    let (from_host, to_host) = host.into_split();
    let up = pin!(pass(from_caller, to_host, sent));
    let down = pin!(pass(from_host, to_caller, received));
    let (ended, rest) = select(up, down).await.factor_first();
    ended?;
    // Whether it says all is for the two of them to see: they speak TLS.
    let _ = timeout(LINGER_MAX, rest).await;
    Ok(())
}

/// Passes on and counts bytes until there are no more.
async fn pass(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    count: &AtomicU64,
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let length = from.read(&mut buffer).await?;
        if length == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..length]).await?;
        // TLS keeps what the socket did not take at once.
        to.flush().await?;
        count.fetch_add(length as u64, Ordering::Relaxed);
    }
}
