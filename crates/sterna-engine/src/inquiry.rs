//! Whether a destination would take a guest in, asked before the move.

use crate::host::Host;
use crate::identity::{Identity, PeerName};
use crate::link::{Control, Incoming, Link, LinkError, Meter, Received};
use crate::words;
use rustls::pki_types::ServerName;
use serde::de::DeserializeOwned;
use std::io;
use std::net::SocketAddr;
use sterna_proto::inquiry::{Answer, Inquiry};
use sterna_proto::message::{Reason, ReasonCode};
use sterna_proto::preamble::Role;

/// Asks the agent that listens at `to` whether it would take the guest in: every reason why not.
/// Nothing is reserved there.
///
/// # Errors
/// When the host cannot be reached, is no agent of this cluster, or does not answer.
pub fn inquire(
    to: SocketAddr,
    to_name: &ServerName<'static>,
    identity: &Identity,
    inquiry: &Inquiry,
) -> Result<Vec<Reason>, Reason> {
    let ask = || -> Result<Answer, LinkError> {
        let link = Link::connect(to, to_name, identity, Role::Inquiry, &Meter::default())?;
        let (control, mut incoming) = Control::split::<Answer>(link)?;
        control.send(inquiry)?;
        message(&mut incoming)
    };
    let lost = |error: LinkError| {
        let detail = format!("the destination could not be asked: {}", words::chain(&error));
        Reason::new(ReasonCode::LinkLost, detail)
    };
    ask().map(|answer| answer.reasons).map_err(lost)
}

/// Answers a peer's question.
pub(crate) fn answer(link: Link, host: &dyn Host, peer: &PeerName) {
    let answer = || -> Result<(), LinkError> {
        let (control, mut incoming) = Control::split::<Inquiry>(link)?;
        let Inquiry { attempt, offer } = message(&mut incoming)?;
        control.send(&Answer { reasons: host.inspect(attempt, &offer, peer) })
    };
    if let Err(error) = answer() {
        tracing::warn!(%peer, error = error.in_words(), "a question could not be answered");
    }
}

fn message<M: DeserializeOwned>(incoming: &mut Incoming<M>) -> Result<M, LinkError> {
    match incoming.receive()? {
        Received::Message(message) => Ok(message),
        Received::State(_) => {
            Err(io::Error::new(io::ErrorKind::InvalidData, "a device state is no message").into())
        }
    }
}
