//! Whether a guest is asked to give memory back for its move, and what came of it.

use serde::{Deserialize, Serialize};
use std::time::Duration;

/// What is done with the guest's balloon before the first page is copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Balloon {
    /// Nothing: the guest gives back what it gives back by itself.
    #[default]
    Leave,
    /// It is inflated, so that caches and scattered free memory need not be sent, and emptied
    /// before the guest is paused.
    Inflate,
}

/// Why the balloon was not inflated any further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BalloonEnd {
    /// The guest gave back all that it was asked for.
    Reached,
    /// The guest has little that it could give back, or has given it back already.
    NothingToSpare,
    /// The guest does not tell how it uses its memory: it has no driver, or a very old one.
    Silent,
    /// The guest gave back no more.
    Stalled,
    /// The limit on time.
    TimeLimit,
    /// The move was given up meanwhile.
    GivenUp,
}

impl BalloonEnd {
    /// In words.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Reached => "that was all",
            Self::NothingToSpare => "the guest had little to spare",
            Self::Silent => "the guest did not tell how it uses its memory",
            Self::Stalled => "the guest gave back no more",
            Self::TimeLimit => "the time for it was over",
            Self::GivenUp => "the move was given up meanwhile",
        }
    }
}

/// What came of asking a guest for memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ballooning {
    /// Bytes that it was asked for.
    pub asked_bytes: u64,
    /// Bytes that it put into its balloon.
    pub given_bytes: u64,
    /// By how much less of its RAM existed afterwards: what it gave may not have been in use.
    pub freed_bytes: u64,
    /// From the first question until the first page could be copied.
    #[serde(with = "crate::time::micros", rename = "took_us")]
    pub took: Duration,
    /// Why it was not more.
    pub end: BalloonEnd,
}
