//! Connections with TLS, for axum.
//!
//! Handshakes run side by side, so that a caller who never finishes his holds nobody up.

use axum::serve::Listener;
use rustix::net::sockopt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use sterna_engine::identity::Identity;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// How long a caller may take for his handshake.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);

/// Handshakes at a time.
const HANDSHAKES_MAX: usize = 64;

/// After which silence the other end is asked whether it is there; twice as long it may take to answer.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// How long to wait after a connection could not be accepted, such as for lack of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

type Connection = (TlsStream<TcpStream>, SocketAddr);

/// Accepts callers with a certificate of the cluster's authority.
#[derive(Debug)]
pub(crate) struct TlsListener {
    ready: mpsc::Receiver<Connection>,
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl TlsListener {
    /// Listens on an address.
    pub(crate) async fn bind(address: SocketAddr, identity: Identity) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let (sender, ready) = mpsc::channel(HANDSHAKES_MAX);
        let task = tokio::spawn(accept(listener, identity, sender));
        Ok(Self { ready, address, task })
    }
}

impl Drop for TlsListener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, identity: Identity, ready: mpsc::Sender<Connection>) {
    let places = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        if let Err(error) = prepare(&stream) {
            tracing::warn!(%peer, %error, "cannot have it noticed when the caller is gone");
        }
        // Read anew each time, as certificates are renewed and revoked.
        let (tls, ready) = (TlsAcceptor::from(identity.server()), ready.clone());
        tokio::spawn(async move {
            let _place = place;
            match tokio::time::timeout(HANDSHAKE_MAX, tls.accept(stream)).await {
                Ok(Ok(stream)) => drop(ready.send((stream, peer)).await),
                Ok(Err(error)) => tracing::info!(%peer, %error, "caller refused"),
                Err(_) => tracing::info!(%peer, "caller did not finish the handshake"),
            }
        });
    }
}

/// Has what is small sent at once, and the connection end when the other host does without a word: also where nothing is
/// left to be said to it.
pub(super) fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, SILENCE_MAX)?;
    sockopt::set_tcp_keepintvl(stream, SILENCE_MAX / 4)?;
    let unanswered = u32::try_from((2 * SILENCE_MAX).as_millis()).unwrap_or(u32::MAX);
    Ok(sockopt::set_tcp_user_timeout(stream, unanswered)?)
}

impl Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> Connection {
        match self.ready.recv().await {
            Some(connection) => connection,
            // The accepting task ends only with this listener.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}
