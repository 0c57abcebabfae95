//! Fake guests that leave and arrive: no page of them is ever asked for.

use super::FakeState;
use std::process::Child;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use sterna_page::{PageSet, RamLayout};
use sterna_sys::memory::GuestMemory;
use sterna_vmm::{
    Begin, Destination, DeviceState, DeviceStateKind, Discarding, Faults, Immovable, InFlightIo,
    MemoryUse, Pause, Source, VmmError,
};

/// What becomes of guests that are handed over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum HandOvers {
    /// None can be.
    #[default]
    Impossible,
    /// All are.
    Work,
    /// The hypervisor refuses this step.
    FailAt(&'static str),
    /// The new process dies as it is told to let the guest run.
    Die,
}

/// Whether a step is refused.
pub(super) fn step(hand_overs: &Mutex<HandOvers>, operation: &'static str) -> Result<(), VmmError> {
    let refused = |detail: &str| Err(VmmError::Refused { operation, detail: detail.into() });
    match *hand_overs.lock().unwrap() {
        HandOvers::Impossible => refused("a fake cannot leave"),
        HandOvers::FailAt(failing) if failing == operation => refused("as the test wants it"),
        HandOvers::Work | HandOvers::FailAt(_) | HandOvers::Die => Ok(()),
    }
}

/// What whoever moves a fake guest has of it.
#[derive(Debug)]
pub(super) struct FakeParts {
    pub(super) state: Arc<Mutex<FakeState>>,
    pub(super) child: Arc<Mutex<Child>>,
    pub(super) hand_overs: Arc<Mutex<HandOvers>>,
    pub(super) layout: RamLayout,
    pub(super) memory: Arc<GuestMemory>,
}

impl FakeParts {
    fn step(&self, operation: &'static str) -> Result<(), VmmError> {
        step(&self.hand_overs, operation)
    }

    /// As [`FakeParts::step`]; guests arrive from other hosts also where none can leave.
    fn arrival_step(&self, operation: &'static str) -> Result<(), VmmError> {
        let impossible = *self.hand_overs.lock().unwrap() == HandOvers::Impossible;
        if impossible { Ok(()) } else { self.step(operation) }
    }

    fn become_state(&self, state: FakeState) {
        *self.state.lock().unwrap() = state;
    }
}

pub(super) fn kill(child: &Mutex<Child>) {
    let mut child = child.lock().unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
}

/// A fake guest that leaves, though not to another host.
pub(super) struct FakeSource {
    pub(super) parts: FakeParts,
}

impl Source for FakeSource {
    fn layout(&self) -> &RamLayout {
        &self.parts.layout
    }

    fn memory(&self) -> Arc<GuestMemory> {
        Arc::clone(&self.parts.memory)
    }

    fn immovable(&mut self) -> Result<Vec<Immovable>, VmmError> {
        Ok(Vec::new())
    }

    fn in_flight_io(&self) -> InFlightIo {
        InFlightIo::Tracked
    }

    fn discarding(&mut self) -> Result<Discarding, VmmError> {
        Ok(Discarding::Never)
    }

    fn memory_use(&mut self) -> Result<Option<MemoryUse>, VmmError> {
        Ok(None)
    }

    fn ask_for(&mut self, _: u64) -> Result<(), VmmError> {
        Ok(())
    }

    fn in_balloon(&mut self) -> Result<u64, VmmError> {
        Ok(0)
    }

    fn start_tracking(&mut self) -> Result<(), VmmError> {
        Ok(())
    }

    fn stop_tracking(&mut self) -> Result<(), VmmError> {
        Ok(())
    }

    fn scan(&mut self, _: &mut PageSet) -> Result<(), VmmError> {
        Ok(())
    }

    fn peek(&mut self, _: &mut PageSet) -> Result<(), VmmError> {
        Ok(())
    }

    fn populated(&self) -> Result<PageSet, VmmError> {
        Ok(PageSet::empty(self.parts.memory.pages()))
    }

    fn set_vcpu_speed(&mut self, _: u8) -> Result<(), VmmError> {
        Ok(())
    }

    fn held_back(&self) -> Result<Duration, VmmError> {
        Ok(Duration::ZERO)
    }

    fn pause(&mut self) -> Result<Pause, VmmError> {
        self.parts.become_state(FakeState::Paused);
        self.parts.step("pause")?;
        Ok(Pause { took: Duration::ZERO, lead: Duration::ZERO })
    }

    fn save_device_state(&mut self) -> Result<DeviceState, VmmError> {
        self.parts.step("save")?;
        Ok(DeviceState { kind: DeviceStateKind::QemuVmstate, bytes: Vec::new() })
    }

    fn resume(&mut self) -> Result<(), VmmError> {
        self.parts.become_state(FakeState::Running);
        Ok(())
    }

    fn release(&mut self) -> Result<(), VmmError> {
        kill(&self.parts.child);
        Ok(())
    }
}

/// A fake guest that arrives.
pub(super) struct FakeDestination {
    pub(super) parts: FakeParts,
}

impl Destination for FakeDestination {
    fn layout(&self) -> &RamLayout {
        &self.parts.layout
    }

    fn memory(&self) -> Arc<GuestMemory> {
        Arc::clone(&self.parts.memory)
    }

    fn is_alive(&mut self) -> bool {
        true
    }

    fn serve_faults(&mut self, _: &PageSet, _: Begin) -> Result<Arc<Faults>, VmmError> {
        Err(VmmError::Refused { operation: "serve_faults", detail: "a fake has no faults".into() })
    }

    fn can_serve_faults(&self) -> Result<(), VmmError> {
        Err(VmmError::Refused { operation: "serve_faults", detail: "a fake has no faults".into() })
    }

    fn end_faults(&mut self) -> Result<(), VmmError> {
        Ok(())
    }

    fn halt(&mut self) -> Result<(), VmmError> {
        self.parts.become_state(FakeState::Paused);
        Ok(())
    }

    fn load_device_state(&mut self, _: &DeviceState) -> Result<(), VmmError> {
        self.parts.arrival_step("load")
    }

    fn activate(&mut self) -> Result<(), VmmError> {
        self.parts.arrival_step("activate")?;
        if *self.parts.hand_overs.lock().unwrap() == HandOvers::Die {
            kill(&self.parts.child);
            return Err(VmmError::Gone { detail: "it died".into() });
        }
        self.parts.become_state(FakeState::Running);
        Ok(())
    }

    fn settle(&mut self) -> Result<(), VmmError> {
        Ok(())
    }

    fn discard(&mut self) -> Result<(), VmmError> {
        kill(&self.parts.child);
        Ok(())
    }
}
