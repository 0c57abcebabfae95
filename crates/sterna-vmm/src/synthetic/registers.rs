//! The "device state" of a synthetic guest.

use super::config::SyntheticConfig;
use super::page::{Mixer, Version, seal};
use crate::{DeviceState, DeviceStateKind, VmmError};
use serde::{Deserialize, Serialize};
use sterna_page::{PageCount, PageNumber};

/// What one writer knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriterRegisters {
    /// State of its random number generator.
    pub random: u64,
    /// Pages it has written; its next page gets a version above this.
    pub writes: u64,
    /// Wrapping sum of the seals of all its pages: one page of another version changes it.
    pub seal_sum: u64,
    /// Pages that it found in a state which it never wrote, when it came to write them again.
    pub unsound: u64,
}

/// All registers of a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registers {
    /// What the guest is like.
    pub config: SyntheticConfig,
    /// Of each writer; writer `w` of `n` owns the pages whose number is `w` modulo `n`.
    pub writers: Vec<WriterRegisters>,
    /// Its last pages, which it has in its balloon and does without.
    #[serde(default)]
    pub in_balloon: PageCount,
}

impl Registers {
    /// Those of a guest that has just been populated, every page in version 1.
    pub(super) fn fresh(config: SyntheticConfig) -> Self {
        let count = u64::from(config.writers.max(1));
        let fresh = |writer: u64| {
            let random = Mixer(config.seed ^ (writer << 48)).next();
            WriterRegisters { random, writes: 1, seal_sum: 0, unsound: 0 }
        };
        let mut writers: Vec<_> = (0..count).map(fresh).collect();
        for page in 0..config.populated.0 {
            let owner = owner(page, writers.len());
            let seal = seal(config.seed, PageNumber(page), Version(1));
            writers[owner].seal_sum = writers[owner].seal_sum.wrapping_add(seal);
        }
        Self { config, writers, in_balloon: PageCount::ZERO }
    }

    /// As the state that a destination loads.
    pub(super) fn to_device_state(&self) -> Result<DeviceState, VmmError> {
        let bytes = serde_json::to_vec(self).map_err(|error| VmmError::Refused {
            operation: "saving registers",
            detail: error.to_string(),
        })?;
        Ok(DeviceState { kind: DeviceStateKind::Synthetic, bytes })
    }

    /// Reads the state that a source saved.
    pub(super) fn from_device_state(state: &DeviceState) -> Result<Self, VmmError> {
        if state.kind != DeviceStateKind::Synthetic {
            return Err(VmmError::WrongKind(state.kind));
        }
        let refused = |detail: String| VmmError::Refused { operation: "loading registers", detail };
        let registers: Self =
            serde_json::from_slice(&state.bytes).map_err(|error| refused(error.to_string()))?;
        let expected = registers.config.writers.max(1);
        if u32::try_from(registers.writers.len()) != Ok(expected) {
            return Err(refused(format!("{} writers' registers", registers.writers.len())));
        }
        Ok(registers)
    }
}

/// Index of the writer that owns page `page`.
pub(super) fn owner(page: u64, writers: usize) -> usize {
    usize::try_from(page % (writers.max(1) as u64)).expect("a remainder is less than a usize")
}
