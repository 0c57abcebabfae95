//! Connections of a move: TLS 1.3 over TCP, mutually authenticated, begun by a preamble.

mod control;
mod duplex;
mod socket;

pub(crate) use control::{Control, Incoming, Received, receive};
pub(crate) use duplex::{ReadHalf, WriteHalf, split};
pub use socket::UNACKNOWLEDGED_MAX;
pub(crate) use socket::{Meter, Metered, SocketControl};

use crate::identity::{Identity, Peer, PeerName, peer};
use crate::words;
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, ServerConnection};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};
use sterna_proto::preamble::{
    ANSWER_BYTES, PREAMBLE_BYTES, Preamble, PreambleAnswer, PreambleError, Role, VERSION_MAX,
};
use thiserror::Error;

/// From the first packet to the end of the TLS handshake and the preamble.
pub(crate) const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// A peer that says nothing for this long on a control connection is gone. Each side says
/// something every [`KEEP_ALIVE_INTERVAL`].
pub(crate) const SILENCE_MAX: Duration = Duration::from_secs(5);

/// How often each side of a control connection says something.
pub(crate) const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(1);

/// Plaintext handed to TLS at once: a page frame of 1 MiB in pieces that stay in the cache.
pub(crate) const TLS_BUFFER_BYTES: usize = 256 << 10;

/// Why a connection could not be made or went away.
#[derive(Debug, Error)]
pub(crate) enum LinkError {
    /// The network or the TLS layer.
    #[error("connection failed")]
    Io(#[from] io::Error),
    /// The TLS layer, before any byte.
    #[error("cannot begin TLS")]
    Tls(#[from] rustls::Error),
    /// The peer is no Sterna agent, or not one of our versions.
    #[error("connection refused by protocol")]
    Preamble(#[from] PreambleError),
    /// The peer's certificate names nobody.
    #[error("the peer's certificate names no host")]
    Nameless,
}

impl LinkError {
    /// The whole chain in one line, for reasons that travel.
    #[must_use]
    pub(crate) fn in_words(&self) -> String {
        words::chain(self)
    }
}

/// A TLS connection after its preamble, whichever side made it.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) tls: rustls::Connection,
    pub(crate) socket: Metered,
    /// From the preamble to its answer, where this side made the connection: a round trip, and what
    /// the peer's processor took.
    pub(crate) round_trip: Duration,
}

impl Link {
    /// Connects to a destination for `role`.
    pub(crate) fn connect(
        to: SocketAddr,
        name: &ServerName<'static>,
        identity: &Identity,
        role: Role,
        meter: &Meter,
    ) -> Result<Self, LinkError> {
        let tcp = TcpStream::connect_timeout(&to, CONNECT_LIMIT)?;
        let tls = ClientConnection::new(identity.client(), name.clone())?;
        let mut link = Self::over(tcp, tls.into(), meter)?;
        let asked = Instant::now();
        link.write_all(&Preamble::new(role).encode())?;
        link.flush()?;
        let mut answer = [0; ANSWER_BYTES];
        link.read_exact(&mut answer)?;
        link.round_trip = asked.elapsed();
        PreambleAnswer::decode(&answer)?;
        link.socket.settle()?;
        Ok(link)
    }

    /// Accepts a connection up to its preamble; the caller answers it with [`Link::welcome`]. A peer with no version in
    /// common has been answered.
    pub(crate) fn accept(
        tcp: TcpStream,
        identity: &Identity,
        meter: &Meter,
    ) -> Result<(Self, Preamble, PeerName), LinkError> {
        let tls = ServerConnection::new(identity.server())?;
        let mut link = Self::over(tcp, tls.into(), meter)?;
        let mut bytes = [0; PREAMBLE_BYTES];
        link.read_exact(&mut bytes)?;
        let peer = peer_name(&link.tls).ok_or(LinkError::Nameless)?;
        let preamble = Preamble::decode(&bytes);
        if let Err(PreambleError::NoCommonVersion { .. }) = preamble {
            link.welcome(PreambleAnswer::NoCommonVersion { newest: VERSION_MAX })?;
        }
        Ok((link, preamble?, peer))
    }

    /// Answers a preamble and lifts the limits of the handshake.
    pub(crate) fn welcome(&mut self, answer: PreambleAnswer) -> Result<(), LinkError> {
        self.write_all(&answer.encode())?;
        self.flush()?;
        self.socket.settle()?;
        Ok(())
    }

    fn over(tcp: TcpStream, mut tls: rustls::Connection, meter: &Meter) -> io::Result<Self> {
        tls.set_buffer_limit(Some(TLS_BUFFER_BYTES * 2));
        let socket = Metered::new(tcp, CONNECT_LIMIT, meter)?;
        Ok(Self { tls, socket, round_trip: Duration::ZERO })
    }
}

impl Link {
    /// Hands all finished records to the socket.
    fn drain(&mut self) -> io::Result<()> {
        while self.tls.wants_write() {
            self.tls.write_tls(&mut self.socket)?;
        }
        Ok(())
    }

    fn shake_hands(&mut self) -> io::Result<()> {
        while self.tls.is_handshaking() {
            self.tls.complete_io(&mut self.socket)?;
        }
        Ok(())
    }
}

impl Read for Link {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.shake_hands()?;
        loop {
            match self.tls.reader().read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return done,
            }
            self.tls.read_tls(&mut self.socket)?;
            self.tls.process_new_packets().map_err(io::Error::other)?;
            self.drain()?;
        }
    }
}

impl Write for Link {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.shake_hands()?;
        let taken = self.tls.writer().write(bytes)?;
        self.drain()?;
        Ok(taken)
    }

    fn write_vectored(&mut self, slices: &[io::IoSlice<'_>]) -> io::Result<usize> {
        self.shake_hands()?;
        let taken = self.tls.writer().write_vectored(slices)?;
        self.drain()?;
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.drain()
    }
}

/// The host's name in the peer's certificate, which the handshake has verified. A user is none.
fn peer_name(tls: &rustls::Connection) -> Option<PeerName> {
    match peer(tls.peer_certificates()?)? {
        Peer::Host(name) => Some(name),
        Peer::User { .. } => None,
    }
}
