//! The running guest: its memory, its writers, and the gate that parks them.
//!
//! A writer passes the gate before each page. While the gate is shut it waits there, holding
//! neither a lock on its registers nor a half-written page. `pause` shuts the gate and waits until
//! every writer stands before it. A writer that waits for a missing page cannot come to the gate, so
//! there is a limit to that; and an end lets go of it.

use super::check::{CheckReport, check};
use super::config::{SyntheticConfig, WriteRate};
use super::failures::{Failures, Step};
use super::memories::Memories;
use super::page::{Mixer, Version, header_version, render_into, seal};
use super::registers::{Registers, WriterRegisters, owner};
use super::source::SyntheticSource;
use super::speed::Speed;
use crate::tracking::system;
use crate::{MemoryUse, VmmError};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use sterna_page::{PAGE_SIZE, PAGE_SIZE_BYTES, PageCount, PageNumber, PageRun, PageSet};
use sterna_sys::memory::GuestMemory;

/// What the gate lets the writers do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Running,
    Paused,
    /// Paused for good.
    Halted,
    Ended,
}

/// How long writers may take to come to the gate: they may wait for pages that are on their way.
const PAUSE_LIMIT: Duration = Duration::from_secs(30);

#[derive(Debug)]
struct Gate {
    phase: Phase,
    parked: usize,
}

/// What a guest gives at a time: so little that a large one can be seen giving.
const GIVEN_AT_ONCE: PageCount = PageCount(4096);

/// The last pages, which the guest does without, and how many it was asked for.
#[derive(Debug)]
struct Balloon {
    held: PageCount,
    wanted: PageCount,
}

/// All of a guest. Writers hold it too; [`Handle`] ends them.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) config: SyntheticConfig,
    pub(super) memories: Memories,
    writers: Vec<Mutex<WriterRegisters>>,
    balloon: Mutex<Balloon>,
    gate: Mutex<Gate>,
    changed: Condvar,
    pub(super) speed: Speed,
    pub(super) failures: Failures,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Owner of the guest's threads.
#[derive(Debug)]
pub(super) struct Handle(pub(super) Arc<Machine>);

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.set_phase(Phase::Ended);
    }
}

impl Machine {
    /// A guest of these registers, paused.
    pub(super) fn start(memories: Memories, registers: Registers) -> Result<Handle, VmmError> {
        let machine = Arc::new(Self {
            config: registers.config,
            memories,
            writers: registers.writers.into_iter().map(Mutex::new).collect(),
            balloon: Mutex::new(Balloon {
                held: registers.in_balloon,
                wanted: registers.in_balloon,
            }),
            gate: Mutex::new(Gate { phase: Phase::Paused, parked: 0 }),
            changed: Condvar::new(),
            speed: Speed::default(),
            failures: Failures::default(),
        });
        let handle = Handle(machine);
        for number in 0..handle.0.writers.len() {
            let machine = Arc::clone(&handle.0);
            std::thread::Builder::new()
                .name(format!("guest-writer-{number}"))
                .spawn(move || machine.run_writer(number))
                .map_err(system("starting a writer"))?;
        }
        handle.0.wait_parked(PAUSE_LIMIT)?;
        Ok(handle)
    }

    pub(super) fn phase(&self) -> Phase {
        lock(&self.gate).phase
    }

    /// Opens or shuts the gate. An ended guest stays ended, and a halted one can only be ended.
    pub(super) fn set_phase(&self, phase: Phase) {
        let mut gate = lock(&self.gate);
        gate.phase = match gate.phase {
            Phase::Ended => Phase::Ended,
            Phase::Halted if phase != Phase::Ended => Phase::Halted,
            Phase::Running | Phase::Paused | Phase::Halted => phase,
        };
        let ended = gate.phase == Phase::Ended;
        self.changed.notify_all();
        drop(gate);
        if ended {
            // Who waits for a page goes on, finds zeroes, and then the gate. An error would be one
            // of the kernel, to which nothing is left to do.
            let _ = self.memories.end_faults();
        }
    }

    /// Shuts the gate and waits until every writer stands before it.
    pub(super) fn pause(&self) -> Result<(), VmmError> {
        self.pause_within(PAUSE_LIMIT)
    }

    /// Shuts the gate, and keeps it shut even if a writer does not come to it within `limit`.
    pub(super) fn pause_within(&self, limit: Duration) -> Result<(), VmmError> {
        self.set_phase(Phase::Paused);
        self.wait_parked(limit)
    }

    fn wait_parked(&self, limit: Duration) -> Result<(), VmmError> {
        let under_way = |gate: &mut Gate| {
            matches!(gate.phase, Phase::Paused | Phase::Halted) && gate.parked < self.writers.len()
        };
        let waited = self.changed.wait_timeout_while(lock(&self.gate), limit, under_way);
        match waited.unwrap_or_else(PoisonError::into_inner).1.timed_out() {
            true => Err(VmmError::TimedOut { operation: "pausing the guest", limit }),
            false => Ok(()),
        }
    }

    /// An error if the guest has ended or was halted.
    pub(super) fn check_alive(&self) -> Result<(), VmmError> {
        match self.phase() {
            Phase::Ended => Err(VmmError::Gone { detail: "the synthetic guest was ended".into() }),
            Phase::Halted => {
                let detail = "it was halted".into();
                Err(VmmError::Refused { operation: "using the synthetic guest", detail })
            }
            Phase::Running | Phase::Paused => Ok(()),
        }
    }

    pub(super) fn registers(&self) -> Registers {
        let writers = self.writers.iter().map(|writer| *lock(writer)).collect();
        Registers { config: self.config.clone(), writers, in_balloon: self.in_balloon() }
    }

    /// Waits at the gate until it is open and `due` has come. `false` when the guest has ended.
    fn pass_gate(&self, due: Instant) -> bool {
        let mut gate = lock(&self.gate);
        loop {
            let wait = due.saturating_duration_since(Instant::now());
            match gate.phase {
                Phase::Ended => return false,
                Phase::Running if wait.is_zero() => return true,
                Phase::Running => {
                    let waited = self.changed.wait_timeout(gate, wait);
                    gate = waited.unwrap_or_else(PoisonError::into_inner).0;
                }
                Phase::Paused | Phase::Halted => {
                    gate.parked += 1;
                    self.changed.notify_all();
                    while matches!(gate.phase, Phase::Paused | Phase::Halted) {
                        gate = self.changed.wait(gate).unwrap_or_else(PoisonError::into_inner);
                    }
                    gate.parked -= 1;
                }
            }
        }
    }

    fn run_writer(&self, number: usize) {
        let interval = self.write_interval();
        let mut page = vec![0; PAGE_SIZE];
        let mut due = Instant::now();
        while self.pass_gate(due) {
            match interval {
                Some(interval) => {
                    let began = Instant::now();
                    self.write_one(number, &mut page);
                    let took = interval.max(began.elapsed());
                    let rest = self.speed.rest_after(took);
                    let next = due + if rest.is_zero() { interval } else { took + rest };
                    // Behind by much (after a pause): go on from here, do not catch up.
                    due = next.max(Instant::now() - Duration::from_millis(20));
                }
                None => due = Instant::now() + Duration::from_millis(100),
            }
        }
    }

    /// Time from one page to the next for one writer; `None` if it is not to write at all.
    fn write_interval(&self) -> Option<Duration> {
        match self.config.rate {
            WriteRate::Idle | WriteRate::BytesPerSecond(0) => None,
            WriteRate::Unlimited => Some(Duration::ZERO),
            WriteRate::BytesPerSecond(bytes) => {
                let nanoseconds = PAGE_SIZE_BYTES
                    .saturating_mul(1_000_000_000)
                    .saturating_mul(self.writers.len() as u64);
                Some(Duration::from_nanos(nanoseconds / bytes))
            }
        }
    }

    /// Writes one of the writer's pages, after having looked whether it is as it was left.
    fn write_one(&self, number: usize, bytes: &mut [u8]) {
        let mut registers = lock(&self.writers[number]);
        let count = self.writers.len() as u64;
        let own = (self.config.working_set.0 + count - 1 - number as u64) / count;
        let mut mixer = Mixer(registers.random);
        let page = PageNumber((mixer.next() % own.max(1)) * count + number as u64);
        registers.random = mixer.0;
        self.memories.inside.read(page, bytes).expect("the working set lies within RAM");
        let before = header_version(self.config.seed, page, bytes).unwrap_or_else(|_| {
            registers.unsound += 1;
            Version(0)
        });
        registers.writes += 1;
        let version = Version(registers.writes);
        render_into(&self.config, page, version, bytes);
        self.memories.inside.write(page, bytes).expect("the working set lies within RAM");
        let change = seal(self.config.seed, page, version).wrapping_sub(seal(
            self.config.seed,
            page,
            before,
        ));
        registers.seal_sum = registers.seal_sum.wrapping_add(change);
    }

    /// Pages in its balloon.
    pub(super) fn in_balloon(&self) -> PageCount {
        lock(&self.balloon).held
    }

    /// What it never writes again it takes for caches, all of which it could do without.
    pub(super) fn memory_use(&self) -> MemoryUse {
        let total_bytes = self.config.pages.bytes();
        MemoryUse { total_bytes, available_bytes: total_bytes - self.config.working_set.bytes() }
    }

    /// Asks for so many pages in the balloon. It gives them little by little, as somebody looks; what
    /// is too much it takes back at once.
    pub(super) fn ask_for(&self, wanted: PageCount) {
        let mut balloon = lock(&self.balloon);
        // The working set is part of the pages, or there would be no such guest.
        let spare = PageCount(self.config.pages.0 - self.config.working_set.0);
        balloon.wanted = wanted.min(spare);
        balloon.held = balloon.held.min(balloon.wanted);
    }

    /// Gives some more of what it was asked for, and tells how much it has given.
    pub(super) fn give_on(&self) -> Result<PageCount, VmmError> {
        let mut balloon = lock(&self.balloon);
        if self.failures.check(Step::GiveMemory).is_err() {
            balloon.wanted = balloon.held;
        }
        let held = balloon.wanted.min(balloon.held + GIVEN_AT_ONCE);
        if held > balloon.held {
            let first = self.config.pages.0 - held.0;
            self.balloon(PageRun::new(first, held.0 - balloon.held.0))?;
            balloon.held = held;
        }
        Ok(held)
    }

    /// Discards pages as a balloon driver does: the guest knows that they are zero now.
    fn balloon(&self, run: PageRun) -> Result<(), VmmError> {
        let mut writers: Vec<_> = self.writers.iter().map(lock).collect();
        let mut bytes = vec![0; PAGE_SIZE];
        let mut existing =
            self.memories.inside.populated().map_err(system("asking which pages exist"))?;
        let mut wanted = PageSet::empty(existing.capacity());
        if !self.memories.inside.layout().holds(run) {
            let detail = "no such pages".to_owned();
            return Err(VmmError::Refused { operation: "balloon", detail });
        }
        wanted.insert_run(run);
        let mut kept = existing.clone();
        kept.subtract(&wanted);
        existing.subtract(&kept);
        for page in existing.iter() {
            self.memories.inside.read(page, &mut bytes)?;
            let version = header_version(self.config.seed, page, &bytes).unwrap_or(Version(0));
            let registers = &mut writers[owner(page.0, self.writers.len())];
            let seal = seal(self.config.seed, page, version);
            registers.seal_sum = registers.seal_sum.wrapping_sub(seal);
        }
        Ok(self.memories.inside.punch(run)?)
    }
}

/// A synthetic guest; clones are handles of the same one.
#[derive(Clone, Debug)]
pub struct SyntheticGuest(Arc<Handle>);

impl SyntheticGuest {
    /// Populates a guest and lets it run.
    ///
    /// # Errors
    /// When `config` is no guest, or memory or threads cannot be had.
    pub fn start(config: SyntheticConfig) -> Result<Self, VmmError> {
        let memories = Memories::create(&config.layout()?)?;
        let mut bytes = vec![0; PAGE_SIZE];
        for page in (0..config.populated.0).map(PageNumber) {
            render_into(&config, page, Version(1), &mut bytes);
            memories.inside.write(page, &bytes)?;
        }
        let handle = Machine::start(memories, Registers::fresh(config))?;
        handle.0.set_phase(Phase::Running);
        Ok(Self::from_handle(Arc::new(handle)))
    }

    pub(super) fn from_handle(handle: Arc<Handle>) -> Self {
        Self(handle)
    }

    pub(super) fn machine(&self) -> &Arc<Machine> {
        &self.0.0
    }

    /// This guest as one that may leave.
    #[must_use]
    pub fn source(&self) -> SyntheticSource {
        SyntheticSource::new(Arc::clone(&self.0))
    }

    /// Whether it runs: neither paused nor ended.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.machine().phase() == Phase::Running
    }

    /// The speed of its writers, in percent of their full one.
    #[must_use]
    pub fn vcpu_percent(&self) -> u8 {
        self.machine().speed.percent()
    }

    /// Pages in its balloon.
    #[must_use]
    pub fn in_balloon(&self) -> PageCount {
        self.machine().in_balloon()
    }

    /// What its writers know at this moment. Waits for a writer that waits for a missing page.
    #[must_use]
    pub fn registers(&self) -> Registers {
        self.machine().registers()
    }

    /// Pages written in its whole life, wherever it ran.
    #[must_use]
    pub fn writes(&self) -> u64 {
        self.registers().writers.iter().map(|writer| writer.writes).sum()
    }

    /// Its RAM, as the engine sees it.
    #[must_use]
    pub fn memory(&self) -> Arc<GuestMemory> {
        Arc::clone(&self.machine().memories.outside)
    }

    /// Stops it for a moment and compares all its memory with what it should hold.
    ///
    /// # Errors
    /// When the memory cannot be read, or a writer waits for a missing page that does not come.
    pub fn check(&self) -> Result<CheckReport, VmmError> {
        let machine = self.machine();
        let before = machine.phase();
        let paused = machine.pause();
        let report = paused.and_then(|()| check(&machine.memories.outside, &machine.registers()));
        machine.set_phase(before);
        report
    }

    /// Discards pages, as a guest with a balloon does while it runs.
    ///
    /// # Errors
    /// When there are no such pages.
    pub fn balloon(&self, run: PageRun) -> Result<(), VmmError> {
        self.machine().balloon(run)
    }

    /// Makes `step` of its source fail once.
    pub fn fail_at(&self, step: Step) {
        self.machine().failures.add(step);
    }

    /// Ends it, as a crash of its hypervisor would.
    pub fn kill(&self) {
        self.machine().set_phase(Phase::Ended);
    }
}
