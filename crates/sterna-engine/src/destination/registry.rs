//! Which move a new connection belongs to.

use super::driver::{self, Driver, Input};
use super::{Following, Native};
use super::{Service, is_control};
use crate::identity::PeerName;
use crate::link::{Control, Incoming, Link, LinkError, Received};
use crate::pages::{Heard, PageReceiver, Place, known};
use std::collections::HashMap;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use sterna_page::PageCount;
use sterna_page::known::KnownPages;
use sterna_proto::message::{AttemptId, Envelope, ToDestination};
use sterna_proto::preamble::{MoveToken, Preamble, PreambleAnswer, PreambleError, Role};

/// Moves at once at most; a host that receives more than this helps nobody.
const MOVES_MAX: usize = 64;

/// The moves of this host that have a thread.
#[derive(Default)]
pub(crate) struct Registry {
    moves: Mutex<HashMap<AttemptId, Entry>>,
}

struct Entry {
    peer: PeerName,
    inputs: Sender<Input>,
    streams: Option<Streams>,
}

/// What a page connection needs to join a move.
#[derive(Clone)]
pub(crate) struct Streams {
    pub(crate) token: MoveToken,
    pub(crate) count: u16,
    pub(crate) place: Place,
    /// In place of pages: what hypervisors send each other.
    pub(crate) native: Option<Arc<Native>>,
}

impl Registry {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<AttemptId, Entry>> {
        self.moves.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters a new move; `false` if the attempt has a thread already or there are too many.
    pub(crate) fn enter(&self, attempt: AttemptId, peer: PeerName, inputs: Sender<Input>) -> bool {
        let mut moves = self.lock();
        if moves.contains_key(&attempt) || moves.len() >= MOVES_MAX {
            return false;
        }
        moves.insert(attempt, Entry { peer, inputs, streams: None });
        true
    }

    pub(crate) fn open_streams(&self, attempt: AttemptId, streams: Streams) {
        if let Some(entry) = self.lock().get_mut(&attempt) {
            entry.streams = Some(streams);
        }
    }

    pub(crate) fn leave(&self, attempt: AttemptId) {
        let left = self.lock().remove(&attempt);
        if let Some(streams) = left.and_then(|entry| entry.streams) {
            streams.place.arrivals.close();
        }
    }

    /// The running move of this attempt, if `peer` may speak for it.
    pub(crate) fn inputs(&self, attempt: AttemptId, peer: &PeerName) -> Option<Sender<Input>> {
        let moves = self.lock();
        moves.get(&attempt).filter(|entry| entry.peer == *peer).map(|entry| entry.inputs.clone())
    }

    /// The move whose pages this connection brings: only the move's own peer knows the token.
    fn join(&self, token: MoveToken, peer: &PeerName) -> Option<(Streams, Sender<Input>)> {
        let moves = self.lock();
        moves.values().find_map(|entry| {
            let streams = entry.streams.as_ref()?;
            let fits = streams.token == token && entry.peer == *peer;
            fits.then(|| (streams.clone(), entry.inputs.clone()))
        })
    }
}

/// A connection whose preamble was answered.
pub(crate) enum Admitted {
    Control { control: Arc<Control>, incoming: Incoming<Envelope<ToDestination>>, peer: PeerName },
    Pages { receiver: Box<PageReceiver<Link>>, inputs: Sender<Input> },
    Urgent { link: Box<Link>, following: Arc<Following> },
    Known { link: Box<Link>, known: Arc<dyn KnownPages>, pages: PageCount },
    Probe { link: Box<Link> },
    Inquiry { link: Box<Link>, peer: PeerName },
    Native { link: Box<Link>, native: Arc<Native>, inputs: Sender<Input> },
}

/// Answers a preamble.
pub(crate) fn admit(
    service: &Service,
    mut link: Link,
    preamble: &Preamble,
    peer: PeerName,
) -> Result<Admitted, LinkError> {
    let welcome = PreambleAnswer::Welcome { version: preamble.version() };
    if is_control(preamble.role) {
        link.welcome(welcome)?;
        let (control, incoming) = Control::split(link)?;
        return Ok(Admitted::Control { control: Arc::new(control), incoming, peer });
    }
    if preamble.role == Role::Probe {
        link.welcome(welcome)?;
        return Ok(Admitted::Probe { link: Box::new(link) });
    }
    if preamble.role == Role::Inquiry {
        link.welcome(welcome)?;
        return Ok(Admitted::Inquiry { link: Box::new(link), peer });
    }
    let joined = match preamble.role {
        Role::Pages { stream, token } => {
            let joined = service.registry.join(token, &peer);
            joined.filter(|(streams, _)| stream < streams.count && streams.native.is_none())
        }
        Role::Urgent { token } => {
            let joined = service.registry.join(token, &peer);
            joined.filter(|(streams, _)| streams.native.is_none())
        }
        Role::Native { channel, token } => {
            let joined = service.registry.join(token, &peer);
            joined.filter(|(streams, _)| streams.native.as_ref().is_some_and(|n| n.admits(channel)))
        }
        Role::Known { token } => {
            let joined = service.registry.join(token, &peer);
            joined.filter(|(streams, _)| streams.place.known.is_some())
        }
        Role::Control | Role::Probe | Role::Inquiry => None,
    };
    let Some((streams, inputs)) = joined else {
        link.welcome(PreambleAnswer::UnknownMove)?;
        return Err(PreambleError::UnknownMove.into());
    };
    link.welcome(welcome)?;
    let Streams { place, native, .. } = streams;
    if let (Role::Native { .. }, Some(native)) = (preamble.role, native) {
        return Ok(Admitted::Native { link: Box::new(link), native, inputs });
    }
    match preamble.role {
        Role::Pages { stream, .. } => {
            let receiver = PageReceiver::new(link, place, stream);
            Ok(Admitted::Pages { receiver: Box::new(receiver), inputs })
        }
        Role::Known { .. } => {
            let Place { memory, known, .. } = place;
            let known = known.ok_or(PreambleError::UnknownMove)?;
            Ok(Admitted::Known { link: Box::new(link), known, pages: memory.pages() })
        }
        Role::Urgent { .. } | Role::Native { .. } | Role::Control | Role::Probe | Role::Inquiry => {
            Ok(Admitted::Urgent { link: Box::new(link), following: place.following })
        }
    }
}

impl Admitted {
    /// Serves the connection until it ends.
    pub(crate) fn run(self, service: &Arc<Service>) {
        match self {
            Self::Probe { link } => service.let_try(*link),
            Self::Known { link, known, pages } => {
                if let Err(error) = known::tell(*link, known.as_ref(), pages) {
                    tracing::debug!(%error, "the source was not told of all known pages");
                }
            }
            Self::Inquiry { link, peer } => service.answer(*link, &peer),
            Self::Urgent { link, following } => following.serve_urgent(*link),
            Self::Native { link, native, inputs } => native.carry(*link, &inputs),
            Self::Pages { receiver, inputs } => receiver.run(|event| {
                if inputs.send(Input::Stream(event)).is_ok() { Heard::Yes } else { Heard::NoLonger }
            }),
            Self::Control { control, mut incoming, peer } => match incoming.receive() {
                Ok(Received::Message(first)) => route(service, control, incoming, peer, first),
                Ok(Received::State(_)) => {
                    tracing::warn!(%peer, "a control connection began with a device state");
                }
                Err(error) => {
                    tracing::warn!(%peer, error = error.in_words(), "control connection failed");
                }
            },
        }
    }
}

/// Gives a control connection to the move it speaks of; makes that move if there is none.
fn route(
    service: &Arc<Service>,
    control: Arc<Control>,
    incoming: Incoming<Envelope<ToDestination>>,
    peer: PeerName,
    first: Envelope<ToDestination>,
) {
    let attempt = first.attempt;
    if let Some(inputs) = service.registry.inputs(attempt, &peer) {
        driver::read_control(incoming, attempt, &inputs, Some((control, first)));
        return;
    }
    let driver = Driver::new(Arc::clone(service), attempt, peer.clone(), Arc::clone(&control));
    if !service.registry.enter(attempt, peer.clone(), driver.inputs()) {
        tracing::warn!(%peer, %attempt, "a move was turned away: under way already, or too many");
        return;
    }
    driver.run(first, incoming);
    service.registry.leave(attempt);
}
