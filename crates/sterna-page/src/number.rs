//! Numbers of pages, counts of pages, and runs of consecutive pages.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Size of the unit in which memory is tracked, coded and sent, in bytes, for slices.
pub const PAGE_SIZE: usize = 4096;

/// [`PAGE_SIZE`] for arithmetic on sizes and offsets.
pub const PAGE_SIZE_BYTES: u64 = 4096;

const _: () = assert!(PAGE_SIZE as u64 == PAGE_SIZE_BYTES);

/// Index of a 4 KiB page in the guest's RAM, counted over all RAM blocks in layout order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PageNumber(pub u64);

/// A number of 4 KiB pages.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(transparent)]
pub struct PageCount(pub u64);

impl PageCount {
    /// No pages.
    pub const ZERO: Self = Self(0);

    /// Size of these pages in bytes, saturating.
    #[must_use]
    pub fn bytes(self) -> u64 {
        self.0.saturating_mul(PAGE_SIZE_BYTES)
    }
}

impl std::ops::Add for PageCount {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl std::ops::AddAssign for PageCount {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl fmt::Display for PageNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "page {:#x}", self.0)
    }
}

/// Consecutive pages: `first`, and how many from there on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRun {
    /// The lowest page of the run.
    pub first: PageNumber,
    /// Length of the run; a run handed out by this crate is never empty.
    pub count: PageCount,
}

impl PageRun {
    /// The run of `count` pages from `first` on.
    #[must_use]
    pub fn new(first: u64, count: u64) -> Self {
        Self { first: PageNumber(first), count: PageCount(count) }
    }

    /// Number of the page after the last, or `None` where the run leaves the number space.
    #[must_use]
    pub fn end(self) -> Option<PageNumber> {
        self.first.0.checked_add(self.count.0).map(PageNumber)
    }
}
