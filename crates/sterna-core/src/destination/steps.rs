//! The transitions of the destination's machine, one function for each group of states.

use super::{
    Arriving, CutOff, Destination, Effect, Ending, Event, MayHaveRun, Recorded, Served, State,
    Switchover,
};
use crate::journal::DestinationRecord;
use crate::time::Time;
use sterna_page::RamDigest;
use sterna_proto::message::{Arrival, Reason, ReasonCode, Rest, ToDestination, ToSource, Verify};

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
            Event::RoundReceived { round, lacking } => {
                self.round_received(round, lacking, now, effects);
            }
            Event::StateReceived => self.state_received(now, effects),
            Event::Digest(digest) => self.hashed(digest, now, effects),
            Event::Serving(joining) => self.serving(joining, effects),
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
            // Once all pages are here their connections are no longer needed. Where some are owed,
            // the load waits for them; after that the source makes its connections anew.
            Event::StreamDown(_)
                if matches!(self.state, State::Loading { .. }) && self.rest != Rest::Owed
                    || matches!(self.state, State::Ready { .. }) => {}
            Event::LinkDown(reason)
            | Event::StreamDown(reason)
            | Event::RecordFailed(reason)
            | Event::Failed(reason)
            | Event::GuestGone(reason) => self.discard(reason, now, effects),
            Event::LinkUp
            | Event::StreamsUp
            | Event::AllHere(_)
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
                let record = match self.rest {
                    Rest::Sent | Rest::Native => DestinationRecord::Owned,
                    Rest::Owed => DestinationRecord::Owing,
                };
                self.record(record, effects);
                self.enter(State::Owning { gone: None }, now);
            }
            (
                ToDestination::Switchover { round, rest },
                State::Receiving { switchover: switchover @ None, .. },
            ) => {
                *switchover = Some(Switchover { round });
                self.rest = rest;
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
            let receiving = State::Receiving {
                last_round: None,
                lacking: false,
                state_here: false,
                switchover: None,
            };
            self.enter(receiving, now);
        }
    }

    fn progress(&mut self, now: Time) {
        if matches!(self.state, State::Receiving { .. }) {
            self.entered = now;
        }
    }

    fn round_received(
        &mut self,
        round: u32,
        lacks: Vec<(u64, u64)>,
        now: Time,
        effects: &mut Vec<Effect>,
    ) {
        if let State::Receiving { last_round, lacking, .. } = &mut self.state {
            *last_round = Some(round);
            *lacking = !lacks.is_empty();
            self.entered = now;
            effects.push(Effect::Send(ToSource::RoundReceived { round, lacking: lacks }));
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
        let State::Receiving { last_round, lacking, state_here, switchover } = &self.state else {
            return;
        };
        if switchover.is_some() && self.rest == Rest::Native {
            effects.push(Effect::AwaitNative);
            self.enter(State::Loading { digest: None, loaded: false }, now);
            return;
        }
        let all_ram = switchover.is_some_and(|s| *last_round == Some(s.round));
        if all_ram && *lacking {
            let detail = "the last round left pages to the destination that it could not get";
            let reason = Reason::new(ReasonCode::Protocol, detail);
            return self.discard(reason, now, effects);
        }
        if *state_here && all_ram {
            let verify = self.verify;
            effects.push(match (self.rest, verify) {
                (Rest::Owed, _) => Effect::Serve { served: Served::First, verify },
                (_, Verify::RamDigest) => Effect::Digest,
                (_, Verify::No) => Effect::Load,
            });
            self.enter(State::Loading { digest: None, loaded: false }, now);
        }
    }

    fn serving(&mut self, joining: super::Joining, effects: &mut Vec<Effect>) {
        if matches!(self.state, State::Loading { .. })
            && self.rest == Rest::Owed
            && self.joining.is_none()
        {
            self.joining = Some(joining);
            effects.push(Effect::Load);
        }
    }

    fn hashed(&mut self, hash: RamDigest, now: Time, effects: &mut Vec<Effect>) {
        let State::Loading { digest: digest @ None, loaded } = &mut self.state else { return };
        match (self.verify, self.rest) {
            (Verify::RamDigest, Rest::Sent) => {
                *digest = Some(hash);
                effects.push(Effect::Load);
            }
            (Verify::RamDigest, Rest::Native) if *loaded => self.ready(Some(hash), now, effects),
            _ => {}
        }
    }

    fn loaded(&mut self, now: Time, effects: &mut Vec<Effect>) {
        let State::Loading { digest, loaded } = &mut self.state else { return };
        let (digest, again) = (*digest, std::mem::replace(loaded, true));
        let here = match (self.rest, self.verify) {
            (Rest::Sent, verify) => digest.is_some() == (verify == Verify::RamDigest),
            (Rest::Owed, _) => self.joining.is_some(),
            (Rest::Native, Verify::No) => true,
            (Rest::Native, Verify::RamDigest) => {
                if !again {
                    effects.push(Effect::Digest);
                }
                false
            }
        };
        if here {
            self.ready(digest, now, effects);
        }
    }

    fn ready(&mut self, digest: Option<RamDigest>, now: Time, effects: &mut Vec<Effect>) {
        effects.push(Effect::Send(ToSource::Ready { digest }));
        self.enter(State::Ready { digest }, now);
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
                self.times = times;
                match self.rest {
                    Rest::Sent | Rest::Native => {
                        self.active(None, now, effects);
                        effects.push(Effect::Settle);
                    }
                    Rest::Owed => {
                        effects.push(Effect::Settle);
                        self.say_owing(effects);
                        let (guest, cut_off) = (Arriving::Runs, CutOff::No);
                        self.enter(State::Owing { guest, cut_off }, now);
                        self.try_complete(now, effects);
                    }
                }
            }
            (Event::NotActivated { reason, run: MayHaveRun::No }, State::Activating) => {
                self.discard(reason, now, effects);
            }
            // It may just have waited for a page that did not come.
            (Event::NotActivated { run: MayHaveRun::Yes, .. }, State::Activating)
                if self.rest == Rest::Owed =>
            {
                self.say_owing(effects);
                let (guest, cut_off) = (Arriving::Waiting, CutOff::No);
                self.enter(State::Owing { guest, cut_off }, now);
            }
            (Event::NotActivated { reason, run: MayHaveRun::Yes }, State::Activating) => {
                effects.push(Effect::Send(ToSource::Lost { reason: reason.clone() }));
                self.enter(State::Lost { reason }, now);
            }
            // Repeated questions are answered when it is decided; a lost link changes nothing.
            _ => {}
        }
    }

    fn active(&mut self, arrival: Option<Arrival>, now: Time, effects: &mut Vec<Effect>) {
        let times = self.times;
        effects.push(Effect::Send(ToSource::Active { times, arrival }));
        self.record(DestinationRecord::Active, effects);
        self.enter(State::Active { times, arrival }, now);
    }

    /// Takes over the serving of a guest whose agent was restarted.
    pub(super) fn serve_again(&mut self, effects: &mut Vec<Effect>) {
        self.serve_asked = true;
        effects.push(Effect::Serve { served: Served::Again, verify: Verify::No });
    }

    fn say_owing(&self, effects: &mut Vec<Effect>) {
        // Before faults are served again there is nothing that page connections could join.
        if let Some(super::Joining { token, streams }) = self.joining {
            let times = self.times;
            effects.push(Effect::Send(ToSource::Owing { times, token, streams }));
        }
    }

    /// The guest is ours and pages of it follow. Nothing but their loss takes it from us.
    pub(super) fn step_owing(&mut self, event: Event, now: Time, effects: &mut Vec<Effect>) {
        let State::Owing { guest, cut_off } = &mut self.state else { return };
        match event {
            Event::Message(ToDestination::Commit | ToDestination::Query) => self.say_owing(effects),
            // Pages that are here already, or on record as owed although they are, are not missed.
            Event::Message(ToDestination::PagesLost { reason }) if self.all_here.is_none() => {
                effects.push(Effect::Halt);
                self.lost(reason, now, effects);
            }
            Event::Serving(joining) => {
                self.joining = Some(joining);
                self.say_owing(effects);
            }
            // It failed before.
            Event::LinkUp if self.joining.is_none() && !self.serve_asked => {
                self.serve_again(effects);
            }
            Event::Failed(_) => self.serve_asked = false,
            Event::StreamsUp => {
                *cut_off = CutOff::No;
                self.activate_again(effects);
            }
            Event::AllHere(_) => {
                *cut_off = CutOff::No;
                self.activate_again(effects);
                self.try_complete(now, effects);
            }
            Event::Activated(times) if *guest == Arriving::Activating => {
                *guest = Arriving::Runs;
                self.times = times;
                effects.push(Effect::Settle);
                self.try_complete(now, effects);
            }
            Event::NotActivated { .. } if *guest == Arriving::Activating => {
                *guest = Arriving::Waiting;
                self.entered = now;
            }
            // It ran here and has ended, as any guest may: nobody needs its pages any more.
            Event::GuestGone(_) if *guest == Arriving::Runs => self.active(None, now, effects),
            Event::GuestGone(reason) => self.lost(reason, now, effects),
            Event::LinkDown(_) | Event::StreamDown(_)
                if *cut_off == CutOff::No && self.all_here.is_none() =>
            {
                *cut_off = CutOff::Since(now);
            }
            Event::Deadline => match cut_off {
                CutOff::Since(_) => {
                    *cut_off = CutOff::Told;
                    effects.push(Effect::CutOff);
                }
                CutOff::No => self.activate_again(effects),
                CutOff::Told => {}
            },
            // What fails here is tried again when the source comes back.
            _ => {}
        }
    }

    /// Lets a guest run that an earlier agent may not have let run.
    fn activate_again(&mut self, effects: &mut Vec<Effect>) {
        if let State::Owing { guest: guest @ Arriving::Waiting, .. } = &mut self.state {
            *guest = Arriving::Activating;
            effects.push(Effect::Activate);
        }
    }

    fn try_complete(&mut self, now: Time, effects: &mut Vec<Effect>) {
        if let (State::Owing { guest: Arriving::Runs, .. }, arrival @ Some(_)) =
            (&self.state, self.all_here)
        {
            effects.push(Effect::EndServing);
            self.active(arrival, now, effects);
        }
    }

    fn lost(&mut self, reason: Reason, now: Time, effects: &mut Vec<Effect>) {
        self.record(DestinationRecord::Lost, effects);
        self.enter(State::Losing { reason, recording: true }, now);
    }

    /// The source ends when it is told, so a new agent of this side must know without it.
    pub(super) fn step_losing(&mut self, event: &Event, now: Time, effects: &mut Vec<Effect>) {
        let State::Losing { reason, recording } = &mut self.state else { return };
        match event {
            Event::Recorded => {
                let reason = reason.clone();
                effects.push(Effect::Send(ToSource::Lost { reason: reason.clone() }));
                self.enter(State::Lost { reason }, now);
            }
            Event::RecordFailed(_) => {
                *recording = false;
                self.entered = now;
            }
            Event::Deadline if !*recording => {
                *recording = true;
                self.record(DestinationRecord::Lost, effects);
            }
            _ => {}
        }
    }

    /// It is decided; what is left is to tell the source.
    pub(super) fn step_decided(&mut self, event: &Event, effects: &mut Vec<Effect>) {
        let (answer, ending) = match &self.state {
            State::Active { times, arrival } => {
                (ToSource::Active { times: *times, arrival: *arrival }, Ending::Active)
            }
            State::Lost { reason } => {
                (ToSource::Lost { reason: reason.clone() }, Ending::Lost(reason.clone()))
            }
            _ => return,
        };
        match event {
            Event::Message(
                ToDestination::Commit | ToDestination::Query | ToDestination::PagesLost { .. },
            ) => effects.push(Effect::Send(answer)),
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
        ToDestination::PagesLost { .. } => "PagesLost",
        ToDestination::Farewell => "Farewell",
        ToDestination::KeepAlive => "KeepAlive",
    }
}
