//! What a seed decides beforehand: the move's settings, the weather, and the faults.

use rand::Rng;
use rand::rngs::StdRng;
use std::time::Duration;
use sterna_core::algorithm::ALGORITHMS;
use sterna_core::algorithm::AlgorithmName;
use sterna_core::limits::{Limits, Prefer, StageLimits, WhenStuck};
use sterna_proto::message::Verify;

/// A side of a move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Role {
    Source,
    Destination,
}

impl Role {
    pub(crate) fn other(self) -> Self {
        match self {
            Self::Source => Self::Destination,
            Self::Destination => Self::Source,
        }
    }

    pub(crate) fn index(self) -> usize {
        match self {
            Self::Source => 0,
            Self::Destination => 1,
        }
    }
}

/// What a fault does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum FaultKind {
    CrashAgent(Role),
    KillHypervisor(Role),
    Cancel(Role),
    CutLink,
}

/// Every kind of fault.
pub(crate) const FAULT_KINDS: [FaultKind; 7] = [
    FaultKind::CrashAgent(Role::Source),
    FaultKind::CrashAgent(Role::Destination),
    FaultKind::KillHypervisor(Role::Source),
    FaultKind::KillHypervisor(Role::Destination),
    FaultKind::Cancel(Role::Source),
    FaultKind::Cancel(Role::Destination),
    FaultKind::CutLink,
];

/// The source machine's stages, as they name themselves.
pub(crate) const SOURCE_STAGES: [&str; 9] = [
    "negotiating",
    "preparing",
    "copying",
    "pausing",
    "switching over",
    "committing",
    "serving",
    "releasing",
    "undoing",
];

/// The destination machine's stages.
pub(crate) const DESTINATION_STAGES: [&str; 9] = [
    "reserving",
    "receiving",
    "loading",
    "ready",
    "activating",
    "owing",
    "active",
    "discarding",
    "lost",
];

/// When a fault strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trigger {
    /// At this time.
    At(u64),
    /// So long after this side has come to this stage.
    Stage(Role, &'static str, u64),
}

/// A fault that strikes at most once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fault {
    pub(crate) kind: FaultKind,
    pub(crate) trigger: Trigger,
    pub(crate) armed: bool,
}

/// How often things go wrong by themselves, in thousandths.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Weather {
    pub(crate) lose_message: u32,
    pub(crate) repeat_message: u32,
    pub(crate) slow_message: u32,
    pub(crate) corrupt_page: u32,
    pub(crate) fail_effect: u32,
    pub(crate) fail_record: u32,
    pub(crate) fail_reconnect: u32,
}

/// Whether anything goes wrong in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Climate {
    /// Nothing does, and every limit leaves enough time: the move must end well.
    Calm,
    /// Much may, and limits may be too short.
    Storm,
}

/// All that a seed decides beforehand. Times are in microseconds of virtual time.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) climate: Climate,
    pub(crate) algorithm: AlgorithmName,
    pub(crate) verify: Verify,
    pub(crate) limits: Limits,
    pub(crate) stages: StageLimits,
    pub(crate) weather: Weather,
    pub(crate) faults: Vec<Fault>,
    /// No fault begins after this, and every fault has ended by then.
    pub(crate) faults_end: u64,
    /// Attempts that may be made, one after the other.
    pub(crate) attempts_max: usize,
    pub(crate) keep_alive: Option<u64>,
    /// Between two writes of the guest, on average.
    pub(crate) write_gap: u64,
    /// For each page, on average.
    pub(crate) page_time: u64,
    /// The same for pages that follow the guest: others may have the link then.
    pub(crate) follow_time: u64,
}

impl Plan {
    pub(crate) fn draw(rng: &mut StdRng) -> Self {
        let climate = if rng.random_ratio(1, 10) { Climate::Calm } else { Climate::Storm };
        let algorithm = pick(rng, &ALGORITHMS);
        let verify = pick(rng, &[Verify::No, Verify::RamDigest]);
        let faults_end = rng.random_range(20_000..120_000);
        let mut plan = Self {
            climate,
            algorithm,
            verify,
            limits: draw_limits(rng, climate),
            stages: draw_stages(rng, climate),
            weather: Weather::default(),
            faults: Vec::new(),
            faults_end,
            attempts_max: rng.random_range(1..=3),
            keep_alive: rng.random_bool(0.3).then(|| rng.random_range(2_000..8_000)),
            write_gap: rng.random_range(100..2_000),
            page_time: rng.random_range(10..200),
            follow_time: rng.random_range(10..1_500),
        };
        if plan.limits.when_stuck == Some(WhenStuck::Throttle) && rng.random_bool(0.5) {
            plan.make_busy(rng);
        }
        if climate == Climate::Storm {
            plan.weather = draw_weather(rng, verify);
            if algorithm.start().may_owe(&plan.limits) {
                // What arrives after the guest runs is only compared at the end.
                plan.weather.corrupt_page = 0;
            }
            let faults = rng.random_range(0..=4);
            plan.faults = (0..faults).map(|_| draw_fault(rng, faults_end)).collect();
        }
        plan
    }
}

impl Plan {
    /// A guest that writes faster than its pages are sent, and limits within which that shows.
    fn make_busy(&mut self, rng: &mut StdRng) {
        self.write_gap = rng.random_range(30..150);
        self.page_time = rng.random_range(100..200);
        self.limits.downtime_max = micros(rng, 500..1_500);
        self.limits.rounds_max = 10;
        self.limits.copy_time_max = None;
        self.limits.bytes_max = None;
    }
}

fn pick<T: Copy>(rng: &mut StdRng, choices: &[T]) -> T {
    choices[rng.random_range(0..choices.len())]
}

fn micros(rng: &mut StdRng, range: std::ops::Range<u64>) -> Duration {
    Duration::from_micros(rng.random_range(range))
}

/// A calm move must end well, so its limits are such that it may always pause.
fn draw_limits(rng: &mut StdRng, climate: Climate) -> Limits {
    let stuck = [
        None,
        Some(WhenStuck::StopAndCopy),
        Some(WhenStuck::PostCopy),
        Some(WhenStuck::Throttle),
        Some(WhenStuck::Abort),
    ];
    let calm = climate == Climate::Calm;
    Limits {
        downtime_max: micros(rng, 500..20_000),
        downtime_stretch: rng.random_bool(0.2).then(|| micros(rng, 20_000..60_000)),
        downtime_goal: micros(rng, 0..2_000),
        rounds_max: rng.random_range(1..10),
        copy_time_max: rng.random_bool(0.2).then(|| micros(rng, 500..20_000)),
        bytes_max: rng.random_bool(0.2).then(|| rng.random_range(4096..4096 * 40)),
        when_stuck: if calm { Some(WhenStuck::StopAndCopy) } else { pick(rng, &stuck) },
        prefer: pick(rng, &[Prefer::Guest, Prefer::Downtime, Prefer::Time, Prefer::Bytes]),
    }
}

/// In a storm, limits are at times shorter than what they bound.
fn draw_stages(rng: &mut StdRng, climate: Climate) -> StageLimits {
    let ample = climate == Climate::Calm || rng.random_bool(0.7);
    let least = if ample { 12_000 } else { 500 };
    let mut limit = || micros(rng, least..least + 10_000);
    StageLimits {
        negotiation: limit(),
        record: limit(),
        preparation: limit(),
        copy_stall: limit(),
        pause: limit(),
        switchover: limit(),
        commitment: limit(),
        abandoned: limit() * 2,
        ask_again: limit() / 8,
        doubt: limit(),
    }
}

fn draw_weather(rng: &mut StdRng, verify: Verify) -> Weather {
    let mut chance = |most| if rng.random_bool(0.3) { rng.random_range(0..=most) } else { 0 };
    let mut weather = Weather {
        lose_message: chance(80),
        repeat_message: chance(200),
        slow_message: chance(100),
        corrupt_page: chance(20),
        fail_effect: chance(100),
        fail_record: chance(200),
        fail_reconnect: chance(500),
    };
    if verify == Verify::No {
        // Nothing could notice it.
        weather.corrupt_page = 0;
    }
    weather
}

fn draw_fault(rng: &mut StdRng, faults_end: u64) -> Fault {
    let kind = pick(rng, &FAULT_KINDS);
    let delay =
        if rng.random_bool(0.5) { rng.random_range(0..40) } else { rng.random_range(0..800) };
    let trigger = match rng.random_range(0..10) {
        0..2 => Trigger::At(rng.random_range(0..faults_end)),
        2..6 => Trigger::Stage(Role::Source, pick(rng, &SOURCE_STAGES), delay),
        _ => Trigger::Stage(Role::Destination, pick(rng, &DESTINATION_STAGES), delay),
    };
    Fault { kind, trigger, armed: true }
}
