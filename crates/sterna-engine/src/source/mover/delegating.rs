//! Orders for a guest whose hypervisor copies by itself: how that begins, goes on and is finished.

use super::{Mover, Outcome, failed, io_failed, not_prepared};
use crate::native;
use crate::source::native::{BEAT, Native};
use std::sync::Arc;
use std::time::{Duration, Instant};
use sterna_core::source::Event;
use sterna_proto::message::{Rest, Verify};
use sterna_vmm::NativePlan;

impl Mover {
    /// Has the hypervisor copy by itself.
    pub(super) fn delegate(&mut self, downtime_max: Duration, slow_down: bool) -> Outcome {
        let accept = self.granted.clone().ok_or_else(not_prepared)?;
        let streams = accept.streams.min(self.request.offer.streams);
        let way = self.request.offer.native.and_then(|mode| native::way(mode, streams));
        let way = way.ok_or_else(not_prepared)?;
        // The hypervisor shares with nobody, so it is told the lower limit and keeps to it.
        let (own, shared) = (
            self.request.bandwidth_bytes_per_second,
            self.request.host_bandwidth.bytes_per_second(),
        );
        let bandwidth_bytes_per_second = own.into_iter().chain(shared).min();
        let plan = NativePlan { way, downtime_max, bandwidth_bytes_per_second, slow_down };
        let listener = self.guest()?.begin_native(&plan).map_err(failed)?;
        let connections = way.connections();
        let begun = Native::begin(listener, connections, accept.token, &self.request, &self.meter);
        let native = begun.map_err(io_failed)?;
        self.shared.delegates(native.cuts());
        self.native = Some(native);
        Ok(vec![])
    }

    /// Looks what the hypervisor has come to.
    pub(super) fn watch_native(&mut self) -> Outcome {
        let shared = Arc::clone(&self.shared);
        let step = self.guest()?.native_step(BEAT);
        let native = self.native.as_mut().ok_or_else(not_prepared)?;
        match step {
            Ok(step) => Ok(native.events(step, &shared)),
            Err(error) => {
                native.copying = false;
                Err(native.broken().unwrap_or_else(|| failed(error)))
            }
        }
    }

    pub(super) fn hurry_native(&mut self) -> Outcome {
        // One that has paused the guest meanwhile needs no hurry.
        if self.native.as_ref().is_some_and(|native| native.copying) {
            self.guest()?.hurry_native().map_err(failed)?;
        }
        Ok(vec![])
    }

    /// With the guest paused: has the hypervisor send what is left and the device state.
    pub(super) fn finish_native(&mut self, verify: Verify) -> Outcome {
        let began = Instant::now();
        let guest = self.guest()?;
        let memory = guest.memory();
        let finished = guest.finish_native();
        let native = self.native.as_mut().ok_or_else(not_prepared)?;
        let sent = match finished {
            Ok(all) => native.since_told(all),
            Err(error) => return Err(native.broken().unwrap_or_else(|| failed(error))),
        };
        self.shared.note(|times| {
            times.copy = began.elapsed();
            times.sent = Some(Instant::now());
        });
        self.tell(Event::StateSent);
        self.tell(Event::RestSent(sent.into()));
        self.digest(&memory, Rest::Native, verify)
    }
}
