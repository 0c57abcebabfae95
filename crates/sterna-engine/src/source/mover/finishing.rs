//! Orders from the pause on: what is left is sent with the device state, or follows the guest.

use super::{Mover, Outcome, failed, io_failed, link_failed, not_prepared, stream_failed};
use crate::digest;
use crate::link::LinkError;
use crate::pages::{KeepHashes, Manner, SenderPool};
use crate::source::copying::Recheck;
use crate::source::following;
use std::io;
use std::sync::Arc;
use std::time::Instant;
use sterna_core::source::{Event, Selection};
use sterna_proto::limits::STREAMS_MAX;
use sterna_proto::message::{Reason, ReasonCode, Rest, Verify};
use sterna_proto::preamble::MoveToken;
use sterna_sys::memory::GuestMemory;

impl Mover {
    /// With the guest paused: the pages, or the word which of them follow, go over the streams while
    /// the device state is saved.
    pub(super) fn finish(
        &mut self,
        round: u32,
        selection: Selection,
        rest: Rest,
        verify: Verify,
    ) -> Outcome {
        let began = Instant::now();
        let (shared, inputs) = (Arc::clone(&self.shared), self.inputs.clone());
        let push = self.request.push;
        let (guest, copying) = self.parts()?;
        if selection == Selection::Dirty {
            shared.tracked(|| guest.scan(&mut copying.dirty)).map_err(failed)?;
        }
        let populated = copying.populated(guest.as_ref(), selection)?;
        let mut sends = copying.select(round, selection, populated, Recheck::All);
        // Nothing of it may lack: no round follows.
        sends.may_lack = false;
        if rest == Rest::Owed {
            sends.owe();
        }
        copying.pool.send(&sends);
        let saving = Instant::now();
        let state = guest.save_device_state().map_err(failed)?;
        let save = saving.elapsed();
        let memory = guest.memory();
        let control = self.control.as_ref().ok_or_else(not_prepared)?;
        control.send_state(&state).map_err(link_failed)?;
        let (guest, copying) = self.parts()?;
        let mut sent = copying.pool.wait().map_err(stream_failed)?;
        sent.held_back = copying.newly_held_back(guest.as_ref())?;
        shared.note(|times| {
            times.copy = began.elapsed();
            times.save = save;
            times.state_bytes = state.bytes.len() as u64;
            times.sent = Some(Instant::now());
        });
        if rest == Rest::Owed {
            let urgent = copying.urgent.take().ok_or_else(not_prepared)?;
            let follow = following::begin(&copying.pool, urgent, &memory, push, &inputs);
            shared.follow(follow.map_err(io_failed)?);
        }
        // The destination goes on with these while this side hashes.
        self.tell(Event::StateSent);
        self.tell(Event::RestSent(sent.into()));
        self.digest(&memory, rest, verify)
    }

    /// Hashes all RAM of the paused guest, if it is to be compared.
    pub(super) fn digest(&mut self, memory: &GuestMemory, rest: Rest, verify: Verify) -> Outcome {
        if verify == Verify::No {
            return Ok(vec![]);
        }
        let hashing = Instant::now();
        let digest = match rest {
            Rest::Sent | Rest::Native => digest::of(memory),
            Rest::Owed => digest::of_pages(memory),
        };
        let digest = digest.map_err(io_failed)?;
        self.shared.note(|times| times.digest = hashing.elapsed());
        Ok(vec![Event::Digest(digest)])
    }

    /// Makes the page connections anew, over which owed pages follow. The guest's RAM stands still
    /// until it is released, so there is nothing to remember of what was sent.
    pub(super) fn serve(&mut self, token: MoveToken, streams: u16) -> Outcome {
        self.shared.end_following();
        self.copying = None;
        self.serve_anew(token, streams).map_err(Event::ServingFailed)?;
        Ok(vec![Event::Serving])
    }

    fn serve_anew(&mut self, token: MoveToken, streams: u16) -> Result<(), Reason> {
        let lost = |error: LinkError| Reason::new(ReasonCode::LinkLost, error.in_words());
        let broken = |error: io::Error| Reason::new(ReasonCode::Agent, error.to_string());
        let memory = self.memory.clone().ok_or_else(|| {
            Reason::new(ReasonCode::Hypervisor, "the guest's RAM is no longer there")
        })?;
        let links = self.connect_streams(token, streams.clamp(1, STREAMS_MAX)).map_err(lost)?;
        let urgent = self.connect_urgent(token).map_err(lost)?;
        let pacer = self.pacer();
        // What was granted is not known any more if another agent began the move.
        let manner = Manner { pacer, hashes: KeepHashes::No, coded: None, alike: None };
        let pool = SenderPool::start(links, &memory, &manner).map_err(broken)?;
        self.shared.take_streams(&pool, Some(&urgent)).map_err(broken)?;
        let follow = following::begin(&pool, urgent, &memory, self.request.push, &self.inputs)
            .map_err(broken)?;
        self.shared.follow(follow);
        self.serving = Some(pool);
        Ok(())
    }
}
