//! The transitions of the source's machine, one function for each group of states.

use super::{
    Effect, Event, Guest, HypervisorRound, Link, Parts, Phase, Question, RoundSent, Selection,
    Source, State, Streams, moving,
};
use crate::algorithm::Tracking;
use crate::journal::SourceRecord;
use crate::prediction::Look;
use crate::receipt::{Ending, RamCheck, Round, StopReason};
use crate::time::Time;
use std::time::Duration;
use sterna_page::PageCount;
use sterna_proto::message::{Arrival, Reason, ReasonCode, Rest, ToDestination, ToSource, Verify};

impl Source {
    /// States in which the guest is still ours without any doubt: whatever fails undoes the move.
    pub(super) fn step_uncommitted(&mut self, event: Event, now: Time, effects: &mut Vec<Effect>) {
        match event {
            Event::Message(message) => self.message_uncommitted(message, now, effects),
            Event::Cancel => {
                let reason = Reason::new(ReasonCode::Cancelled, "the move was cancelled");
                self.undo(vec![reason], now, effects);
            }
            Event::Deadline => {
                let detail = format!("{} took longer than its time limit", self.stage());
                self.undo(vec![Reason::new(ReasonCode::TimedOut, detail)], now, effects);
            }
            Event::LinkDown(reason)
            | Event::Failed(reason)
            | Event::RecordFailed(reason)
            | Event::ServingFailed(reason) => self.undo(vec![reason], now, effects),
            Event::GuestGone(reason) => self.guest_gone(reason, now, effects),
            Event::Progress
                if matches!(self.state, State::Copying { .. } | State::Delegated { .. }) =>
            {
                self.entered = now;
            }
            Event::Recorded => self.recorded(now, effects),
            Event::Prepared => self.prepared(now, effects),
            Event::Looked(look) => self.behaviour.looked(look, self.vcpus),
            Event::RoundSent(sent) => self.round_sent(*sent, now, effects),
            Event::Scanned(pages) => self.scanned(pages, now, effects),
            Event::RoundPassed(round) => self.round_passed(*round, now, effects),
            Event::Paused => self.paused(now, effects),
            Event::RestSent(_) | Event::StateSent | Event::Digest(_) => {
                self.part_done(&event, now, effects);
            }
            // Answers to effects that only other states ask for.
            Event::Progress
            | Event::LinkUp
            | Event::GiveUp
            | Event::Serving
            | Event::Resumed
            | Event::ResumeFailed(_)
            | Event::Released => {}
        }
    }

    fn message_uncommitted(&mut self, message: ToSource, now: Time, effects: &mut Vec<Effect>) {
        match (message, &mut self.state) {
            (ToSource::KeepAlive, _) => {}
            (ToSource::Accept(accept), State::Negotiating) => {
                if let Some(reason) = self.unfit(&accept) {
                    return self.undo(vec![reason], now, effects);
                }
                self.record(moving(accept.journal), effects);
                self.enter(State::Recording { accept }, now);
            }
            (ToSource::Refuse { reasons }, State::Negotiating) => self.undo(reasons, now, effects),
            (ToSource::RoundReceived { round, lacking }, State::Copying { phase, .. }) => {
                let most = self.config.offer.layout.pages();
                let current = u32::try_from(self.rounds.len()).unwrap_or(u32::MAX);
                if let (Phase::Sending { received, .. }, true) = (phase, round == current) {
                    *received = Some(lacking_of(&lacking, most));
                }
                self.entered = now;
                self.end_round(now, effects);
            }
            (ToSource::RoundReceived { .. }, State::Finishing { .. }) => {}
            (ToSource::Ready { digest }, State::Finishing { parts, switched: true, .. }) => {
                parts.ready = Some(digest);
                self.try_commit(now, effects);
            }
            (ToSource::Never { reason }, _) => self.undo(vec![reason], now, effects),
            (other, _) => {
                let detail =
                    format!("the destination sent {} while {}", name(&other), self.stage());
                self.undo(vec![Reason::new(ReasonCode::Protocol, detail)], now, effects);
            }
        }
    }

    fn recorded(&mut self, now: Time, effects: &mut Vec<Effect>) {
        if let State::Recording { accept } = &self.state {
            let tracking = self.config.algorithm.tracking();
            effects.push(Effect::Prepare { accept: accept.clone(), tracking });
            self.enter(State::Preparing, now);
        }
    }

    fn prepared(&mut self, now: Time, effects: &mut Vec<Effect>) {
        if self.state == State::Preparing {
            self.decide(PageCount::ZERO, now, effects);
        }
    }

    fn round_sent(&mut self, done: RoundSent, now: Time, effects: &mut Vec<Effect>) {
        if let State::Copying { phase: Phase::Sending { sent, .. }, .. } = &mut self.state {
            *sent = Some(done);
            self.entered = now;
            self.end_round(now, effects);
        }
    }

    /// Ends the round once it was both sent and received: only then does its time tell the link's
    /// speed, and nothing stands in queues that would lengthen the downtime.
    fn end_round(&mut self, now: Time, effects: &mut Vec<Effect>) {
        let State::Copying { phase, round_started } = &mut self.state else { return };
        if let Phase::Sending { sent: Some(sent), received: Some(lacking) } = *phase {
            let started = *round_started;
            *phase = Phase::Scanning;
            self.push_round(sent, started, now);
            if let Some(round) = self.rounds.last_mut() {
                round.lacking = lacking;
            }
            effects.push(Effect::Scan);
        }
    }

    fn push_round(&mut self, sent: RoundSent, started: Time, now: Time) {
        self.rounds.push(Round {
            number: u32::try_from(self.rounds.len()).unwrap_or(u32::MAX),
            started: started.since(self.started),
            took: now.since(started),
            pages: sent.pages,
            bytes: sent.bytes,
            lacking: PageCount::ZERO,
            dirtied: PageCount::ZERO,
            downtime_limit: Some(self.downtime_limit),
            vcpus: self.vcpus,
            held_back: sent.held_back,
        });
    }

    fn scanned(&mut self, pages: PageCount, now: Time, effects: &mut Vec<Effect>) {
        if !matches!(self.state, State::Copying { phase: Phase::Scanning, .. }) {
            return;
        }
        if let Some(round) = self.rounds.last_mut() {
            let unwritten = round.pages.unsent.0.saturating_add(round.lacking.0);
            round.dirtied = PageCount(pages.0.saturating_sub(unwritten));
            let left_over = round.pages.unsent + round.pages.withheld;
            if left_over == PageCount::ZERO && round.lacking == PageCount::ZERO {
                self.behaviour.looked(Look { after: round.took, pages }, round.vcpus);
            }
        }
        self.selection = Selection::Dirty;
        self.decide(pages, now, effects);
    }

    /// The hypervisor, which copies by itself, has ended a round.
    fn round_passed(&mut self, round: HypervisorRound, now: Time, effects: &mut Vec<Effect>) {
        let State::Delegated { round_started } = self.state else { return };
        self.push_round(round.sent, round_started, now);
        if let Some(last) = self.rounds.last_mut() {
            last.dirtied = round.left;
        }
        self.vcpus = round.vcpus;
        self.decide(round.left, now, effects);
    }

    fn paused(&mut self, now: Time, effects: &mut Vec<Effect>) {
        match self.state {
            State::Pausing => {}
            State::Delegated { .. } => {
                self.stopped = Some(StopReason::ByHypervisor);
                self.rest = Rest::Native;
            }
            _ => return,
        }
        effects.push(Effect::Finish {
            round: u32::try_from(self.rounds.len()).unwrap_or(u32::MAX),
            selection: self.selection,
            rest: self.rest,
            verify: self.config.offer.verify,
        });
        let finishing = State::Finishing { parts: Parts::default(), switched: false, started: now };
        self.enter(finishing, now);
    }

    fn part_done(&mut self, event: &Event, now: Time, effects: &mut Vec<Effect>) {
        let State::Finishing { parts, started, .. } = &mut self.state else { return };
        let started = *started;
        match event {
            Event::StateSent => parts.state_sent = true,
            Event::Digest(digest) => self.digest = Some(*digest),
            Event::RestSent(sent) if !parts.rest_sent => {
                parts.rest_sent = true;
                self.push_round(**sent, started, now);
            }
            _ => {}
        }
        let round = u32::try_from(self.rounds.len()).unwrap_or(u32::MAX).saturating_sub(1);
        let State::Finishing { parts, switched, .. } = &mut self.state else { return };
        if parts.rest_sent && parts.state_sent && !*switched {
            *switched = true;
            let rest = self.rest;
            if rest == Rest::Owed {
                self.streams = Streams::Up;
            }
            effects.push(Effect::Send(ToDestination::Switchover { round, rest }));
        }
        self.try_commit(now, effects);
    }

    /// Commits once the destination is ready and, if RAM is to be compared, both digests are here:
    /// the two sides hash at the same time. Where pages follow they are compared at the end.
    fn try_commit(&mut self, now: Time, effects: &mut Vec<Effect>) {
        let State::Finishing { parts, .. } = &self.state else { return };
        let Some(theirs) = parts.ready else { return };
        if self.config.offer.verify == Verify::RamDigest && self.rest != Rest::Owed {
            let Some(own) = self.digest else { return };
            if Some(own) != theirs {
                self.ram_check = RamCheck::Different;
                let detail = "the RAM digests of source and destination differ; the guest was not \
                              handed over";
                self.undo(vec![Reason::new(ReasonCode::DigestMismatch, detail)], now, effects);
                return;
            }
            self.ram_check = RamCheck::Equal;
        }
        effects.push(Effect::Send(ToDestination::Commit));
        let committing = State::Committing {
            question: Question::Commit,
            link: Link::Up,
            asked: now,
            told: false,
        };
        self.enter(committing, now);
    }

    /// The guest's hypervisor ended. Once all has been handed over that no longer matters.
    fn guest_gone(&mut self, reason: Reason, now: Time, effects: &mut Vec<Effect>) {
        if matches!(self.state, State::Finishing { switched: true, .. }) {
            self.gone = Some(reason);
            return;
        }
        effects.push(Effect::Send(ToDestination::Abort { reason: reason.clone() }));
        effects.push(Effect::Resume);
        let reasons = vec![reason.clone()];
        self.enter(State::Undoing { reasons, guest: Guest::Gone(reason), resumed: None }, now);
    }

    /// The destination may own the guest. Only its word ends this state.
    pub(super) fn step_committing(&mut self, event: Event, now: Time, effects: &mut Vec<Effect>) {
        match event {
            Event::Message(ToSource::Active { times, arrival }) => {
                self.activation = times;
                let State::Committing { link, .. } = self.state else { return };
                self.serve(link, now);
                self.confirmed(arrival, now, effects);
            }
            Event::Message(ToSource::Owing { times, token, streams }) => {
                self.activation = times;
                let State::Committing { link, .. } = self.state else { return };
                self.serve(link, now);
                self.connect_streams(token, streams, effects);
            }
            Event::ServingFailed(_) => self.streams = Streams::Down,
            Event::Digest(digest) => self.digest = Some(digest),
            Event::Message(ToSource::Never { reason }) => self.undo(vec![reason], now, effects),
            Event::Message(ToSource::Lost { reason }) => self.end(Ending::Lost { reason }, effects),
            Event::LinkDown(_) => self.link(Link::Down),
            Event::LinkUp => {
                self.link(Link::Up);
                self.ask(now, effects);
            }
            Event::Deadline => self.ask(now, effects),
            Event::Cancel => effects.push(Effect::CancelTooLate),
            Event::GiveUp => self.give_up(effects),
            // The paused hypervisor is no longer needed, unless the destination says `Never`.
            Event::GuestGone(reason) => self.gone = Some(reason),
            // Late answers.
            Event::Message(_)
            | Event::Recorded
            | Event::RecordFailed(_)
            | Event::Prepared
            | Event::Progress
            | Event::Looked(_)
            | Event::RoundSent(_)
            | Event::Scanned(_)
            | Event::RoundPassed(_)
            | Event::Paused
            | Event::RestSent(_)
            | Event::StateSent
            | Event::Serving
            | Event::Resumed
            | Event::ResumeFailed(_)
            | Event::Released
            | Event::Failed(_) => {}
        }
    }

    /// Asks no more, if the operator was told that the guest is in doubt. The guest stays as it is: paused.
    fn give_up(&mut self, effects: &mut Vec<Effect>) {
        if let State::Committing { told: true, .. } = self.state {
            let detail = "the operator ended the doubt before the destination said whether it runs the guest";
            let reason = Reason::new(ReasonCode::Cancelled, detail);
            self.end(Ending::Lost { reason }, effects);
        }
    }

    fn link(&mut self, new: Link) {
        if let State::Committing { link, .. } | State::Serving { link, .. } = &mut self.state {
            *link = new;
        }
    }

    fn serve(&mut self, link: Link, now: Time) {
        self.enter(State::Serving { link, asked: now, told: false, confirmed: false }, now);
    }

    /// The destination runs the guest and is owed pages: nothing brings the guest back.
    pub(super) fn step_serving(&mut self, event: Event, now: Time, effects: &mut Vec<Effect>) {
        match event {
            Event::Message(ToSource::Active { times, arrival }) => {
                self.activation = times;
                self.confirmed(arrival, now, effects);
            }
            Event::Message(ToSource::Owing { token, streams, .. }) => {
                self.connect_streams(token, streams, effects);
            }
            Event::Message(ToSource::Lost { reason }) => self.end(Ending::Lost { reason }, effects),
            Event::Digest(digest) => {
                self.digest = Some(digest);
                self.try_release(now, effects);
            }
            // Without a digest of this side there is nothing to compare.
            Event::Failed(_) => {
                self.config.offer.verify = Verify::No;
                self.try_release(now, effects);
            }
            Event::Serving => {
                self.streams = Streams::Up;
                if let State::Serving { told, .. } = &mut self.state {
                    *told = false;
                }
                self.entered = now;
            }
            Event::ServingFailed(_) => self.streams_lost(now),
            Event::LinkDown(_) => {
                self.link(Link::Down);
                self.streams_lost(now);
            }
            Event::LinkUp => {
                self.link(Link::Up);
                self.ask_what_is_owed(now, effects);
            }
            Event::Deadline => self.ask_what_is_owed(now, effects),
            Event::Cancel => effects.push(Effect::CancelTooLate),
            // The agent has the RAM, whatever becomes of the hypervisor.
            Event::GuestGone(reason) => self.gone = Some(reason),
            _ => {}
        }
    }

    fn streams_lost(&mut self, now: Time) {
        if self.streams == Streams::Up {
            self.entered = now;
        }
        self.streams = Streams::Down;
    }

    fn connect_streams(
        &mut self,
        token: sterna_proto::preamble::MoveToken,
        streams: u16,
        effects: &mut Vec<Effect>,
    ) {
        if let Some(reason) = self.ram_gone.clone() {
            effects.push(Effect::Send(ToDestination::PagesLost { reason }));
        } else if self.streams == Streams::Down {
            self.streams = Streams::Connecting;
            effects.push(Effect::Serve { token, streams });
        }
    }

    fn ask_what_is_owed(&mut self, now: Time, effects: &mut Vec<Effect>) {
        let entered = self.entered;
        let doubt = self.config.stages.doubt;
        let cut_off = self.streams != Streams::Up;
        let State::Serving { link, asked, told, .. } = &mut self.state else { return };
        *asked = now;
        match *link {
            Link::Up => effects.push(Effect::Send(ToDestination::Query)),
            Link::Down => {
                *link = Link::Connecting;
                effects.push(Effect::Reconnect);
            }
            Link::Connecting => {}
        }
        if cut_off && !*told && now.since(entered) >= doubt && doubt > Duration::ZERO {
            *told = true;
            effects.push(Effect::CutOff);
        }
    }

    /// The destination has all of the guest.
    fn confirmed(&mut self, arrival: Option<Arrival>, now: Time, effects: &mut Vec<Effect>) {
        self.arrival = arrival;
        if let State::Serving { confirmed, .. } = &mut self.state {
            *confirmed = true;
            self.try_release(now, effects);
        }
    }

    /// Releases the guest once it is confirmed and, if both sides hash, the digests are compared.
    fn try_release(&mut self, now: Time, effects: &mut Vec<Effect>) {
        let State::Serving { confirmed: true, .. } = self.state else { return };
        if self.config.offer.verify == Verify::RamDigest
            && self.rest == Rest::Owed
            && let Some(theirs) = self.arrival.and_then(|arrival| arrival.digest)
        {
            let Some(own) = self.digest else { return };
            self.ram_check = if own == theirs { RamCheck::Equal } else { RamCheck::Different };
        }
        self.record(SourceRecord::Released, effects);
        self.enter(State::Releasing { recorded: false }, now);
    }

    fn ask(&mut self, now: Time, effects: &mut Vec<Effect>) {
        let entered = self.entered;
        let doubt = self.config.stages.doubt;
        let State::Committing { question, link, asked, told } = &mut self.state else { return };
        *asked = now;
        match (*link, *question) {
            (Link::Up, Question::Commit) => effects.push(Effect::Send(ToDestination::Commit)),
            (Link::Up, Question::Query) => effects.push(Effect::Send(ToDestination::Query)),
            (Link::Down, _) => {
                *link = Link::Connecting;
                effects.push(Effect::Reconnect);
            }
            (Link::Connecting, _) => {}
        }
        if !*told && now.since(entered) >= doubt && doubt > Duration::ZERO {
            *told = true;
            effects.push(Effect::InDoubt);
        }
    }

    /// The destination runs the guest; ours is ended, after that is on record.
    pub(super) fn step_releasing(&mut self, event: &Event, effects: &mut Vec<Effect>) {
        let State::Releasing { recorded } = &mut self.state else { return };
        match event {
            // A failed record does no harm: after a restart the destination would be asked again.
            Event::Recorded | Event::RecordFailed(_) if !*recorded => {
                *recorded = true;
                effects.push(Effect::Send(ToDestination::Farewell));
                effects.push(Effect::Release);
            }
            Event::Released | Event::GuestGone(_) if *recorded => self.end(Ending::Moved, effects),
            Event::Cancel => effects.push(Effect::CancelTooLate),
            _ => {}
        }
    }

    /// Everything is taken back. Nothing that happens now changes that.
    pub(super) fn step_undoing(&mut self, event: Event, effects: &mut Vec<Effect>) {
        let State::Undoing { reasons, guest, resumed } = &mut self.state else { return };
        match event {
            Event::Resumed if resumed.is_none() => {
                *resumed = Some(Ok(()));
                self.record(SourceRecord::Undone, effects);
            }
            Event::ResumeFailed(reason) if resumed.is_none() => {
                *resumed = Some(Err(reason));
                self.record(SourceRecord::Undone, effects);
            }
            Event::GuestGone(reason) => *guest = Guest::Gone(reason),
            Event::Recorded | Event::RecordFailed(_) => {
                if let Some(resumed) = resumed.take() {
                    let ending = undone(std::mem::take(reasons), guest.clone(), resumed);
                    self.end(ending, effects);
                }
            }
            _ => {}
        }
    }
}

fn undone(reasons: Vec<Reason>, guest: Guest, resumed: Result<(), Reason>) -> Ending {
    match (guest, resumed) {
        (Guest::Gone(reason), _) => Ending::GuestGone { reason },
        (Guest::Here, Ok(())) => Ending::Undone { reasons },
        (Guest::Here, Err(reason)) => {
            let unknown = || Reason::new(ReasonCode::Other, "unknown");
            Ending::Stuck { cause: reasons.into_iter().next().unwrap_or_else(unknown), reason }
        }
    }
}

/// How many pages a destination says are lacking, of as many as there are.
fn lacking_of(runs: &[(u64, u64)], most: PageCount) -> PageCount {
    let all = runs.iter().fold(0_u64, |all, (_, count)| all.saturating_add(*count));
    PageCount(all.min(most.0))
}

fn name(message: &ToSource) -> &'static str {
    match message {
        ToSource::Accept(_) => "Accept",
        ToSource::Refuse { .. } => "Refuse",
        ToSource::RoundReceived { .. } => "RoundReceived",
        ToSource::Ready { .. } => "Ready",
        ToSource::Owing { .. } => "Owing",
        ToSource::Active { .. } => "Active",
        ToSource::Never { .. } => "Never",
        ToSource::Lost { .. } => "Lost",
        ToSource::KeepAlive => "KeepAlive",
    }
}

impl Tracking {
    /// Whether tracking is needed.
    #[must_use]
    pub fn is_needed(self) -> bool {
        self == Self::Needed
    }
}
