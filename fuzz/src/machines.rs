//! The two state machines, driven by scripts of any events: a byte a step.
//!
//! The rules that they must keep are those of their own tests.

#[path = "../../crates/sterna-core/tests/machines_take_anything/rules.rs"]
mod rules;

use crate::Verdict;
use rules::{
    Step, Which, accept, active, config, joining, look, offer, owing, passed, reason,
    run_destination, run_source, sent,
};
use std::time::Duration;
use sterna_core::algorithm::ALGORITHMS;
use sterna_core::destination::{self, MayHaveRun};
use sterna_core::journal::DestinationRecord;
use sterna_core::limits::{Limits, Prefer, WhenStuck};
use sterna_core::source::{self, Found};
use sterna_page::{PageCount, RamDigest, ram_digest};
use sterna_proto::message::{ActivationTimes, Arrival, Rest, ToDestination, ToSource, Verify};

/// Steps of a script at most: the longest good move has some forty.
const STEPS_MAX: usize = 256;

/// The source's machine.
pub(crate) fn source(data: &[u8]) -> Verdict {
    let Some(([verify, algorithm, recovered, limit], script)) = data.split_first_chunk() else {
        return Verdict::Refused;
    };
    let mut config = config(verify_of(*verify), *choose(&ALGORITHMS, *algorithm));
    config.limits = limits(*limit);
    let founds = [None, None, None, Some(Found::Running), Some(Found::Paused), Some(Found::Gone)];
    let script = script_of(script, &source_events());
    let (rules, _) = run_source(config, *choose(&founds, *recovered), script);
    Verdict::of(rules.ended)
}

/// The destination's machine.
pub(crate) fn destination(data: &[u8]) -> Verdict {
    let Some(([verify, record, found], script)) = data.split_first_chunk() else {
        return Verdict::Refused;
    };
    use DestinationRecord::{Active, Lost, Owing, Owned, Receiving, Refused};
    let records = [Receiving, Owned, Owing, Active, Lost, Refused].map(Some);
    let records = [&[None][..], &records].concat();
    let rest = *choose(&[Rest::Sent, Rest::Owed, Rest::Native], *verify / 2);
    let founds = [None, None, None, Some(Found::Running), Some(Found::Paused), Some(Found::Gone)];
    let recovered = choose(&founds, *found).map(|found| (*choose(&records, *record), found));
    let script = script_of(script, &destination_events());
    let (rules, _) = run_destination(verify_of(*verify), rest, recovered, script);
    Verdict::of(rules.ended)
}

fn choose<T>(from: &[T], byte: u8) -> &T {
    &from[usize::from(byte) % from.len()]
}

fn verify_of(byte: u8) -> Verify {
    *choose(&[Verify::No, Verify::RamDigest], byte)
}

/// An operator's limits: the usual ones, or such that each is hit at once or never.
fn limits(byte: u8) -> Limits {
    let extreme = |bit: u8, low, high| if byte & bit == 0 { low } else { high };
    if byte == 0 {
        return Limits::default();
    }
    Limits {
        downtime_max: extreme(1, Duration::ZERO, Duration::MAX),
        downtime_goal: extreme(2, Duration::ZERO, Duration::MAX),
        downtime_stretch: (byte & 32 != 0).then_some(Duration::MAX),
        rounds_max: if byte & 4 == 0 { 0 } else { u32::MAX },
        copy_time_max: Some(extreme(8, Duration::ZERO, Duration::MAX)),
        bytes_max: Some(if byte & 16 == 0 { 0 } else { u64::MAX }),
        when_stuck: *choose(
            &[
                None,
                Some(WhenStuck::StopAndCopy),
                Some(WhenStuck::Throttle),
                Some(WhenStuck::PostCopy),
            ],
            byte >> 5,
        ),
        prefer: *choose(&[Prefer::Guest, Prefer::Time, Prefer::Bytes, Prefer::Downtime], byte >> 3),
    }
}

/// Half of all bytes are the answer that is due, which leads deep into a move.
fn script_of<E: Clone>(bytes: &[u8], events: &[E]) -> Vec<Step<E>> {
    let step = |byte: &u8| match byte % 4 {
        0 | 1 => Step::Answer(Which::Oldest),
        2 => Step::Event(choose(events, byte / 4).clone()),
        _ => match byte / 4 {
            0 => Step::Answer(Which::Newest),
            // Up to nine minutes, past every limit of a stage; short steps are the finer ones.
            n => Step::Wait(Duration::from_millis(u64::from(n) * u64::from(n) * 140)),
        },
    };
    bytes.iter().take(STEPS_MAX).map(step).collect()
}

fn digests() -> [RamDigest; 2] {
    [0, 1].map(|byte| ram_digest([Some([byte; 32])]))
}

fn source_events() -> Vec<source::Event> {
    use source::Event;
    let [digest, other] = digests();
    let messages = [
        ToSource::Accept(accept()),
        ToSource::Refuse { reasons: vec![] },
        ToSource::RoundReceived { round: 0, lacking: vec![] },
        ToSource::RoundReceived { round: 1, lacking: vec![(0, u64::MAX)] },
        ToSource::RoundReceived { round: u32::MAX, lacking: vec![] },
        ToSource::Ready { digest: None },
        ToSource::Ready { digest: Some(digest) },
        ToSource::Ready { digest: Some(other) },
        active(),
        owing(),
        ToSource::Never { reason: reason() },
        ToSource::Lost { reason: reason() },
        ToSource::KeepAlive,
    ];
    let mut events: Vec<Event> = messages.map(Event::Message).into();
    events.extend([0, 1, 1 << 30, u64::MAX].map(|bytes| Event::RoundSent(sent(bytes).into())));
    events.extend([0, 1, 256, u64::MAX].map(|pages| Event::Scanned(PageCount(pages))));
    events.extend([0, 1, 256, u64::MAX].map(|pages| Event::Looked(look(pages))));
    events.extend([0, 1, 256, u64::MAX].map(|left| Event::RoundPassed(passed(left).into())));
    events.extend([
        Event::Deadline,
        Event::LinkDown(reason()),
        Event::LinkUp,
        Event::Cancel,
        Event::Recorded,
        Event::RecordFailed(reason()),
        Event::Prepared,
        Event::Progress,
        Event::Paused,
        Event::RestSent(sent(0).into()),
        Event::RestSent(sent(u64::MAX).into()),
        Event::StateSent,
        Event::Digest(digest),
        Event::Digest(other),
        Event::Resumed,
        Event::ResumeFailed(reason()),
        Event::Released,
        Event::Serving,
        Event::ServingFailed(reason()),
        Event::Failed(reason()),
        Event::GuestGone(reason()),
    ]);
    events
}

fn destination_events() -> Vec<destination::Event> {
    use destination::Event;
    let messages = [
        ToDestination::Offer(Box::new(offer(Verify::No))),
        ToDestination::Switchover { round: 0, rest: Rest::Sent },
        ToDestination::Switchover { round: 0, rest: Rest::Owed },
        ToDestination::Switchover { round: 0, rest: Rest::Native },
        ToDestination::Switchover { round: 1, rest: Rest::Sent },
        ToDestination::PagesLost { reason: reason() },
        ToDestination::Commit,
        ToDestination::Abort { reason: reason() },
        ToDestination::Query,
        ToDestination::Farewell,
        ToDestination::KeepAlive,
    ];
    let mut events: Vec<Event> = messages.map(Event::Message).into();
    events.extend(digests().map(Event::Digest));
    events.extend(
        [(0, vec![]), (1, vec![]), (1, vec![(3, 1)]), (u32::MAX, vec![])]
            .map(|(round, lacking)| Event::RoundReceived { round, lacking }),
    );
    let runs = [MayHaveRun::No, MayHaveRun::Yes];
    events.extend(runs.map(|run| Event::NotActivated { reason: reason(), run }));
    events.extend([
        Event::Deadline,
        Event::LinkDown(reason()),
        Event::StreamDown(reason()),
        Event::LinkUp,
        Event::Cancel,
        Event::Reserved(accept()),
        Event::NotReserved(vec![]),
        Event::Recorded,
        Event::RecordFailed(reason()),
        Event::Progress,
        Event::StateReceived,
        Event::Loaded,
        Event::Serving(joining()),
        Event::StreamsUp,
        Event::AllHere(Arrival::default()),
        Event::Activated(ActivationTimes::default()),
        Event::Discarded,
        Event::NotDiscarded(reason()),
        Event::Failed(reason()),
        Event::GuestGone(reason()),
    ]);
    events
}
