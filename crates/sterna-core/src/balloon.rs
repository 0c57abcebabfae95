//! Whether a guest is asked to give memory back for its move, and what came of it.

use serde::{Deserialize, Serialize};
use std::time::Duration;

/// What is done with the guest's balloon before the first page is copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
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
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
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
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Ballooning {
    /// Bytes that it was asked for.
    pub asked_bytes: u64,
    /// Bytes that it put into its balloon.
    pub given_bytes: u64,
    /// By how much less of its RAM existed afterwards: what it gave may not have been in use.
    pub freed_bytes: u64,
    /// From the first question until the first page could be copied.
    #[serde(with = "crate::time::Micros", rename = "took_us")]
    pub took: Duration,
    /// Why it was not more.
    pub end: BalloonEnd,
}

/// What a guest keeps at least beyond what it uses: what a program of some size needs to start.
const RESERVE_BYTES_MIN: u64 = 64 << 20;

/// Less than this is sent sooner than it is given back.
const WORTHWHILE_BYTES: u64 = 16 << 20;

/// Guests are asked for whole MiB.
const UNIT_BYTES: u64 = 1 << 20;

/// A guest's memory, as its host and the guest itself tell it.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// Bytes of RAM.
    pub ram_bytes: u64,
    /// How many of them exist at the host.
    pub existing_bytes: u64,
    /// Bytes that the guest has to give away, as it says.
    pub total_bytes: u64,
    /// How many of these could be given to a program that asks for memory, as it says.
    pub available_bytes: u64,
}

impl Memory {
    /// How many bytes of its RAM a guest can do without.
    ///
    /// It keeps what it uses, and as a reserve a quarter of that: what programs use grows in
    /// proportion to what they are. But no less than a tenth of RAM, as a guest that uses next to
    /// nothing may be about to begin something, nor less than 64 MiB. A guest that gave
    /// back all else already by itself (free pages in large pieces) is asked for nothing.
    #[must_use]
    pub fn spare_bytes(&self) -> u64 {
        let Self { ram_bytes, existing_bytes, total_bytes, available_bytes } = *self;
        let used = total_bytes.saturating_sub(available_bytes);
        let reserve = (used / 4).max(ram_bytes / 10).max(RESERVE_BYTES_MIN);
        let spare = available_bytes.min(ram_bytes).saturating_sub(reserve);
        let kept = ram_bytes - spare;
        if existing_bytes < kept.saturating_add(WORTHWHILE_BYTES) {
            return 0;
        }
        spare - spare % UNIT_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;

    fn spare_of(ram_bytes: u64, existing_bytes: u64, used: u64) -> u64 {
        // Some of RAM is never the kernel's to give away.
        let total_bytes = ram_bytes - 32 * MIB;
        let available_bytes = total_bytes - used;
        Memory { ram_bytes, existing_bytes, total_bytes, available_bytes }.spare_bytes()
    }

    #[test]
    fn a_guest_keeps_what_it_uses_and_a_reserve() {
        // A quarter of what it uses.
        assert_eq!(spare_of(8 * GIB, 8 * GIB, 4 * GIB), 3 * GIB - 32 * MIB);
        // A tenth of RAM.
        assert_eq!(spare_of(10 * GIB, 10 * GIB, GIB), 8 * GIB - 32 * MIB);
        // What a program needs to start.
        assert_eq!(spare_of(512 * MIB, 512 * MIB, 100 * MIB), (512 - 32 - 100 - 64) * MIB);
    }

    #[test]
    fn a_guest_without_memory_to_spare_is_asked_for_nothing() {
        assert_eq!(spare_of(512 * MIB, 512 * MIB, 420 * MIB), 0);
        assert_eq!(spare_of(64 * MIB, 64 * MIB, 8 * MIB), 0);
        // It uses 1 GiB and keeps 1 GiB in reserve: what else there was it gave back by itself.
        assert_eq!(spare_of(10 * GIB, 2 * GIB, GIB), 0);
        assert!(spare_of(10 * GIB, 3 * GIB, GIB) > 0);
    }

    #[test]
    fn whatever_a_guest_says_it_keeps_its_reserve() {
        for total_bytes in [0, 1, MIB, GIB, 1 << 40, u64::MAX] {
            for available_bytes in [0, 1, MIB, GIB, 1 << 40, u64::MAX] {
                let memory =
                    Memory { ram_bytes: GIB, existing_bytes: GIB, total_bytes, available_bytes };
                let spare = memory.spare_bytes();
                assert!(spare <= GIB - GIB / 10, "{memory:?}: {spare}");
            }
        }
    }
}
