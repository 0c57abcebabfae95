//! A synthetic guest that leaves.

use super::failures::Step;
use super::machine::{Handle, Machine, Phase};
use crate::tracking::{WriteTracker, system};
use crate::{DeviceState, Discarding, Immovable, InFlightIo, MemoryUse, Pause, Source, VmmError};
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
}

impl SyntheticSource {
    pub(super) fn new(handle: Arc<Handle>) -> Self {
        Self { handle, tracker: None }
    }

    fn machine(&self) -> &Machine {
        &self.handle.0
    }

    fn read_tracker(&mut self, dirty: &mut PageSet, after: AfterScan) -> Result<(), VmmError> {
        match &mut self.tracker {
            Some(tracker) => tracker.scan(dirty, after),
            None => Err(VmmError::Refused {
                operation: "scan",
                detail: "tracking was not started".into(),
            }),
        }
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

    fn resume(&mut self) -> Result<(), VmmError> {
        self.step(Step::Resume)?;
        self.stop_tracking()?;
        self.machine().speed.set(100);
        self.machine().ask_for(PageCount::ZERO);
        self.machine().set_phase(Phase::Running);
        Ok(())
    }

    fn release(&mut self) -> Result<(), VmmError> {
        self.step(Step::Release)?;
        self.stop_tracking()?;
        self.machine().set_phase(Phase::Ended);
        Ok(())
    }
}
