//! Pages that the destination can get without the source's help, by content: of a guest that was there
//! before, say (Akiyama et al., CLOUD 2012; Knauth and Fetzer, VeCycle, Middleware 2015).
//!
//! The destination tells of each the first half of its keyed hash, 8 bytes or 0.2 % of what it stands for.
//! The source answers with the whole hash of a page that it need not send; the destination looks for that,
//! and hashes what it has found before it takes it. So nothing is trusted by address, and what was damaged,
//! deleted or changed meanwhile is told to the source, which then sends the page.
//!
//! Of disks that both hosts reach the destination tells nothing: the source finds which blocks have the content
//! of pages, and names the block beside the hash (Jo et al., VEE 2013).

use crate::coding::PageBytes;
use crate::sent::{ContentHash, ContentHasher};
use std::fmt::Debug;
use thiserror::Error;

/// Somewhere at the destination where pages can be had by their content.
pub trait KnownPages: Send + Sync {
    /// Under which the hashes are made.
    fn hasher(&self) -> ContentHasher;

    /// The first halves of the hashes of all pages that are there, ascending, each once.
    fn summary(&self) -> Vec<u64>;

    /// Reads the page of this hash; `false` if it cannot be had (any more). What is read need not be
    /// right: whoever asks makes sure.
    fn read(&self, hash: ContentHash, page: &mut PageBytes) -> bool;

    /// Whether blocks of the guest's disks can be read here.
    fn has_disks(&self) -> bool {
        false
    }

    /// Reads a block of one of the guest's disks; `false` if it cannot be had. Again whoever asks makes sure.
    fn read_block(&self, _block: DiskBlock, _page: &mut PageBytes) -> bool {
        false
    }
}

/// Which blocks of its guest's disks the source has found by what they hold.
pub trait DiskBlocks: Debug + Send + Sync {
    /// A block that had this content when the source looked.
    fn find(&self, hash: ContentHash) -> Option<DiskBlock>;

    /// How many of them there are.
    fn len(&self) -> usize;

    /// Whether there is none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// As many bytes of a disk as a page has, at a whole number of them from its beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DiskBlock {
    /// Which of the guest's disks, in the order of its definition.
    pub disk: u16,
    /// How many blocks lie before it, less than 2^48.
    pub number: u64,
}

/// Bytes of a [`DiskBlock`].
pub const DISK_BLOCK_BYTES: usize = 8;

impl DiskBlock {
    const NUMBER_BITS: u32 = 48;

    /// Its bytes.
    #[must_use]
    pub fn encode(self) -> [u8; DISK_BLOCK_BYTES] {
        debug_assert!(self.number < 1 << Self::NUMBER_BITS);
        (u64::from(self.disk) << Self::NUMBER_BITS | self.number).to_le_bytes()
    }

    /// Reads a block's bytes; whether there is such a block is for whoever has the disks.
    #[must_use]
    pub fn decode(bytes: [u8; DISK_BLOCK_BYTES]) -> Self {
        let both = u64::from_le_bytes(bytes);
        let [.., low, high] = bytes;
        let number = both & ((1 << Self::NUMBER_BITS) - 1);
        Self { disk: u16::from_le_bytes([low, high]), number }
    }
}

/// What the source knows of the pages that the destination can get.
#[derive(Debug)]
pub struct Summary {
    /// Ascending.
    halves: Vec<u64>,
}

/// A summary is not ascending.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the hashes of known pages are not ascending: {next:#x} follows {before:#x}")]
pub struct Disorder {
    /// A hash.
    pub before: u64,
    /// The next.
    pub next: u64,
}

impl Summary {
    /// Of these halves, as they came from a peer.
    ///
    /// # Errors
    /// If they are not ascending.
    pub fn new(halves: Vec<u64>) -> Result<Self, Disorder> {
        match halves.windows(2).find(|pair| pair[0] >= pair[1]) {
            Some(pair) => Err(Disorder { before: pair[0], next: pair[1] }),
            None => Ok(Self { halves }),
        }
    }

    /// Bytes that this has.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.halves.capacity() * size_of::<u64>()
    }

    /// How many pages there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.halves.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.halves.is_empty()
    }

    /// Whether the destination can probably get the page of this hash.
    #[must_use]
    pub fn holds(&self, hash: ContentHash) -> bool {
        self.halves.binary_search(&hash.half()).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_is_told() {
        let hasher = ContentHasher::new([1; 32]);
        let hashes = [1, 2, 3].map(|content| hasher.hash(&[content; crate::PAGE_SIZE]));
        let mut halves: Vec<u64> = hashes[..2].iter().map(|hash| hash.half()).collect();
        halves.sort_unstable();
        let summary = Summary::new(halves).unwrap();
        assert_eq!(summary.len(), 2);
        assert!(summary.holds(hashes[0]) && summary.holds(hashes[1]));
        assert!(!summary.holds(hashes[2]));
    }

    #[test]
    fn blocks_survive_the_wire() {
        for block in [(0, 0), (7, 1), (u16::MAX, (1 << 48) - 1)] {
            let block = DiskBlock { disk: block.0, number: block.1 };
            assert_eq!(DiskBlock::decode(block.encode()), block);
        }
    }

    #[test]
    fn a_summary_in_disorder_is_refused() {
        assert_eq!(Summary::new(vec![3, 4, 4]).unwrap_err(), Disorder { before: 4, next: 4 });
        assert_eq!(Summary::new(vec![3, 2]).unwrap_err(), Disorder { before: 3, next: 2 });
        assert!(Summary::new(vec![]).unwrap().is_empty());
    }
}
