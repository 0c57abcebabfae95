//! A QEMU guest that leaves.

use super::balloon::QemuBalloon;
use super::instance::QemuGuest;
use super::movable;
use super::native::{self, Native};
use super::qmp::{Qmp, REPLY_LIMIT};
use super::replies::{Migration, RunStatus, Vcpu, YankInstance};
use super::stream::{StateStream, StreamListener};
use crate::tracking::{WriteTracker, find_mapped, system};
use crate::{
    Compared, DeviceState, DeviceStateKind, Discarding, DiskCache, Immovable, InFlightIo,
    MemoryUse, NativeListener, NativePlan, NativeSent, NativeStep, Pause, Source, Tracked, Tracker,
    VmmError,
};
use qapi::qmp::{
    MigrationCapability, MigrationCapabilityStatus, MigrationStatus, cont, migrate, migrate_cancel,
    migrate_continue, migrate_set_capabilities, query_cpus_fast, query_migrate, query_status,
    query_yank,
};
use serde::Serialize;
use std::sync::Arc;
use std::time::{Duration, Instant};
use sterna_page::{PageSet, RamLayout};
use sterna_sys::cgroup::CpuLimit;
use sterna_sys::memory::GuestMemory;
use sterna_sys::pagemap::AfterScan;
use sterna_sys::process::Process;
use sterna_sys::uffd::Userfaultfd;

/// How long QEMU may take to stop the vCPUs and to drain block I/O; a slow disk is what takes long.
const PAUSE_LIMIT: Duration = Duration::from_secs(30);

/// How long QEMU may take to write its device state.
const SAVE_LIMIT: Duration = Duration::from_secs(10);

/// How long QEMU may take to give up a migration.
const CANCEL_LIMIT: Duration = Duration::from_secs(10);

/// How long a migration may take to connect and to begin, with a guest of whatever size. One that has
/// not come out of `setup` by then is cancelled all the same.
pub(super) const SETUP_LIMIT: Duration = Duration::from_secs(30);

/// After which time the kernel's block layer gives up an I/O: none lands later than this.
const DIRECT_IO_LONGEST: Duration = Duration::from_secs(30);

/// Whether the capabilities of a hand-over are set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Preparation {
    None,
    Done,
}

/// What the vCPUs did before the pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Before {
    Ran,
    StoodStill,
    /// Paused by an earlier agent: taken to have run.
    Unknown,
}

/// A QEMU guest that leaves.
#[derive(Debug)]
pub struct QemuSource {
    pub(super) guest: QemuGuest,
    pub(super) qmp: Qmp,
    pub(super) native: Native,
    balloon: Option<QemuBalloon>,
    tracker: Option<WriteTracker>,
    tracked: Tracked,
    stream: Option<StateStream>,
    preparation: Preparation,
    before: Before,
    /// The limit that slows the vCPUs down, if they are slowed down.
    limit: Option<CpuLimit>,
    /// For how long limits that were lifted held vCPUs back.
    held_back: Duration,
}

impl QemuSource {
    /// Takes the mover's monitor of `guest`. The guest notices nothing.
    ///
    /// # Errors
    /// When QEMU is gone, or another mover has the monitor (then it takes seconds).
    pub fn new(guest: &QemuGuest) -> Result<Self, VmmError> {
        let qmp = Qmp::connect(&guest.folder().mover_socket(), REPLY_LIMIT)
            .map_err(|error| guest.explain(error))?;
        Ok(Self {
            guest: guest.clone(),
            qmp,
            balloon: QemuBalloon::of(guest.definition()),
            native: Native::default(),
            tracker: None,
            tracked: Tracked::default(),
            stream: None,
            preparation: Preparation::None,
            before: Before::Unknown,
            limit: None,
            held_back: Duration::ZERO,
        })
    }

    /// Has its writes tracked by `tracker`, whatever the host's kernel can.
    #[must_use]
    pub fn tracked_by(self, tracker: Tracker) -> Self {
        Self { tracked: Tracked::by(tracker), ..self }
    }

    /// Sets what the hand-over needs, while the guest still runs.
    fn prepare(&mut self) -> Result<(), VmmError> {
        if self.preparation == Preparation::Done {
            return Ok(());
        }
        self.qmp.execute(&hand_over_capabilities(true), REPLY_LIMIT)?;
        self.qmp.execute(&HandOverParameters::UNLIMITED, REPLY_LIMIT)?;
        self.preparation = Preparation::Done;
        Ok(())
    }

    fn read_tracker(&mut self, dirty: &mut PageSet, after: AfterScan) -> Result<(), VmmError> {
        let Some(tracker) = &mut self.tracker else {
            let detail = "tracking was not started".to_owned();
            return Err(VmmError::Refused { operation: "scan", detail });
        };
        let stopped = tracker.scan(dirty, after).map_err(|error| self.guest.explain(error))?;
        self.tracked.note(stopped);
        Ok(())
    }

    fn pause_guest(&mut self) -> Result<Pause, VmmError> {
        self.prepare()?;
        self.note_whether_it_runs()?;
        self.qmp.forget_events();
        let path = self.guest.folder().transfer_socket();
        let listener = StreamListener::bind(&path)?;
        self.guest.offer_transfer()?;
        let start = Instant::now();
        let uri = Some(self.guest.transfer_uri());
        let command = migrate { channels: None, detach: None, resume: None, uri };
        self.qmp.execute(&command, REPLY_LIMIT)?;
        self.stream = Some(listener.accept(REPLY_LIMIT)?);
        let mut stopped = start;
        self.await_status("pausing", "pre-switchover", PAUSE_LIMIT, |at| stopped = at)?;
        Ok(Pause { took: start.elapsed(), lead: stopped - start })
    }

    /// What a guest that is taken back is to do.
    pub(super) fn note_whether_it_runs(&mut self) -> Result<(), VmmError> {
        let status: RunStatus = self.qmp.query(&query_status {})?;
        self.before = if status.running { Before::Ran } else { Before::StoodStill };
        Ok(())
    }

    /// Waits until the migration has come to `wanted`; tells when the vCPUs stopped meanwhile.
    pub(super) fn await_status(
        &mut self,
        operation: &'static str,
        wanted: &str,
        limit: Duration,
        mut stopped: impl FnMut(Instant),
    ) -> Result<(), VmmError> {
        let reached = self.qmp.wait_event(operation, limit, |event| {
            if event.name == "STOP" {
                stopped(event.arrived);
            }
            match event.migration_status()? {
                status if status == wanted => Some(true),
                "failed" | "cancelled" | "completed" => Some(false),
                _ => None,
            }
        })?;
        if reached {
            return Ok(());
        }
        Err(self.migration_failed(operation)?)
    }

    /// Why a migration has ended too early.
    pub(super) fn migration_failed(
        &mut self,
        operation: &'static str,
    ) -> Result<VmmError, VmmError> {
        let migration: Migration = self.qmp.query(&query_migrate {})?;
        let status = migration.status.unwrap_or_default();
        let detail = migration.error_desc.unwrap_or_default();
        Ok(VmmError::Refused { operation, detail: format!("migration {status}: {detail}") })
    }

    fn save(&mut self) -> Result<DeviceState, VmmError> {
        let stream = self.stream.take().ok_or_else(|| VmmError::Refused {
            operation: "save_device_state",
            detail: "the guest was not paused".into(),
        })?;
        self.qmp.forget_events();
        let state = MigrationStatus::pre_switchover;
        self.qmp.execute(&migrate_continue { state }, REPLY_LIMIT)?;
        self.await_status("saving device state", "completed", SAVE_LIMIT, |_| {})?;
        let bytes = stream.finish(SAVE_LIMIT)?;
        Ok(DeviceState { kind: DeviceStateKind::QemuVmstate, bytes })
    }

    /// Ends whatever migration there is, from whatever state an earlier agent left it in.
    ///
    /// None is cancelled while it connects: QEMU 10.0 calls it cancelled at once, goes on with it when the
    /// connection is there, and aborts, guest and all, where its end meets the next migration.
    fn end_migration(&mut self) -> Result<(), VmmError> {
        let begun = Instant::now();
        let mut deadline = begun + CANCEL_LIMIT;
        loop {
            let migration: Migration = self.qmp.query(&query_migrate {})?;
            match migration.status.as_deref() {
                None | Some("none" | "completed" | "cancelled" | "failed") => return Ok(()),
                Some("cancelling") => {}
                Some("setup") if begun.elapsed() < SETUP_LIMIT => {
                    deadline = Instant::now() + CANCEL_LIMIT;
                }
                Some(_) => self.qmp.execute(&migrate_cancel {}, REPLY_LIMIT)?,
            }
            if Instant::now() > deadline {
                let operation = "cancelling the migration";
                return Err(VmmError::TimedOut { operation, limit: CANCEL_LIMIT });
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits until QEMU has put away what a migration had that is over: `failed` and `cancelled` are said
    /// earlier. A capability that changes before that, `multifd` above all, makes QEMU abort.
    fn await_put_away(&mut self) -> Result<(), VmmError> {
        let deadline = Instant::now() + CANCEL_LIMIT;
        loop {
            let held: Vec<YankInstance> = self.qmp.query(&query_yank {})?;
            if held.iter().all(|instance| instance.kind != "migration") {
                return Ok(());
            }
            if Instant::now() > deadline {
                let operation = "putting the migration away";
                return Err(VmmError::TimedOut { operation, limit: CANCEL_LIMIT });
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn let_run(&mut self) -> Result<(), VmmError> {
        let status: RunStatus = self.qmp.query(&query_status {})?;
        if status.running || self.before == Before::StoodStill {
            return Ok(());
        }
        if status.status == "inmigrate" {
            let detail = "the guest still waits for its state".to_owned();
            return Err(VmmError::Refused { operation: "resume", detail });
        }
        self.qmp.execute(&cont {}, REPLY_LIMIT)
    }

    fn take_back(&mut self) -> Result<(), VmmError> {
        // Whatever else fails, the guest is not left slow.
        let full_speed = self.full_speed();
        // Closed before QEMU is asked: it may be waiting for room in it.
        self.stream = None;
        self.end_migration()?;
        self.let_run()?;
        self.before = Before::Unknown;
        // The guest runs. What is left must not keep it from being called resumed, but a QEMU that
        // cannot do even this is told.
        self.preparation = Preparation::None;
        full_speed?;
        // Also if it was another agent that asked for memory.
        if let Some(balloon) = &mut self.balloon {
            balloon.ask_for(0, &mut self.qmp)?;
        }
        self.await_put_away()?;
        self.qmp.execute(&hand_over_capabilities(false), REPLY_LIMIT)?;
        self.stop_tracking()
    }
}

impl QemuSource {
    fn with_balloon<T>(
        &mut self,
        run: impl FnOnce(&mut QemuBalloon, &mut Qmp) -> Result<T, VmmError>,
    ) -> Result<T, VmmError> {
        let done = match &mut self.balloon {
            Some(balloon) => run(balloon, &mut self.qmp),
            None => Err(VmmError::Refused {
                operation: "asking the guest for memory",
                detail: "it has no balloon of Sterna's".into(),
            }),
        };
        done.map_err(|error| self.guest.explain(error))
    }

    fn limit_vcpus(&mut self, percent: u8) -> Result<(), VmmError> {
        let vcpus: Vec<Vcpu> = self.qmp.query(&query_cpus_fast {})?;
        let threads: Vec<u32> = vcpus.into_iter().map(|vcpu| vcpu.thread_id).collect();
        let limit = self.cpu_limit()?;
        limit.set(&threads, percent).map_err(system("slowing vCPUs down"))?;
        self.limit = Some(limit);
        Ok(())
    }

    fn cpu_limit(&self) -> Result<CpuLimit, VmmError> {
        CpuLimit::of(self.guest.pid()).map_err(system("slowing vCPUs down"))
    }

    /// Ends whatever limit there is, also that of an earlier agent, and also if QEMU is gone. A host
    /// that cannot limit has not.
    fn full_speed(&mut self) -> Result<(), VmmError> {
        let Some(limit) = self.limit.take().or_else(|| self.cpu_limit().ok()) else {
            return Ok(());
        };
        // Counted by the kernel for as long as there is a limit.
        self.held_back += limit.held_back().unwrap_or_default();
        limit.lift().map_err(system("giving vCPUs their speed back"))
    }
}

impl Source for QemuSource {
    fn layout(&self) -> &RamLayout {
        self.guest.layout()
    }

    fn memory(&self) -> Arc<GuestMemory> {
        self.guest.memory()
    }

    fn immovable(&mut self) -> Result<Vec<Immovable>, VmmError> {
        movable::reasons(&self.guest, &mut self.qmp, self.tracked.tracker)
            .map_err(|error| self.guest.explain(error))
    }

    fn in_flight_io(&self) -> InFlightIo {
        let definition = self.guest.definition();
        let direct = definition.disks.iter().any(|disk| disk.cache == DiskCache::None);
        // Disks that the operator added by hand may be of any kind.
        let unknown = definition
            .qemu_args
            .iter()
            .any(|argument| argument.contains("drive") || argument.contains("blockdev"));
        if direct || unknown {
            InFlightIo::Untracked(DIRECT_IO_LONGEST)
        } else {
            InFlightIo::Tracked
        }
    }

    fn discarding(&mut self) -> Result<Discarding, VmmError> {
        movable::discarding(&mut self.qmp).map_err(|error| self.guest.explain(error))
    }

    fn memory_use(&mut self) -> Result<Option<MemoryUse>, VmmError> {
        self.with_balloon(QemuBalloon::memory_use)
    }

    fn ask_for(&mut self, bytes: u64) -> Result<(), VmmError> {
        self.with_balloon(|balloon, qmp| balloon.ask_for(bytes, qmp))
    }

    fn in_balloon(&mut self) -> Result<u64, VmmError> {
        self.with_balloon(|balloon, qmp| balloon.holds(qmp))
    }

    fn start_tracking(&mut self) -> Result<(), VmmError> {
        self.stop_tracking()?;
        self.prepare().map_err(|error| self.guest.explain(error))?;
        let start = || {
            let process = self.guest.process();
            let pid = process.pid();
            let mapped = find_mapped(pid, self.guest.layout(), &self.guest.record().ram)?;
            match self.tracked.tracker {
                Tracker::PagemapScan => {
                    WriteTracker::start(pid, Userfaultfd::take(process)?, mapped)
                }
                Tracker::SoftDirty => {
                    let process = Process::reopen(pid, process.start_time());
                    let process = process.map_err(system("opening the QEMU process"))?;
                    WriteTracker::start_soft_dirty(process, mapped, &self.guest.memory())
                }
            }
        };
        self.tracker = Some(start().map_err(|error| self.guest.explain(error))?);
        Ok(())
    }

    fn stop_tracking(&mut self) -> Result<(), VmmError> {
        let Some(mut tracker) = self.tracker.take() else { return Ok(()) };
        tracker.stop().map_err(|error| self.guest.explain(error))
    }

    fn scan(&mut self, dirty: &mut PageSet) -> Result<(), VmmError> {
        self.read_tracker(dirty, AfterScan::Forget)
    }

    fn peek(&mut self, dirty: &mut PageSet) -> Result<(), VmmError> {
        self.read_tracker(dirty, AfterScan::Keep)
    }

    fn tracked(&self) -> Tracked {
        self.tracked
    }

    fn populated(&self) -> Result<PageSet, VmmError> {
        self.guest.memory().populated().map_err(system("asking which pages exist"))
    }

    fn set_vcpu_speed(&mut self, percent: u8) -> Result<(), VmmError> {
        let set = if percent < 100 { self.limit_vcpus(percent) } else { self.full_speed() };
        set.map_err(|error| self.guest.explain(error))
    }

    fn held_back(&self) -> Result<Duration, VmmError> {
        let now = self.limit.as_ref().map_or(Ok(Duration::ZERO), CpuLimit::held_back);
        let now = now.map_err(system("asking how long vCPUs were held back"))?;
        Ok(self.held_back + now)
    }

    fn pause(&mut self) -> Result<Pause, VmmError> {
        self.pause_guest().map_err(|error| self.guest.explain(error))
    }

    fn save_device_state(&mut self) -> Result<DeviceState, VmmError> {
        self.save().map_err(|error| self.guest.explain(error))
    }

    fn immovable_natively(&mut self, ram: Compared) -> Result<Vec<Immovable>, VmmError> {
        native::reasons(&self.guest, &mut self.qmp, ram).map_err(|error| self.guest.explain(error))
    }

    fn begin_native(&mut self, plan: &NativePlan) -> Result<NativeListener, VmmError> {
        self.start_native(plan).map_err(|error| self.guest.explain(error))
    }

    fn native_step(&mut self, wait: Duration) -> Result<NativeStep, VmmError> {
        self.watch_native(wait).map_err(|error| self.guest.explain(error))
    }

    fn hurry_native(&mut self) -> Result<(), VmmError> {
        self.hurry().map_err(|error| self.guest.explain(error))
    }

    fn finish_native(&mut self) -> Result<NativeSent, VmmError> {
        self.complete_native().map_err(|error| self.guest.explain(error))
    }

    fn resume(&mut self) -> Result<(), VmmError> {
        self.take_back().map_err(|error| self.guest.explain(error))
    }

    fn release(&mut self) -> Result<(), VmmError> {
        self.tracker = None;
        self.stream = None;
        // Its group outlives the process otherwise.
        let lifted = self.full_speed();
        self.guest.end()?;
        lifted
    }
}

/// `migrate-set-parameters` with what a hand-over sets. (The type of the `qapi` crate can only be
/// made with every one of its fifty fields.)
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct HandOverParameters {
    max_bandwidth: u64,
    downtime_limit: u64,
}

impl HandOverParameters {
    /// The little that QEMU sends itself must never be reason for it to wait or to iterate: no
    /// limit of bandwidth, and the longest downtime (in ms) that it takes.
    const UNLIMITED: Self = Self { max_bandwidth: 0, downtime_limit: 2_000_000 };
}

impl qapi::Command for HandOverParameters {
    type Ok = qapi::Empty;
    const NAME: &'static str = "migrate-set-parameters";
    const ALLOW_OOB: bool = false;
}

/// The capabilities of a hand-over, set or taken back.
pub(super) fn hand_over_capabilities(state: bool) -> migrate_set_capabilities {
    let names = [
        MigrationCapability::x_ignore_shared,
        MigrationCapability::pause_before_switchover,
        MigrationCapability::events,
    ];
    capabilities(if state { &names } else { &[] })
}

/// These capabilities, and of all others that a move may set none: whatever an earlier one left.
pub(super) fn capabilities(on: &[MigrationCapability]) -> migrate_set_capabilities {
    let names = [
        MigrationCapability::x_ignore_shared,
        MigrationCapability::pause_before_switchover,
        MigrationCapability::events,
        MigrationCapability::multifd,
        MigrationCapability::xbzrle,
        MigrationCapability::auto_converge,
    ];
    let set =
        |capability| MigrationCapabilityStatus { state: on.contains(&capability), capability };
    migrate_set_capabilities { capabilities: names.into_iter().map(set).collect() }
}
