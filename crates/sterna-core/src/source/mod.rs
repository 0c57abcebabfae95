//! The source's half of a move.
//!
//! ```text
//!  Negotiating ─▶ Recording ─▶ Preparing ─▶ Copying(round n) ─▶ Pausing ─▶ Finishing
//!       │             │            │            │    ▲ │          │           │ Ready, digests equal
//!       │             │            │            │    └─┘          │           ▼
//!       └─────────────┴────────────┴────────────┴─────────────────┴──▶ Committing ─▶ Releasing ─▶ Ended
//!                 any failure, cancel, lost link, time limit          │   Active         (Moved)
//!                                 │                                   │
//!                                 ▼                            Never  │  Lost
//!                              Undoing ◀──────────────────────────────┘──▶ Ended (Lost)
//!                                 │
//!                                 ▼
//!                    Ended (Undone | GuestGone | Stuck)
//! ```
//!
//! Where the hypervisor copies by itself, `Delegated` stands in place of `Copying`; it pauses the guest
//! by itself too, so that `Finishing` may follow at once.
//!
//! Where pages follow the guest, `Serving` stands between `Committing` and `Releasing`: the
//! destination has said that it runs the guest and is owed pages, and all this side does is to send
//! them. It ends when the destination has said `Active`; a lost link is made again until then.
//!
//! **Guarantee.** The guest is resumed only from `Undoing`, which is entered before `Commit` was
//! sent, or when the destination has said `Never` (and it says so only after it has recorded that
//! it will keep to it). The guest is released only after the destination has said `Active`. In
//! between, however long that takes, it stays paused and the machine asks again and again.
//!
//! **Failing is a transition.** No event ends the machine early: each failure goes through
//! `Undoing`, whose effects take back what was done.
//!
//! **Not here.** Which pages are sent, on which stream and how they are coded is the engine's;
//! when to stop making rounds is the [`Algorithm`](crate::algorithm::Algorithm)'s. Lost and repeated control messages are found
//! by the numbering of `sterna-proto`; both reach this machine as a lost link.

mod interface;
mod steps;

pub use interface::{Config, Effect, Event, Found, HypervisorRound, RoundSent, Selection};

use crate::algorithm::{Decision, View};
use crate::journal::SourceRecord;
use crate::limits::WhenStuck;
use crate::prediction::{Behaviour, Choice, Method, Model};
use crate::receipt::{Ending, RamCheck, Round, StopReason};
use crate::speed::VcpuSpeed;
use crate::time::Time;
use crate::working_set::allowance;
use std::time::Duration;
use sterna_page::{PageCount, RamDigest};
use sterna_proto::message::{
    Accept, ActivationTimes, Arrival, Coding, JournalId, Reason, ReasonCode, Rest, ToDestination,
};

/// How the source asks whether the destination runs the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Question {
    /// It committed, and says so again.
    Commit,
    /// It does not know whether it had committed.
    Query,
}

/// Whether there is a control connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    Up,
    Down,
    Connecting,
}

/// Whether the guest's hypervisor still exists.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Guest {
    Here,
    Gone(Reason),
}

/// What has to come together before the switchover.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Parts {
    rest_sent: bool,
    state_sent: bool,
    /// The destination is ready, with its digest if it was to hash.
    ready: Option<Option<RamDigest>>,
}

/// Whether owed pages can get through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Streams {
    Up,
    Down,
    Connecting,
}

/// Where a copying move stands within its round.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    /// Pages are on their way; once received, so many are lacking all the same.
    Sending { sent: Option<RoundSent>, received: Option<PageCount> },
    /// All has been received; what was written meanwhile is being read.
    Scanning,
}

#[derive(Clone, Debug, PartialEq)]
enum State {
    Negotiating,
    Recording { accept: Accept },
    Preparing,
    Copying { phase: Phase, round_started: Time },
    Delegated { round_started: Time },
    Pausing,
    Finishing { parts: Parts, switched: bool, started: Time },
    Committing { question: Question, link: Link, asked: Time, told: bool },
    Serving { link: Link, asked: Time, told: bool, confirmed: bool },
    Releasing { recorded: bool },
    Undoing { reasons: Vec<Reason>, guest: Guest, resumed: Option<Result<(), Reason>> },
    Ended,
}

/// The source's machine.
#[derive(Debug)]
pub struct Source {
    config: Config,
    state: State,
    started: Time,
    copying_since: Option<Time>,
    entered: Time,
    rounds: Vec<Round>,
    selection: Selection,
    vcpus: VcpuSpeed,
    downtime_limit: Duration,
    /// Pages that the next round may hold back.
    may_withhold: PageCount,
    behaviour: Behaviour,
    /// What was foreseen, where the algorithm has not chosen.
    foreseen: Option<Choice>,
    stopped: Option<StopReason>,
    /// What becomes of what is left at the pause.
    rest: Rest,
    streams: Streams,
    /// This side's digest of all RAM.
    digest: Option<RamDigest>,
    ram_check: RamCheck,
    arrival: Option<Arrival>,
    activation: ActivationTimes,
    /// Records that were asked for and not answered. Answers come in the order of the questions,
    /// so only the one that leaves none is about the newest.
    unanswered: u32,
    /// Why the hypervisor ended, if it did while that did not matter yet.
    gone: Option<Reason>,
    /// Why the guest's RAM no longer exists, if it does not: hypervisor and agent had ended.
    ram_gone: Option<Reason>,
}

impl Source {
    /// A new move: the first effect is the offer.
    pub fn start(config: Config, now: Time, effects: &mut Vec<Effect>) -> Self {
        effects.push(Effect::Send(ToDestination::Offer(Box::new(config.offer.clone()))));
        Self::in_state(config, State::Negotiating, now)
    }

    /// A move that an earlier agent left unfinished. There is no link yet.
    pub fn recover(config: Config, found: Found, now: Time, effects: &mut Vec<Effect>) -> Self {
        let reason = Reason::new(ReasonCode::Agent, "the source's agent was restarted");
        match found {
            Found::Running => {
                let mut machine = Self::in_state(config, State::Negotiating, now);
                machine.undo(vec![reason], now, effects);
                machine
            }
            Found::Paused | Found::Gone => {
                effects.push(Effect::Reconnect);
                let state = State::Committing {
                    question: Question::Query,
                    link: Link::Connecting,
                    asked: now,
                    told: false,
                };
                let mut machine = Self::in_state(config, state, now);
                if found == Found::Gone {
                    let detail = "the hypervisor ended while no agent was there";
                    machine.gone = Some(Reason::new(ReasonCode::Hypervisor, detail));
                    machine.ram_gone = machine.gone.clone();
                }
                machine
            }
        }
    }

    fn in_state(config: Config, state: State, now: Time) -> Self {
        Self {
            downtime_limit: config.limits.downtime_max,
            may_withhold: PageCount::ZERO,
            behaviour: Behaviour::default(),
            foreseen: None,
            config,
            state,
            started: now,
            copying_since: None,
            entered: now,
            rounds: Vec::new(),
            selection: Selection::Populated,
            vcpus: VcpuSpeed::FULL,
            stopped: None,
            rest: Rest::Sent,
            streams: Streams::Down,
            digest: None,
            ram_check: RamCheck::NotChecked,
            arrival: None,
            activation: ActivationTimes::default(),
            unanswered: 0,
            gone: None,
            ram_gone: None,
        }
    }

    /// The rounds so far; the last is the one after the pause.
    #[must_use]
    pub fn rounds(&self) -> &[Round] {
        &self.rounds
    }

    /// The speed at which the guest was last told to run.
    #[must_use]
    pub fn vcpus(&self) -> VcpuSpeed {
        self.vcpus
    }

    /// Why rounds ended, once they have.
    #[must_use]
    pub fn stopped(&self) -> Option<StopReason> {
        self.stopped
    }

    /// What was foreseen, and chosen where there was a choice; the newest last.
    #[must_use]
    pub fn choices(&self) -> Vec<Choice> {
        let chosen = self.config.algorithm.choices().iter();
        self.config.planned.iter().chain(&self.foreseen).chain(chosen).cloned().collect()
    }

    /// The method that was chosen last, where there was a choice.
    #[must_use]
    pub fn chosen(&self) -> Option<Method> {
        self.config.algorithm.choices().last().map(|choice| choice.method)
    }

    /// Whether RAM digests were compared, and how.
    #[must_use]
    pub fn ram_check(&self) -> RamCheck {
        self.ram_check
    }

    /// What becomes of the pages that the destination lacks at the hand-over.
    #[must_use]
    pub fn rest(&self) -> Rest {
        self.rest
    }

    /// How the pages arrived that followed the guest, once they have.
    #[must_use]
    pub fn arrival(&self) -> Option<Arrival> {
        self.arrival
    }

    /// The destination's times, once it is active.
    #[must_use]
    pub fn activation(&self) -> ActivationTimes {
        self.activation
    }

    /// Name of the stage, for people.
    #[must_use]
    pub fn stage(&self) -> &'static str {
        match &self.state {
            State::Negotiating => "negotiating",
            State::Recording { .. } | State::Preparing => "preparing",
            State::Copying { .. } | State::Delegated { .. } => "copying",
            State::Pausing => "pausing",
            State::Finishing { .. } => "switching over",
            State::Committing { .. } => "committing",
            State::Serving { .. } => "serving",
            State::Releasing { .. } => "releasing",
            State::Undoing { .. } => "undoing",
            State::Ended => "ended",
        }
    }

    /// When [`Event::Deadline`] is due, unless another event comes first.
    #[must_use]
    pub fn deadline(&self) -> Option<Time> {
        let stages = &self.config.stages;
        let limit = match &self.state {
            State::Negotiating => stages.negotiation,
            State::Recording { .. } => stages.record,
            State::Preparing => stages.preparation,
            State::Copying { .. } | State::Delegated { .. } => stages.copy_stall,
            State::Pausing => stages.pause,
            State::Finishing { .. } => stages.switchover,
            State::Committing { asked, .. } | State::Serving { asked, .. } => {
                return Some(*asked + stages.ask_again);
            }
            State::Releasing { .. } | State::Undoing { .. } | State::Ended => return None,
        };
        Some(self.entered + limit)
    }

    /// Takes note of an event. An event that the state does not expect is either harmless there
    /// (a late answer) or a failure; each state says which.
    pub fn step(&mut self, event: Event, now: Time, effects: &mut Vec<Effect>) {
        if matches!(event, Event::Recorded | Event::RecordFailed(_)) {
            self.unanswered = self.unanswered.saturating_sub(1);
            if self.unanswered > 0 {
                return;
            }
        }
        match &self.state {
            State::Ended => {}
            State::Undoing { .. } => self.step_undoing(event, effects),
            State::Releasing { .. } => self.step_releasing(&event, effects),
            State::Committing { .. } => self.step_committing(event, now, effects),
            State::Serving { .. } => self.step_serving(event, now, effects),
            State::Negotiating
            | State::Recording { .. }
            | State::Preparing
            | State::Copying { .. }
            | State::Delegated { .. }
            | State::Pausing
            | State::Finishing { .. } => self.step_uncommitted(event, now, effects),
        }
    }

    fn record(&mut self, record: SourceRecord, effects: &mut Vec<Effect>) {
        self.unanswered += 1;
        effects.push(Effect::Record(record));
    }

    fn view(&self, residue: PageCount, now: Time) -> View<'_> {
        View {
            rounds: &self.rounds,
            residue,
            elapsed: self.copying_since.map_or(Duration::ZERO, |since| now.since(since)),
            fixed_downtime: self.config.fixed_downtime,
            limits: &self.config.limits,
            setup: self.copying_since.map_or(Duration::ZERO, |since| since.since(self.started)),
            curve: self.behaviour.curve(),
            surroundings: &self.config.surroundings,
        }
    }

    /// Foresees the move once its first round has told enough, for an algorithm that chooses nothing.
    fn foresee(&self, residue: PageCount, now: Time) -> Option<Choice> {
        let view = self.view(residue, now);
        let method = Method::asked_for(self.config.algorithm.name(), &self.config.limits)?;
        let model = Model::of(&view)?;
        let (basis, forecasts) = (model.basis(), model.forecasts());
        let after = view.setup.saturating_add(view.elapsed);
        Some(Choice { after, method, reason: "it was asked for".into(), basis, forecasts })
    }

    /// Asks the algorithm, and goes where it says.
    fn decide(&mut self, residue: PageCount, now: Time, effects: &mut Vec<Effect>) {
        self.behaviour.round_ended();
        if self.foreseen.is_none() && self.config.planned.is_none() {
            self.foreseen = self.foresee(residue, now);
        }
        // The algorithm is taken out for the call: it looks at the machine it belongs to.
        let stand_in = crate::algorithm::AlgorithmName::StopAndCopy.start();
        let mut algorithm = std::mem::replace(&mut self.config.algorithm, stand_in);
        let decision = algorithm.next(&self.view(residue, now));
        self.downtime_limit = algorithm.downtime_limit(&self.config.limits);
        self.may_withhold = match algorithm.may_hold_back() {
            true => allowance(&self.view(residue, now), self.downtime_limit),
            false => PageCount::ZERO,
        };
        self.config.algorithm = algorithm;
        match decision {
            Decision::Copy { vcpus, at_most } => {
                self.vcpus = vcpus;
                self.begin_round(at_most, now, effects);
            }
            Decision::Delegate => self.delegate(now, effects),
            Decision::Pause(reason) => {
                let rest =
                    if self.config.algorithm.delegates() { Rest::Native } else { Rest::Sent };
                self.begin_pause(reason, rest, now, effects);
            }
            Decision::HandOver(reason) => self.begin_pause(reason, Rest::Owed, now, effects),
            Decision::GiveUp(reason) => {
                self.stopped = Some(reason);
                let downtime = self.view(residue, now).downtime();
                self.undo(vec![self.not_converging(reason, downtime)], now, effects);
            }
        }
    }

    fn begin_pause(
        &mut self,
        reason: StopReason,
        rest: Rest,
        now: Time,
        effects: &mut Vec<Effect>,
    ) {
        self.stopped = Some(reason);
        self.rest = rest;
        self.enter(State::Pausing, now);
        effects.push(Effect::Pause);
    }

    /// Why a destination that grants this cannot take part, if it cannot.
    fn unfit(&mut self, accept: &Accept) -> Option<Reason> {
        let owes = self.config.algorithm.must_owe(&self.config.limits);
        let granted = accept.codings.contains(&Coding::Owed);
        let detail = format!(
            "the destination cannot let pages follow the guest, which {} needs; use pre-copy with \
             --when-stuck throttle",
            self.config.algorithm.name()
        );
        if !granted {
            self.config.algorithm.cannot_owe();
        }
        if owes && !granted {
            return Some(Reason::new(ReasonCode::Incompatible, detail));
        }
        let delegates = self.config.algorithm.delegates();
        let detail = "the destination does not let the hypervisors copy the guest among themselves, \
                      as native needs; use pre-copy";
        (delegates && !accept.codings.contains(&Coding::Native))
            .then(|| Reason::new(ReasonCode::Incompatible, detail))
    }

    fn not_converging(&self, reason: StopReason, downtime: Duration) -> Reason {
        let slower = match self.config.limits.when_stuck {
            Some(WhenStuck::Throttle) => "",
            None | Some(WhenStuck::Abort | WhenStuck::StopAndCopy | WhenStuck::PostCopy) => {
                " slow the guest down with --when-stuck throttle,"
            }
        };
        let detail = format!(
            "the move would not end within a downtime of {:?}: {}, and pausing now would take about \
             {:?}; allow more with --max-downtime,{slower} or let it pause with --when-stuck \
             stop-and-copy",
            self.downtime_limit,
            reason.as_str(),
            Duration::from_millis(u64::try_from(downtime.as_millis()).unwrap_or(u64::MAX)),
        );
        Reason::new(ReasonCode::NotConverging, detail)
    }

    fn begin_round(&mut self, at_most: Option<Duration>, now: Time, effects: &mut Vec<Effect>) {
        let round = u32::try_from(self.rounds.len()).unwrap_or(u32::MAX);
        self.copying_since.get_or_insert(now);
        let Self { selection, vcpus, may_withhold, .. } = *self;
        effects.push(Effect::CopyRound { round, selection, vcpus, may_withhold, at_most });
        let phase = Phase::Sending { sent: None, received: None };
        self.enter(State::Copying { phase, round_started: now }, now);
    }

    /// Lets the hypervisor copy by itself, or go on with that.
    fn delegate(&mut self, now: Time, effects: &mut Vec<Effect>) {
        if !matches!(self.state, State::Delegated { .. }) {
            self.copying_since = Some(now);
            let slow_down = self.config.limits.when_stuck == Some(WhenStuck::Throttle);
            effects.push(Effect::Delegate { downtime_max: self.downtime_limit, slow_down });
        }
        self.enter(State::Delegated { round_started: now }, now);
    }

    fn enter(&mut self, state: State, now: Time) {
        self.state = state;
        self.entered = now;
    }

    fn undo(&mut self, reasons: Vec<Reason>, now: Time, effects: &mut Vec<Effect>) {
        if let Some(reason) = reasons.first() {
            effects.push(Effect::Send(ToDestination::Abort { reason: reason.clone() }));
        }
        effects.push(Effect::Resume);
        let guest = self.gone.take().map_or(Guest::Here, Guest::Gone);
        self.enter(State::Undoing { reasons, guest, resumed: None }, now);
    }

    fn end(&mut self, ending: Ending, effects: &mut Vec<Effect>) {
        self.state = State::Ended;
        effects.push(Effect::End(ending));
    }
}

/// The record of a move that has been accepted.
fn moving(journal: JournalId) -> SourceRecord {
    SourceRecord::Moving { journal }
}
