//! Pages from several places.

use std::sync::Arc;
use sterna_page::coding::PageBytes;
use sterna_page::known::{DiskBlock, KnownPages};
use sterna_page::sent::{ContentHash, ContentHasher};

/// What any of several places has; all of them hash under one key.
pub struct Union {
    hasher: ContentHasher,
    places: Vec<Arc<dyn KnownPages>>,
}

impl Union {
    /// Of these places, which hash by `hasher`.
    #[must_use]
    pub fn new(hasher: ContentHasher, places: Vec<Arc<dyn KnownPages>>) -> Self {
        debug_assert!(places.iter().all(|place| place.hasher().key() == hasher.key()));
        Self { hasher, places }
    }
}

impl KnownPages for Union {
    fn hasher(&self) -> ContentHasher {
        self.hasher
    }

    fn summary(&self) -> Vec<u64> {
        let mut halves: Vec<u64> = self.places.iter().flat_map(|place| place.summary()).collect();
        halves.sort_unstable();
        halves.dedup();
        halves
    }

    fn has_disks(&self) -> bool {
        self.places.iter().any(|place| place.has_disks())
    }

    fn read_block(&self, block: DiskBlock, page: &mut PageBytes) -> bool {
        self.places.iter().any(|place| place.read_block(block, page))
    }

    fn read(&self, hash: ContentHash, page: &mut PageBytes) -> bool {
        self.places.iter().any(|place| {
            // One that has changed meanwhile must not stand in the way of one that has not.
            place.read(hash, page) && self.hasher.hash(page) == hash
        })
    }
}
