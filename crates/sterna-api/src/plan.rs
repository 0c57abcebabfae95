//! What a move would cost, before it is made.

use crate::moves::streams_default;
use serde::{Deserialize, Serialize};
use sterna_core::compress::Compress;
use sterna_core::limits::Limits;
use sterna_core::prediction::Choice;
#[cfg(feature = "schema")]
use sterna_proto::limits::STREAMS_MAX;
use sterna_proto::message::Reason;

/// Asks what moving a guest would cost. The guest goes on running; it is tracked for a while.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct PlanRequest {
    /// The other host, as in [`crate::MoveRequest::to`].
    pub to: String,
    /// The limits that the move would have.
    #[serde(default)]
    pub limits: Limits,
    /// Whether pages are sent in fewer bytes than they have.
    #[serde(default)]
    pub compress: Compress,
    /// Bytes a second at most for the pages; `None` for no limit.
    #[serde(default)]
    pub bandwidth_bytes_per_second: Option<u64>,
    /// Page streams.
    #[serde(default = "streams_default")]
    #[cfg_attr(feature = "schema", schemars(range(min = 1, max = STREAMS_MAX)))]
    pub streams: u16,
    /// For how long to look at what the guest writes, in milliseconds.
    #[serde(default = "observe_default")]
    #[cfg_attr(feature = "schema", schemars(range(min = 1, max = OBSERVE_MS_MAX)))]
    pub observe_ms: u64,
}

impl PlanRequest {
    /// A request on the usual terms.
    #[must_use]
    pub fn to(host: &str) -> Self {
        Self {
            to: host.into(),
            limits: Limits::default(),
            compress: Compress::default(),
            bandwidth_bytes_per_second: None,
            streams: streams_default(),
            observe_ms: OBSERVE_MS_DEFAULT,
        }
    }
}

/// Milliseconds of looking where the caller does not say.
pub const OBSERVE_MS_DEFAULT: u64 = 3000;

/// Milliseconds of looking at most.
pub const OBSERVE_MS_MAX: u64 = 60_000;

fn observe_default() -> u64 {
    OBSERVE_MS_DEFAULT
}

/// What moving a guest would cost, and what that was concluded from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PlanView {
    /// Name of the guest.
    pub guest: String,
    /// The other host.
    pub to: String,
    /// What `auto` would do and why, and what is foreseen of every method.
    pub choice: Choice,
    /// Why the other host would refuse the guest as things are, every reason; empty if it would not.
    #[serde(default)]
    pub refused: Vec<Reason>,
    /// Whether the other host would take the guest in, and some method that the limits allow is
    /// foreseen to move it within them.
    pub feasible: bool,
    /// How long copying all that exists once takes, in microseconds: no move can be shorter.
    pub copying_once_us: u64,
    /// A round trip, in microseconds.
    pub round_trip_us: u64,
    /// Bytes of the guest's RAM that exist.
    pub existing_bytes: u64,
    /// Of the pages of that, how many in a thousand are all zero, by sample.
    pub zero_permille: u16,
    /// Bytes a second of different pages that the guest wrote while it was looked at.
    pub dirty_bytes_per_second: f64,
}
