//! Whatever fails before commitment, the guest runs on where it was, and says why.

#![allow(clippy::unwrap_used, reason = "functions of a test")]

mod kit;

use kit::cutting::cut_anywhere;
use kit::identities::Cluster;
use kit::proxy::Proxy;
use kit::{
    Record, Site, attempt, busy, goes_on_whole, request, run, run_watched, sites, small,
    the_one_that_runs,
};
use rcgen::SanType;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use sterna_core::algorithm::AlgorithmName;
use sterna_core::destination::Ending as DestinationEnding;
use sterna_core::journal::{DestinationRecord, SourceRecord};
use sterna_core::limits::{Limits, WhenStuck};
use sterna_core::receipt::{Ending, RamCheck, Receipt};
use sterna_core::speed::VcpuSpeed;
use sterna_engine::Watch;
use sterna_engine::identity::{ROLE_URI, USER_URI};
use sterna_engine::source::Move;
use sterna_page::PageCount;
use sterna_proto::message::{Reason, ReasonCode};
use sterna_vmm::synthetic::{Step, SyntheticConfig, SyntheticGuest, WriteRate};

/// The move was undone for `code`, and the guest runs on, whole, and only here.
fn assert_undone(
    receipt: &Receipt,
    code: ReasonCode,
    (a, b): (&Site, &Site),
    guest: &SyntheticGuest,
) {
    let Ending::Undone { reasons } = &receipt.ending else { panic!("{receipt:#?}") };
    assert!(reasons.iter().any(|r| r.code == code), "{reasons:?}");
    assert_runs_here_only(receipt, (a, b), guest);
}

fn assert_runs_here_only(receipt: &Receipt, (a, b): (&Site, &Site), guest: &SyntheticGuest) {
    assert!(guest.is_running(), "the guest runs on at the source: {receipt:#?}");
    assert_eq!(a.host.source_record_of(receipt.attempt), Some(SourceRecord::Undone));
    if let Some(arrived) = b.host.arrived(receipt.attempt) {
        assert!(!arrived.is_running(), "two guests run");
    }
    goes_on_whole(guest);
}

/// After whatever went wrong, a second try works.
fn assert_moves_after_all((a, b): (&Site, &Site), guest: &SyntheticGuest, epoch: u64) {
    let receipt = run(a, &request(a, b.listener.address(), guest, epoch), guest);
    assert_eq!(receipt.ending, Ending::Moved, "{receipt:#?}");
    let report = b.host.arrived(attempt(epoch)).unwrap().check().unwrap();
    assert!(report.is_sound(), "{:?}", report.faults);
}

#[test]
fn a_move_that_is_cancelled_before_it_begins_asks_nobody() {
    let (a, b) = sites();
    let guest = small();
    let watch = Arc::new(Watch::default());
    watch.cancel();
    // Nobody listens there.
    let nowhere = SocketAddr::from(([127, 0, 0, 1], 9));
    let receipt = run_watched(&a, &request(&a, nowhere, &guest, 1), &guest, &watch);
    assert_undone(&receipt, ReasonCode::Cancelled, (&a, &b), &guest);
    assert_moves_after_all((&a, &b), &guest, 2);
}

#[test]
fn a_user_of_the_cluster_cannot_hand_a_guest_over() {
    let cluster = Cluster::new();
    let mut a = Site::new(&cluster, "a");
    let b = Site::new(&cluster, "b");
    let (uri, dns) = (
        |text: String| SanType::URI(text.try_into().unwrap()),
        SanType::DnsName("a".try_into().unwrap()),
    );
    // Not even one whose certificate names a host as well, or has a role that nobody knows.
    for (epoch, role) in [(1, "admin"), (2, "emperor")] {
        let names = [format!("{USER_URI}alice"), format!("{ROLE_URI}{role}")];
        a.identity = cluster.with_names(names.map(uri).into_iter().chain([dns.clone()]).collect());
        let guest = small();
        let receipt = run(&a, &request(&a, b.listener.address(), &guest, epoch), &guest);
        let Ending::Undone { .. } = &receipt.ending else { panic!("{receipt:#?}") };
        assert!(guest.is_running() && b.host.arrived(attempt(epoch)).is_none());
        assert_eq!(b.host.record_of(attempt(epoch)), None);
    }
}

#[test]
fn each_step_that_fails_at_the_source_is_undone_and_can_be_tried_again() {
    for step in [Step::StartTracking, Step::Scan, Step::Pause, Step::Save] {
        let (a, b) = sites();
        let guest = SyntheticGuest::start(busy()).unwrap();
        guest.fail_at(step);
        let receipt = run(&a, &request(&a, b.listener.address(), &guest, 1), &guest);
        assert_undone(&receipt, ReasonCode::Hypervisor, (&a, &b), &guest);
        assert_moves_after_all((&a, &b), &guest, 2);
    }
}

#[test]
fn each_step_that_fails_at_the_destination_is_undone_and_can_be_tried_again() {
    for step in [Step::Load, Step::Activate] {
        let (a, b) = sites();
        let guest = SyntheticGuest::start(busy()).unwrap();
        b.host.fail_at(step);
        let receipt = run(&a, &request(&a, b.listener.address(), &guest, 1), &guest);
        assert_undone(&receipt, ReasonCode::Hypervisor, (&a, &b), &guest);
        let ending = b.host.wait_ended(attempt(1));
        assert!(matches!(ending, Some(DestinationEnding::Discarded(_))), "{ending:?}");
        assert_eq!(b.host.record_of(attempt(1)), Some(DestinationRecord::Refused));
        assert_moves_after_all((&a, &b), &guest, 2);
    }
}

#[test]
fn a_guest_that_cannot_be_resumed_is_not_called_running() {
    let (a, b) = sites();
    let guest = SyntheticGuest::start(busy()).unwrap();
    guest.fail_at(Step::Save);
    guest.fail_at(Step::Resume);
    let receipt = run(&a, &request(&a, b.listener.address(), &guest, 1), &guest);
    assert!(matches!(receipt.ending, Ending::Stuck { .. }), "{receipt:#?}");
}

#[test]
fn a_full_disk_under_the_destinations_journal_gives_the_guest_back() {
    for record in [DestinationRecord::Receiving, DestinationRecord::Owned] {
        let (a, b) = sites();
        let guest = SyntheticGuest::start(busy()).unwrap();
        b.host.fail_record(record);
        let receipt = run(&a, &request(&a, b.listener.address(), &guest, 1), &guest);
        assert_undone(&receipt, ReasonCode::Agent, (&a, &b), &guest);
    }
}

#[test]
fn a_refusal_brings_every_reason_before_anything_starts() {
    let (a, b) = sites();
    let guest = SyntheticGuest::start(busy()).unwrap();
    let reasons = vec![
        Reason::new(ReasonCode::NoRoom, "16 MiB wanted, 1 MiB free"),
        Reason::new(ReasonCode::Incompatible, "no such machine type"),
    ];
    b.host.refuse(reasons.clone());
    let receipt = run(&a, &request(&a, b.listener.address(), &guest, 1), &guest);
    assert_eq!(receipt.ending, Ending::Undone { reasons });
    assert_runs_here_only(&receipt, (&a, &b), &guest);
    assert!(receipt.downtime.is_none());
}

#[test]
fn a_destination_of_another_cluster_gets_nothing_and_gives_nothing() {
    let a = Site::new(&Cluster::new(), "a");
    let b = Site::new(&Cluster::new(), "b");
    let guest = SyntheticGuest::start(busy()).unwrap();
    let receipt = run(&a, &request(&a, b.listener.address(), &guest, 1), &guest);
    assert_undone(&receipt, ReasonCode::LinkLost, (&a, &b), &guest);
    let Ending::Undone { reasons } = &receipt.ending else { unreachable!() };
    assert!(reasons[0].detail.contains("certificate"), "{}", reasons[0].detail);
    assert!(b.host.arrived(attempt(1)).is_none());
}

#[test]
fn a_host_with_another_name_is_not_taken_for_the_destination() {
    let cluster = Cluster::new();
    let (a, c) = (Site::new(&cluster, "a"), Site::new(&cluster, "c"));
    let guest = SyntheticGuest::start(busy()).unwrap();
    let receipt = run(&a, &request(&a, c.listener.address(), &guest, 1), &guest);
    assert_undone(&receipt, ReasonCode::LinkLost, (&a, &c), &guest);
}

#[test]
fn nobody_listening_is_said_so() {
    let (a, b) = sites();
    let guest = SyntheticGuest::start(busy()).unwrap();
    let nobody = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap();
    let receipt = run(&a, &request(&a, nobody, &guest, 1), &guest);
    assert_undone(&receipt, ReasonCode::LinkLost, (&a, &b), &guest);
}

#[test]
fn a_cancel_at_any_stage_before_commitment_is_obeyed() {
    for wait_for in ["copying", "switching over", "preparing"] {
        let (a, b) = sites();
        let guest = SyntheticGuest::start(busy()).unwrap();
        let mut request = request(&a, b.listener.address(), &guest, 1);
        request.bandwidth_bytes_per_second = Some(20 << 20);
        let watch = Arc::new(Watch::default());
        let receipt = std::thread::scope(|scope| {
            let mover = scope.spawn(|| run_watched(&a, &request, &guest, &watch));
            while watch.progress().stage != wait_for && !mover.is_finished() {
                std::thread::sleep(Duration::from_micros(200));
            }
            watch.cancel();
            mover.join().unwrap()
        });
        match receipt.ending {
            // The stage may be over before it was seen; then the cancel came too late.
            Ending::Moved => {
                assert_ne!(wait_for, "copying", "copying takes long enough to be seen");
                assert!(!guest.is_running());
            }
            _ => assert_undone(&receipt, ReasonCode::Cancelled, (&a, &b), &guest),
        }
    }
}

#[test]
fn a_guest_that_writes_faster_than_the_link_is_given_up_by_name_or_paused_with_leave() {
    let (a, b) = sites();
    let config =
        SyntheticConfig { rate: WriteRate::Unlimited, working_set: PageCount(2048), ..busy() };
    let guest = SyntheticGuest::start(config).unwrap();
    let mut slow = request(&a, b.listener.address(), &guest, 1);
    slow.bandwidth_bytes_per_second = Some(8 << 20);
    let receipt = run(&a, &slow, &guest);
    assert_undone(&receipt, ReasonCode::NotConverging, (&a, &b), &guest);
    slow.attempt = attempt(2);
    slow.limits = Limits { when_stuck: Some(WhenStuck::StopAndCopy), ..Limits::default() };
    let receipt = run(&a, &slow, &guest);
    assert_eq!(receipt.ending, Ending::Moved, "{receipt:#?}");
    assert!(b.host.arrived(attempt(2)).unwrap().check().unwrap().is_sound());
}

/// A guest that writes all its pages over and over, and a move of it that cannot converge unless
/// it is slowed down.
fn too_fast(a: &Site, b: &Site) -> (SyntheticGuest, Move) {
    let config = SyntheticConfig {
        rate: WriteRate::BytesPerSecond(60_000_000),
        working_set: PageCount(2048),
        ..busy()
    };
    let guest = SyntheticGuest::start(config).unwrap();
    let mut request = request(a, b.listener.address(), &guest, 1);
    request.bandwidth_bytes_per_second = Some(30 << 20);
    request.limits = Limits {
        when_stuck: Some(WhenStuck::Throttle),
        downtime_max: Duration::from_millis(100),
        ..Limits::default()
    };
    (guest, request)
}

#[test]
fn a_guest_that_writes_faster_than_the_link_converges_when_it_is_slowed_down() {
    let (a, b) = sites();
    let (guest, request) = too_fast(&a, &b);
    let receipt = run(&a, &request, &guest);
    assert_eq!(receipt.ending, Ending::Moved, "{receipt:#?}");
    assert_eq!(receipt.ram_digest, RamCheck::Equal);
    let slowest = receipt.rounds.iter().map(|round| round.vcpus).min().unwrap();
    assert!(slowest < VcpuSpeed::FULL, "{receipt:#?}");
    let held_back: Duration = receipt.rounds.iter().map(|round| round.held_back).sum();
    assert!(held_back > Duration::ZERO, "{receipt:#?}");
    assert!(b.host.arrived(attempt(1)).unwrap().check().unwrap().is_sound());
}

#[test]
fn a_guest_that_was_slowed_down_or_cannot_be_runs_on_at_full_speed() {
    let (a, b) = sites();
    let (guest, request) = too_fast(&a, &b);
    guest.fail_at(Step::SlowDown);
    let receipt = run(&a, &request, &guest);
    assert_undone(&receipt, ReasonCode::Hypervisor, (&a, &b), &guest);
    let watch = Arc::new(Watch::default());
    let again = Move { attempt: attempt(2), ..request };
    let receipt = std::thread::scope(|scope| {
        let mover = scope.spawn(|| run_watched(&a, &again, &guest, &watch));
        while guest.vcpu_percent() == 100 {
            assert!(!mover.is_finished(), "the guest was never slowed down");
            std::thread::sleep(Duration::from_millis(1));
        }
        watch.cancel();
        mover.join().unwrap()
    });
    assert_undone(&receipt, ReasonCode::Cancelled, (&a, &b), &guest);
    assert_eq!(guest.vcpu_percent(), 100);
}

/// A move through a proxy that `spoil`s the link; returns the receipt once both sides have ended.
fn through(
    sites: (&Site, &Site),
    guest: &SyntheticGuest,
    epoch: u64,
    spoil: impl FnOnce(&Proxy),
) -> Receipt {
    let (a, b) = sites;
    let proxy = Proxy::to(b.listener.address());
    spoil(&proxy);
    let request = request(a, proxy.address, guest, epoch);
    proxy.mended_during(|| run(a, &request, guest))
}

/// Bytes that an undisturbed move carries, both directions together, and those sent forward.
fn traffic(sites: (&Site, &Site), guest: &SyntheticGuest) -> (u64, u64) {
    let (a, b) = sites;
    let proxy = Proxy::to(b.listener.address());
    let receipt = run(a, &request(a, proxy.address, guest, 1), guest);
    assert_eq!(receipt.ending, Ending::Moved, "{receipt:#?}");
    (proxy.passed(), proxy.forward())
}

fn exactly_one_runs(receipt: &Receipt, b: &Site, guest: &SyntheticGuest, what: &str) {
    let report = the_one_that_runs(receipt, b, guest, what).check().unwrap();
    assert!(report.is_sound(), "{what}: {:?}", report.faults);
}

#[test]
fn a_link_cut_after_any_number_of_bytes_leaves_exactly_one_guest_running() {
    let (a, b) = sites();
    cut_anywhere((&a, &b), |_, _| {});
}

/// What is about to be recorded when the link is cut, and whether the guest goes all the same.
type CutAt = (AlgorithmName, fn(&Record) -> bool, bool);

#[test]
fn a_link_cut_while_a_record_is_written_leaves_exactly_one_guest_running() {
    use AlgorithmName::{PostCopy, PreCopy};
    use DestinationRecord::{Active, Owing, Owned, Receiving};
    use Record::{Destination, Source};
    let cases: [CutAt; 9] = [
        (PreCopy, |record| matches!(record, Destination(Receiving)), false),
        (PreCopy, |record| matches!(record, Source(SourceRecord::Moving { .. })), false),
        (PreCopy, |record| matches!(record, Destination(Owned)), true),
        (PreCopy, |record| matches!(record, Destination(Active)), true),
        (PreCopy, |record| matches!(record, Source(SourceRecord::Released)), true),
        (PostCopy, |record| matches!(record, Source(SourceRecord::Moving { .. })), false),
        (PostCopy, |record| matches!(record, Destination(Owing)), true),
        (PostCopy, |record| matches!(record, Destination(Active)), true),
        (PostCopy, |record| matches!(record, Source(SourceRecord::Released)), true),
    ];
    for (number, (algorithm, is_it, moves)) in cases.into_iter().enumerate() {
        let (a, b) = sites();
        let guest = small();
        let proxy = Proxy::to(b.listener.address());
        let cut = Arc::new(AtomicBool::new(false));
        for host in [&a.host, &b.host] {
            let (rules, cut) = (Arc::clone(&proxy.rules), Arc::clone(&cut));
            host.at_records(move |record| {
                if is_it(record) && !cut.swap(true, Ordering::SeqCst) {
                    rules.cut();
                }
            });
        }
        let request = Move { algorithm, ..request(&a, proxy.address, &guest, 2) };
        let receipt = proxy.mended_during(|| run(&a, &request, &guest));
        let what = format!("case {number} by {algorithm}");
        assert!(cut.load(Ordering::SeqCst), "{what}: no such record");
        assert_eq!(receipt.ending == Ending::Moved, moves, "{what}: {receipt:#?}");
        exactly_one_runs(&receipt, &b, &guest, &what);
    }
}

#[test]
fn one_flipped_bit_anywhere_never_reaches_the_guest() {
    let (a, b) = sites();
    let (_, forward) = traffic((&a, &b), &small());
    for number in 0..24u64 {
        let guest = small();
        let flip = forward * (2 * number + 1) / 48;
        let receipt = through((&a, &b), &guest, number + 2, |proxy| {
            proxy.rules.flip_at.store(flip, Ordering::SeqCst);
        });
        exactly_one_runs(&receipt, &b, &guest, &format!("bit flipped in byte {flip}"));
    }
}

#[test]
fn strangers_who_talk_nonsense_to_the_listener_do_not_disturb_a_move() {
    use std::io::Write;
    let (a, b) = sites();
    let address: SocketAddr = b.listener.address();
    let _strangers: Vec<_> = (0..8)
        .map(|i: u8| {
            let mut socket = std::net::TcpStream::connect(address).unwrap();
            let _ = socket.write_all(&vec![i; 1000]);
            socket
        })
        .collect();
    let guest = small();
    assert_moves_after_all((&a, &b), &guest, 1);
}
