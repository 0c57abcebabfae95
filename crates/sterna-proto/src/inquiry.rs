//! What a source asks before a move: whether the destination would take the guest in.
//!
//! One message each way, framed as on a control connection ([`crate::control`]). Nothing is reserved by
//! it, so the offer of the move itself may still be refused.

use crate::message::{AttemptId, Offer, Reason, first_reasons};
use serde::{Deserialize, Serialize};

/// The question.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Inquiry {
    /// The attempt that the move would be.
    pub attempt: AttemptId,
    /// What it would offer.
    pub offer: Offer,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// Why the guest could not come, every reason; empty if it could.
    #[serde(with = "first_reasons")]
    pub reasons: Vec<Reason>,
}
