//! Any event in any state, in any order, at any time: neither machine panics, and neither breaks
//! the rules on which the guarantee rests.
//!
//! A script mixes answers that a well-behaved engine and peer would give, which lead deep into a
//! move, with events out of the blue.

#[path = "machines_take_anything/rules.rs"]
mod rules;

use crate::rules::{
    Step, Which, accept, active, config, joining, look, offer, owing, passed, reason,
    run_destination, run_source, sent,
};
use proptest::prelude::*;
use std::time::Duration;
use sterna_core::algorithm::{ALGORITHMS, AlgorithmName};
use sterna_core::destination::{self, MayHaveRun};
use sterna_core::journal::{self, DestinationRecord};
use sterna_core::source::{self, Found, RoundSent};
use sterna_page::{PageCount, RamDigest, ram_digest};
use sterna_proto::message::{
    Accept, ActivationTimes, Arrival, Coding, Rest, ToDestination, ToSource, Verify,
};

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

fn digests() -> impl Strategy<Value = RamDigest> {
    (0u8..2).prop_map(|byte| ram_digest([Some([byte; 32])]))
}

fn verifies() -> impl Strategy<Value = Verify> {
    prop_oneof![Just(Verify::No), Just(Verify::RamDigest)]
}

fn rests() -> impl Strategy<Value = Rest> {
    prop_oneof![Just(Rest::Sent), Just(Rest::Owed), Just(Rest::Native)]
}

fn founds() -> impl Strategy<Value = Found> {
    prop_oneof![Just(Found::Running), Just(Found::Paused), Just(Found::Gone)]
}

fn to_source() -> impl Strategy<Value = ToSource> {
    prop_oneof![
        1 => Just(ToSource::Accept(accept())),
        1 => Just(ToSource::Refuse { reasons: vec![] }),
        1 => any::<u32>().prop_map(|round| ToSource::RoundReceived { round, lacking: vec![] }),
        1 => proptest::option::of(digests()).prop_map(|digest| ToSource::Ready { digest }),
        2 => Just(active()),
        2 => Just(owing()),
        1 => Just(ToSource::Never { reason: reason() }),
        1 => Just(ToSource::Lost { reason: reason() }),
        1 => Just(ToSource::KeepAlive),
    ]
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
        1 => Just(Event::GiveUp),
        1 => Just(Event::Recorded),
        1 => Just(Event::RecordFailed(reason())),
        1 => Just(Event::Prepared),
        1 => Just(Event::Progress),
        1 => counts.clone().prop_map(|pages| Event::Looked(look(pages))),
        1 => counts.clone().prop_map(|bytes| Event::RoundSent(sent(bytes).into())),
        1 => counts.clone().prop_map(|pages| Event::Scanned(PageCount(pages))),
        2 => counts.prop_map(|left| Event::RoundPassed(passed(left).into())),
        1 => Just(Event::Paused),
        1 => Just(Event::RestSent(RoundSent::default().into())),
        1 => Just(Event::StateSent),
        1 => digests().prop_map(Event::Digest),
        1 => Just(Event::Resumed),
        1 => Just(Event::ResumeFailed(reason())),
        1 => Just(Event::Released),
        1 => Just(Event::Serving),
        1 => Just(Event::ServingFailed(reason())),
        1 => Just(Event::Failed(reason())),
        1 => Just(Event::GuestGone(reason())),
    ]
}

fn to_destination() -> impl Strategy<Value = ToDestination> {
    prop_oneof![
        Just(ToDestination::Offer(Box::new(offer(Verify::No)))),
        ((0u32..3), rests()).prop_map(|(round, rest)| ToDestination::Switchover { round, rest }),
        Just(ToDestination::PagesLost { reason: reason() }),
        Just(ToDestination::Commit),
        Just(ToDestination::Abort { reason: reason() }),
        Just(ToDestination::Query),
        Just(ToDestination::Farewell),
        Just(ToDestination::KeepAlive),
    ]
}

fn lacking() -> impl Strategy<Value = Vec<(u64, u64)>> {
    prop_oneof![4 => Just(vec![]), 1 => any::<(u64, u64)>().prop_map(|run| vec![run])]
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
        1 => (any::<u32>(), lacking()).prop_map(|(round, lacking)| Event::RoundReceived { round, lacking }),
        1 => Just(Event::StateReceived),
        1 => Just(Event::Serving(joining())),
        1 => Just(Event::StreamsUp),
        1 => Just(Event::AllHere(Arrival::default())),
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

fn records() -> impl Strategy<Value = Option<DestinationRecord>> {
    use journal::DestinationRecord::{Active, Lost, Owing, Owned, Receiving, Refused};
    proptest::option::of(prop_oneof![
        Just(Receiving),
        Just(Owned),
        Just(Owing),
        Just(Active),
        Just(Lost),
        Just(Refused),
    ])
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
        algorithm in (0..ALGORITHMS.len()).prop_map(|index| ALGORITHMS[index]),
        recovered in proptest::option::weighted(0.2, founds()),
        script in steps(source_events()),
    ) {
        run_source(config(verify, algorithm), recovered, script);
    }

    #[test]
    fn the_destination_neither_activates_unrecorded_nor_says_never_too_early(
        verify in verifies(),
        rest in rests(),
        recovered in proptest::option::weighted(0.2, (records(), founds())),
        script in steps(destination_events()),
    ) {
        run_destination(verify, rest, recovered, script);
    }
}

#[test]
fn answers_alone_lead_both_machines_to_a_good_end() {
    for algorithm in ALGORITHMS {
        let config = config(Verify::No, algorithm);
        let (rules, machine) = run_source(config, None, vec![Step::Answer(Which::Oldest); 60]);
        assert!(rules.active && rules.ended, "{machine:?}");
    }
    for rest in [Rest::Sent, Rest::Owed, Rest::Native] {
        let script = vec![Step::Answer(Which::Oldest); 60];
        let (rules, machine) = run_destination(Verify::RamDigest, rest, None, script);
        assert!(rules.owned && rules.ended, "{machine:?}");
    }
}

#[test]
fn a_guest_whose_last_round_lacks_pages_is_not_taken_and_one_that_got_them_is() {
    let lacking = destination::Event::RoundReceived { round: 0, lacking: vec![(3, 1)] };
    let state = destination::Event::StateReceived;
    let switchover = |round| {
        let rest = Rest::Sent;
        destination::Event::Message(ToDestination::Switchover { round, rest })
    };
    let receiving = || vec![Step::Answer(Which::Oldest), Step::Answer(Which::Oldest)];
    let mut script = receiving();
    script.extend([lacking.clone(), state.clone(), switchover(0)].map(Step::Event));
    script.push(Step::Wait(Duration::ZERO));
    let (rules, machine) = run_destination(Verify::No, Rest::Sent, None, script);
    assert!(!rules.owned && !rules.taken, "{machine:?}");

    let resent = destination::Event::RoundReceived { round: 1, lacking: vec![] };
    let mut script = receiving();
    script.extend([lacking, resent, state, switchover(1)].map(Step::Event));
    script.push(Step::Wait(Duration::ZERO));
    let (rules, machine) = run_destination(Verify::No, Rest::Sent, None, script);
    assert!(rules.taken, "{machine:?}");
}

#[test]
fn a_destination_that_does_not_grant_what_the_algorithm_needs_has_the_move_undone_at_once() {
    for algorithm in [AlgorithmName::Native, AlgorithmName::PostCopy] {
        let granted = Accept { codings: vec![Coding::Raw], ..accept() };
        let accepted = source::Event::Message(ToSource::Accept(granted));
        let mut script = vec![Step::Wait(Duration::ZERO), Step::Event(accepted)];
        script.extend(vec![Step::Answer(Which::Newest); 4]);
        let (rules, machine) = run_source(config(Verify::No, algorithm), None, script);
        assert!(rules.ended && !rules.active, "{machine:?}");
    }
}

#[test]
fn what_the_destination_lacks_was_not_written_by_the_guest() {
    use source::Event::{Looked, Message, Prepared, Recorded, RoundSent, Scanned};
    let received = ToSource::RoundReceived { round: 0, lacking: vec![(3, 2), (9, 5)] };
    let events = [
        Message(ToSource::Accept(accept())),
        Recorded,
        Prepared,
        Looked(look(1)),
        RoundSent(sent(4096).into()),
        Message(received),
        Scanned(PageCount(10)),
    ];
    let mut script = vec![Step::Wait(Duration::ZERO)];
    script.extend(events.into_iter().flat_map(|e| [Step::Event(e), Step::Wait(Duration::ZERO)]));
    let config = config(Verify::No, AlgorithmName::PreCopy);
    assert!(config.offer.layout.pages().0 > 7);
    let (_, machine) = run_source(config, None, script);
    let round = machine.rounds()[0];
    assert_eq!((round.lacking, round.dirtied), (PageCount(7), PageCount(3)));
}
