//! A keyed hash of a page's content, to tell whether it changed since it was sent.

use crate::PAGE_SIZE;
use xxhash_rust::xxh3::xxh3_128_with_seed;

/// 128-bit hash of one page under a move's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageHash(u128);

/// Hashes pages under a key that is drawn for each move.
///
/// XXH3 is not collision resistant against one who knows the key. The key never leaves the
/// source's agent, and a guest that found a collision all the same could only corrupt its own
/// memory, so speed wins: these hashes are computed while the guest is paused.
#[derive(Clone, Copy, Debug)]
pub struct PageHasher {
    key: u64,
}

impl PageHasher {
    /// A hasher under `key`, which should be random.
    #[must_use]
    pub fn new(key: u64) -> Self {
        Self { key }
    }

    /// The hash of one page.
    #[must_use]
    pub fn hash(self, page: &[u8; PAGE_SIZE]) -> PageHash {
        PageHash(xxh3_128_with_seed(page, self.key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_and_key_both_count() {
        let mut page = [7u8; PAGE_SIZE];
        let before = PageHasher::new(1).hash(&page);
        assert_eq!(before, PageHasher::new(1).hash(&page));
        assert_ne!(before, PageHasher::new(2).hash(&page));
        page[PAGE_SIZE - 1] = 8;
        assert_ne!(before, PageHasher::new(1).hash(&page));
    }
}
