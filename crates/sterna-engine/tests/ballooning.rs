//! Guests that are asked for memory before a move: what they give is not sent, and whatever becomes
//! of the move they have all of it again.

#![allow(clippy::unwrap_used, reason = "functions of a test")]

mod kit;

use kit::{Site, attempt, busy, goes_on_whole, request, run, run_watched, sites};
use std::sync::Arc;
use sterna_core::algorithm::AlgorithmName;
use sterna_core::balloon::{Balloon, BalloonEnd};
use sterna_core::receipt::{Ending, RamCheck, Receipt};
use sterna_page::PageCount;
use sterna_vmm::Source;
use sterna_vmm::synthetic::{Step, SyntheticConfig, SyntheticGuest};

const MIB: u64 = 1 << 20;
const PAGES_OF_A_MIB: u64 = 256;

/// A guest of 256 MiB, of which 144 exist and one is in use. It can spare all but this one and 64.
fn full_of_caches() -> SyntheticGuest {
    let (pages, populated) = (PageCount(256 * PAGES_OF_A_MIB), PageCount(144 * PAGES_OF_A_MIB));
    SyntheticGuest::start(SyntheticConfig { pages, populated, ..busy() }).unwrap()
}

/// Moves a guest that is asked for memory, in any way.
fn inflated(a: &Site, b: &Site, guest: &SyntheticGuest, algorithm: AlgorithmName) -> Receipt {
    let mut request = request(a, b.listener.address(), guest, 1);
    request.algorithm = algorithm;
    request.balloon = Balloon::Inflate;
    run(a, &request, guest)
}

#[test]
fn what_a_guest_can_spare_is_not_sent_and_is_its_own_again_where_it_arrives() {
    for algorithm in [AlgorithmName::PreCopy, AlgorithmName::PostCopy] {
        let (a, b) = sites();
        let guest = full_of_caches();
        let receipt = inflated(&a, &b, &guest, algorithm);
        assert_eq!(receipt.ending, Ending::Moved, "{receipt:#?}");
        assert_eq!(receipt.ram_digest, RamCheck::Equal);
        let ballooning = receipt.ballooning.expect("it was asked");
        assert_eq!(ballooning.end, BalloonEnd::Reached, "{ballooning:?}");
        assert_eq!(ballooning.asked_bytes, 191 * MIB, "{ballooning:?}");
        assert_eq!(ballooning.given_bytes, 191 * MIB, "{ballooning:?}");
        assert_eq!(ballooning.freed_bytes, (144 - 65) * MIB, "{ballooning:?}");
        assert!(receipt.wire.payload < 80 * MIB, "{receipt:#?}");
        b.host.wait_ended(attempt(1));
        let arrived = b.host.arrived(attempt(1)).unwrap();
        assert_eq!(arrived.in_balloon(), PageCount::ZERO);
        goes_on_whole(&arrived);
    }
}

#[test]
fn a_guest_that_is_not_asked_gives_nothing() {
    let (a, b) = sites();
    let guest = full_of_caches();
    let receipt = run(&a, &request(&a, b.listener.address(), &guest, 1), &guest);
    assert_eq!(receipt.ending, Ending::Moved, "{receipt:#?}");
    assert_eq!(receipt.ballooning, None);
    assert!(receipt.wire.payload > 144 * MIB, "{receipt:#?}");
}

#[test]
fn a_guest_with_nothing_to_spare_moves_all_the_same_and_the_receipt_says_so() {
    let (a, b) = sites();
    let guest = SyntheticGuest::start(busy()).unwrap();
    let receipt = inflated(&a, &b, &guest, AlgorithmName::PreCopy);
    assert_eq!(receipt.ending, Ending::Moved, "{receipt:#?}");
    let ballooning = receipt.ballooning.expect("it was asked");
    assert_eq!((ballooning.asked_bytes, ballooning.given_bytes), (0, 0));
    assert_eq!(ballooning.end, BalloonEnd::NothingToSpare);
}

#[test]
fn a_move_that_fails_anywhere_leaves_the_guest_with_all_its_memory() {
    for step in [Step::AskForMemory, Step::StartTracking, Step::Scan, Step::Pause, Step::Save] {
        let (a, b) = sites();
        let guest = full_of_caches();
        guest.fail_at(step);
        undone_with_all_its_memory(&inflated(&a, &b, &guest, AlgorithmName::PreCopy), &guest);
    }
    for step in [Step::Load, Step::Activate] {
        let (a, b) = sites();
        let guest = full_of_caches();
        b.host.fail_at(step);
        undone_with_all_its_memory(&inflated(&a, &b, &guest, AlgorithmName::PreCopy), &guest);
    }
}

fn undone_with_all_its_memory(receipt: &Receipt, guest: &SyntheticGuest) {
    assert!(matches!(receipt.ending, Ending::Undone { .. }), "{receipt:#?}");
    assert_eq!(guest.in_balloon(), PageCount::ZERO, "{receipt:#?}");
    goes_on_whole(guest);
}

#[test]
fn a_guest_that_gives_nothing_moves_all_the_same_and_the_receipt_says_so() {
    let (a, b) = sites();
    let guest = full_of_caches();
    guest.fail_at(Step::GiveMemory);
    let receipt = inflated(&a, &b, &guest, AlgorithmName::PreCopy);
    assert_eq!(receipt.ending, Ending::Moved, "{receipt:#?}");
    let ballooning = receipt.ballooning.expect("it was asked");
    assert_eq!(ballooning.end, BalloonEnd::Stalled, "{ballooning:?}");
    assert_eq!((ballooning.asked_bytes, ballooning.given_bytes), (191 * MIB, 0));
    assert!(receipt.wire.payload > 144 * MIB, "{receipt:#?}");
}

#[test]
fn a_cancel_does_not_wait_until_the_guest_has_given_all() {
    let (a, b) = sites();
    let guest = full_of_caches();
    let mut request = request(&a, b.listener.address(), &guest, 1);
    request.balloon = Balloon::Inflate;
    let watch = Arc::default();
    let receipt = std::thread::scope(|scope| {
        let mover = scope.spawn(|| run_watched(&a, &request, &guest, &watch));
        while guest.in_balloon() == PageCount::ZERO && !mover.is_finished() {
            std::thread::yield_now();
        }
        watch.cancel();
        mover.join().unwrap()
    });
    undone_with_all_its_memory(&receipt, &guest);
    let ballooning = receipt.ballooning.expect("it was asked");
    assert_eq!(ballooning.end, BalloonEnd::GivenUp, "{ballooning:?}");
    assert!(ballooning.given_bytes < ballooning.asked_bytes, "{ballooning:?}");
}

#[test]
fn another_agent_gives_back_what_one_that_is_gone_had_asked_for() {
    let guest = full_of_caches();
    guest.source().ask_for(100 * MIB).unwrap();
    while guest.source().in_balloon().unwrap() < 100 * MIB {}
    assert_eq!(guest.in_balloon().bytes(), 100 * MIB);
    guest.source().resume().unwrap();
    assert_eq!(guest.in_balloon(), PageCount::ZERO);
    goes_on_whole(&guest);
}
