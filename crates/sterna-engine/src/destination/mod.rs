//! Guests arrive: the listener, and the destination's machine over real connections.
//!
//! ```text
//!   listener thread ─▶ one thread a connection: handshake, preamble, first message
//!                         │ Offer              │ Commit/Query          │ page stream
//!                         ▼                    ▼                       ▼
//!                  becomes the move's    handed to the move's   reads pages until it
//!                  thread (`driver`)     thread, or becomes     ends (`pages::receiver`)
//!                                        one from the journal
//! ```

mod arrivals;
mod driver;
mod following;
mod missing;
mod native;
mod registry;

pub(crate) use arrivals::{Arrivals, NeverCame};
pub(crate) use following::Following;
pub(crate) use native::Native;

use crate::host::Host;
use crate::identity::{Identity, PeerName};
use crate::inquiry;
use crate::link::{Link, Meter};
use crate::probe;
use registry::Registry;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use sterna_core::limits::StageLimits;
use sterna_proto::preamble::Role;

/// Connections that may be in their handshake at once: strangers can fill no more than this.
const HANDSHAKES_MAX: usize = 64;

/// Connections over which peers may try the link, or ask before a move, at once: more of them would
/// measure each other.
const TRIALS_MAX: usize = 32;

/// Everything the threads of a listener share.
pub(crate) struct Service {
    identity: Identity,
    host: Arc<dyn Host>,
    stages: StageLimits,
    registry: Registry,
    handshakes: AtomicUsize,
    trials: AtomicUsize,
}

impl Service {
    /// Lets a peer try the link, unless too many do.
    fn let_try(&self, link: Link) {
        self.unless_busy(|| probe::answer(link));
    }

    /// Answers what a peer asks before a move, unless too many do.
    fn answer(&self, link: Link, peer: &PeerName) {
        self.unless_busy(|| inquiry::answer(link, self.host.as_ref(), peer));
    }

    fn unless_busy(&self, serve: impl FnOnce()) {
        if self.trials.fetch_add(1, Ordering::AcqRel) < TRIALS_MAX {
            serve();
        }
        self.trials.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Accepts connections of moves until it is dropped. Moves under way go on.
pub struct Listener {
    address: SocketAddr,
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Listener {
    /// Listens on `address` and serves every move in threads of its own.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub fn bind(
        address: SocketAddr,
        identity: &Identity,
        host: Arc<dyn Host>,
        stages: StageLimits,
    ) -> io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        let address = listener.local_addr()?;
        let stopping = Arc::new(AtomicBool::new(false));
        let service = Arc::new(Service {
            identity: identity.clone(),
            host,
            stages,
            registry: Registry::default(),
            handshakes: AtomicUsize::new(0),
            trials: AtomicUsize::new(0),
        });
        let stop = Arc::clone(&stopping);
        let accept = move || {
            for connection in listener.incoming() {
                if stop.load(Ordering::Acquire) {
                    return;
                }
                match connection {
                    Ok(tcp) => serve(&service, tcp),
                    // Out of file descriptors, say: let others give some back.
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection");
                        thread::sleep(Duration::from_millis(100));
                    }
                }
            }
        };
        let thread = thread::Builder::new().name("moves-listen".into()).spawn(accept)?;
        Ok(Self { address, stopping, thread: Some(thread) })
    }

    /// The address it listens on.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Release);
        // A connection of our own wakes the thread; if none can be made, it ends with the process.
        if TcpStream::connect_timeout(&self.address, Duration::from_secs(1)).is_ok()
            && let Some(thread) = self.thread.take()
        {
            let _ = thread.join();
        }
    }
}

fn serve(service: &Arc<Service>, tcp: TcpStream) {
    if service.handshakes.fetch_add(1, Ordering::AcqRel) >= HANDSHAKES_MAX {
        service.handshakes.fetch_sub(1, Ordering::AcqRel);
        tracing::warn!("too many connections in their handshake; one was turned away");
        return;
    }
    let service_for = Arc::clone(service);
    let spawned = thread::Builder::new().name("move-in".into()).spawn(move || {
        let meter = Meter::default();
        let shaken = Link::accept(tcp, &service_for.identity, &meter);
        let answered = shaken.and_then(|(link, preamble, peer)| {
            registry::admit(&service_for, link, &preamble, peer)
        });
        service_for.handshakes.fetch_sub(1, Ordering::AcqRel);
        match answered {
            Ok(admitted) => admitted.run(&service_for),
            Err(error) => {
                tracing::warn!(error = error.in_words(), "a connection was turned away");
            }
        }
    });
    if let Err(error) = spawned {
        service.handshakes.fetch_sub(1, Ordering::AcqRel);
        tracing::warn!(%error, "no thread for a connection");
    }
}

/// Whether a connection is a control connection.
fn is_control(role: Role) -> bool {
    role == Role::Control
}
