//! Pages that the destination can get without the source's help, by content: of a guest that was there
//! before, say (Akiyama et al., CLOUD 2012; Knauth and Fetzer, VeCycle, Middleware 2015).
//!
//! The destination tells of each the first half of its keyed hash, 8 bytes or 0.2 % of what it stands for.
//! The source answers with the whole hash of a page that it need not send; the destination looks for that,
//! and hashes what it has found before it takes it. So nothing is trusted by address, and what was damaged,
//! deleted or changed meanwhile is told to the source, which then sends the page.

use crate::coding::PageBytes;
use crate::sent::{ContentHash, ContentHasher};
use std::collections::HashSet;
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
}

/// What the source knows of the pages that the destination can get.
#[derive(Debug)]
pub struct Summary {
    /// Ascending.
    halves: Vec<u64>,
    /// Pages that the destination was sent for, and could not get.
    refused: HashSet<ContentHash>,
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
            None => Ok(Self { halves, refused: HashSet::new() }),
        }
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
        self.halves.binary_search(&hash.half()).is_ok() && !self.refused.contains(&hash)
    }

    /// The destination could not get this page after all.
    pub fn refuse(&mut self, hash: ContentHash) {
        self.refused.insert(hash);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_is_told_until_it_was_refused() {
        let hasher = ContentHasher::new([1; 32]);
        let hashes = [1, 2, 3].map(|content| hasher.hash(&[content; crate::PAGE_SIZE]));
        let mut halves: Vec<u64> = hashes[..2].iter().map(|hash| hash.half()).collect();
        halves.sort_unstable();
        let mut summary = Summary::new(halves).unwrap();
        assert_eq!(summary.len(), 2);
        assert!(summary.holds(hashes[0]) && summary.holds(hashes[1]));
        assert!(!summary.holds(hashes[2]));
        summary.refuse(hashes[0]);
        assert!(!summary.holds(hashes[0]) && summary.holds(hashes[1]));
    }

    #[test]
    fn a_summary_in_disorder_is_refused() {
        assert_eq!(Summary::new(vec![3, 4, 4]).unwrap_err(), Disorder { before: 4, next: 4 });
        assert_eq!(Summary::new(vec![3, 2]).unwrap_err(), Disorder { before: 3, next: 2 });
        assert!(Summary::new(vec![]).unwrap().is_empty());
    }
}
