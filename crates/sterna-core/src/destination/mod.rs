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
//!
//!  Where pages follow the guest:   Activating ─▶ Owing ─▶ Active
//!                                                  └────▶ Lost (the source lost the pages)
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
//! **Pages that follow.** With [`Rest::Owed`] faults are served before the state is loaded, because
//! devices read guest RAM while they load. From the commitment on nothing takes the guest back: a
//! lost link leaves the machine in `Owing`, where whoever in the guest needs a page waits for it,
//! and where a new agent takes it up again.
//!
//! **Hypervisors that copy among themselves** ([`Rest::Native`]) bring RAM and device state as one, so
//! that loading is to wait for the end of that, and RAM is hashed after it.
//!
//! **Not here.** Whether the guest fits this host is the agent's answer to `Reserve`.

mod steps;

use crate::journal::DestinationRecord;
use crate::limits::StageLimits;
use crate::source::Found;
use crate::time::Time;
use sterna_page::RamDigest;
use sterna_proto::message::{
    Accept, ActivationTimes, Arrival, Offer, Reason, ReasonCode, Rest, ToDestination, ToSource,
    Verify,
};
use sterna_proto::preamble::MoveToken;

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
    RoundReceived {
        /// The round.
        round: u32,
        /// Pages that are not what the source takes them for, as first page and count: they were to be
        /// got here, and could not.
        lacking: Vec<(u64, u64)>,
    },
    /// The device state has arrived.
    StateReceived,
    /// Faults are served: page connections that are made anew join by this.
    Serving(Joining),
    /// The source has made its page connections anew.
    StreamsUp,
    /// No page is owed any more.
    AllHere(Arrival),
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

/// By what page connections join a move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Joining {
    /// Names the move.
    pub token: MoveToken,
    /// Page streams that are served.
    pub streams: u16,
}

/// Whether an earlier agent had begun to serve faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Served {
    /// Which pages are owed was told in this move; content of theirs that came before is stale.
    First,
    /// Which pages are owed was kept by an earlier agent; the guest may run.
    Again,
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
    /// Let whoever touches a page that is owed wait for it, and fetch it; `Serving` or `Failed`,
    /// later `AllHere`. Pages that are not owed are hashed first if `verify` says so.
    Serve {
        /// Whether an earlier agent had begun with it.
        served: Served,
        /// Whether to hash RAM as it arrives.
        verify: Verify,
    },
    /// All pages are here: nobody waits for one any more.
    EndServing,
    /// Stop the guest for good: pages of it are lost.
    Halt,
    /// Tell the operator that the source, which has pages of the guest, cannot be reached.
    CutOff,
    /// Load the device state; `Loaded` or `Failed`. This may write RAM.
    Load,
    /// Wait until the hypervisors, which copy the guest among themselves, have ended that; `Loaded` or
    /// `Failed`.
    AwaitNative,
    /// Let the guest run; `Activated` or `NotActivated`, or `GuestGone` where it may have run before
    /// and has ended. Harmless if it runs already.
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
    Recording {
        accept: Accept,
    },
    Receiving {
        last_round: Option<u32>,
        /// Whether pages were lacking at its end.
        lacking: bool,
        state_here: bool,
        switchover: Option<Switchover>,
    },
    Loading {
        digest: Option<RamDigest>,
        loaded: bool,
    },
    Ready {
        digest: Option<RamDigest>,
    },
    Owning {
        gone: Option<Reason>,
    },
    Activating,
    Owing {
        guest: Arriving,
        cut_off: CutOff,
    },
    /// It cannot go on; that is being recorded, or was to be and could not.
    Losing {
        reason: Reason,
        recording: bool,
    },
    Active {
        times: ActivationTimes,
        arrival: Option<Arrival>,
    },
    Discarding {
        reason: Reason,
        recorded: Recorded,
        discarded: bool,
        said: bool,
    },
    Lost {
        reason: Reason,
    },
    Ended,
}

/// What was said about the end of the RAM.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Switchover {
    round: u32,
}

/// Whether a guest whose pages follow was seen to run by this agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Arriving {
    /// Not yet. To let it run may take pages, so the streams are waited for.
    Waiting,
    /// It was told to.
    Activating,
    Runs,
}

/// Whether the source is out of reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CutOff {
    No,
    Since(Time),
    Told,
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
    /// What becomes of the pages that are not here at the switchover.
    rest: Rest,
    /// Set while faults are served.
    joining: Option<Joining>,
    /// Whether an answer to [`Effect::Serve`] is due for a guest that an earlier agent served.
    serve_asked: bool,
    /// Set when no page is owed any more.
    all_here: Option<Arrival>,
    times: ActivationTimes,
    /// Records that were asked for and not answered. Answers come in the order of the questions,
    /// so only the one that leaves none is about the newest.
    unanswered: u32,
}

impl Destination {
    /// A new move, from the source's offer.
    pub fn start(offer: Offer, stages: StageLimits, now: Time, effects: &mut Vec<Effect>) -> Self {
        let verify = offer.verify;
        effects.push(Effect::Reserve(Box::new(offer)));
        Self::reserving(verify, stages, now)
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
        let mut machine = Self::reserving(Verify::No, stages, now);
        match (record, found) {
            (Some(DestinationRecord::Active), _) => {
                let times = ActivationTimes::default();
                machine.enter(State::Active { times, arrival: None }, now);
            }
            (Some(DestinationRecord::Lost), _) => {
                let detail = "pages of the guest were lost with its source";
                let reason = Reason::new(ReasonCode::Hypervisor, detail);
                machine.enter(State::Lost { reason }, now);
            }
            (Some(DestinationRecord::Owing), Found::Running | Found::Paused) => {
                machine.rest = Rest::Owed;
                machine.serve_again(effects);
                let cut_off = CutOff::Since(now);
                let guest = Arriving::Waiting;
                machine.enter(State::Owing { guest, cut_off }, now);
            }
            (Some(DestinationRecord::Owned), Found::Running | Found::Paused) => {
                effects.push(Effect::Activate);
                machine.enter(State::Activating, now);
            }
            (Some(DestinationRecord::Owned | DestinationRecord::Owing), Found::Gone) => {
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

    fn reserving(verify: Verify, stages: StageLimits, now: Time) -> Self {
        Self {
            verify,
            stages,
            state: State::Reserving,
            entered: now,
            rest: Rest::Sent,
            joining: None,
            serve_asked: false,
            all_here: None,
            times: ActivationTimes::default(),
            unanswered: 0,
        }
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
            State::Owing { .. } => "owing",
            State::Active { .. } => "active",
            State::Discarding { .. } => "discarding",
            State::Losing { .. } | State::Lost { .. } => "lost",
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
            // Until it is on record, or the hypervisor has ended: asked for again and again.
            State::Losing { recording: false, .. } => self.stages.ask_again,
            State::Discarding { discarded: false, .. } => self.stages.ask_again,
            State::Owing { cut_off: CutOff::Since(since), .. } => {
                return Some(*since + self.stages.doubt);
            }
            State::Owing { guest: Arriving::Waiting, cut_off: CutOff::No } => self.stages.ask_again,
            State::Owning { .. }
            | State::Activating
            | State::Losing { .. }
            | State::Owing { .. }
            | State::Discarding { .. }
            | State::Ended => {
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
        if let Event::AllHere(arrival) = event {
            self.all_here = Some(arrival);
        }
        match &self.state {
            State::Ended => {}
            State::Owning { .. } | State::Activating => self.step_owning(event, now, effects),
            State::Owing { .. } => self.step_owing(event, now, effects),
            State::Losing { .. } => self.step_losing(&event, now, effects),
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
}
