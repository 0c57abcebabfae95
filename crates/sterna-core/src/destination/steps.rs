//! The transitions of the destination's machine, one function for each group of states.

use super::{Destination, Effect, Ending, Event, MayHaveRun, Recorded, State, Switchover};
use crate::journal::DestinationRecord;
use crate::time::Time;
use sterna_page::RamDigest;
use sterna_proto::message::{Reason, ReasonCode, ToDestination, ToSource, Verify};

impl Destination {
    /// States in which the guest is not ours: whatever fails discards it.
    pub(super) fn step_open(&mut self, event: Event, now: Time, effects: &mut Vec<Effect>) {
        match event {
            Event::Message(message) => self.message_open(message, now, effects),
            Event::Reserved(accept) => {
                if self.state == State::Reserving {
                    self.record(DestinationRecord::Receiving, effects);
                    self.enter(State::Recording { accept }, now);
                }
            }
            Event::NotReserved(reasons) => self.refuse(reasons, effects),
            Event::Recorded => self.recorded(now, effects),
            Event::Progress => self.progress(now),
            Event::RoundReceived(round) => self.round_received(round, now, effects),
            Event::StateReceived => self.state_received(now, effects),
            Event::Digest(digest) => self.hashed(digest, effects),
            Event::Loaded => self.loaded(now, effects),
            Event::LinkDown(_) if matches!(self.state, State::Ready { .. }) => {}
            Event::Cancel => {
                let detail = "the move was cancelled at the destination";
                self.discard(Reason::new(ReasonCode::Cancelled, detail), now, effects);
            }
            Event::Deadline => {
                let detail = format!("{} took longer than its time limit", self.stage());
                self.discard(Reason::new(ReasonCode::TimedOut, detail), now, effects);
            }
            // Once all pages are here their connections are no longer needed.
            Event::StreamDown(_)
                if matches!(self.state, State::Loading { .. } | State::Ready { .. }) => {}
            Event::LinkDown(reason)
            | Event::StreamDown(reason)
            | Event::RecordFailed(reason)
            | Event::Failed(reason)
            | Event::GuestGone(reason) => self.discard(reason, now, effects),
            Event::LinkUp
            | Event::Activated(_)
            | Event::NotActivated { .. }
            | Event::Discarded
            | Event::NotDiscarded(_) => {}
        }
    }

    fn message_open(&mut self, message: ToDestination, now: Time, effects: &mut Vec<Effect>) {
        match (message, &mut self.state) {
            (ToDestination::KeepAlive, _) => self.progress(now),
            (ToDestination::Abort { reason }, _) => self.discard(reason, now, effects),
            (ToDestination::Commit, State::Ready { .. }) => {
                self.record(DestinationRecord::Owned, effects);
                self.enter(State::Owning { gone: None }, now);
            }
            (ToDestination::Switchover { round }, State::Receiving { switchover, .. }) => {
                *switchover = Some(Switchover { round });
                self.try_load(now, effects);
            }
            // A source that asks does not know what it said before; it is told no.
            (ToDestination::Query, _) => {
                let detail = "the source asked before it had committed";
                self.discard(Reason::new(ReasonCode::Agent, detail), now, effects);
            }
            (other, _) => {
                let detail = format!("the source sent {} while {}", name(&other), self.stage());
                self.discard(Reason::new(ReasonCode::Protocol, detail), now, effects);
            }
        }
    }

    fn refuse(&mut self, reasons: Vec<Reason>, effects: &mut Vec<Effect>) {
        if self.state == State::Reserving {
            let none = || Reason::new(ReasonCode::Other, "refused without a reason");
            let first = reasons.first().cloned().unwrap_or_else(none);
            effects.push(Effect::Send(ToSource::Refuse { reasons }));
            self.state = State::Ended;
            effects.push(Effect::End(Ending::Discarded(first)));
        }
    }

    fn recorded(&mut self, now: Time, effects: &mut Vec<Effect>) {
        if let State::Recording { accept } = &self.state {
            effects.push(Effect::Send(ToSource::Accept(accept.clone())));
            let receiving =
                State::Receiving { last_round: None, state_here: false, switchover: None };
            self.enter(receiving, now);
        }
    }

    fn progress(&mut self, now: Time) {
        if matches!(self.state, State::Receiving { .. }) {
            self.entered = now;
        }
    }

    fn round_received(&mut self, round: u32, now: Time, effects: &mut Vec<Effect>) {
        if let State::Receiving { last_round, .. } = &mut self.state {
            *last_round = Some(round);
            self.entered = now;
            effects.push(Effect::Send(ToSource::RoundReceived { round }));
            self.try_load(now, effects);
        }
    }

    fn state_received(&mut self, now: Time, effects: &mut Vec<Effect>) {
        if let State::Receiving { state_here, .. } = &mut self.state {
            *state_here = true;
            self.try_load(now, effects);
        }
    }

    /// Loads the device state once all RAM is here: devices read guest RAM while they load.
    ///
    /// RAM is hashed before that, as it was sent: KVM takes a guest's clock over by writing this
    /// host's time into the guest's page for it.
    fn try_load(&mut self, now: Time, effects: &mut Vec<Effect>) {
        let State::Receiving { last_round, state_here, switchover } = &self.state else { return };
        let all_ram = switchover.is_some_and(|s| *last_round == Some(s.round));
        if *state_here && all_ram {
            effects.push(match self.verify {
                Verify::RamDigest => Effect::Digest,
                Verify::No => Effect::Load,
            });
            self.enter(State::Loading { digest: None }, now);
        }
    }

    fn hashed(&mut self, hash: RamDigest, effects: &mut Vec<Effect>) {
        if let State::Loading { digest: digest @ None } = &mut self.state
            && self.verify == Verify::RamDigest
        {
            *digest = Some(hash);
            effects.push(Effect::Load);
        }
    }

    fn loaded(&mut self, now: Time, effects: &mut Vec<Effect>) {
        let State::Loading { digest } = self.state else { return };
        if digest.is_some() == (self.verify == Verify::RamDigest) {
            effects.push(Effect::Send(ToSource::Ready { digest }));
            self.enter(State::Ready { digest }, now);
        }
    }

    /// The source has committed: the record is being made, or the guest is being started.
    pub(super) fn step_owning(&mut self, event: Event, now: Time, effects: &mut Vec<Effect>) {
        match (event, &mut self.state) {
            (Event::Recorded, State::Owning { gone: None }) => {
                effects.push(Effect::Activate);
                self.enter(State::Activating, now);
            }
            // Never activated, so it can still be given back.
            (Event::Recorded, State::Owning { gone: Some(reason) }) => {
                let reason = reason.clone();
                self.discard(reason, now, effects);
            }
            (Event::RecordFailed(reason), State::Owning { .. }) => {
                self.discard(reason, now, effects);
            }
            (Event::GuestGone(reason), State::Owning { gone }) => *gone = Some(reason),
            (Event::Activated(times), State::Activating) => {
                effects.push(Effect::Send(ToSource::Active { times }));
                effects.push(Effect::Settle);
                self.record(DestinationRecord::Active, effects);
                self.enter(State::Active { times }, now);
            }
            (Event::NotActivated { reason, run: MayHaveRun::No }, State::Activating) => {
                self.discard(reason, now, effects);
            }
            (Event::NotActivated { reason, run: MayHaveRun::Yes }, State::Activating) => {
                effects.push(Effect::Send(ToSource::Lost { reason: reason.clone() }));
                self.enter(State::Lost { reason }, now);
            }
            // Repeated questions are answered when it is decided; a lost link changes nothing.
            _ => {}
        }
    }

    /// It is decided; what is left is to tell the source.
    pub(super) fn step_decided(&mut self, event: &Event, effects: &mut Vec<Effect>) {
        let (answer, ending) = match &self.state {
            State::Active { times } => (ToSource::Active { times: *times }, Ending::Active),
            State::Lost { reason } => {
                (ToSource::Lost { reason: reason.clone() }, Ending::Lost(reason.clone()))
            }
            _ => return,
        };
        match event {
            Event::Message(ToDestination::Commit | ToDestination::Query) => {
                effects.push(Effect::Send(answer));
            }
            Event::Message(ToDestination::Farewell) | Event::LinkDown(_) | Event::Deadline => {
                self.state = State::Ended;
                effects.push(Effect::End(ending));
            }
            _ => {}
        }
    }

    /// The guest is being given up. The source is told as soon as that is certain.
    pub(super) fn step_discarding(&mut self, event: Event, now: Time, effects: &mut Vec<Effect>) {
        let State::Discarding { reason, recorded, discarded, said } = &mut self.state else {
            return;
        };
        if event == Event::Deadline {
            self.entered = now;
            if !*discarded && *recorded != Recorded::AskedFirst {
                effects.push(Effect::Discard);
            }
        }
        let answered = matches!(event, Event::Recorded | Event::RecordFailed(_));
        if answered && *recorded == Recorded::AskedFirst {
            effects.push(Effect::Discard);
        }
        let open = matches!(recorded, Recorded::Asked | Recorded::AskedFirst);
        match event {
            Event::Recorded if open => *recorded = Recorded::Yes,
            Event::RecordFailed(_) if open => *recorded = Recorded::Failed,
            Event::Discarded if *recorded != Recorded::AskedFirst => *discarded = true,
            Event::Message(ToDestination::Commit | ToDestination::Query) => *said = false,
            _ => {}
        }
        let certain = *recorded == Recorded::Yes || *discarded;
        if certain && !*said {
            *said = true;
            effects.push(Effect::Send(ToSource::Never { reason: reason.clone() }));
        }
        if *discarded && !matches!(recorded, Recorded::Asked | Recorded::AskedFirst) {
            let ending = Ending::Discarded(reason.clone());
            self.state = State::Ended;
            effects.push(Effect::End(ending));
        }
    }
}

fn name(message: &ToDestination) -> &'static str {
    match message {
        ToDestination::Offer(_) => "Offer",
        ToDestination::Switchover { .. } => "Switchover",
        ToDestination::Commit => "Commit",
        ToDestination::Abort { .. } => "Abort",
        ToDestination::Query => "Query",
        ToDestination::Farewell => "Farewell",
        ToDestination::KeepAlive => "KeepAlive",
    }
}
