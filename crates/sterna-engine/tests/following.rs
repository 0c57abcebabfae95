//! Guests that run before all of their pages are here.

#![allow(clippy::unwrap_used, reason = "functions of a test")]

mod kit;

use kit::proxy::Proxy;
use kit::{Site, attempt, busy, goes_on_whole, request, run, sites};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use sterna_core::algorithm::AlgorithmName;
use sterna_core::destination::Ending as DestinationEnding;
use sterna_core::journal::DestinationRecord;
use sterna_core::limits::{Limits, WhenStuck};
use sterna_core::receipt::{Ending, Following, RamCheck, Receipt, StopReason};
use sterna_core::working_set::HoldBack;
use sterna_engine::Host;
use sterna_engine::source::Move;
use sterna_page::PageCount;
use sterna_proto::message::{Coding, Verify};
use sterna_vmm::synthetic::{SyntheticConfig, SyntheticGuest, WriteRate};

/// Slow enough that the guest runs for a while before its last page is there.
const SLOW: u64 = 30_000_000;

fn by(algorithm: AlgorithmName, request: Move) -> Move {
    let mut request = Move { algorithm, ..request };
    request.offer.algorithm = algorithm.to_string();
    request
}

/// The guest was moved, is whole, and goes on writing; what followed it.
fn arrived(b: &Site, receipt: &Receipt) -> (SyntheticGuest, Following) {
    assert_eq!(receipt.ending, Ending::Moved, "{receipt:#?}");
    assert_eq!(receipt.ram_digest, RamCheck::Equal, "{receipt:#?}");
    assert_eq!(b.host.wait_ended(receipt.attempt), Some(DestinationEnding::Active));
    assert_eq!(b.host.record_of(receipt.attempt), Some(DestinationRecord::Active));
    let missing = b.host.missing_pages(receipt.attempt);
    assert!(!missing.exists(), "{} is left behind", missing.display());
    let guest = b.host.arrived(receipt.attempt).unwrap();
    goes_on_whole(&guest);
    (guest, receipt.following.unwrap_or_default())
}

#[test]
fn a_guest_runs_first_and_every_page_follows_it_once() {
    let (a, b) = sites();
    let populated = busy().populated;
    // It writes all over, so it does not find what it wants by chance.
    let config = SyntheticConfig { working_set: populated, ..busy() };
    let guest = SyntheticGuest::start(config).unwrap();
    let mut request = by(AlgorithmName::PostCopy, request(&a, b.listener.address(), &guest, 1));
    request.bandwidth_bytes_per_second = Some(SLOW);
    let receipt = run(&a, &request, &guest);
    let (_, following) = arrived(&b, &receipt);
    assert_eq!(receipt.rounds.len(), 1, "the one at the pause");
    let round = receipt.rounds[0];
    assert_eq!((round.pages.owed, round.pages.raw), (populated, PageCount::ZERO));
    let Following { pages, wanted, waits, .. } = following;
    assert_eq!(pages.raw + pages.zero, populated, "once each");
    assert!(wanted > PageCount::ZERO && wanted.0 <= waits.pages, "{following:?}");
    assert!(waits.median_us <= waits.p99_us && waits.p99_us <= waits.longest_us, "{waits:?}");
}

#[test]
fn what_follows_a_guest_goes_in_fewer_bytes_where_that_is_faster() {
    let (a, b) = sites();
    let guest = SyntheticGuest::start(busy()).unwrap();
    let mut request = by(AlgorithmName::Hybrid, request(&a, b.listener.address(), &guest, 1));
    request.offer.codings.push(Coding::Coded);
    request.bandwidth_bytes_per_second = Some(4_000_000);
    let receipt = run(&a, &request, &guest);
    let (_, following) = arrived(&b, &receipt);
    let first = receipt.rounds[0].pages;
    assert!(first.coded > PageCount::ZERO, "{receipt:#?}");
    let coded = following.pages.coded;
    assert!(coded > PageCount::ZERO && following.bytes < coded.bytes(), "{receipt:#?}");
}

#[test]
fn what_came_in_rounds_and_was_written_again_is_not_seen_at_the_destination() {
    let (a, b) = sites();
    let config = SyntheticConfig { rate: WriteRate::Unlimited, ..busy() };
    let guest = SyntheticGuest::start(config).unwrap();
    let mut request = by(AlgorithmName::Hybrid, request(&a, b.listener.address(), &guest, 1));
    request.limits = Limits { downtime_goal: Duration::ZERO, ..Limits::default() };
    request.bandwidth_bytes_per_second = Some(SLOW);
    let receipt = run(&a, &request, &guest);
    let (_, following) = arrived(&b, &receipt);
    assert_eq!(receipt.stopped, Some(StopReason::FollowingIsCheaper));
    assert!(receipt.rounds[0].pages.raw > PageCount::ZERO, "{receipt:#?}");
    let owed = receipt.rounds.last().unwrap().pages.owed;
    assert!(
        owed > PageCount::ZERO && owed < busy().populated,
        "{owed:?} of {:?}",
        busy().populated
    );
    assert_eq!(following.pages.raw + following.pages.zero, owed);
}

#[test]
fn what_a_round_held_back_is_owed_and_follows() {
    let (a, b) = sites();
    // Slow enough for another round to pay, which is the last that it may make.
    let rate = WriteRate::BytesPerSecond(5_000_000);
    let guest = SyntheticGuest::start(SyntheticConfig { rate, ..kit::rewriting() }).unwrap();
    let request = by(AlgorithmName::Hybrid, request(&a, b.listener.address(), &guest, 1));
    let mut request = Move { hold_back: HoldBack::Aged, ..kit::rewritten(request) };
    request.limits.rounds_max = 2;
    let receipt = run(&a, &request, &guest);
    let (_, following) = arrived(&b, &receipt);
    assert_eq!(receipt.stopped, Some(StopReason::RoundLimit), "{receipt:#?}");
    let [.., round, last] = &receipt.rounds[..] else { panic!("{receipt:#?}") };
    assert!(round.pages.withheld > PageCount::ZERO, "{receipt:#?}");
    assert!(last.pages.owed >= round.pages.withheld, "{receipt:#?}");
    assert_eq!(following.pages.raw + following.pages.zero, last.pages.owed);
}

#[test]
fn a_move_that_is_stuck_hands_over_if_told_to() {
    let (a, b) = sites();
    let config = SyntheticConfig { rate: WriteRate::Unlimited, ..busy() };
    let guest = SyntheticGuest::start(config).unwrap();
    let mut request = request(&a, b.listener.address(), &guest, 1);
    let when_stuck = Some(WhenStuck::PostCopy);
    let downtime_max = Duration::from_millis(20);
    request.limits = Limits { when_stuck, downtime_max, ..Limits::default() };
    request.bandwidth_bytes_per_second = Some(SLOW);
    let receipt = run(&a, &request, &guest);
    let (_, following) = arrived(&b, &receipt);
    assert_eq!(receipt.stopped, Some(StopReason::NoProgress));
    assert!(following.pages.raw > PageCount::ZERO, "{receipt:#?}");
}

#[test]
fn a_guest_goes_there_and_back_by_all_algorithms_in_turn() {
    let (a, b) = sites();
    let mut guest = SyntheticGuest::start(busy()).unwrap();
    let algorithms = [
        AlgorithmName::PostCopy,
        AlgorithmName::PreCopy,
        AlgorithmName::Hybrid,
        AlgorithmName::StopAndCopy,
        AlgorithmName::PostCopy,
        AlgorithmName::PostCopy,
    ];
    for (epoch, algorithm) in (1..).zip(algorithms) {
        let (from, to) = if epoch % 2 == 1 { (&a, &b) } else { (&b, &a) };
        let mut request = by(algorithm, request(from, to.listener.address(), &guest, epoch));
        if epoch % 2 == 0 {
            request.to_name = "a".try_into().unwrap();
        }
        let receipt = run(from, &request, &guest);
        guest = arrived(to, &receipt).0;
    }
}

#[test]
fn a_link_that_is_lost_while_pages_follow_only_makes_the_guest_wait() {
    for verify in [Verify::RamDigest, Verify::No] {
        let (a, b) = sites();
        let proxy = Proxy::to(b.listener.address());
        let guest = SyntheticGuest::start(busy()).unwrap();
        let mut request = by(AlgorithmName::PostCopy, request(&a, proxy.address, &guest, 1));
        request.offer.verify = verify;
        request.bandwidth_bytes_per_second = Some(SLOW / 3);
        let populated = busy().populated.bytes();
        let receipt = std::thread::scope(|scope| {
            let moving = scope.spawn(|| run(&a, &request, &guest));
            for cut in [populated / 4, populated / 2, populated * 3 / 4] {
                let deadline = Instant::now() + Duration::from_secs(60);
                while proxy.forward() < cut && !moving.is_finished() {
                    assert!(Instant::now() < deadline, "{} of {cut} bytes", proxy.forward());
                    std::thread::sleep(Duration::from_millis(1));
                }
                proxy.cut();
                std::thread::sleep(Duration::from_millis(300));
                assert!(!moving.is_finished(), "the move waits for its link");
                proxy.mend();
            }
            moving.join().unwrap()
        });
        assert_eq!(receipt.ending, Ending::Moved, "{receipt:#?}");
        let expected = [RamCheck::NotChecked, RamCheck::Equal];
        assert_eq!(receipt.ram_digest, expected[usize::from(verify == Verify::RamDigest)]);
        assert_eq!(b.host.wait_ended(attempt(1)), Some(DestinationEnding::Active));
        let arrived = b.host.arrived(attempt(1)).unwrap();
        let report = arrived.check().unwrap();
        assert!(report.is_sound(), "{:?}", report.faults);
        let following = receipt.following.unwrap();
        let sent = following.pages.raw + following.pages.zero;
        assert!(sent >= busy().populated, "{following:?}");
        assert!(sent.0 < busy().populated.0 * 11 / 10, "what had come is not sent again");
    }
}

/// Cuts the link after any number of bytes: before the commitment the guest stays, after it the
/// guest goes, and once the link is mended one whole guest runs.
#[test]
fn a_link_cut_after_any_number_of_bytes_leaves_exactly_one_whole_guest() {
    let config = || SyntheticConfig { populated: PageCount(600), ..busy() };
    let total = {
        let (a, b) = sites();
        let proxy = Proxy::to(b.listener.address());
        let guest = SyntheticGuest::start(config()).unwrap();
        let request = by(AlgorithmName::PostCopy, request(&a, proxy.address, &guest, 1));
        arrived(&b, &run(&a, &request, &guest));
        proxy.passed()
    };
    for part in 1..30 {
        let (a, b) = sites();
        let proxy = Proxy::to(b.listener.address());
        let guest = SyntheticGuest::start(config()).unwrap();
        let request = by(AlgorithmName::PostCopy, request(&a, proxy.address, &guest, 1));
        // Most places are before the hand-over, which is where little is sent.
        let cut = if part < 15 { total * part / 400 } else { total * (part - 14) / 16 };
        proxy.rules.cut_after.store(cut.max(1), Ordering::SeqCst);
        let receipt = std::thread::scope(|scope| {
            let moving = scope.spawn(|| run(&a, &request, &guest));
            let deadline = Instant::now() + Duration::from_secs(60);
            while !proxy.rules.down.load(Ordering::SeqCst) && !moving.is_finished() {
                assert!(Instant::now() < deadline, "cut {cut} of {total}");
                std::thread::sleep(Duration::from_millis(1));
            }
            std::thread::sleep(Duration::from_millis(150));
            proxy.mend();
            moving.join().unwrap()
        });
        let whole = match receipt.ending {
            Ending::Moved => b.host.arrived(attempt(1)).unwrap(),
            Ending::Undone { .. } => {
                let there = b.host.arrived(attempt(1));
                assert!(!there.is_some_and(|guest| guest.is_running()), "two run: {receipt:#?}");
                guest
            }
            _ => panic!("{receipt:#?}"),
        };
        assert!(whole.is_running(), "cut {cut} of {total}: {receipt:#?}");
        let report = whole.check().unwrap();
        assert!(report.is_sound(), "cut {cut} of {total}: {:?}", report.faults);
    }
}
