//! Does the memory hold what the registers say it should?

use super::page::{Unsound, seal, verify};
use super::registers::{Registers, owner};
use crate::VmmError;
use crate::tracking::system;
use sterna_page::{PAGE_SIZE, PageCount, PageNumber};
use sterna_sys::memory::GuestMemory;

/// Faults of single pages that a report lists at most; the count goes on.
const FAULTS_LISTED_MAX: usize = 32;

/// One thing that is wrong with a guest's memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A page holds no state that was ever written: half of one version, half of another.
    Torn(PageNumber),
    /// A page holds another page's content.
    Foreign {
        /// The page.
        page: PageNumber,
        /// Whose content it holds.
        holds: PageNumber,
    },
    /// Some page of this writer is whole, but not of the version that was written last.
    Stale {
        /// Index of the writer.
        writer: usize,
    },
    /// The guest itself came upon bad pages while it ran.
    SeenByGuest {
        /// How many.
        pages: u64,
    },
}

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckReport {
    /// Pages that exist, all of which were compared byte by byte.
    pub existing: PageCount,
    /// The faults, at most a few dozen of single pages; empty if all is well.
    pub faults: Vec<Fault>,
}

impl CheckReport {
    /// Whether all is well.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.faults.is_empty()
    }
}

/// Compares all memory of a paused guest with its registers. Allocates none of it.
pub(super) fn check(memory: &GuestMemory, registers: &Registers) -> Result<CheckReport, VmmError> {
    let config = &registers.config;
    let existing = memory.populated().map_err(system("asking which pages exist"))?;
    let mut sums = vec![0u64; registers.writers.len()];
    let mut faults = Vec::new();
    let mut bytes = [0; PAGE_SIZE];
    for page in existing.iter() {
        memory.read(page, &mut bytes)?;
        let fault = match verify(config, page, &bytes) {
            Ok(version) => {
                let sum = &mut sums[owner(page.0, registers.writers.len())];
                *sum = sum.wrapping_add(seal(config.seed, page, version));
                continue;
            }
            Err(Unsound::Torn) => Fault::Torn(page),
            Err(Unsound::Foreign { number }) => Fault::Foreign { page, holds: PageNumber(number) },
        };
        if faults.len() < FAULTS_LISTED_MAX {
            faults.push(fault);
        }
    }
    for (writer, (expected, sum)) in registers.writers.iter().zip(&sums).enumerate() {
        if expected.seal_sum != *sum {
            faults.push(Fault::Stale { writer });
        }
    }
    let pages = registers.writers.iter().map(|writer| writer.unsound).sum();
    if pages > 0 {
        faults.push(Fault::SeenByGuest { pages });
    }
    Ok(CheckReport { existing: existing.count(), faults })
}
