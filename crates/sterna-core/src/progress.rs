//! Where a move stands, for people who watch it.

use crate::speed::VcpuSpeed;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// A snapshot of a move.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Progress {
    /// Name of the stage.
    pub stage: String,
    /// The method that was chosen, if one was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// Number of the round, from 0.
    pub round: u32,
    /// Since the move was asked for.
    #[serde(with = "crate::time::Micros", rename = "elapsed_us")]
    pub elapsed: Duration,
    /// Bytes of guest RAM that this move has dealt with, sent or found not to exist; never falls.
    pub ram_done_bytes: u64,
    /// Bytes of guest RAM this move will have dealt with at its end, as far as known now; grows
    /// when the guest writes pages that were sent before.
    pub ram_total_bytes: u64,
    /// Bytes of page frames sent.
    pub sent_bytes: u64,
    /// Bytes a second sent lately.
    pub link_bytes_per_second: u64,
    /// Bytes a second that the guest wrote during the last round; zero before one has ended.
    pub dirty_bytes_per_second: u64,
    /// Speed of the guest's vCPUs.
    #[serde(default, rename = "vcpu_percent")]
    pub vcpus: VcpuSpeed,
    /// Time left, as far as can be told.
    #[serde(with = "crate::time::MicrosOption", rename = "eta_us")]
    pub eta: Option<Duration>,
    /// Why the move waits, if it does.
    pub waiting: Option<String>,
}
