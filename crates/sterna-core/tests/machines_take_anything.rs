//! Any event in any state, in any order, at any time: neither machine panics, and neither breaks
//! the rules on which the guarantee rests.
//!
//! A script mixes answers that a well-behaved engine and peer would give, which lead deep into a
//! move, with events out of the blue.

use proptest::prelude::*;
use std::collections::VecDeque;
use std::time::Duration;
use sterna_core::algorithm::AlgorithmName;
use sterna_core::destination::{self, Destination, MayHaveRun};
use sterna_core::journal::DestinationRecord;
use sterna_core::limits::{Limits, StageLimits};
use sterna_core::receipt::Ending;
use sterna_core::source::{self, Config, Found, RoundSent, Source};
use sterna_core::{Time, journal};
use sterna_page::{PageCount, RamBlock, RamDigest, RamLayout, ram_digest};
use sterna_proto::message::{
    Accept, ActivationTimes, JournalId, Offer, Reason, ReasonCode, ToDestination, ToSource, Verify,
};
use sterna_proto::preamble::MoveToken;

/// One step of a script.
#[derive(Clone, Debug)]
enum Step<E> {
    /// The oldest or newest thing that the machine waits for comes about.
    Answer(Which),
    /// Something happens whether or not the machine waits for it.
    Event(E),
    /// Time passes.
    Wait(Duration),
}

#[derive(Clone, Copy, Debug)]
enum Which {
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

fn steps<E: Clone + std::fmt::Debug + 'static>(
    event: impl Strategy<Value = E> + 'static,
) -> impl Strategy<Value = Vec<Step<E>>> {
    let which = prop_oneof![8 => Just(Which::Oldest), 1 => Just(Which::Newest)];
    let step = prop_oneof![
        12 => which.prop_map(Step::Answer),
        2 => event.prop_map(Step::Event),
        1 => (0u64..40_000).prop_map(|ms| Step::Wait(Duration::from_millis(ms))),
    ];
    proptest::collection::vec(step, 0..80)
}

fn reason() -> Reason {
    Reason::new(ReasonCode::Other, "out of the blue")
}

fn digests() -> impl Strategy<Value = RamDigest> {
    (0u8..2).prop_map(|byte| ram_digest([Some([byte; 32])]))
}

fn verifies() -> impl Strategy<Value = Verify> {
    prop_oneof![Just(Verify::No), Just(Verify::RamDigest)]
}

fn founds() -> impl Strategy<Value = Found> {
    prop_oneof![Just(Found::Running), Just(Found::Paused), Just(Found::Gone)]
}

fn accept() -> Accept {
    Accept {
        journal: JournalId(uuid::Uuid::nil()),
        token: MoveToken([0; 16]),
        streams: 1,
        codings: Vec::new(),
    }
}

fn offer(verify: Verify) -> Offer {
    let block = RamBlock { name: "ram".into(), size_bytes: 1 << 20, host_page_bytes: 4096 };
    Offer {
        name: String::new(),
        layout: RamLayout::new(vec![block]).expect("one block of whole pages"),
        hypervisor: String::new(),
        definition: serde_json::Value::Null,
        algorithm: String::new(),
        codings: Vec::new(),
        streams: 1,
        verify,
    }
}

fn to_source() -> impl Strategy<Value = ToSource> {
    prop_oneof![
        Just(ToSource::Accept(accept())),
        Just(ToSource::Refuse { reasons: vec![] }),
        any::<u32>().prop_map(|round| ToSource::RoundReceived { round }),
        proptest::option::of(digests()).prop_map(|digest| ToSource::Ready { digest }),
        Just(ToSource::Active { times: ActivationTimes::default() }),
        Just(ToSource::Never { reason: reason() }),
        Just(ToSource::Lost { reason: reason() }),
        Just(ToSource::KeepAlive),
    ]
}

fn sent(bytes: u64) -> RoundSent {
    RoundSent { bytes, ..RoundSent::default() }
}

fn source_events() -> impl Strategy<Value = source::Event> {
    use source::Event;
    let counts = prop_oneof![Just(0), Just(u64::MAX), 0u64..1000];
    prop_oneof![
        8 => to_source().prop_map(Event::Message),
        2 => Just(Event::Deadline),
        1 => Just(Event::LinkDown(reason())),
        1 => Just(Event::LinkUp),
        1 => Just(Event::Cancel),
        1 => Just(Event::Recorded),
        1 => Just(Event::RecordFailed(reason())),
        1 => Just(Event::Prepared),
        1 => Just(Event::Progress),
        1 => counts.clone().prop_map(|bytes| Event::RoundSent(sent(bytes))),
        1 => counts.prop_map(|pages| Event::Scanned(PageCount(pages))),
        1 => Just(Event::Paused),
        1 => Just(Event::RestSent(RoundSent::default())),
        1 => Just(Event::StateSent),
        1 => digests().prop_map(Event::Digest),
        1 => Just(Event::Resumed),
        1 => Just(Event::ResumeFailed(reason())),
        1 => Just(Event::Released),
        1 => Just(Event::Failed(reason())),
        1 => Just(Event::GuestGone(reason())),
    ]
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
            due.push(Event::Message(ToSource::Active { times: ActivationTimes::default() }));
        }
        Effect::Send(_) | Effect::CancelTooLate | Effect::InDoubt | Effect::End(_) => {}
        Effect::Reconnect => due.push(Event::LinkUp),
        Effect::Record(_) => due.push(Event::Recorded),
        Effect::Prepare { .. } => due.push(Event::Prepared),
        Effect::CopyRound { round, .. } => {
            due.push(Event::RoundSent(RoundSent::default()));
            due.push(Event::Message(ToSource::RoundReceived { round: *round }));
        }
        Effect::Scan => due.push(Event::Scanned(PageCount(0))),
        Effect::Pause => due.push(Event::Paused),
        Effect::Finish { .. } => {
            due.extend([Event::RestSent(RoundSent::default()), Event::StateSent]);
            due.push(Event::Digest(digest));
        }
        Effect::Resume => due.push(Event::Resumed),
        Effect::Release => due.push(Event::Released),
    }
}

/// What was seen of a source, and what it may do after that.
#[derive(Debug, Default)]
struct SourceRules {
    /// Records that are not answered yet; answers come in this order.
    asked: VecDeque<journal::SourceRecord>,
    undone: bool,
    /// It has committed, or may have, and was not told `Never` since.
    committed: bool,
    active: bool,
    ended: bool,
}

impl SourceRules {
    fn event(&mut self, event: &source::Event) {
        match event {
            source::Event::Message(ToSource::Never { .. }) => self.committed = false,
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

fn run_source(
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

fn to_destination() -> impl Strategy<Value = ToDestination> {
    prop_oneof![
        Just(ToDestination::Offer(Box::new(offer(Verify::No)))),
        (0u32..3).prop_map(|round| ToDestination::Switchover { round }),
        Just(ToDestination::Commit),
        Just(ToDestination::Abort { reason: reason() }),
        Just(ToDestination::Query),
        Just(ToDestination::Farewell),
        Just(ToDestination::KeepAlive),
    ]
}

fn destination_events() -> impl Strategy<Value = destination::Event> {
    use destination::Event;
    let run = prop_oneof![Just(MayHaveRun::No), Just(MayHaveRun::Yes)];
    prop_oneof![
        8 => to_destination().prop_map(Event::Message),
        2 => Just(Event::Deadline),
        1 => Just(Event::LinkDown(reason())),
        1 => Just(Event::LinkUp),
        1 => Just(Event::Cancel),
        1 => Just(Event::Reserved(accept())),
        1 => Just(Event::NotReserved(vec![])),
        1 => Just(Event::Recorded),
        1 => Just(Event::RecordFailed(reason())),
        1 => Just(Event::Progress),
        1 => any::<u32>().prop_map(Event::RoundReceived),
        1 => Just(Event::StateReceived),
        1 => Just(Event::Loaded),
        1 => digests().prop_map(Event::Digest),
        1 => Just(Event::Activated(ActivationTimes::default())),
        1 => run.prop_map(|run| Event::NotActivated { reason: reason(), run }),
        1 => Just(Event::Discarded),
        1 => Just(Event::NotDiscarded(reason())),
        1 => Just(Event::StreamDown(reason())),
        1 => Just(Event::Failed(reason())),
        1 => Just(Event::GuestGone(reason())),
    ]
}

/// What a well-behaved engine and source would make of an effect.
fn destination_answers(effect: &destination::Effect, due: &mut Vec<destination::Event>) {
    use destination::{Effect, Event};
    match effect {
        Effect::Send(ToSource::Accept(_)) => {
            let switchover = ToDestination::Switchover { round: 0 };
            due.extend([Event::RoundReceived(0), Event::StateReceived]);
            due.push(Event::Message(switchover));
        }
        Effect::Send(ToSource::Ready { .. }) => due.push(Event::Message(ToDestination::Commit)),
        Effect::Send(ToSource::Active { .. }) => due.push(Event::Message(ToDestination::Farewell)),
        Effect::Send(_) | Effect::Settle | Effect::End(_) => {}
        Effect::Reserve(_) => due.push(Event::Reserved(accept())),
        Effect::Record(_) => due.push(Event::Recorded),
        Effect::Load => due.push(Event::Loaded),
        Effect::Digest => due.push(Event::Digest(ram_digest([]))),
        Effect::Activate => due.push(Event::Activated(ActivationTimes::default())),
        Effect::Discard => due.push(Event::Discarded),
    }
}

/// What was seen of a destination, and what it may do after that.
#[derive(Debug, Default)]
struct DestinationRules {
    committed: bool,
    /// Records that are not answered yet; answers come in this order.
    asked: VecDeque<DestinationRecord>,
    owned: bool,
    discarding: bool,
    given_up: bool,
    ended: bool,
}

impl DestinationRules {
    fn event(&mut self, event: &destination::Event) {
        use destination::Event;
        match event {
            Event::Message(ToDestination::Commit) => self.committed = true,
            Event::Recorded => match self.asked.pop_front() {
                Some(DestinationRecord::Owned) => self.owned = true,
                Some(DestinationRecord::Refused) => self.given_up = true,
                Some(DestinationRecord::Receiving | DestinationRecord::Active) | None => {}
            },
            Event::RecordFailed(_) => {
                self.asked.pop_front();
            }
            Event::Discarded if self.discarding => self.given_up = true,
            _ => {}
        }
    }

    fn effect(&mut self, effect: &destination::Effect) {
        use destination::Effect;
        assert!(!self.ended, "{effect:?} after the end");
        match effect {
            Effect::Record(record) => {
                let owns = *record == DestinationRecord::Owned;
                assert!(!owns || self.committed && !self.discarding, "owned without Commit");
                self.asked.push_back(*record);
            }
            Effect::Activate => {
                assert!(self.owned && !self.discarding, "activated what is not owned");
            }
            Effect::Discard => self.discarding = true,
            Effect::Send(ToSource::Never { .. }) => assert!(self.given_up, "Never too early"),
            Effect::End(_) => self.ended = true,
            _ => {}
        }
    }
}

fn run_destination(
    verify: Verify,
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
            rules.owned = record == Some(DestinationRecord::Owned);
            Destination::recover(record, found, stages, now, &mut effects)
        }
    };
    for step in script {
        for effect in effects.drain(..) {
            rules.effect(&effect);
            destination_answers(&effect, &mut due);
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

fn config(verify: Verify, algorithm: AlgorithmName) -> Config {
    Config {
        offer: offer(verify),
        algorithm: algorithm.start(),
        limits: Limits::default(),
        stages: StageLimits::default(),
        fixed_downtime: Duration::from_millis(10),
    }
}

fn records() -> impl Strategy<Value = Option<DestinationRecord>> {
    use journal::DestinationRecord::{Active, Owned, Receiving, Refused};
    proptest::option::of(prop_oneof![Just(Receiving), Just(Owned), Just(Active), Just(Refused)])
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 50_000,
        // Scripts are replayed from what is printed; no files beside the tests.
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn the_source_neither_resumes_after_commit_nor_releases_before_active(
        verify in verifies(),
        pre_copy in any::<bool>(),
        recovered in proptest::option::weighted(0.2, founds()),
        script in steps(source_events()),
    ) {
        let algorithm =
            if pre_copy { AlgorithmName::PreCopy } else { AlgorithmName::StopAndCopy };
        run_source(config(verify, algorithm), recovered, script);
    }

    #[test]
    fn the_destination_neither_activates_unrecorded_nor_says_never_too_early(
        verify in verifies(),
        recovered in proptest::option::weighted(0.2, (records(), founds())),
        script in steps(destination_events()),
    ) {
        run_destination(verify, recovered, script);
    }
}

#[test]
fn answers_alone_lead_both_machines_to_a_good_end() {
    let config = config(Verify::No, AlgorithmName::PreCopy);
    let (rules, machine) = run_source(config, None, vec![Step::Answer(Which::Oldest); 60]);
    assert!(rules.active && rules.ended, "{machine:?}");
    let (rules, machine) =
        run_destination(Verify::RamDigest, None, vec![Step::Answer(Which::Oldest); 60]);
    assert!(rules.owned && rules.ended, "{machine:?}");
}
