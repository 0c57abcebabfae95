//! Where hosts join.
//!
//! The port is open on the host that has the authority. While nobody is invited whoever knocks is turned away before a
//! word is read.

use super::{has_authority, with_authority};
use crate::agent::Agent;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};
use sterna_pki::join::{Granted, TIME_MAX, answer};
use sterna_pki::{Secret, Validity};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

/// Hosts that may be answered at a time.
const ANSWERED_MAX: usize = 32;

/// How long to wait after a connection could not be accepted, such as for lack of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Where hosts join; there is none where there is no authority.
#[derive(Debug)]
pub(crate) struct Door(Option<TcpListener>);

impl Door {
    /// Listens if this host has the authority.
    pub(crate) async fn bind(address: SocketAddr, agent: &Agent) -> io::Result<Self> {
        match has_authority(&agent.settings.identity) {
            true => Ok(Self(Some(TcpListener::bind(address).await?))),
            false => Ok(Self(None)),
        }
    }

    /// Where it is.
    #[cfg(test)]
    pub(crate) fn address(&self) -> Option<SocketAddr> {
        self.0.as_ref()?.local_addr().ok()
    }

    /// Lets hosts in, for as long as the agent runs.
    pub(crate) async fn serve(self, agent: &Arc<Agent>) {
        let Some(listener) = self.0 else { return std::future::pending().await };
        let places = Arc::new(Semaphore::new(ANSWERED_MAX));
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            let (stream, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a host that joins");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            if !agent.invitations.any(Instant::now()) {
                continue;
            }
            let agent = Arc::clone(agent);
            tokio::spawn(async move {
                let _place = place;
                let peer = peer.ip().to_canonical();
                match tokio::time::timeout(TIME_MAX, meet(&agent, stream, peer)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => {
                        tracing::info!(%peer, %error, "whoever wanted to join broke off")
                    }
                    Err(_) => tracing::info!(%peer, "whoever wanted to join took too long"),
                }
            });
        }
    }
}

async fn meet(agent: &Agent, stream: TcpStream, peer: IpAddr) -> io::Result<()> {
    let mut stream = TlsAcceptor::from(agent.identity.joining()).accept(stream).await?;
    let grant = async |secret, request| grant(agent, peer, &secret, request).await;
    answer(&mut stream, grant).await
}

/// Signs what an invited host has sent. Its name is the one of the invitation, and so are its addresses, if any are
/// there; a host cannot ask for one.
async fn grant(
    agent: &Agent,
    peer: IpAddr,
    secret: &Secret,
    request: String,
) -> Result<Granted, String> {
    let Some(mut subject) = agent.invitations.take(secret, Instant::now()) else {
        tracing::warn!(%peer, "a host that is not invited wanted to join");
        return Err(
            "this code is not valid, or no longer: it is for one host, once, and for ten minutes; \
            `sterna host invite` makes another one"
                .into(),
        );
    };
    if subject.addresses.is_empty() {
        subject.addresses.push(peer);
    }
    let (name, addresses) = (subject.name.clone(), subject.addresses.clone());
    let signed = with_authority(agent, move |authority| {
        let certificate = authority.sign_request(&request, &subject, Validity::renewed())?;
        let revoked = authority.revoked()?.map(|list| list.pem().to_owned());
        Ok((authority.certificate().to_owned(), certificate, revoked))
    });
    let (authority, certificate, revoked) = signed.await.map_err(|error| error.to_string())?;
    tracing::info!(%peer, name, ?addresses, "a host has joined");
    Ok(Granted { authority, certificate, revoked, api_port: agent.settings.api_port })
}
