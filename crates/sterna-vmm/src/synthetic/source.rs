//! A synthetic guest that leaves.

use super::failures::Step;
use super::machine::{Handle, Machine, Phase};
use super::native::{self, Copying, Piece};
use crate::tracking::{WriteTracker, system};
use crate::{
    Compared, DeviceState, Discarding, Immovable, InFlightIo, MemoryUse, NativeListener,
    NativePlan, NativeSent, NativeStep, Pause, Source, VmmError,
};
use std::sync::Arc;
use std::time::{Duration, Instant};
use sterna_page::{PAGE_SIZE_BYTES, PageCount, PageSet, RamLayout};
use sterna_sys::memory::GuestMemory;
use sterna_sys::pagemap::AfterScan;
use sterna_sys::uffd::Userfaultfd;

/// A synthetic guest that leaves.
#[derive(Debug)]
pub struct SyntheticSource {
    handle: Arc<Handle>,
    tracker: Option<WriteTracker>,
    native: Option<Copying>,
}

impl SyntheticSource {
    pub(super) fn new(handle: Arc<Handle>) -> Self {
        Self { handle, tracker: None, native: None }
    }

    fn machine(&self) -> &Machine {
        &self.handle.0
    }

    fn read_tracker(&mut self, dirty: &mut PageSet, after: AfterScan) -> Result<(), VmmError> {
        match &mut self.tracker {
            Some(tracker) => tracker.scan(dirty, after).map(drop),
            None => Err(VmmError::Refused {
                operation: "scan",
                detail: "tracking was not started".into(),
            }),
        }
    }

    fn copying(&mut self) -> Result<&mut Copying, VmmError> {
        self.native.as_mut().ok_or_else(|| VmmError::Refused {
            operation: "copying",
            detail: "it was not begun".into(),
        })
    }

    fn written(&mut self) -> Result<PageSet, VmmError> {
        let mut written = PageSet::empty(self.memory().pages());
        self.scan(&mut written)?;
        Ok(written)
    }

    fn step(&self, step: Step) -> Result<(), VmmError> {
        self.machine().check_alive()?;
        self.machine().failures.check(step)
    }
}

impl Source for SyntheticSource {
    fn layout(&self) -> &RamLayout {
        self.machine().memories.outside.layout()
    }

    fn memory(&self) -> Arc<GuestMemory> {
        Arc::clone(&self.machine().memories.outside)
    }

    fn immovable(&mut self) -> Result<Vec<Immovable>, VmmError> {
        self.machine().check_alive()?;
        Ok(Vec::new())
    }

    fn in_flight_io(&self) -> InFlightIo {
        InFlightIo::Tracked
    }

    fn discarding(&mut self) -> Result<Discarding, VmmError> {
        Ok(Discarding::Possible)
    }

    fn memory_use(&mut self) -> Result<Option<MemoryUse>, VmmError> {
        self.machine().check_alive()?;
        Ok(Some(self.machine().memory_use()))
    }

    fn ask_for(&mut self, bytes: u64) -> Result<(), VmmError> {
        self.step(Step::AskForMemory)?;
        self.machine().ask_for(PageCount(bytes / PAGE_SIZE_BYTES));
        Ok(())
    }

    fn in_balloon(&mut self) -> Result<u64, VmmError> {
        self.machine().check_alive()?;
        Ok(self.machine().give_on()?.bytes())
    }

    fn start_tracking(&mut self) -> Result<(), VmmError> {
        self.step(Step::StartTracking)?;
        self.stop_tracking()?;
        let uffd = Userfaultfd::create()?;
        let mapped = self.machine().memories.mapped();
        self.tracker = Some(WriteTracker::start(std::process::id(), uffd, mapped)?);
        Ok(())
    }

    fn stop_tracking(&mut self) -> Result<(), VmmError> {
        self.tracker.take().map_or(Ok(()), |mut tracker| tracker.stop())
    }

    fn scan(&mut self, dirty: &mut PageSet) -> Result<(), VmmError> {
        self.step(Step::Scan)?;
        self.read_tracker(dirty, AfterScan::Forget)
    }

    fn peek(&mut self, dirty: &mut PageSet) -> Result<(), VmmError> {
        self.machine().check_alive()?;
        self.read_tracker(dirty, AfterScan::Keep)
    }

    fn populated(&self) -> Result<PageSet, VmmError> {
        self.machine().memories.outside.populated().map_err(system("asking which pages exist"))
    }

    fn set_vcpu_speed(&mut self, percent: u8) -> Result<(), VmmError> {
        self.step(Step::SlowDown)?;
        self.machine().speed.set(percent);
        Ok(())
    }

    fn held_back(&self) -> Result<Duration, VmmError> {
        Ok(self.machine().speed.held_back())
    }

    fn pause(&mut self) -> Result<Pause, VmmError> {
        self.step(Step::Pause)?;
        let start = Instant::now();
        self.machine().pause()?;
        let took = start.elapsed();
        Ok(Pause { took, lead: took })
    }

    fn save_device_state(&mut self) -> Result<DeviceState, VmmError> {
        self.step(Step::Save)?;
        if self.machine().phase() != Phase::Paused {
            let detail = "the guest is not paused".to_owned();
            return Err(VmmError::Refused { operation: "save_device_state", detail });
        }
        self.machine().registers().to_device_state()
    }

    fn immovable_natively(&mut self, _: Compared) -> Result<Vec<Immovable>, VmmError> {
        self.machine().check_alive()?;
        Ok(Vec::new())
    }

    fn begin_native(&mut self, plan: &NativePlan) -> Result<NativeListener, VmmError> {
        self.step(Step::BeginNative)?;
        self.start_tracking()?;
        let (copying, listener) = Copying::begin(*plan, self.populated()?)?;
        self.native = Some(copying);
        Ok(listener)
    }

    fn native_step(&mut self, wait: Duration) -> Result<NativeStep, VmmError> {
        self.machine().check_alive()?;
        let memory = self.memory();
        let copying = self.copying()?;
        if matches!(copying.send_piece(&memory, wait)?, Piece::More) {
            return Ok(NativeStep::Copying(copying.sent()));
        }
        let written = self.written()?;
        if !self.copying()?.next_round(written) {
            return Ok(NativeStep::RoundEnded(self.copying()?.sent()));
        }
        self.step(Step::Pause)?;
        self.machine().pause()?;
        let stopped = Instant::now();
        let sent = self.copying()?.sent();
        Ok(NativeStep::Paused { stopped, drained: Duration::ZERO, sent })
    }

    fn hurry_native(&mut self) -> Result<(), VmmError> {
        self.copying()?.hurry();
        Ok(())
    }

    fn finish_native(&mut self) -> Result<NativeSent, VmmError> {
        let handle = Arc::clone(&self.handle);
        let finished = self.step(Step::FinishNative).and_then(|()| {
            let mut left = self.written()?;
            let copying = self.copying()?;
            left.union_with(copying.left());
            copying.next_round(left);
            copying.finish(&handle.0)
        });
        finished.inspect_err(|_| native::runs_again(&handle.0))
    }

    fn resume(&mut self) -> Result<(), VmmError> {
        self.native = None;
        self.step(Step::Resume)?;
        self.stop_tracking()?;
        self.machine().speed.set(100);
        self.machine().ask_for(PageCount::ZERO);
        self.machine().set_phase(Phase::Running);
        Ok(())
    }

    fn release(&mut self) -> Result<(), VmmError> {
        self.native = None;
        self.step(Step::Release)?;
        self.stop_tracking()?;
        self.machine().set_phase(Phase::Ended);
        Ok(())
    }
}
