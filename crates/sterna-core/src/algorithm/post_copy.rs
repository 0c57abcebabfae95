//! Hand-over first: the guest runs at the destination at once, and its pages follow (Hines and
//! Gopalan, VEE 2009). Every page is sent once, and the downtime does not depend on what the guest
//! writes; it waits for pages afterwards instead.

use super::{Algorithm, AlgorithmName, Decision, Tracking, View};
use crate::limits::Limits;
use crate::receipt::StopReason;

/// The policy of handing over first.
#[derive(Clone, Copy, Debug)]
pub struct PostCopy;

impl Algorithm for PostCopy {
    fn name(&self) -> AlgorithmName {
        AlgorithmName::PostCopy
    }

    fn tracking(&self) -> Tracking {
        Tracking::NotNeeded
    }

    fn may_owe(&self, _limits: &Limits) -> bool {
        true
    }

    fn next(&mut self, _view: &View<'_>) -> Decision {
        Decision::HandOver(StopReason::ByDesign)
    }
}
