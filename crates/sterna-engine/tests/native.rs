//! Synthetic hypervisors copy their guest among themselves, over real sockets and TLS: whatever fails,
//! exactly one guest runs.

#![allow(clippy::unwrap_used, reason = "functions of a test")]

mod kit;

use kit::proxy::Proxy;
use kit::{
    Site, attempt, busy, goes_on_whole, request, run, run_watched, sites, small, the_one_that_runs,
};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use sterna_core::algorithm::AlgorithmName;
use sterna_core::limits::{Limits, WhenStuck};
use sterna_core::receipt::{Ending, RamCheck, Receipt, StopReason};
use sterna_engine::Watch;
use sterna_engine::source::Move;
use sterna_page::PageCount;
use sterna_proto::message::{Coding, NativeMode, ReasonCode};
use sterna_vmm::synthetic::{Step, SyntheticConfig, SyntheticGuest, WriteRate};

fn natively(from: &Site, to: SocketAddr, guest: &SyntheticGuest, epoch: u64) -> Move {
    let mut request = request(from, to, guest, epoch);
    request.to_name = "127.0.0.1".try_into().unwrap();
    request.algorithm = AlgorithmName::Native;
    request.offer.codings.push(Coding::Native);
    request.offer.native = Some(NativeMode::PreCopy);
    request
}

fn exactly_one_runs(receipt: &Receipt, b: &Site, guest: &SyntheticGuest, what: &str) {
    // The destination may be told later than the source.
    b.host.wait_ended(receipt.attempt);
    goes_on_whole(&the_one_that_runs(receipt, b, guest, what));
}

fn code(receipt: &Receipt) -> ReasonCode {
    match &receipt.ending {
        Ending::Undone { reasons } => reasons[0].code,
        _ => panic!("{receipt:#?}"),
    }
}

#[test]
fn a_busy_guest_goes_there_and_back_natively() {
    let (a, b) = sites();
    let mut guest = SyntheticGuest::start(busy()).unwrap();
    for epoch in 1..=6 {
        let (from, to) = if epoch % 2 == 1 { (&a, &b) } else { (&b, &a) };
        let receipt = run(from, &natively(from, to.listener.address(), &guest, epoch), &guest);
        assert_eq!(receipt.ending, Ending::Moved, "{receipt:#?}");
        assert_eq!(receipt.ram_digest, RamCheck::Equal);
        assert_eq!(receipt.stopped, Some(StopReason::ByHypervisor));
        assert_eq!(receipt.native_mode, Some(NativeMode::PreCopy));
        let pages = PageCount(receipt.rounds.iter().map(|round| round.pages.raw.0).sum());
        assert!(pages >= busy().populated, "{receipt:#?}");
        assert!(receipt.wire.sockets > pages.bytes(), "TLS adds to it");
        assert!(receipt.downtime.unwrap().total < receipt.total);
        exactly_one_runs(&receipt, to, &guest, "a move without trouble");
        guest = to.host.arrived(attempt(epoch)).unwrap();
    }
}

#[test]
fn a_link_cut_after_any_number_of_bytes_leaves_exactly_one_guest_running() {
    let (a, b) = sites();
    let proxy = Proxy::to(b.listener.address());
    let receipt = run(&a, &natively(&a, proxy.address, &small(), 1), &small());
    assert_eq!(receipt.ending, Ending::Moved, "{receipt:#?}");
    let total = proxy.passed();
    let mut moved = 0;
    for step in 0..30 {
        let guest = small();
        // The last one is not cut.
        let bytes = if step < 29 { total * step / 28 } else { u64::MAX };
        let proxy = Proxy::to(b.listener.address());
        proxy.rules.cut_after.store(bytes, Ordering::SeqCst);
        let request = natively(&a, proxy.address, &guest, step + 2);
        let receipt = proxy.mended_during(|| run(&a, &request, &guest));
        moved += u32::from(receipt.ending == Ending::Moved);
        // Of a move that never reached it the destination knows nothing.
        if bytes > total / 4 {
            exactly_one_runs(&receipt, &b, &guest, &format!("cut after {bytes} of {total}"));
        } else {
            assert!(guest.is_running(), "cut after {bytes} of {total}: {receipt:#?}");
        }
    }
    assert!(moved > 0 && moved < 30, "{moved} of 30 moves went through");
}

#[test]
fn a_step_that_fails_undoes_the_move_and_the_next_one_succeeds() {
    for (step, at_source) in [
        (Step::BeginNative, true),
        (Step::Pause, true),
        (Step::FinishNative, true),
        (Step::AwaitNative, false),
    ] {
        let (a, b) = sites();
        let guest = SyntheticGuest::start(busy()).unwrap();
        if at_source {
            guest.fail_at(step);
        } else {
            b.host.fail_at(step);
        }
        let receipt = run(&a, &natively(&a, b.listener.address(), &guest, 1), &guest);
        assert_eq!(code(&receipt), ReasonCode::Hypervisor, "{step:?}: {receipt:#?}");
        exactly_one_runs(&receipt, &b, &guest, &format!("{step:?}"));
        let receipt = run(&a, &natively(&a, b.listener.address(), &guest, 2), &guest);
        assert_eq!(receipt.ending, Ending::Moved, "after {step:?}: {receipt:#?}");
        exactly_one_runs(&receipt, &b, &guest, &format!("after {step:?}"));
    }
}

#[test]
fn a_cancel_while_the_hypervisor_copies_is_obeyed() {
    let (a, b) = sites();
    let guest = SyntheticGuest::start(busy()).unwrap();
    let mut request = natively(&a, b.listener.address(), &guest, 1);
    request.bandwidth_bytes_per_second = Some(4 << 20);
    let watch = Arc::new(Watch::default());
    let receipt = std::thread::scope(|scope| {
        let mover = scope.spawn(|| run_watched(&a, &request, &guest, &watch));
        while watch.progress().ram_done_bytes == 0 {
            assert!(!mover.is_finished(), "it was over before it was seen");
            std::thread::sleep(Duration::from_millis(1));
        }
        watch.cancel();
        mover.join().unwrap()
    });
    assert_eq!(code(&receipt), ReasonCode::Cancelled);
    exactly_one_runs(&receipt, &b, &guest, "cancelled");
}

#[test]
fn a_guest_that_writes_faster_than_the_link_is_given_up_by_name_or_paused_with_leave() {
    let (a, b) = sites();
    let config =
        SyntheticConfig { rate: WriteRate::Unlimited, working_set: PageCount(2048), ..busy() };
    let guest = SyntheticGuest::start(config).unwrap();
    let mut slow = natively(&a, b.listener.address(), &guest, 1);
    slow.bandwidth_bytes_per_second = Some(12 << 20);
    let receipt = run(&a, &slow, &guest);
    assert_eq!(code(&receipt), ReasonCode::NotConverging);
    exactly_one_runs(&receipt, &b, &guest, "given up");
    slow.attempt = attempt(2);
    slow.limits = Limits { when_stuck: Some(WhenStuck::StopAndCopy), ..Limits::default() };
    let receipt = run(&a, &slow, &guest);
    assert_eq!(receipt.ending, Ending::Moved, "{receipt:#?}");
    assert_eq!(receipt.stopped, Some(StopReason::NoProgress));
    exactly_one_runs(&receipt, &b, &guest, "paused with leave");
}

#[test]
fn a_destination_that_does_not_grant_it_has_the_move_undone_at_once() {
    let (a, b) = sites();
    let guest = SyntheticGuest::start(busy()).unwrap();
    let mut request = natively(&a, b.listener.address(), &guest, 1);
    request.offer.native = Some(NativeMode::Unknown);
    let receipt = run(&a, &request, &guest);
    assert_eq!(code(&receipt), ReasonCode::Incompatible);
    assert!(receipt.rounds.is_empty(), "{receipt:#?}");
    exactly_one_runs(&receipt, &b, &guest, "not granted");
}
