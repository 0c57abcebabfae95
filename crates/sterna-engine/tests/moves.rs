//! Synthetic guests move over real sockets and TLS, and arrive whole.

#![allow(clippy::unwrap_used, reason = "functions of a test")]

mod kit;

use kit::{Site, attempt, busy, full_of, request, run, sites};
use std::sync::Arc;
use std::time::Duration;
use sterna_core::algorithm::AlgorithmName;
use sterna_core::journal::{DestinationRecord, SourceRecord};
use sterna_core::receipt::{Ending, RamCheck, Receipt, StopReason};
use sterna_core::working_set::HoldBack;
use sterna_page::PageCount;
use sterna_proto::message::Coding;
use sterna_vmm::synthetic::{Content, SyntheticConfig, SyntheticGuest, WriteRate};

/// Moves `guest` from `a` to `b` and checks everything that must hold after any move.
fn moved(a: &Site, b: &Site, guest: &SyntheticGuest, epoch: u64) -> SyntheticGuest {
    let mut request = request(a, b.listener.address(), guest, epoch);
    request.to_name = "127.0.0.1".try_into().unwrap();
    let receipt = run(a, &request, guest);
    assert_eq!(receipt.ending, Ending::Moved, "{receipt:#?}");
    assert_eq!(receipt.ram_digest, RamCheck::Equal);
    assert!(!guest.is_running(), "the source was released");
    assert_eq!(a.host.source_record_of(attempt(epoch)), Some(SourceRecord::Released));
    // The destination says so first and records after that.
    b.host.wait_ended(attempt(epoch));
    assert_eq!(b.host.record_of(attempt(epoch)), Some(DestinationRecord::Active));
    let arrived = b.host.arrived(attempt(epoch)).expect("the guest is at the destination");
    assert!(arrived.is_running());
    arrived
}

#[test]
fn a_busy_guest_goes_there_and_back_many_times() {
    let (a, b) = sites();
    let mut guest = SyntheticGuest::start(busy()).unwrap();
    for epoch in 1..=10 {
        let (from, to) = if epoch % 2 == 1 { (&a, &b) } else { (&b, &a) };
        guest = moved(from, to, &guest, epoch);
        let report = guest.check().unwrap();
        assert!(report.is_sound(), "move {epoch}: {:?}", report.faults);
    }
}

#[test]
fn the_receipt_tells_every_round_and_why_they_ended() {
    let (a, b) = sites();
    let guest = SyntheticGuest::start(busy()).unwrap();
    let request = request(&a, b.listener.address(), &guest, 1);
    let receipt = run(&a, &request, &guest);
    assert_eq!(receipt.stopped, Some(StopReason::GoalReached), "{receipt:#?}");
    assert!(receipt.rounds.len() >= 2, "at least one live round and the one after the pause");
    let first = &receipt.rounds[0];
    assert_eq!(first.pages.raw + first.pages.zero, busy().populated);
    assert!(first.bytes >= first.pages.raw.bytes());
    let sent: u64 = receipt.rounds.iter().map(|r| r.bytes).sum();
    assert!(receipt.wire.payload > sent, "the device state counts");
    assert!(receipt.wire.sockets > receipt.wire.payload, "TLS adds to it");
    let downtime = receipt.downtime.expect("the guest was paused");
    assert!(downtime.total > Duration::ZERO && downtime.total < receipt.total);
    assert!(downtime.state_bytes > 0);
    let json = serde_json::to_string(&receipt).unwrap();
    assert!(json.contains("\"ram_digest\":\"equal\"") && json.contains("\"result\":\"moved\""));
    let back: sterna_core::receipt::Receipt = serde_json::from_str(&json).unwrap();
    assert_eq!(back.rounds.len(), receipt.rounds.len());
}

#[test]
fn memory_that_was_never_touched_costs_nothing() {
    let (a, b) = sites();
    let config = SyntheticConfig {
        pages: PageCount(1 << 20),
        populated: PageCount(512),
        working_set: PageCount(64),
        ..busy()
    };
    let guest = SyntheticGuest::start(config).unwrap();
    let request = request(&a, b.listener.address(), &guest, 1);
    let receipt = run(&a, &request, &guest);
    assert_eq!(receipt.ending, Ending::Moved, "{receipt:#?}");
    assert!(receipt.wire.sockets < 16 << 20, "4 GiB of RAM, 2 MiB of it in use");
    let arrived = b.host.arrived(attempt(1)).unwrap();
    let existing = arrived.check().unwrap().existing;
    assert!(existing <= PageCount(512), "{existing:?} exist at the destination");
    let at_source = sterna_vmm::Source::populated(&guest.source()).unwrap().count();
    assert!(at_source <= PageCount(512), "reading made {at_source:?} pages exist at the source");
}

#[test]
fn zero_pages_are_sent_as_numbers_and_not_allocated() {
    let (a, b) = sites();
    let config = SyntheticConfig { content: Content::Zero, rate: WriteRate::Idle, ..busy() };
    let guest = SyntheticGuest::start(config).unwrap();
    moved(&a, &b, &guest, 1);
}

#[test]
fn stop_and_copy_needs_one_round() {
    let (a, b) = sites();
    let guest = SyntheticGuest::start(busy()).unwrap();
    let mut request = request(&a, b.listener.address(), &guest, 1);
    request.algorithm = AlgorithmName::StopAndCopy;
    let receipt = run(&a, &request, &guest);
    assert_eq!(receipt.ending, Ending::Moved, "{receipt:#?}");
    assert_eq!(receipt.rounds.len(), 1);
    assert_eq!(receipt.ram_digest, RamCheck::Equal);
    let report = b.host.arrived(attempt(1)).unwrap().check().unwrap();
    assert!(report.is_sound(), "{:?}", report.faults);
}

#[test]
fn any_number_of_streams_and_blocks_arrives_whole() {
    for (streams, blocks, epoch) in [(1, 1, 1), (3, 2, 2), (8, 3, 3)] {
        let (a, b) = sites();
        let config = SyntheticConfig { blocks, writers: 2, ..busy() };
        let guest = SyntheticGuest::start(config).unwrap();
        let mut request = request(&a, b.listener.address(), &guest, epoch);
        request.offer.streams = streams;
        let receipt = run(&a, &request, &guest);
        assert_eq!(receipt.ending, Ending::Moved, "{receipt:#?}");
        assert_eq!(receipt.streams, streams);
        let report = b.host.arrived(attempt(epoch)).unwrap().check().unwrap();
        assert!(report.is_sound(), "{streams} streams: {:?}", report.faults);
    }
}

#[test]
fn pages_given_back_during_the_move_are_gone_at_the_destination() {
    let (a, b) = sites();
    let config = SyntheticConfig { rate: WriteRate::Idle, ..busy() };
    let guest = SyntheticGuest::start(config).unwrap();
    let mut request = request(&a, b.listener.address(), &guest, 1);
    // Slow enough for the guest to give pages back after they were sent.
    request.bandwidth_bytes_per_second = Some(8 << 20);
    let watch = Arc::new(sterna_engine::Watch::default());
    let receipt = std::thread::scope(|scope| {
        let mover = scope.spawn(|| kit::run_watched(&a, &request, &guest, &watch));
        while watch.progress().ram_done_bytes < 4 << 20 && !mover.is_finished() {
            std::thread::sleep(Duration::from_millis(5));
        }
        guest.balloon(sterna_page::PageRun::new(300, 200)).unwrap();
        mover.join().unwrap()
    });
    assert_eq!(receipt.ending, Ending::Moved, "{receipt:#?}");
    assert_eq!(receipt.ram_digest, RamCheck::Equal);
    let arrived = b.host.arrived(attempt(1)).unwrap();
    let report = arrived.check().unwrap();
    assert!(report.is_sound(), "{:?}", report.faults);
    assert!(report.existing <= PageCount(busy().populated.0 - 200));
}

#[test]
fn pages_written_again_before_their_turn_wait_for_a_later_round() {
    let (a, b) = sites();
    let config = SyntheticConfig {
        working_set: PageCount(2048),
        rate: WriteRate::BytesPerSecond(4 << 20),
        ..busy()
    };
    let guest = SyntheticGuest::start(config).unwrap();
    let mut request = request(&a, b.listener.address(), &guest, 1);
    // A first round of one second, in which the guest writes half of its pages.
    request.bandwidth_bytes_per_second = Some(8 << 20);
    let receipt = run(&a, &request, &guest);
    assert_eq!(receipt.ending, Ending::Moved, "{receipt:#?}");
    assert_eq!(receipt.ram_digest, RamCheck::Equal);
    let first = receipt.rounds[0].pages;
    assert!(first.postponed > PageCount::ZERO, "{receipt:#?}");
    assert_eq!(first.raw + first.zero + first.postponed, busy().populated);
    assert!(b.host.arrived(attempt(1)).unwrap().check().unwrap().is_sound());
}

/// A move over a link on which coding pays, as far as there is something to code.
fn coded(content: Content) -> Receipt {
    let (a, b) = sites();
    let guest = SyntheticGuest::start(full_of(content)).unwrap();
    let mut request = request(&a, b.listener.address(), &guest, 1);
    request.offer.codings.push(Coding::Coded);
    request.bandwidth_bytes_per_second = Some(10 << 20);
    let receipt = run(&a, &request, &guest);
    assert_eq!(receipt.ending, Ending::Moved, "{receipt:#?}");
    assert_eq!(receipt.ram_digest, RamCheck::Equal);
    assert!(b.host.arrived(attempt(1)).unwrap().check().unwrap().is_sound());
    receipt
}

#[test]
fn pages_that_can_be_coded_go_in_fewer_bytes() {
    let receipt = coded(Content::Text);
    let first = receipt.rounds[0].pages;
    let coded = first.coded;
    assert_eq!(first.raw + coded + first.postponed, PageCount(8192), "{receipt:#?}");
    assert!(coded.0 > 8192 * 3 / 4, "{receipt:#?}");
    assert!(receipt.rounds[0].bytes < coded.bytes() / 2, "{receipt:#?}");
    let all = receipt.rounds.iter().fold(PageCount::ZERO, |all, round| all + round.pages.coded);
    let did = receipt.coders.each();
    let told = did.iter().fold(PageCount::ZERO, |all, (_, coder)| all + coder.pages);
    assert_eq!(told, all, "{receipt:#?}");
    let bytes: u64 = did.iter().map(|(_, coder)| coder.bytes).sum();
    assert!(bytes < receipt.wire.payload, "{receipt:#?}");
}

#[test]
fn pages_that_cannot_be_coded_are_tried_seldom_and_go_as_they_are() {
    let first = coded(Content::Random).rounds[0].pages;
    assert!(first.coded.0 < 8192 / 10, "{first:#?}");
    assert!(first.raw.0 > 8192 * 3 / 4, "{first:#?}");
}

#[test]
fn what_is_rewritten_all_the_time_is_held_back_and_arrives_at_the_pause() {
    for way in [HoldBack::None, HoldBack::Lru, HoldBack::Aged] {
        let (a, b) = sites();
        let guest = SyntheticGuest::start(kit::rewriting()).unwrap();
        let mut request = kit::rewritten(request(&a, b.listener.address(), &guest, 1));
        request.hold_back = way;
        let receipt = run(&a, &request, &guest);
        assert_eq!(receipt.ending, Ending::Moved, "{receipt:#?}");
        assert_eq!(receipt.ram_digest, RamCheck::Equal);
        assert!(b.host.arrived(attempt(1)).unwrap().check().unwrap().is_sound());
        let [first, rounds @ .., last] = &receipt.rounds[..] else { panic!("{receipt:#?}") };
        assert_eq!(first.pages.withheld, PageCount::ZERO, "the link's speed is not known yet");
        assert_eq!(last.pages.withheld, PageCount::ZERO, "{receipt:#?}");
        let withheld = rounds.last().map_or(PageCount::ZERO, |round| round.pages.withheld);
        assert_eq!(withheld == PageCount::ZERO, way == HoldBack::None, "{way}: {receipt:#?}");
        assert!(last.pages.raw >= withheld, "{receipt:#?}");
    }
}
