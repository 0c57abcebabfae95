//! The world of one seed: virtual time, two hosts, the network, and the attempts to move one guest.
//!
//! Everything happens as an [`Action`] taken from one queue; an action steps at most one machine,
//! whose effects become further actions. After each action the [`Checkers`] look at the world.
//! Given a seed all of it is decided, so a failing run is run again with a trace.

use crate::checkers::{Checkers, Violation};
use crate::coverage::Coverage;
use crate::destination_side::DestinationSide;
use crate::following::Wanted;
use crate::guest::{Instance, PAGES};
use crate::network::{Connection, Frame, Item, Stream};
use crate::plan::{Plan, Role};
use crate::source_side::SourceSide;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ops::Range;
use std::time::Duration;
use sterna_core::journal::{DestinationRecord, SourceRecord};
use sterna_core::receipt::Ending;
use sterna_core::{Time, destination};

/// Virtual time after the last fault within which everything must have ended.
const QUIET_MAX_MICROS: u64 = 2_000_000;

/// Actions of one run at most; a run needs some thousands.
const ACTIONS_MAX: u64 = 200_000;

/// A rule that is broken on purpose, to prove that the checkers notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Broken {
    /// A source without an answer to its commit lets the guest run again.
    ResumeAfterCommit,
    /// The source ends its guest when it commits.
    ReleaseOnCommit,
    /// The source does not ask again.
    AskOnce,
    /// A restarted source takes a paused guest for its own.
    RestartResumes,
    /// A restarted agent takes up attempts that later ones have overtaken.
    OvertakenAttempts,
    /// The destination lets the guest run before it has recorded that it owns it.
    ActivateUnrecorded,
    /// A restarted destination gives up what it owns.
    OwnedForgotten,
    /// The destination's digest is not of its own RAM.
    DigestEchoed,
    /// A guest that could not be ended is reported as ended.
    DiscardPretended,
    /// Gaps and repetitions on the control connection are not looked for.
    NumberingOff,
    /// The page stream swallows a page at times.
    PageSwallowed,
    /// A scan overlooks a page at times.
    ScanOverlooks,
    /// Pages that a round held back are not sent later.
    WithheldForgotten,
    /// Pages that a round which was cut short has not sent are not sent later.
    UnsentForgotten,
    /// A guest that was slowed down and resumed stays slow.
    StaysSlow,
    /// Pages that came in rounds and were written again since are not dropped at the hand-over.
    StaleKept,
    /// The source ends its guest when the destination says that it is owed pages.
    ReleaseOnOwing,
    /// A new agent takes a page for received that was not.
    ForgottenPage,
    /// The destination does not wait for the end of what hypervisors copy among themselves.
    NativeUnfinished,
    /// A hypervisor that has sent all of its guest lets it run again when the stream breaks.
    NativeResumesLate,
}

/// Something that happens at a time.
#[derive(Debug)]
pub(crate) enum Action {
    GuestWrites { instance: usize },
    Arrive { connection: usize, to: Role, number: u64, frame: Frame },
    PeerClosed { connection: usize, role: Role },
    Item { stream: usize, item: Item },
    StreamBroken { stream: usize, role: Role },
    CopyStep { attempt: usize, life: u64 },
    NativeStep { attempt: usize, life: u64 },
    FollowStep { stream: usize, source_life: u64 },
    Wanted { stream: usize, wanted: Wanted },
    Done { attempt: usize, role: Role, life: u64, token: u64 },
    Timer { attempt: usize, role: Role, life: u64 },
    KeepAlive { attempt: usize, role: Role, life: u64 },
    GuestGone { attempt: usize, role: Role, life: u64 },
    Fault { fault: usize },
    Restart { host: usize },
    NextAttempt,
}

struct Scheduled {
    due: u64,
    sequence: u64,
    action: Action,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.sequence == other.sequence
    }
}
impl Eq for Scheduled {}
impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.due, self.sequence).cmp(&(other.due, other.sequence))
    }
}

/// A host and its agent.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) up: bool,
    /// When the journal has written all it was given.
    pub(crate) journal_free: u64,
}

/// One attempt to move the guest, on both sides. Its index is its epoch.
#[derive(Debug)]
pub(crate) struct Attempt {
    pub(crate) source_host: usize,
    pub(crate) destination_host: usize,
    pub(crate) source_instance: usize,
    pub(crate) destination_instance: Option<usize>,
    pub(crate) source: Option<SourceSide>,
    pub(crate) destination: Option<DestinationSide>,
    /// What the journals hold durably.
    pub(crate) source_record: Option<SourceRecord>,
    pub(crate) destination_record: Option<DestinationRecord>,
    pub(crate) source_ending: Option<Ending>,
    pub(crate) destination_ending: Option<destination::Ending>,
    /// Mishaps that explain an ending.
    pub(crate) resume_failed: bool,
    pub(crate) activation_doubtful: bool,
    pub(crate) pages_lost: bool,
    pub(crate) owned_record_failed: bool,
    pub(crate) refusal_unrecorded: bool,
}

/// The first whole microsecond at which `time` has come.
pub(crate) fn micros_until(time: Time) -> u64 {
    u64::try_from(time.0.as_nanos().div_ceil(1_000)).unwrap_or(u64::MAX)
}

/// All of it.
pub(crate) struct World {
    pub(crate) rng: StdRng,
    pub(crate) plan: Plan,
    pub(crate) broken: Option<Broken>,
    pub(crate) now: u64,
    queue: BinaryHeap<Reverse<Scheduled>>,
    sequence: u64,
    lives: u64,
    pub(crate) hosts: [Host; 2],
    pub(crate) instances: Vec<Instance>,
    pub(crate) attempts: Vec<Attempt>,
    pub(crate) connections: Vec<Connection>,
    pub(crate) streams: Vec<Stream>,
    pub(crate) link_mended: u64,
    pub(crate) coverage: Coverage,
    pub(crate) violation: Option<Violation>,
    trace: Option<Vec<String>>,
}

/// Whether a run keeps a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trace {
    Off,
    On,
}

/// By whom a run is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Judges {
    /// By what must hold of guests and endings, and by the protocol.
    All,
    /// By the former alone.
    Outcome,
}

/// What a run leaves.
pub(crate) struct Report {
    pub(crate) violation: Option<Violation>,
    pub(crate) trace: Vec<String>,
    pub(crate) coverage: Coverage,
}

/// Runs one seed.
pub(crate) fn run(
    seed: u64,
    broken: Option<Broken>,
    judges: Judges,
    trace: Trace,
    coverage: Coverage,
) -> Report {
    let mut world = World::new(seed, broken, trace, coverage);
    let mut checkers = Checkers::new(&world, judges);
    world.start_attempt(0);
    world.arm_timed_faults();
    let mut actions = 0;
    while world.violation.is_none() {
        let Some(Reverse(next)) = world.queue.pop() else { break };
        world.now = next.due;
        actions += 1;
        world.check(actions < ACTIONS_MAX, "a move takes a bounded number of steps");
        let last = world.plan.faults_end.saturating_add(QUIET_MAX_MICROS);
        world.check(world.now < last, "everything ends in bounded time after the last fault");
        world.perform(next.action);
        checkers.after_action(&mut world);
    }
    if world.violation.is_none() {
        checkers.at_end(&mut world);
    }
    world.coverage.runs += 1;
    world.coverage.events += actions;
    Report {
        violation: world.violation,
        trace: world.trace.unwrap_or_default(),
        coverage: world.coverage,
    }
}

impl World {
    fn new(seed: u64, broken: Option<Broken>, trace: Trace, coverage: Coverage) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let plan = Plan::draw(&mut rng);
        let guest = Instance::running(rng.random());
        let host = || Host { up: true, journal_free: 0 };
        let mut world = Self {
            rng,
            plan,
            broken,
            now: 0,
            queue: BinaryHeap::new(),
            sequence: 0,
            lives: 0,
            hosts: [host(), host()],
            instances: vec![guest],
            attempts: Vec::new(),
            connections: Vec::new(),
            streams: Vec::new(),
            link_mended: 0,
            coverage,
            violation: None,
            trace: (trace == Trace::On).then(Vec::new),
        };
        world.note(|| format!("seed {seed}"));
        let plan = format!("{:?}", world.plan);
        world.note(|| plan);
        world
    }

    pub(crate) fn time(&self) -> Time {
        Time(Duration::from_micros(self.now))
    }

    pub(crate) fn random(&mut self, range: Range<u64>) -> u64 {
        self.rng.random_range(range)
    }

    pub(crate) fn coin(&mut self) -> bool {
        self.rng.random()
    }

    /// Whether something goes wrong now, of which the chance is in thousandths.
    pub(crate) fn mishap(&mut self, per_mille: u32) -> bool {
        per_mille > 0 && self.now < self.plan.faults_end && self.rng.random_ratio(per_mille, 1_000)
    }

    pub(crate) fn schedule(&mut self, due: u64, action: Action) {
        self.sequence += 1;
        self.queue.push(Reverse(Scheduled { due, sequence: self.sequence, action }));
    }

    /// A number that no other machine's life and no other work has.
    pub(crate) fn unique(&mut self) -> u64 {
        self.lives += 1;
        self.lives
    }

    /// One line of the trace: time in microseconds, then what happened.
    pub(crate) fn note(&mut self, line: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{:>8} {}", self.now, line()));
        }
    }

    pub(crate) fn check(&mut self, holds: bool, rule: &'static str) {
        if !holds && self.violation.is_none() {
            self.note(|| format!("VIOLATED: {rule}"));
            self.violation = Some(Violation { rule, at: self.now });
        }
    }

    pub(crate) fn source_lives(&self, attempt: usize, life: u64) -> bool {
        self.attempts[attempt].source.as_ref().is_some_and(|side| side.life == life)
    }

    pub(crate) fn destination_lives(&self, attempt: usize, life: u64) -> bool {
        self.attempts[attempt].destination.as_ref().is_some_and(|side| side.life == life)
    }

    pub(crate) fn lives(&self, attempt: usize, role: Role, life: u64) -> bool {
        match role {
            Role::Source => self.source_lives(attempt, life),
            Role::Destination => self.destination_lives(attempt, life),
        }
    }

    pub(crate) fn any_machine(&self) -> bool {
        self.attempts.iter().any(|a| a.source.is_some() || a.destination.is_some())
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::GuestWrites { instance } => self.guest_writes(instance),
            Action::Arrive { connection, to, number, frame } => {
                self.arrive(connection, to, number, frame);
            }
            Action::PeerClosed { connection, role } => self.peer_closed(connection, role),
            Action::Item { stream, item } => self.item_arrived(stream, item),
            Action::StreamBroken { stream, role } => self.stream_broken(stream, role),
            Action::CopyStep { attempt, life } => self.copy_step(attempt, life),
            Action::NativeStep { attempt, life } => self.native_step(attempt, life),
            Action::FollowStep { stream, source_life } => self.follow_step(stream, source_life),
            Action::Wanted { stream, wanted } => self.wanted(stream, wanted),
            Action::Done { attempt, role: Role::Source, life, token } => {
                self.source_done(attempt, life, token);
            }
            Action::Done { attempt, role: Role::Destination, life, token } => {
                self.destination_done(attempt, life, token);
            }
            Action::Timer { attempt, role, life } if self.lives(attempt, role, life) => {
                match role {
                    Role::Source => self.source_timer(attempt),
                    Role::Destination => self.destination_timer(attempt),
                }
            }
            Action::KeepAlive { attempt, role, life } if self.lives(attempt, role, life) => {
                self.keep_alive(attempt, role, life);
            }
            Action::GuestGone { attempt, role, life } if self.lives(attempt, role, life) => {
                self.guest_gone(attempt, role);
            }
            Action::Timer { .. } | Action::KeepAlive { .. } | Action::GuestGone { .. } => {}
            Action::Fault { fault } => self.strike(fault),
            Action::Restart { host } => self.restart(host),
            Action::NextAttempt => self.next_attempt(),
        }
    }

    /// Sees to it that running guests write for as long as there is a machine that might mind.
    pub(crate) fn wake_guests(&mut self) {
        for instance in 0..self.instances.len() {
            let guest = &mut self.instances[instance];
            if guest.hypervisor == crate::guest::Hypervisor::Running && !guest.write_due {
                guest.write_due = true;
                let gap = self.plan.write_gap * 100 / u64::from(guest.speed.as_percent());
                let due = self.now + self.random(1..gap * 2);
                self.schedule(due, Action::GuestWrites { instance });
            }
        }
    }

    fn guest_writes(&mut self, instance: usize) {
        self.instances[instance].write_due = false;
        if self.instances[instance].hypervisor == crate::guest::Hypervisor::Running {
            // Half of the writes go to two pages.
            let hot = self.coin();
            let page = self.rng.random_range(0..if hot { 2 } else { PAGES });
            let page = self.instances[instance].waits_for.unwrap_or(page);
            if self.may_touch(instance, page) {
                self.instances[instance].write(page);
            }
        }
        if self.any_machine() {
            self.wake_guests();
        }
    }
}
