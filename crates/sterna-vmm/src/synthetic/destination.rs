//! A synthetic guest that arrives.

use super::failures::{Failures, Step};
use super::machine::{Handle, Machine, Phase, SyntheticGuest};
use super::memories::Memories;
use super::native::Arriving;
use super::registers::Registers;
use crate::{Begin, Destination, DeviceState, DeviceStateKind, Faults, VmmError, faults};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use sterna_page::{PageSet, RamLayout};
use sterna_sys::memory::GuestMemory;

/// How far the guest has come.
#[derive(Debug)]
enum Stage {
    /// RAM may be filled.
    Prepared(Memories),
    /// The writers exist, and wait or run.
    Loaded(Arc<Handle>),
    /// It never ran and never will.
    Discarded,
}

/// A synthetic guest that arrives.
#[derive(Debug)]
pub struct SyntheticDestination {
    layout: RamLayout,
    outside: Arc<GuestMemory>,
    stage: Stage,
    failures: Failures,
    /// What another hypervisor copies to it, if one does.
    native: Option<Arriving>,
}

impl SyntheticDestination {
    /// Prepares a guest with RAM like the source's.
    ///
    /// # Errors
    /// When memory cannot be had.
    pub fn prepare(layout: RamLayout) -> Result<Self, VmmError> {
        let memories = Memories::create(&layout)?;
        let outside = Arc::clone(&memories.outside);
        let stage = Stage::Prepared(memories);
        Ok(Self { layout, outside, stage, failures: Failures::default(), native: None })
    }

    /// As [`SyntheticDestination::prepare`], for a guest that its hypervisor copies by itself.
    ///
    /// # Errors
    /// When memory or a socket cannot be had.
    pub fn prepare_native(layout: RamLayout) -> Result<Self, VmmError> {
        let this = Self::prepare(layout)?;
        let native = Some(Arriving::begin(Arc::clone(&this.outside))?);
        Ok(Self { native, ..this })
    }

    /// Makes `step` fail once.
    pub fn fail_at(&self, step: Step) {
        self.failures.add(step);
    }

    /// The guest, once its state was loaded: paused until activated.
    #[must_use]
    pub fn guest(&self) -> Option<SyntheticGuest> {
        match &self.stage {
            Stage::Loaded(handle) => Some(SyntheticGuest::from_handle(Arc::clone(handle))),
            Stage::Prepared(_) | Stage::Discarded => None,
        }
    }
}

fn out_of_turn(operation: &'static str) -> VmmError {
    VmmError::Refused { operation, detail: "the guest is in another stage".into() }
}

impl Destination for SyntheticDestination {
    fn layout(&self) -> &RamLayout {
        &self.layout
    }

    fn memory(&self) -> Arc<GuestMemory> {
        Arc::clone(&self.outside)
    }

    fn is_alive(&mut self) -> bool {
        match &self.stage {
            Stage::Prepared(_) => true,
            Stage::Loaded(handle) => handle.0.phase() != Phase::Ended,
            Stage::Discarded => false,
        }
    }

    fn serve_faults(&mut self, missing: &PageSet, guest: Begin) -> Result<Arc<Faults>, VmmError> {
        self.failures.check(Step::ServeFaults)?;
        match (&self.stage, guest) {
            (Stage::Prepared(memories), _) => memories.serve_faults(missing, guest),
            (Stage::Loaded(handle), Begin::TakenOver) => {
                handle.0.check_alive()?;
                handle.0.memories.serve_faults(missing, guest)
            }
            (Stage::Loaded(_), Begin::Fresh) | (Stage::Discarded, _) => {
                Err(out_of_turn("serve_faults"))
            }
        }
    }

    fn can_serve_faults(&self) -> Result<(), VmmError> {
        faults::check_pages(&self.outside)
    }

    fn end_faults(&mut self) -> Result<(), VmmError> {
        self.failures.check(Step::EndFaults)?;
        match &self.stage {
            Stage::Prepared(memories) => memories.end_faults(),
            Stage::Loaded(handle) => handle.0.memories.end_faults(),
            Stage::Discarded => Ok(()),
        }
    }

    fn halt(&mut self) -> Result<(), VmmError> {
        match &self.stage {
            Stage::Loaded(handle) => handle.0.set_phase(Phase::Halted),
            // It has no threads.
            Stage::Prepared(_) | Stage::Discarded => {}
        }
        Ok(())
    }

    fn load_device_state(&mut self, state: &DeviceState) -> Result<(), VmmError> {
        self.failures.check(Step::Load)?;
        let registers = Registers::from_device_state(state)?;
        if registers.config.layout()? != self.layout {
            let detail = "the registers are of a guest with other RAM".to_owned();
            return Err(VmmError::Refused { operation: "load_device_state", detail });
        }
        match std::mem::replace(&mut self.stage, Stage::Discarded) {
            Stage::Prepared(memories) => {
                self.stage = Stage::Loaded(Arc::new(Machine::start(memories, registers)?));
                Ok(())
            }
            other => {
                self.stage = other;
                Err(out_of_turn("load_device_state"))
            }
        }
    }

    fn native_socket(&self) -> Option<PathBuf> {
        self.native.as_ref().map(|arriving| arriving.path().to_owned())
    }

    fn await_native(&mut self, limit: Duration) -> Result<(), VmmError> {
        let Some(arriving) = &self.native else { return Err(out_of_turn("await_native")) };
        if matches!(self.stage, Stage::Loaded(_)) {
            return Ok(());
        }
        let bytes = arriving.wait(limit)?;
        self.failures.check(Step::AwaitNative)?;
        self.load_device_state(&DeviceState { kind: DeviceStateKind::Synthetic, bytes })
    }

    fn activate(&mut self) -> Result<(), VmmError> {
        self.failures.check(Step::Activate)?;
        match &self.stage {
            Stage::Loaded(handle) => {
                handle.0.check_alive()?;
                handle.0.set_phase(Phase::Running);
                Ok(())
            }
            Stage::Prepared(_) | Stage::Discarded => Err(out_of_turn("activate")),
        }
    }

    fn settle(&mut self) -> Result<(), VmmError> {
        Ok(())
    }

    fn discard(&mut self) -> Result<(), VmmError> {
        self.failures.check(Step::Discard)?;
        if let Stage::Loaded(handle) = &self.stage {
            handle.0.set_phase(Phase::Ended);
        }
        self.stage = Stage::Discarded;
        self.native = None;
        Ok(())
    }
}
