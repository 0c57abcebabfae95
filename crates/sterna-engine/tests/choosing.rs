//! Moves whose algorithm is chosen on the way.

#![allow(clippy::unwrap_used, reason = "functions of a test")]

mod kit;

use kit::identities::Cluster;
use kit::{Site, attempt, request, run, sites};
use rustls::pki_types::ServerName;
use std::time::Duration;
use sterna_core::algorithm::AlgorithmName;
use sterna_core::limits::{Limits, WhenStuck};
use sterna_core::receipt::{Ending, RamCheck, Receipt, StopReason};
use sterna_core::speed::VcpuSpeed;
use sterna_engine::source::Move;
use sterna_engine::{inquire, observe, try_link};
use sterna_page::PageCount;
use sterna_proto::inquiry::Inquiry;
use sterna_proto::message::{Reason, ReasonCode, Verify};
use sterna_vmm::synthetic::{SyntheticConfig, SyntheticGuest, WriteRate};

/// Slow enough that copying once takes longer than the first look.
const SLOW: u64 = 30_000_000;
const PAGES: PageCount = PageCount(8192);

fn guest(bytes_per_second: u64) -> SyntheticGuest {
    SyntheticGuest::start(SyntheticConfig {
        pages: PAGES,
        populated: PAGES,
        working_set: PageCount(6000),
        rate: WriteRate::BytesPerSecond(bytes_per_second),
        ..kit::busy()
    })
    .unwrap()
}

/// Moves a guest that writes so much, by whatever is chosen, and finds it whole.
fn chosen(bytes_per_second: u64, limits: Limits) -> Receipt {
    let (a, b) = sites();
    let guest = guest(bytes_per_second);
    let mut request = request(&a, b.listener.address(), &guest, 1);
    request.offer.verify = Verify::RamDigest;
    let receipt = run(
        &a,
        &Move {
            algorithm: AlgorithmName::Auto,
            bandwidth_bytes_per_second: Some(SLOW),
            limits,
            ..request
        },
        &guest,
    );
    assert_eq!(receipt.ending, Ending::Moved, "{receipt:#?}");
    assert_eq!(receipt.ram_digest, RamCheck::Equal, "{receipt:#?}");
    assert!(b.host.arrived(attempt(1)).unwrap().check().unwrap().is_sound());
    receipt
}

#[test]
fn what_is_seen_of_a_guest_before_its_move_is_what_it_does() {
    let guest = guest(20_000_000);
    let observed = observe(&mut guest.source(), Duration::from_millis(800)).unwrap();
    assert_eq!(observed.existing, PAGES);
    let rate = observed.dirty_bytes_per_second();
    // It may fall behind on a busy machine, and writes some pages twice.
    assert!((1_000_000.0..21_000_000.0).contains(&rate), "{rate}");
    assert!(observed.looks.windows(2).all(|pair| pair[0].pages <= pair[1].pages), "{observed:?}");
    assert!(guest.check().unwrap().is_sound());
    // It is tracked no longer, and can be anew.
    assert!(observe(&mut guest.source(), Duration::from_millis(50)).is_ok());
}

#[test]
fn a_link_can_be_tried_by_those_who_may_move_guests_over_it() {
    let (a, b) = sites();
    let name = ServerName::try_from("b").unwrap();
    for streams in [1, 3] {
        let trial = try_link(b.listener.address(), &name, &a.identity, streams).unwrap();
        assert!(trial.bytes_per_second > 1e6, "{trial:?}");
        assert!(trial.round_trip_us > 0, "{trial:?}");
    }
    let stranger = Site::new(&Cluster::new(), "a");
    let refused = try_link(b.listener.address(), &name, &stranger.identity, 1);
    assert_eq!(refused.unwrap_err().code, ReasonCode::LinkLost);
}

#[test]
fn a_destination_can_be_asked_by_those_who_may_move_guests_to_it() {
    let cluster = Cluster::new();
    let (a, b) = (Site::new(&cluster, "a"), Site::new(&cluster, "b"));
    let name = ServerName::try_from("b").unwrap();
    let offer = request(&a, b.listener.address(), &guest(0), 1).offer;
    let inquiry = Inquiry { attempt: attempt(1), offer };
    let ask = |by: &Site| inquire(b.listener.address(), &name, &by.identity, &inquiry);
    assert_eq!(ask(&a), Ok(vec![]));
    let reasons = vec![
        Reason::new(ReasonCode::NoRoom, "it is full"),
        Reason::new(ReasonCode::Missing, "no such disk"),
    ];
    b.host.refuse(reasons.clone());
    assert_eq!(ask(&a), Ok(reasons));
    let stranger = Site::new(&Cluster::new(), "a");
    assert_eq!(ask(&stranger).unwrap_err().code, ReasonCode::LinkLost);
}

fn methods(receipt: &Receipt) -> Vec<String> {
    receipt.choices.iter().map(|choice| choice.method.to_string()).collect()
}

#[test]
fn a_guest_that_hardly_writes_is_copied_first_and_no_page_of_the_short_round_is_forgotten() {
    let receipt = chosen(1_000_000, Limits::default());
    assert_eq!(methods(&receipt), ["pre-copy"], "{receipt:#?}");
    assert_eq!(receipt.stopped, Some(StopReason::GoalReached));
    let first = receipt.rounds[0].pages;
    assert!(first.unsent > PageCount::ZERO, "{receipt:#?}");
    assert_eq!(first.raw + first.zero + first.postponed + first.unsent, PAGES);
    assert!(receipt.rounds[1].pages.raw + first.raw >= PAGES, "{receipt:#?}");
    let foreseen = receipt.foreseen().unwrap();
    assert!(foreseen.total_us.expected_time() > receipt.choices[0].after, "{foreseen:?}");
}

#[test]
fn a_guest_that_writes_faster_than_the_link_goes_first() {
    let receipt = chosen(200_000_000, Limits::default());
    assert!(methods(&receipt).last().unwrap() != "pre-copy", "{receipt:#?}");
    let following = receipt.following.expect("pages that follow");
    assert!(following.pages.raw > PageCount::ZERO);
    let once = Duration::from_secs_f64(PAGES.bytes() as f64 / SLOW as f64);
    assert!(receipt.total < once * 3, "{:?} where once takes {once:?}", receipt.total);
}

#[test]
fn a_guest_that_may_not_go_first_is_slowed_down() {
    let limits = Limits {
        when_stuck: Some(WhenStuck::Throttle),
        downtime_max: Duration::from_millis(100),
        ..Limits::default()
    };
    let receipt = chosen(200_000_000, limits);
    // Once little is left it may cost the guest less to be paused than to go on slowly.
    assert_eq!(methods(&receipt)[0], "pre-copy with throttle", "{receipt:#?}");
    assert!(receipt.choices.iter().all(|choice| !choice.method.owes()), "{receipt:#?}");
    assert!(receipt.rounds.iter().any(|round| round.vcpus < VcpuSpeed::FULL), "{receipt:#?}");
    assert!(receipt.lost_work() > receipt.downtime.unwrap().total);
}
