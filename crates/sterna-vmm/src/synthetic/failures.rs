//! Failures on request, to test what the steps around them do.

use crate::VmmError;
use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

/// A step that can be made to fail once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// Starting to track writes.
    StartTracking,
    /// Scanning for written pages.
    Scan,
    /// Slowing the source down.
    SlowDown,
    /// Asking the source for memory.
    AskForMemory,
    /// Giving any more of the memory that the source was asked for; nobody is told.
    GiveMemory,
    /// Pausing the source.
    Pause,
    /// Saving the device state; the source stays paused.
    Save,
    /// Beginning to copy by itself.
    BeginNative,
    /// Sending what is left so; the source runs again.
    FinishNative,
    /// Taking a guest that is copied so.
    AwaitNative,
    /// Resuming the source; it stays paused.
    Resume,
    /// Ending the source.
    Release,
    /// Beginning to serve faults.
    ServeFaults,
    /// Ending that.
    EndFaults,
    /// Loading the device state.
    Load,
    /// Activating the destination; it stays paused.
    Activate,
    /// Ending the destination.
    Discard,
}

impl Step {
    fn name(self) -> &'static str {
        match self {
            Self::StartTracking => "start_tracking",
            Self::Scan => "scan",
            Self::SlowDown => "set_vcpu_speed",
            Self::AskForMemory => "ask_for",
            Self::GiveMemory => "in_balloon",
            Self::Pause => "pause",
            Self::Save => "save_device_state",
            Self::BeginNative => "begin_native",
            Self::FinishNative => "finish_native",
            Self::AwaitNative => "await_native",
            Self::Resume => "resume",
            Self::Release => "release",
            Self::ServeFaults => "serve_faults",
            Self::EndFaults => "end_faults",
            Self::Load => "load_device_state",
            Self::Activate => "activate",
            Self::Discard => "discard",
        }
    }
}

/// The steps that are still to fail.
#[derive(Debug, Default)]
pub(super) struct Failures(Mutex<BTreeSet<Step>>);

impl Failures {
    pub(super) fn add(&self, step: Step) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(step);
    }

    /// Fails if `step` was asked to, once.
    pub(super) fn check(&self, step: Step) -> Result<(), VmmError> {
        if !self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&step) {
            return Ok(());
        }
        Err(VmmError::Refused { operation: step.name(), detail: "asked to fail here".into() })
    }
}
