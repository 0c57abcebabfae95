//! Only what has changed of a page, against what the destination has of it.
//!
//! Neither side keeps the old page: the source has a fingerprint of each line of it, the destination has it in
//! the guest's RAM. (Svärd et al., VEE 2011, and QEMU's XBZRLE keep a cache of whole pages; fingerprints of
//! parts of a page are Zhang et al.'s, MDD, Cluster 2010.)
//!
//! A line that has changed without its fingerprint would be missed, once in 2^64 times. So a hash of the whole
//! page goes with it: what does not come out as it should be is lacking, and sent again.
//!
//! ```text
//!   delta of a page   hash of the page 16, changed lines 4 (a bit each, lowest first), their bytes
//! ```

use crate::PAGE_SIZE;
use crate::coding::PageBytes;
use thiserror::Error;
use xxhash_rust::xxh3::{xxh3_64_with_seed, xxh3_128};

/// Bytes of a line.
pub const LINE_BYTES: usize = 128;

/// Lines of a page.
const LINES: usize = PAGE_SIZE / LINE_BYTES;

/// Bytes of a delta without any line.
const HEAD_BYTES: usize = 20;

/// Bytes of the longest delta of a page.
pub const DELTA_BYTES_MAX: usize = HEAD_BYTES + PAGE_SIZE;

/// Some of a page's lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lines(u32);

impl Lines {
    /// How many there are.
    #[must_use]
    pub fn count(self) -> usize {
        self.0.count_ones() as usize
    }

    /// Their places in a page, ascending.
    fn places(self) -> impl Iterator<Item = std::ops::Range<usize>> {
        let there = move |line: &usize| self.0 >> line & 1 == 1;
        (0..LINES).filter(there).map(|line| line * LINE_BYTES..(line + 1) * LINE_BYTES)
    }
}

/// A fingerprint of each line of a page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fingerprints([u64; LINES]);

/// Makes fingerprints, with a seed that no guest knows: none can hide what it changes.
#[derive(Clone, Copy, Debug)]
pub struct LineHasher {
    seed: u64,
}

impl LineHasher {
    /// A hasher with this seed, which should be random.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { seed }
    }

    /// The fingerprints of a page.
    #[must_use]
    pub fn fingerprints(&self, page: &PageBytes) -> Fingerprints {
        let lines = page.as_chunks::<LINE_BYTES>().0;
        Fingerprints(std::array::from_fn(|line| xxh3_64_with_seed(&lines[line], self.seed)))
    }

    /// Which lines are not as they were; the fingerprints then are those of `page`.
    pub fn changed(&self, known: &mut Fingerprints, page: &PageBytes) -> Lines {
        let new = self.fingerprints(page);
        let differing = known.0.iter().zip(&new.0).zip(0..).filter(|((old, new), _)| old != new);
        let lines = differing.fold(0, |lines, (_, line): (_, u32)| lines | 1 << line);
        *known = new;
        Lines(lines)
    }
}

/// So many bytes are left, and are no delta.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{0} bytes are no delta of a page")]
pub struct BadDelta(pub usize);

/// Adds the delta of a page of which these lines have changed.
pub fn encode(page: &PageBytes, lines: Lines, into: &mut Vec<u8>) {
    into.extend_from_slice(&xxh3_128(page).to_le_bytes());
    into.extend_from_slice(&lines.0.to_le_bytes());
    lines.places().for_each(|place| into.extend_from_slice(&page[place]));
}

/// Makes of the old page the new one, by the first of some deltas. Tells whether that is the page that was
/// meant, and what follows the delta.
///
/// # Errors
/// If it is cut off.
pub fn apply<'a>(deltas: &'a [u8], page: &mut PageBytes) -> Result<(bool, &'a [u8]), BadDelta> {
    let short = BadDelta(deltas.len());
    let (hash, rest) = deltas.split_first_chunk::<16>().ok_or(short)?;
    let (lines, mut rest) = rest.split_first_chunk::<4>().ok_or(short)?;
    for place in Lines(u32::from_le_bytes(*lines)).places() {
        let (line, left) = rest.split_at_checked(LINE_BYTES).ok_or(short)?;
        page[place].copy_from_slice(line);
        rest = left;
    }
    Ok((xxh3_128(page) == u128::from_le_bytes(*hash), rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn noise(seed: u64) -> PageBytes {
        let mut page = [0; PAGE_SIZE];
        for (word, index) in page.as_chunks_mut::<8>().0.iter_mut().zip(seed << 20..) {
            *word = (index + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
        }
        page
    }

    proptest! {
        #[test]
        fn whatever_was_written_is_restored_and_no_more_is_sent_than_lines_were_touched(
            writes in prop::collection::vec((0..PAGE_SIZE, any::<u8>()), 0..50),
        ) {
            let hasher = LineHasher::new(7);
            let old = noise(1);
            let mut new = old;
            writes.iter().for_each(|(at, byte)| new[*at] = *byte);
            let mut known = hasher.fingerprints(&old);
            let lines = hasher.changed(&mut known, &new);
            prop_assert_eq!(known, hasher.fingerprints(&new));
            let touched: std::collections::BTreeSet<usize> =
                writes.iter().filter(|(at, _)| new[*at] != old[*at]).map(|(at, _)| at / LINE_BYTES).collect();
            prop_assert_eq!(lines.count(), touched.len());
            let mut deltas = vec![];
            encode(&new, lines, &mut deltas);
            prop_assert!(deltas.len() <= DELTA_BYTES_MAX);
            deltas.push(99);
            let mut there = old;
            prop_assert_eq!(apply(&deltas, &mut there), Ok((true, &[99][..])));
            prop_assert_eq!(there, new);
        }

        #[test]
        fn a_destination_that_has_another_page_notices(at in 0..PAGE_SIZE, cut in 0..20usize) {
            let hasher = LineHasher::new(7);
            let (old, mut new) = (noise(1), noise(1));
            new[5] ^= 1;
            let lines = hasher.changed(&mut hasher.fingerprints(&old), &new);
            let mut deltas = vec![];
            encode(&new, lines, &mut deltas);
            let mut there = old;
            there[at] ^= 4;
            // The line that is sent is right whatever was there.
            prop_assert_eq!(apply(&deltas, &mut there).unwrap().0, at < LINE_BYTES);
            let cut = deltas.len() - 1 - cut;
            prop_assert_eq!(apply(&deltas[..cut], &mut there), Err(BadDelta(cut)));
        }
    }
}
