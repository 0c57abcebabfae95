//! Moves as they happen: figures in the order of those that were seen on one machine.
#![allow(dead_code, reason = "every user takes some")]

use std::time::Duration;
use sterna_core::algorithm::AlgorithmName;
use sterna_core::limits::Limits;
use sterna_core::receipt::{
    Coded, Downtime, Ending, PagesByCoding, RamCheck, Receipt, Round, StopReason, Tracking,
    WireBytes,
};
use sterna_page::{PAGE_SIZE_BYTES, PageCount};
use sterna_proto::message::{ActivationTimes, AttemptId, Epoch, GuestId, Reason, ReasonCode};
use sterna_report::{About, Measured, MoveReport};
use uuid::Uuid;

pub(crate) fn us(us: u64) -> Duration {
    Duration::from_micros(us)
}

pub(crate) fn about() -> About {
    About {
        title: "Sterna: sample moves".into(),
        host: vec!["2 cores, 24 GB, Linux 6.18".into(), "QEMU 10.0.2, TCG".into()],
        generated: "2025-11-21 10:00 UTC".into(),
        link: "veth pair between two network namespaces, 1 Gbit/s, 0.2 ms".into(),
    }
}

/// A round: number, start and length in µs, pages raw, zero, absent, unchanged, and dirtied.
fn round(number: u32, times: [u64; 2], pages: [u64; 4], dirtied: u64) -> Round {
    let [raw, zero, absent, unchanged] = pages.map(PageCount);
    Round {
        number,
        started: us(times[0]),
        took: us(times[1]),
        pages: PagesByCoding { raw, zero, absent, unchanged, ..PagesByCoding::default() },
        bytes: raw.0 * (PAGE_SIZE_BYTES + 16) + (zero.0 + absent.0 + unchanged.0) / 8,
        dirtied: PageCount(dirtied),
        ..Round::default()
    }
}

fn receipt(ending: Ending) -> Receipt {
    Receipt {
        guest: "demo".into(),
        attempt: AttemptId { guest: GuestId(Uuid::from_u128(7)), epoch: Epoch(3) },
        source: "a".into(),
        destination: "b".into(),
        ending,
        algorithm: AlgorithmName::PreCopy,
        choices: Vec::new(),
        native_mode: None,
        stopped: None,
        limits: Limits::default(),
        streams: 2,
        vcpus: 2,
        ram_bytes: 1 << 30,
        started_unix_ms: 1_763_719_200_000,
        total: us(5_312_000),
        negotiation: us(412_000),
        downtime: None,
        rounds: Vec::new(),
        ballooning: None,
        coders: Coded::default(),
        tracking: Tracking { scans: 12, took: us(3400), ..Tracking::default() },
        following: None,
        wire: WireBytes::default(),
        ram_digest: RamCheck::NotChecked,
    }
}

fn with_wire(mut receipt: Receipt) -> Receipt {
    let state = receipt.downtime.map_or(0, |downtime| downtime.state_bytes);
    let payload = receipt.rounds.iter().map(|round| round.bytes).sum::<u64>() + state;
    let sockets = payload + payload / 100;
    receipt.wire = WireBytes { payload, sockets, interface: Some(sockets + sockets / 30) };
    receipt
}

/// A move that went well, seen from outside as well.
pub(crate) fn moved() -> MoveReport {
    let downtime = Downtime {
        total: us(14_240),
        pause_lead: us(310),
        pause: us(1_120),
        copy: us(4_380),
        save: us(2_960),
        digest: us(0),
        ready: us(4_870),
        commit: us(3_240),
        destination: ActivationTimes {
            load_us: 4_210,
            digest_us: 0,
            record_us: 1_350,
            activate_us: 1_020,
        },
        state_bytes: 312_448,
    };
    let receipt = with_wire(Receipt {
        stopped: Some(StopReason::GoalReached),
        downtime: Some(downtime),
        rounds: vec![
            round(0, [436_000, 4_420_000], [128_412, 96_210, 0, 0], 14_210),
            round(1, [4_861_000, 310_000], [9_812, 220, 64, 4_114], 1_460),
            round(2, [5_176_000, 41_500], [1_210, 8, 0, 242], 312),
            round(3, [5_219_400, 8_400], [240, 0, 0, 72], 74),
            round(4, [5_229_900, 3_100], [61, 0, 0, 13], 31),
            round(5, [5_235_900, 4_350], [29, 0, 118, 64], 0),
        ],
        ..receipt(Ending::Moved)
    });
    let measured = Measured {
        gap_udp: Some(us(15_900)),
        gap_tick: Some(us(14_600)),
        wire_bytes: Some(receipt.wire.sockets + 12_345_678),
        udp_gaps: vec![(us(1_900_000), us(3_400)), (us(5_234_000), us(15_900))],
    };
    MoveReport { receipt, measured: Some(measured) }
}

/// A move that hashed all RAM: the digests are most of the downtime.
pub(crate) fn verified() -> MoveReport {
    let mut report = moved();
    report.measured = None;
    report.receipt.ram_digest = RamCheck::Equal;
    let downtime = report.receipt.downtime.as_mut().expect("it was paused");
    downtime.digest = us(242_000);
    downtime.ready = us(251_300);
    downtime.total = us(502_900);
    downtime.destination.digest_us = 245_000;
    report.receipt.total += us(490_000);
    report
}

/// Pause, copy all, hand over: one round, after the pause.
pub(crate) fn stop_and_copy() -> MoveReport {
    let downtime = Downtime {
        total: us(2_310_000),
        pause: us(900),
        copy: us(2_299_000),
        save: us(3_000),
        ready: us(5_100),
        commit: us(3_900),
        destination: ActivationTimes { load_us: 4_000, record_us: 1_500, ..Default::default() },
        state_bytes: 290_112,
        ..Downtime::default()
    };
    let mut receipt = with_wire(Receipt {
        guest: "db-7".into(),
        algorithm: AlgorithmName::StopAndCopy,
        choices: Vec::new(),
        stopped: Some(StopReason::ByDesign),
        total: us(2_590_000),
        negotiation: us(240_000),
        downtime: Some(downtime),
        rounds: vec![round(0, [262_000, 2_299_000], [65_000, 140_000, 0, 0], 0)],
        ..receipt(Ending::Moved)
    });
    receipt.wire.interface = None;
    MoveReport { receipt, measured: None }
}

/// A guest that writes faster than the link carries.
pub(crate) fn not_converging() -> MoveReport {
    let detail = "the move would not end within a downtime of 300ms: rounds no longer made the \
                  residue smaller, and pausing now would take about 2.1s; allow more with \
                  --max-downtime, or let it pause with --when-stuck stop-and-copy";
    let reasons = vec![Reason::new(ReasonCode::NotConverging, detail)];
    let receipt = with_wire(Receipt {
        guest: "builder".into(),
        stopped: Some(StopReason::NoProgress),
        total: us(19_400_000),
        rounds: vec![
            round(0, [436_000, 8_420_000], [228_412, 26_210, 0, 0], 81_000),
            round(1, [8_860_000, 2_980_000], [80_100, 300, 0, 600], 69_000),
            round(2, [11_842_000, 2_530_000], [68_400, 100, 0, 500], 66_000),
            round(3, [14_375_000, 2_440_000], [65_300, 100, 0, 600], 67_500),
            round(4, [16_817_000, 2_490_000], [66_800, 100, 0, 600], 67_100),
        ],
        ..receipt(Ending::Undone { reasons })
    });
    MoveReport { receipt, measured: None }
}

/// A refusal: nothing was started.
pub(crate) fn refused() -> MoveReport {
    let reasons = vec![
        Reason::new(ReasonCode::NoRoom, "1 GiB of memory wanted, 512 MiB are free"),
        Reason::new(ReasonCode::Missing, "the disk /srv/demo.qcow2 is not there"),
    ];
    let total = us(38_000);
    let receipt = Receipt { total, negotiation: us(0), ..receipt(Ending::Undone { reasons }) };
    MoveReport { receipt, measured: None }
}

/// The guest ended while it was copied.
pub(crate) fn guest_gone() -> MoveReport {
    let reason = Reason::new(ReasonCode::Hypervisor, "the hypervisor ended with signal 9");
    let receipt = with_wire(Receipt {
        total: us(1_210_000),
        rounds: moved().receipt.rounds[..1].to_vec(),
        ..receipt(Ending::GuestGone { reason })
    });
    MoveReport { receipt, measured: None }
}

/// Paused, and it could not be made to run again.
pub(crate) fn stuck() -> MoveReport {
    let cause = Reason::new(ReasonCode::LinkLost, "the destination closed the connection");
    let reason = Reason::new(ReasonCode::Hypervisor, "the hypervisor does not answer");
    let moved = moved().receipt;
    let full = moved.downtime.expect("it was paused");
    let none = Duration::ZERO;
    let downtime = Downtime {
        total: us(31_000_000),
        ready: none,
        commit: none,
        destination: ActivationTimes::default(),
        ..full
    };
    let receipt = Receipt {
        ending: Ending::Stuck { cause, reason },
        total: us(36_300_000),
        downtime: Some(downtime),
        ram_digest: RamCheck::NotChecked,
        ..moved
    };
    MoveReport { receipt, measured: None }
}

/// The destination took the guest over and lost it.
pub(crate) fn lost() -> MoveReport {
    let reason = Reason::new(ReasonCode::Hypervisor, "the hypervisor ended while it was started");
    let receipt = Receipt { ending: Ending::Lost { reason }, ..stuck().receipt };
    MoveReport { receipt, measured: None }
}

/// One of each ending, and the kinds of a good one.
pub(crate) fn all() -> Vec<MoveReport> {
    vec![
        moved(),
        verified(),
        stop_and_copy(),
        not_converging(),
        refused(),
        guest_gone(),
        stuck(),
        lost(),
    ]
}
