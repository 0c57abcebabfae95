//! Serving the faults of a guest whose pages follow: how it begins, for the first time or again, and how
//! it ends.

use super::Driver;
use crate::destination::following;
use crate::destination::missing::Missing;
use crate::words;
use std::io;
use std::time::Instant;
use sterna_core::destination::{Event, Joining, Served};
use sterna_proto::message::{Reason, ReasonCode, Verify};
use sterna_proto::preamble::MoveToken;
use sterna_vmm::{Begin, VmmError};

/// Page streams that a guest is served with whose agent was restarted: what was agreed upon before is
/// not on record, and what is left is seldom much.
const STREAMS_AGAIN: u16 = 2;

impl Driver {
    /// Has whoever touches a missing page wait for it.
    pub(super) fn serve(&mut self, served: Served, verify: Verify) -> Event {
        let began = Instant::now();
        let event = match self.begin_serving(served, verify) {
            Ok(joining) => Event::Serving(joining),
            Err(Failure::Vmm(error)) => self.faults_failed(&error),
            Err(Failure::Io(error)) => {
                let detail = format!("owed pages cannot be kept track of: {error}");
                Event::Failed(Reason::new(ReasonCode::Agent, detail))
            }
        };
        tracing::info!(attempt = %self.attempt, ?served, took = ?began.elapsed(), "serving faults");
        event
    }

    fn begin_serving(&mut self, served: Served, verify: Verify) -> Result<Joining, Failure> {
        let path = self.service.host.missing_pages(self.attempt);
        if served == Served::Again {
            let memory = self.guest.as_ref().ok_or_else(no_guest)?.memory();
            self.open_streams(MoveToken(rand::random()), STREAMS_AGAIN, memory, None);
        }
        let following = self.following.clone().ok_or_else(no_guest)?;
        let guest = self.guest.as_mut().ok_or_else(no_guest)?;
        let memory = guest.memory();
        let (missing, begin) = match served {
            Served::First => (Missing::create(&path, following.owed())?, Begin::Fresh),
            Served::Again => (Missing::open(&path, memory.pages())?, Begin::TakenOver),
        };
        let faults = guest.serve_faults(missing.pages(), begin)?;
        let sum = following::sum_of_present(&memory, missing.pages(), verify)?;
        following.serve(faults, missing, sum)?;
        let token = self.token.ok_or_else(no_guest)?;
        Ok(Joining { token, streams: self.streams })
    }

    /// Whether the hypervisor has ended that faults are served of; told once. Nothing else says so: its
    /// userfaultfd goes silent, and pages that come for it end their connections, which are then made anew.
    pub(super) fn gone_while_pages_follow(&mut self) -> Option<Event> {
        let serves = self.following.as_ref().is_some_and(|following| following.is_serving());
        let guest = self.guest.as_mut().filter(|_| serves && !self.gone_seen)?;
        if guest.is_alive() {
            return None;
        }
        self.gone_seen = true;
        let detail = "the guest's hypervisor has ended while its pages followed";
        Some(Event::GuestGone(Reason::new(ReasonCode::Hypervisor, detail)))
    }

    pub(super) fn end_serving(&mut self) {
        let (Some(following), Some(guest)) = (&self.following, &mut self.guest) else { return };
        following.end();
        if let Err(error) = guest.end_faults() {
            // Holes would be waited for, but everything that the guest had is here.
            tracing::error!(attempt = %self.attempt, %error, "faults cannot be ended");
        }
    }

    pub(super) fn halt(&mut self) {
        if let Some(following) = &self.following {
            following.end();
        }
        if let Some(guest) = &mut self.guest
            && let Err(error) = guest.halt()
        {
            tracing::error!(attempt = %self.attempt, %error, "a guest without its pages runs on");
        }
    }

    pub(super) fn faults_failed(&self, error: &VmmError) -> Event {
        let reason = words::hypervisor(error);
        match error {
            VmmError::Gone { .. } => Event::GuestGone(reason),
            _ => Event::Failed(reason),
        }
    }
}

/// Why faults cannot be served.
enum Failure {
    Vmm(VmmError),
    Io(io::Error),
}

impl From<VmmError> for Failure {
    fn from(error: VmmError) -> Self {
        Self::Vmm(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

fn no_guest() -> Failure {
    Failure::Vmm(VmmError::Gone { detail: "no hypervisor found".into() })
}
