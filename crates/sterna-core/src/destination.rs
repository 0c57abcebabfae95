//! The destination's half of a move.
//!
//! ```text
//!  Reserving ─▶ Recording ─▶ Receiving ─▶ Loading ─▶ Ready ─▶ Owning ─▶ Activating ─▶ Active
//!      │            │            │           │         │        │            │
//!      │ Refuse     └────────────┴───────────┴─────────┴────────┘            │ may have run
//!      ▼                         │  any failure, lost link,       did not run│
//!    Ended                       ▼  time limit, Abort, Query   ◀─────────────┤
//!                            Discarding ─▶ Ended (Discarded)                 ▼
//!                                                                     Lost ─▶ Ended
//! ```
//!
//! **Guarantee.** No instruction of the guest is executed before `Owned` is on record, and that
//! record is only asked for when the source said `Commit`. `Never` is said only when the guest
//! cannot run here any more by this attempt: `Refused` is on record, or its hypervisor is gone.
//! Both hold for a machine that was recovered from the journal by a new agent too.
//!
//! **A lost link** ends the move while pages arrive. Once everything is here (`Ready`) the source
//! may have committed without our hearing it, so the machine waits for it to come back, until its
//! time limit; then it refuses, which it may do at any time before it owns the guest.
//!
//! **Not here.** Whether the guest fits this host is the agent's answer to `Reserve`.

use crate::journal::DestinationRecord;
use crate::limits::StageLimits;
use crate::source::Found;
use crate::time::Time;
use sterna_page::RamDigest;
use sterna_proto::message::{
    Accept, ActivationTimes, Offer, Reason, ReasonCode, ToDestination, ToSource, Verify,
};

/// What happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The machine's [`Destination::deadline`] has passed.
    Deadline,
    /// A message came.
    Message(ToDestination),
    /// The control connection is gone.
    LinkDown(Reason),
    /// A page connection is gone, or brought what it must not.
    StreamDown(Reason),
    /// The source has come back on a new control connection.
    LinkUp,
    /// The operator wants the move to end.
    Cancel,
    /// A place is reserved, and this is what is granted.
    Reserved(Accept),
    /// The guest cannot come.
    NotReserved(Vec<Reason>),
    /// The record that was asked for is durable.
    Recorded,
    /// The record that was asked for could not be written.
    RecordFailed(Reason),
    /// Pages arrive.
    Progress,
    /// All streams have delivered this round's mark.
    RoundReceived(u32),
    /// The device state has arrived.
    StateReceived,
    /// The device state is loaded.
    Loaded,
    /// The RAM digest was computed.
    Digest(RamDigest),
    /// The guest runs.
    Activated(ActivationTimes),
    /// The guest does not run.
    NotActivated {
        /// Why.
        reason: Reason,
        /// Whether it may have run for a moment.
        run: MayHaveRun,
    },
    /// The guest's hypervisor has surely ended, or there is none.
    Discarded,
    /// The guest's hypervisor could not be ended.
    NotDiscarded(Reason),
    /// An effect failed.
    Failed(Reason),
    /// The guest's hypervisor has ended.
    GuestGone(Reason),
}

/// Whether a guest that does not run may have run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MayHaveRun {
    /// No instruction was executed.
    No,
    /// Nobody can tell.
    Yes,
}

/// What the engine shall do.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Send a message, if there is a link; a message that cannot be sent is dropped.
    Send(ToSource),
    /// Prepare an empty guest; `Reserved` or `NotReserved`.
    Reserve(Box<Offer>),
    /// Make the record durable; `Recorded` or `RecordFailed`.
    Record(DestinationRecord),
    /// Hash all RAM; `Digest` or `Failed`.
    Digest,
    /// Load the device state; `Loaded` or `Failed`. This may write RAM.
    Load,
    /// Let the guest run; `Activated` or `NotActivated`. Harmless if it runs already.
    Activate,
    /// Tell the network where the guest is, and clear up after the move: the guest runs already.
    Settle,
    /// End the guest's hypervisor and free its memory; `Discarded`, also if there is none, or
    /// `NotDiscarded`, after which it is asked for again.
    Discard,
    /// The move has ended here.
    End(Ending),
}

/// How a move ended, seen from the destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The guest runs here.
    Active,
    /// The guest does not run here and never did.
    Discarded(Reason),
    /// The guest is ours, may have run, and is gone.
    Lost(Reason),
}

#[derive(Clone, Debug, PartialEq)]
enum State {
    Reserving,
    Recording { accept: Accept },
    Receiving { last_round: Option<u32>, state_here: bool, switchover: Option<Switchover> },
    Loading { digest: Option<RamDigest> },
    Ready { digest: Option<RamDigest> },
    Owning { gone: Option<Reason> },
    Activating,
    Active { times: ActivationTimes },
    Discarding { reason: Reason, recorded: Recorded, discarded: bool, said: bool },
    Lost { reason: Reason },
    Ended,
}

/// What was said about the end of the RAM.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Switchover {
    round: u32,
}

/// How the record that refuses the attempt stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Recorded {
    Asked,
    /// The hypervisor is ended only after the answer.
    AskedFirst,
    Yes,
    Failed,
}

/// The destination's machine.
#[derive(Debug)]
pub struct Destination {
    verify: Verify,
    stages: StageLimits,
    state: State,
    entered: Time,
    /// Records that were asked for and not answered. Answers come in the order of the questions,
    /// so only the one that leaves none is about the newest.
    unanswered: u32,
}

impl Destination {
    /// A new move, from the source's offer.
    pub fn start(offer: Offer, stages: StageLimits, now: Time, effects: &mut Vec<Effect>) -> Self {
        let verify = offer.verify;
        effects.push(Effect::Reserve(Box::new(offer)));
        Self { verify, stages, state: State::Reserving, entered: now, unanswered: 0 }
    }

    /// A move of which the journal has this record, found by an agent that was restarted, or asked
    /// about by a source.
    pub fn recover(
        record: Option<DestinationRecord>,
        found: Found,
        stages: StageLimits,
        now: Time,
        effects: &mut Vec<Effect>,
    ) -> Self {
        let mut machine = Self {
            verify: Verify::No,
            stages,
            state: State::Reserving,
            entered: now,
            unanswered: 0,
        };
        match (record, found) {
            (Some(DestinationRecord::Active), _) => {
                machine.enter(State::Active { times: ActivationTimes::default() }, now);
            }
            (Some(DestinationRecord::Owned), Found::Running | Found::Paused) => {
                effects.push(Effect::Activate);
                machine.enter(State::Activating, now);
            }
            (Some(DestinationRecord::Owned), Found::Gone) => {
                let detail = "the destination took the guest over and its hypervisor ended";
                let reason = Reason::new(ReasonCode::Hypervisor, detail);
                machine.enter(State::Lost { reason }, now);
            }
            (Some(DestinationRecord::Receiving | DestinationRecord::Refused) | None, _) => {
                let detail = "the destination's agent was restarted or does not know the move";
                machine.discard(Reason::new(ReasonCode::Agent, detail), now, effects);
            }
        }
        machine
    }

    /// Name of the stage, for people.
    #[must_use]
    pub fn stage(&self) -> &'static str {
        match &self.state {
            State::Reserving | State::Recording { .. } => "reserving",
            State::Receiving { .. } => "receiving",
            State::Loading { .. } => "loading",
            State::Ready { .. } => "ready",
            State::Owning { .. } | State::Activating => "activating",
            State::Active { .. } => "active",
            State::Discarding { .. } => "discarding",
            State::Lost { .. } => "lost",
            State::Ended => "ended",
        }
    }

    /// When [`Event::Deadline`] is due, unless another event comes first.
    #[must_use]
    pub fn deadline(&self) -> Option<Time> {
        let limit = match &self.state {
            State::Reserving => self.stages.negotiation,
            State::Recording { .. } => self.stages.record,
            State::Receiving { .. } | State::Active { .. } | State::Lost { .. } => {
                self.stages.abandoned
            }
            State::Loading { .. } => self.stages.switchover,
            State::Ready { .. } => self.stages.commitment,
            // Until the hypervisor has ended, which is asked for again and again.
            State::Discarding { discarded: false, .. } => self.stages.ask_again,
            State::Owning { .. } | State::Activating | State::Discarding { .. } | State::Ended => {
                return None;
            }
        };
        Some(self.entered + limit)
    }

    /// Takes note of an event.
    pub fn step(&mut self, event: Event, now: Time, effects: &mut Vec<Effect>) {
        if matches!(event, Event::Recorded | Event::RecordFailed(_)) {
            self.unanswered = self.unanswered.saturating_sub(1);
            if self.unanswered > 0 {
                return;
            }
        }
        match &self.state {
            State::Ended => {}
            State::Owning { .. } | State::Activating => self.step_owning(event, now, effects),
            State::Active { .. } | State::Lost { .. } => self.step_decided(&event, effects),
            State::Discarding { .. } => self.step_discarding(event, now, effects),
            State::Reserving
            | State::Recording { .. }
            | State::Receiving { .. }
            | State::Loading { .. }
            | State::Ready { .. } => self.step_open(event, now, effects),
        }
    }

    fn enter(&mut self, state: State, now: Time) {
        self.state = state;
        self.entered = now;
    }

    fn record(&mut self, record: DestinationRecord, effects: &mut Vec<Effect>) {
        self.unanswered += 1;
        effects.push(Effect::Record(record));
    }

    fn discard(&mut self, reason: Reason, now: Time, effects: &mut Vec<Effect>) {
        self.record(DestinationRecord::Refused, effects);
        // To an agent that is restarted meanwhile, `Owned` without a hypervisor means that the guest
        // is lost. So what may be owned is refused first and ended after that.
        let recorded = if matches!(self.state, State::Owning { .. } | State::Activating) {
            Recorded::AskedFirst
        } else {
            effects.push(Effect::Discard);
            Recorded::Asked
        };
        self.enter(State::Discarding { reason, recorded, discarded: false, said: false }, now);
    }

    /// States in which the guest is not ours: whatever fails discards it.
    fn step_open(&mut self, event: Event, now: Time, effects: &mut Vec<Effect>) {
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
    fn step_owning(&mut self, event: Event, now: Time, effects: &mut Vec<Effect>) {
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
    fn step_decided(&mut self, event: &Event, effects: &mut Vec<Effect>) {
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
    fn step_discarding(&mut self, event: Event, now: Time, effects: &mut Vec<Effect>) {
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
