//! Whether rounds still help, told by what each of them left.

use sterna_page::PageCount;

/// A round helps if it leaves at most this share of the smallest residue before, in percent.
const PROGRESS_PERCENT: u64 = 90;

/// What rounds have left so far.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Residues {
    smallest: Option<PageCount>,
    fruitless: u32,
}

impl Residues {
    /// Begins with a residue that is not held against the rounds before.
    pub(super) fn beginning_with(residue: PageCount) -> Self {
        Self { smallest: Some(residue), fruitless: 0 }
    }

    /// Takes note of what a round left.
    pub(super) fn note(&mut self, residue: PageCount) {
        let helps = |smallest: PageCount| {
            residue.0.saturating_mul(100) <= smallest.0.saturating_mul(PROGRESS_PERCENT)
        };
        let helped = self.smallest.is_none_or(helps);
        self.fruitless = if helped { 0 } else { self.fruitless.saturating_add(1) };
        self.smallest = Some(self.smallest.map_or(residue, |smallest| smallest.min(residue)));
    }

    /// Rounds in a row, up to the last, that did not help.
    pub(super) fn fruitless(&self) -> u32 {
        self.fruitless
    }
}
