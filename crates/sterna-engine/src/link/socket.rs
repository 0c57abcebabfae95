//! The TCP socket below TLS: its settings, its limits, and a count of what it carries.

use socket2::{SockRef, TcpKeepalive};
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use sterna_sys::tcp::held_up_by_receiver;

/// Data that stays unacknowledged this long ends the connection: a cut link is noticed while
/// pages are being written, not when the kernel gives up a quarter of an hour later. So long, too, a word may be on its way
/// that was sent before a connection broke.
pub const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(8);

/// Counts what the sockets of one move carry, in bytes of TLS records.
#[derive(Clone, Debug, Default)]
pub(crate) struct Meter {
    sent: Arc<AtomicU64>,
}

impl Meter {
    pub(crate) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

/// A socket that counts.
#[derive(Debug)]
pub(crate) struct Metered {
    tcp: TcpStream,
    meter: Meter,
}

/// Ends a socket from another thread: whoever is blocked on it gets an error at once.
#[derive(Debug)]
pub(crate) struct SocketControl(TcpStream);

impl SocketControl {
    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    pub(crate) fn shut_down(&self) {
        // An error says that it is down already.
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

impl Metered {
    /// Takes a new connection, with a limit for every read and write until it is settled.
    pub(crate) fn new(tcp: TcpStream, limit: Duration, meter: &Meter) -> io::Result<Self> {
        tcp.set_nodelay(true)?;
        tcp.set_read_timeout(Some(limit))?;
        tcp.set_write_timeout(Some(limit))?;
        let socket = SockRef::from(&tcp);
        socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED_MAX))?;
        let keepalive = TcpKeepalive::new()
            .with_time(Duration::from_secs(2))
            .with_interval(Duration::from_secs(2))
            .with_retries(3);
        socket.set_tcp_keepalive(&keepalive)?;
        Ok(Self { tcp, meter: meter.clone() })
    }

    /// Lets no more than about `bytes` stand unsent or unacknowledged, so that what goes on another
    /// connection at the same time does not wait behind it in the network's queues.
    pub(crate) fn bound_queue(&self, bytes: usize) -> io::Result<()> {
        // The kernel doubles it, for its own data.
        SockRef::from(&self.tcp).set_send_buffer_size(bytes / 2)
    }

    /// Lifts the limits of the handshake.
    pub(crate) fn settle(&self) -> io::Result<()> {
        self.tcp.set_read_timeout(None)?;
        self.tcp.set_write_timeout(None)
    }

    /// For how long this side has waited for the other to take what it has, all in all; zero where the kernel does
    /// not tell.
    pub(crate) fn held_up_by_receiver(&self) -> Duration {
        held_up_by_receiver(&self.tcp).unwrap_or_default()
    }

    /// What all sockets of the move have sent.
    pub(crate) fn sent_by_all(&self) -> u64 {
        self.meter.sent()
    }

    pub(crate) fn set_read_limit(&self, limit: Duration) -> io::Result<()> {
        self.tcp.set_read_timeout(Some(limit))
    }

    pub(crate) fn control(&self) -> io::Result<SocketControl> {
        self.tcp.try_clone().map(SocketControl)
    }

    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { tcp: self.tcp.try_clone()?, meter: self.meter.clone() })
    }
}

impl Read for Metered {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.tcp.read(buffer)
    }
}

impl Write for Metered {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.tcp.write(bytes)?;
        self.meter.sent.fetch_add(written as u64, Ordering::Relaxed);
        Ok(written)
    }

    fn write_vectored(&mut self, slices: &[io::IoSlice<'_>]) -> io::Result<usize> {
        let written = self.tcp.write_vectored(slices)?;
        self.meter.sent.fetch_add(written as u64, Ordering::Relaxed);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.tcp.flush()
    }
}
