//! Pause, copy all, hand over: the fewest bytes, the longest downtime.

use super::{Algorithm, AlgorithmName, Decision, Tracking, View};
use crate::limits::Limits;
use crate::receipt::StopReason;

/// The policy of pausing first.
#[derive(Clone, Copy, Debug)]
pub struct StopAndCopy;

impl Algorithm for StopAndCopy {
    fn name(&self) -> AlgorithmName {
        AlgorithmName::StopAndCopy
    }

    fn tracking(&self) -> Tracking {
        Tracking::NotNeeded
    }

    fn may_owe(&self, _limits: &Limits) -> bool {
        false
    }

    fn next(&mut self, _view: &View<'_>) -> Decision {
        Decision::Pause(StopReason::ByDesign)
    }
}
