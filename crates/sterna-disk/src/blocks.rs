//! Sets of a disk's blocks.

use fixedbitset::FixedBitSet;
use std::ops::Range;

/// Bytes of a block: what QEMU's dirty bitmaps tell apart, and what a qcow2 image keeps together, unless somebody chose
/// otherwise.
pub const BLOCK_BYTES: u64 = 64 << 10;

/// Blocks of one disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocks {
    size_bytes: u64,
    set: FixedBitSet,
}

impl Blocks {
    /// None of the blocks of a disk of so many bytes.
    ///
    /// # Panics
    /// When the disk has more blocks than can be counted in memory.
    #[must_use]
    pub fn none(size_bytes: u64) -> Self {
        let count = usize::try_from(size_bytes.div_ceil(BLOCK_BYTES)).expect("blocks in memory");
        Self { size_bytes, set: FixedBitSet::with_capacity(count) }
    }

    /// Adds all blocks that these bytes are of, as far as they are on the disk.
    pub fn insert(&mut self, bytes: &Range<u64>) {
        let end = bytes.end.min(self.size_bytes);
        if bytes.start < end {
            let index = |block: u64| usize::try_from(block).unwrap_or(usize::MAX);
            let blocks = bytes.start / BLOCK_BYTES..end.div_ceil(BLOCK_BYTES);
            self.set.insert_range(index(blocks.start)..index(blocks.end));
        }
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.set.count_ones(..) as u64
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.set.is_clear()
    }

    /// The bytes of all blocks, ascending: those of neighbours together, but never more than `bytes_max` (a block at least).
    pub fn runs(&self, bytes_max: u64) -> impl Iterator<Item = Range<u64>> + '_ {
        let longest = (bytes_max / BLOCK_BYTES).max(1);
        let mut ones = self.set.ones().peekable();
        std::iter::from_fn(move || {
            let first = ones.next()?;
            let mut end = first + 1;
            while (end - first) as u64 != longest && ones.next_if_eq(&end).is_some() {
                end += 1;
            }
            let bytes = |block: usize| (block as u64 * BLOCK_BYTES).min(self.size_bytes);
            Some(bytes(first)..bytes(end))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DISK: u64 = 40 * BLOCK_BYTES + 512;

    proptest! {
        #[test]
        fn whatever_bytes_are_inserted_lie_in_runs_and_no_run_without_cause(
            ranges in prop::collection::vec((0..DISK + 9, 0..3 * BLOCK_BYTES), 0..12),
            longest in 1..5 * BLOCK_BYTES,
        ) {
            let mut blocks = Blocks::none(DISK);
            let ranges: Vec<_> = ranges.iter().map(|(start, length)| *start..start + length).collect();
            ranges.iter().for_each(|range| blocks.insert(range));
            let touched = |block: u64| {
                let bytes = block * BLOCK_BYTES..((block + 1) * BLOCK_BYTES).min(DISK);
                ranges.iter().any(|range| range.start.max(bytes.start) < range.end.min(bytes.end))
            };
            let expected: Vec<u64> = (0..=40).filter(|block| touched(*block)).collect();
            let mut found = Vec::new();
            let mut last = 0;
            for run in blocks.runs(longest) {
                prop_assert!(run.start >= last && run.start < run.end && run.end <= DISK);
                prop_assert!(run.end - run.start <= longest.max(BLOCK_BYTES));
                prop_assert!(run.end % BLOCK_BYTES == 0 || run.end == DISK);
                found.extend(run.start / BLOCK_BYTES..run.end.div_ceil(BLOCK_BYTES));
                last = run.end;
            }
            prop_assert_eq!(&found, &expected);
            prop_assert_eq!(blocks.count(), expected.len() as u64);
            prop_assert_eq!(blocks.is_empty(), expected.is_empty());
        }
    }
}
