//! A guest that another hypervisor copies to this host's: what its connections join, and the wait for its
//! end.

use super::{Driver, failed, micros};
use crate::destination::Native;
use crate::native;
use crate::words;
use std::sync::Arc;
use std::time::{Duration, Instant};
use sterna_core::destination::Event;
use sterna_proto::message::{Coding, Offer, Reason, ReasonCode};
use sterna_vmm::VmmError;

impl Driver {
    /// Waits for what the hypervisors copy among themselves.
    pub(super) fn await_native(&mut self) -> Event {
        let began = Instant::now();
        let limit = self.service.stages.switchover;
        let (Some(guest), Some(_)) = (&mut self.guest, &self.native) else {
            return Event::Failed(Reason::new(ReasonCode::Protocol, "nothing is copied natively"));
        };
        let arrived = guest.await_native(limit);
        self.times.load_us = micros(began);
        match arrived {
            Ok(()) => Event::Loaded,
            Err(error) => failed(&error),
        }
    }

    /// Why a connection between the hypervisors broke: the one here knows better if it was the cause.
    pub(super) fn why_native(&mut self, reason: Reason) -> Reason {
        let said = self.guest.as_mut().map(|guest| guest.await_native(Duration::ZERO));
        match said {
            Some(Err(error)) if !matches!(error, VmmError::TimedOut { .. }) => {
                words::hypervisor(&error)
            }
            _ => reason,
        }
    }

    pub(super) fn end_native(&self) {
        if let Some(native) = &self.native {
            native.end();
        }
    }
}

/// What connections between the hypervisors join, if the guest was prepared for them.
pub(super) fn native_of(
    offer: &Offer,
    guest: &dyn sterna_vmm::Destination,
    streams: u16,
) -> Option<Arc<Native>> {
    let offered = offer.native.filter(|_| offer.codings.contains(&Coding::Native))?;
    let way = native::way(offered, streams)?;
    Some(Arc::new(Native::new(guest.native_socket()?, way.connections())))
}
