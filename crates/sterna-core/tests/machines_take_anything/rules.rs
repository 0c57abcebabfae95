//! A script played to one machine, and the rules that it must keep whatever the script says. Also
//! used by the fuzz targets.

use std::collections::VecDeque;
use std::time::Duration;
use sterna_core::algorithm::AlgorithmName;
use sterna_core::destination::{self, Destination};
use sterna_core::journal::DestinationRecord;
use sterna_core::limits::{Limits, StageLimits};
use sterna_core::prediction::{Look, Surroundings};
use sterna_core::receipt::Ending;
use sterna_core::source::{self, Config, Found, HypervisorRound, RoundSent, Source};
use sterna_core::{Time, journal};
use sterna_page::{PageCount, RamBlock, RamLayout, ram_digest};
use sterna_proto::message::{
    Accept, ActivationTimes, Arrival, Coding, JournalId, Offer, Reason, ReasonCode, Rest,
    ToDestination, ToSource, Verify,
};
use sterna_proto::preamble::MoveToken;

/// One step of a script.
#[derive(Clone, Debug)]
pub(crate) enum Step<E> {
    /// The oldest or newest thing that the machine waits for comes about.
    Answer(Which),
    /// Something happens whether or not the machine waits for it.
    Event(E),
    /// Time passes.
    Wait(Duration),
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Which {
    Oldest,
    Newest,
}

/// Takes one of the outstanding answers.
fn take<E>(due: &mut Vec<E>, which: Which) -> Option<E> {
    match which {
        Which::Oldest if !due.is_empty() => Some(due.remove(0)),
        Which::Oldest | Which::Newest => due.pop(),
    }
}

pub(crate) fn reason() -> Reason {
    Reason::new(ReasonCode::Other, "out of the blue")
}

pub(crate) fn accept() -> Accept {
    Accept {
        journal: JournalId(uuid::Uuid::nil()),
        token: MoveToken([0; 16]),
        streams: 1,
        codings: vec![Coding::Owed, Coding::Native],
    }
}

pub(crate) fn active() -> ToSource {
    ToSource::Active { times: ActivationTimes::default(), arrival: None }
}

pub(crate) fn joining() -> destination::Joining {
    destination::Joining { token: MoveToken([0; 16]), streams: 1 }
}

pub(crate) fn owing() -> ToSource {
    let destination::Joining { token, streams } = joining();
    ToSource::Owing { times: ActivationTimes::default(), token, streams }
}

pub(crate) fn offer(verify: Verify) -> Offer {
    let block = RamBlock { name: "ram".into(), size_bytes: 1 << 20, host_page_bytes: 4096 };
    Offer {
        name: String::new(),
        layout: RamLayout::new(vec![block]).expect("one block of whole pages"),
        hypervisor: String::new(),
        definition: serde_json::Value::Null,
        wishes: None,
        algorithm: String::new(),
        codings: Vec::new(),
        streams: 1,
        verify,
        host_cpu: None,
        native: None,
    }
}

pub(crate) fn look(pages: u64) -> Look {
    Look { after: Duration::from_millis(pages), pages: PageCount(pages) }
}

pub(crate) fn sent(bytes: u64) -> RoundSent {
    RoundSent { bytes, ..RoundSent::default() }
}

/// A round of a hypervisor that copies by itself, which left so many pages.
pub(crate) fn passed(left: u64) -> HypervisorRound {
    HypervisorRound { sent: sent(left), left: PageCount(left), ..HypervisorRound::default() }
}

pub(crate) fn config(verify: Verify, algorithm: AlgorithmName) -> Config {
    Config {
        offer: offer(verify),
        algorithm: algorithm.start(),
        limits: Limits::default(),
        stages: StageLimits::default(),
        fixed_downtime: Duration::from_millis(10),
        surroundings: Surroundings::default(),
        planned: None,
    }
}

/// What a well-behaved engine and destination would make of an effect.
fn source_answers(effect: &source::Effect, due: &mut Vec<source::Event>) {
    use source::{Effect, Event};
    let digest = ram_digest([Some([0; 32])]);
    match effect {
        Effect::Send(ToDestination::Offer(_)) => {
            due.push(Event::Message(ToSource::Accept(accept())));
        }
        Effect::Send(ToDestination::Switchover { .. }) => {
            due.push(Event::Message(ToSource::Ready { digest: Some(digest) }));
        }
        Effect::Send(ToDestination::Commit | ToDestination::Query) => {
            due.push(Event::Message(active()));
        }
        Effect::Send(_)
        | Effect::CancelTooLate
        | Effect::InDoubt
        | Effect::CutOff
        | Effect::End(_) => {}
        Effect::Serve { .. } => due.push(Event::Serving),
        Effect::Reconnect => due.push(Event::LinkUp),
        Effect::Record(_) => due.push(Event::Recorded),
        Effect::Prepare { .. } => due.push(Event::Prepared),
        Effect::CopyRound { round, .. } => {
            due.push(Event::RoundSent(RoundSent::default().into()));
            due.push(Event::Message(ToSource::RoundReceived { round: *round, lacking: vec![] }));
        }
        Effect::Delegate { .. } => {
            due.extend([Event::RoundPassed(passed(100).into()), Event::Paused]);
        }
        Effect::Scan => due.push(Event::Scanned(PageCount(0))),
        Effect::Pause => due.push(Event::Paused),
        Effect::Finish { .. } => {
            due.extend([Event::RestSent(RoundSent::default().into()), Event::StateSent]);
            due.push(Event::Digest(digest));
        }
        Effect::Resume => due.push(Event::Resumed),
        Effect::Release => due.push(Event::Released),
    }
}

/// What was seen of a source, and what it may do after that.
#[derive(Debug, Default)]
pub(crate) struct SourceRules {
    /// Records that are not answered yet; answers come in this order.
    asked: VecDeque<journal::SourceRecord>,
    undone: bool,
    /// It has committed, or may have, and was not told `Never` since.
    committed: bool,
    pub(crate) active: bool,
    /// The destination has said that it owns the guest.
    owing: bool,
    pub(crate) ended: bool,
}

impl SourceRules {
    fn event(&mut self, event: &source::Event) {
        match event {
            source::Event::Message(ToSource::Never { .. }) => self.committed = self.owing,
            source::Event::Message(ToSource::Owing { .. }) => self.owing |= self.committed,
            source::Event::Message(ToSource::Active { .. }) => self.active = true,
            source::Event::Recorded | source::Event::RecordFailed(_) => {
                self.undone |= self.asked.pop_front() == Some(journal::SourceRecord::Undone);
            }
            _ => {}
        }
    }

    fn effect(&mut self, effect: &source::Effect) {
        assert!(!self.ended, "{effect:?} after the end");
        match effect {
            source::Effect::Send(ToDestination::Commit) => self.committed = true,
            source::Effect::Resume => assert!(!self.committed, "resumed after Commit"),
            source::Effect::Release => assert!(self.active, "released before Active"),
            source::Effect::Record(record) => self.asked.push_back(record.clone()),
            source::Effect::End(ending) => {
                assert!(
                    self.undone || !matches!(ending, Ending::Undone { .. }),
                    "undone unrecorded"
                );
                self.ended = true;
            }
            _ => {}
        }
    }
}

pub(crate) fn run_source(
    config: Config,
    recovered: Option<Found>,
    script: Vec<Step<source::Event>>,
) -> (SourceRules, Source) {
    let mut now = Time::default();
    let (mut effects, mut due) = (Vec::new(), Vec::new());
    let mut rules = SourceRules::default();
    let mut machine = match recovered {
        None => Source::start(config, now, &mut effects),
        Some(found) => {
            rules.committed = found != Found::Running;
            Source::recover(config, found, now, &mut effects)
        }
    };
    for step in script {
        for effect in effects.drain(..) {
            rules.effect(&effect);
            source_answers(&effect, &mut due);
        }
        let event = match step {
            Step::Answer(which) => take(&mut due, which),
            Step::Event(event) => Some(event),
            Step::Wait(time) => {
                now = now + time;
                machine.deadline().filter(|d| *d <= now).map(|_| source::Event::Deadline)
            }
        };
        if let Some(event) = event {
            rules.event(&event);
            machine.step(event, now, &mut effects);
        }
    }
    effects.iter().for_each(|effect| rules.effect(effect));
    (rules, machine)
}

/// What a well-behaved engine and source would make of an effect.
fn destination_answers(
    effect: &destination::Effect,
    rest: Rest,
    due: &mut Vec<destination::Event>,
) {
    use destination::{Effect, Event};
    match effect {
        Effect::Send(ToSource::Accept(_)) => {
            let switchover = ToDestination::Switchover { round: 0, rest };
            if rest != Rest::Native {
                let round = Event::RoundReceived { round: 0, lacking: vec![] };
                due.extend([round, Event::StateReceived]);
            }
            due.push(Event::Message(switchover));
        }
        Effect::Send(ToSource::Ready { .. }) => due.push(Event::Message(ToDestination::Commit)),
        Effect::Send(ToSource::Active { .. }) => due.push(Event::Message(ToDestination::Farewell)),
        Effect::Send(ToSource::Owing { .. }) => due.push(Event::AllHere(Arrival::default())),
        Effect::Serve { .. } => due.push(Event::Serving(joining())),
        Effect::Send(_)
        | Effect::Settle
        | Effect::EndServing
        | Effect::Halt
        | Effect::CutOff
        | Effect::End(_) => {}
        Effect::Reserve(_) => due.push(Event::Reserved(accept())),
        Effect::Record(_) => due.push(Event::Recorded),
        Effect::Load | Effect::AwaitNative => due.push(Event::Loaded),
        Effect::Digest => due.push(Event::Digest(ram_digest([]))),
        Effect::Activate => due.push(Event::Activated(ActivationTimes::default())),
        Effect::Discard => due.push(Event::Discarded),
    }
}

/// What was seen of a destination, and what it may do after that.
#[derive(Debug, Default)]
pub(crate) struct DestinationRules {
    committed: bool,
    /// Records that are not answered yet; answers come in this order.
    asked: VecDeque<DestinationRecord>,
    pub(crate) owned: bool,
    discarding: bool,
    given_up: bool,
    /// The source has said that pages follow.
    owes: bool,
    /// The source has said that the hypervisors have copied the guest.
    native: bool,
    loaded: bool,
    hashed: bool,
    switched: bool,
    /// The newest round left pages to the destination that it could not get.
    lacks: bool,
    /// Nothing more may lack.
    pub(crate) taken: bool,
    /// Faults are being served for the guest.
    serves: bool,
    all_here: bool,
    pub(crate) ended: bool,
}

impl DestinationRules {
    fn event(&mut self, event: &destination::Event) {
        use destination::Event;
        match event {
            Event::Message(ToDestination::Commit) => self.committed = true,
            Event::Message(ToDestination::Switchover { rest, .. }) => {
                // A second one is not taken.
                self.owes |= *rest == Rest::Owed && !self.switched;
                self.native |= *rest == Rest::Native && !self.switched;
                self.switched = true;
            }
            Event::Recorded => match self.asked.pop_front() {
                Some(DestinationRecord::Owned | DestinationRecord::Owing) => self.owned = true,
                Some(DestinationRecord::Refused) => self.given_up = true,
                Some(
                    DestinationRecord::Receiving
                    | DestinationRecord::Active
                    | DestinationRecord::Lost,
                )
                | None => {}
            },
            Event::RecordFailed(_) => {
                self.asked.pop_front();
            }
            Event::Discarded if self.discarding => self.given_up = true,
            Event::AllHere(_) => self.all_here = true,
            Event::RoundReceived { lacking, .. } => self.lacks = !lacking.is_empty(),
            Event::Loaded => self.loaded = true,
            Event::Digest(_) => self.hashed |= self.loaded,
            _ => {}
        }
    }

    fn effect(&mut self, effect: &destination::Effect) {
        use destination::Effect;
        assert!(!self.ended, "{effect:?} after the end");
        let takes = matches!(effect, Effect::Serve { .. } | Effect::Load | Effect::Digest);
        if takes && !self.native && !self.taken {
            assert!(self.owned || !self.lacks, "took a guest that lacks pages");
            self.taken = true;
        }
        match effect {
            Effect::Record(record) => {
                let owns = matches!(record, DestinationRecord::Owned | DestinationRecord::Owing);
                assert!(!owns || self.committed && !self.discarding, "owned without Commit");
                self.asked.push_back(*record);
            }
            Effect::Activate => {
                assert!(self.owned && !self.discarding, "activated what is not owned");
            }
            Effect::Discard => self.discarding = true,
            Effect::Serve { .. } => self.serves = true,
            Effect::Load => {
                assert!(self.serves || !self.owes, "loaded while pages are missing");
                assert!(!self.native, "loaded what a hypervisor loads");
            }
            Effect::AwaitNative => assert!(self.native, "waited for what nobody sends"),
            Effect::Digest => assert!(self.loaded || !self.native, "hashed before all had come"),
            Effect::Send(ToSource::Ready { digest }) if self.native => {
                assert!(self.loaded && self.hashed >= digest.is_some(), "Ready too early");
            }
            Effect::EndServing => assert!(self.all_here, "faults are no longer served too early"),
            Effect::Halt => assert!(self.owned, "halted what is not owned"),
            Effect::Send(ToSource::Never { .. }) => assert!(self.given_up, "Never too early"),
            Effect::End(_) => self.ended = true,
            _ => {}
        }
    }
}

pub(crate) fn run_destination(
    verify: Verify,
    rest: Rest,
    recovered: Option<(Option<DestinationRecord>, Found)>,
    script: Vec<Step<destination::Event>>,
) -> (DestinationRules, Destination) {
    let mut now = Time::default();
    let (mut effects, mut due) = (Vec::new(), Vec::new());
    let mut rules = DestinationRules::default();
    let stages = StageLimits::default();
    let mut machine = match recovered {
        None => Destination::start(offer(verify), stages, now, &mut effects),
        Some((record, found)) => {
            let owned = [Some(DestinationRecord::Owned), Some(DestinationRecord::Owing)];
            rules.owned = owned.contains(&record);
            Destination::recover(record, found, stages, now, &mut effects)
        }
    };
    for step in script {
        for effect in effects.drain(..) {
            rules.effect(&effect);
            destination_answers(&effect, rest, &mut due);
        }
        let event = match step {
            Step::Answer(which) => take(&mut due, which),
            Step::Event(event) => Some(event),
            Step::Wait(time) => {
                now = now + time;
                machine.deadline().filter(|d| *d <= now).map(|_| destination::Event::Deadline)
            }
        };
        if let Some(event) = event {
            rules.event(&event);
            machine.step(event, now, &mut effects);
        }
    }
    effects.iter().for_each(|effect| rules.effect(effect));
    (rules, machine)
}
