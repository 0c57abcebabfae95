//! What a receipt says of how writes were tracked.

use serde::{Deserialize, Serialize};
use std::time::Duration;

/// What it took to know which pages the guest writes: scans of its page map. The guest itself pays with a fault for the first write
/// to each page after a scan: `Receipt::dirtied`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Tracking {
    /// Scans, also those that only look.
    pub scans: u64,
    /// Their time, all together; the guest runs meanwhile but for the last.
    #[serde(with = "crate::time::Micros", rename = "took_us")]
    pub took: Duration,
    /// In which way; not in receipts of earlier versions.
    #[serde(default)]
    pub by: Option<TrackedBy>,
    /// For how long the guest stood still for scans, all together, beside the downtime.
    #[serde(default, with = "crate::time::Micros", rename = "stopped_us")]
    pub stopped: Duration,
    /// For how long at once, at most.
    #[serde(default, with = "crate::time::Micros", rename = "longest_stop_us")]
    pub longest_stop: Duration,
}

/// How a guest's writes were tracked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum TrackedBy {
    /// By `PAGEMAP_SCAN`, without stopping the guest.
    PagemapScan,
    /// By soft-dirty bits, on hosts before Linux 6.7: each scan stops the guest for a moment.
    SoftDirty,
}

impl TrackedBy {
    /// Its name, as in options of an agent.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::PagemapScan => "pagemap-scan",
            Self::SoftDirty => "soft-dirty",
        }
    }
}
