//! What the destination has of each page, by hash: pages that were written but are as they were need not
//! be sent, and pages like others go as references to these (Zhang et al., MDD, Cluster 2010; Li, qemu-devel
//! 2016).
//!
//! ```text
//!   hashes   page ─▶ hash of what was last sent of it      16 bytes a page
//!   index    hash ─▶ one page of which that was sent       at most 12 bytes a page
//! ```
//!
//! A page may be referred to while the destination surely has that content in it: if it was sent in this
//! round, or is not sent in this round at all.

use crate::coding::PageBytes;
use crate::known::DiskBlock;
use crate::{PageCount, PageNumber, PageSet};
use hashbrown::HashTable;
use std::fmt;
use std::sync::Arc;

/// 128 bits of the keyed BLAKE3 of a page's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentHash(u128);

/// Bytes of a [`ContentHash`].
pub const CONTENT_HASH_BYTES: usize = 16;

impl ContentHash {
    /// Of no page: nothing was sent.
    const NONE: Self = Self(0);

    /// Half of its bits. They are as good as random.
    #[must_use]
    pub fn half(self) -> u64 {
        #[expect(clippy::cast_possible_truncation, reason = "half of the bits")]
        let half = self.0 as u64;
        half
    }

    /// Its bytes.
    #[must_use]
    pub fn encode(self) -> [u8; CONTENT_HASH_BYTES] {
        self.0.to_le_bytes()
    }

    /// Reads a hash.
    #[must_use]
    pub fn decode(bytes: [u8; CONTENT_HASH_BYTES]) -> Self {
        Self(u128::from_le_bytes(bytes))
    }
}

/// Hashes pages under a key that no guest knows: none can make two pages whose hashes are equal, and one
/// that could would only corrupt itself. It is drawn by the source for each move, or is that of the pages that
/// the destination has.
#[derive(Clone, Copy)]
pub struct ContentHasher {
    key: [u8; 32],
}

impl fmt::Debug for ContentHasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ContentHasher")
    }
}

impl ContentHasher {
    /// A hasher under `key`, which should be random.
    #[must_use]
    pub fn new(key: [u8; 32]) -> Self {
        Self { key }
    }

    /// The key.
    #[must_use]
    pub fn key(&self) -> [u8; 32] {
        self.key
    }

    /// The hash of one page.
    #[must_use]
    pub fn hash(&self, page: &PageBytes) -> ContentHash {
        let digest = blake3::keyed_hash(&self.key, page);
        let first = digest.as_bytes().first_chunk().expect("a digest has 32 bytes");
        ContentHash(u128::from_le_bytes(*first).max(1))
    }
}

/// How a page may be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// Not at all: it is as it was.
    Unchanged,
    /// As a reference to this page, which the destination has, or which comes in this round.
    Like(PageNumber, Base),
    /// As this hash: the destination can get the content by itself.
    There(ContentHash),
    /// As this hash and the block of a disk that had that content.
    OnDisk(ContentHash, DiskBlock),
    /// With its content.
    No,
}

/// Since when a page that others refer to is as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    /// Since an earlier round.
    Settled,
    /// It is sent in this round, maybe on another stream.
    Coming,
}

/// What was last sent of each page of one guest.
#[derive(Debug)]
pub struct Sent {
    hashes: Vec<ContentHash>,
    index: HashTable<u32>,
    /// Pages that this round may change at the destination.
    round: Arc<PageSet>,
    /// Those of them that it has been found not to change after all.
    settled: PageSet,
    /// Those of them that it has sent.
    coming: PageSet,
}

impl Sent {
    /// Nothing was sent of a guest of `pages` pages.
    #[must_use]
    pub fn new(pages: PageCount) -> Self {
        let count = usize::try_from(pages.0).expect("pages in memory are counted by usize");
        Self {
            hashes: vec![ContentHash::NONE; count],
            // As large as it may become: growing would need both.
            index: HashTable::with_capacity(count),
            round: Arc::new(PageSet::empty(pages)),
            settled: PageSet::empty(pages),
            coming: PageSet::empty(pages),
        }
    }

    /// A round begins that sends, clears or compares these pages, and leaves all others alone. The
    /// destination has all of those before.
    pub fn begin(&mut self, pages: Arc<PageSet>) {
        self.round = pages;
        self.settled.clear();
        self.coming.clear();
    }

    /// How a page of this round with this content may be sent; it counts as sent so from now on.
    pub fn send(&mut self, page: PageNumber, hash: ContentHash) -> Known {
        let before = self.hash_of(page);
        if before == hash {
            self.settled.insert(page);
            return Known::Unchanged;
        }
        self.forget(page);
        let like = self.find(hash);
        *self.slot(page) = hash;
        self.coming.insert(page);
        match like.map(|like| (like, self.base(like))) {
            Some((like, Some(base))) => Known::Like(like, base),
            Some((like, None)) => {
                // It is about to change: this page takes its place.
                self.replace(hash, like, page);
                Known::No
            }
            None => {
                let hashes = &self.hashes;
                // Guests of more than 16 TiB have pages that nobody refers to.
                if let Ok(page) = u32::try_from(page.0) {
                    self.index.insert_unique(hash.half(), page, |page| place(hashes, *page));
                }
                Known::No
            }
        }
    }

    /// What was last sent of a page, if that is known.
    #[must_use]
    pub fn content(&self, page: PageNumber) -> Option<ContentHash> {
        Some(self.hash_of(page)).filter(|hash| *hash != ContentHash::NONE)
    }

    /// The destination has nothing of this page, or zeroes, or nobody knows.
    pub fn forget(&mut self, page: PageNumber) {
        let before = std::mem::replace(self.slot(page), ContentHash::NONE);
        if before == ContentHash::NONE {
            return;
        }
        let same = |known: &u32| u64::from(*known) == page.0;
        if let Ok(entry) = self.index.find_entry(before.half(), same) {
            entry.remove();
        }
    }

    /// Bytes that this has.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let sets = [&self.round, &self.settled, &self.coming].map(PageSet::bytes);
        let hashes = self.hashes.capacity() * CONTENT_HASH_BYTES;
        hashes + self.index.allocation_size() + sets.iter().sum::<usize>()
    }

    /// Whether a page may be referred to, and as what.
    fn base(&self, page: PageNumber) -> Option<Base> {
        if self.coming.contains(page) {
            Some(Base::Coming)
        } else if self.settled.contains(page) || !self.round.contains(page) {
            Some(Base::Settled)
        } else {
            None
        }
    }

    /// A page of which this content was last sent.
    fn find(&self, hash: ContentHash) -> Option<PageNumber> {
        let same = |page: &u32| self.hash_of(PageNumber(u64::from(*page))) == hash;
        self.index.find(hash.half(), same).map(|page| PageNumber(u64::from(*page)))
    }

    fn replace(&mut self, hash: ContentHash, old: PageNumber, new: PageNumber) {
        let same = |known: &u32| u64::from(*known) == old.0;
        match (self.index.find_entry(hash.half(), same), u32::try_from(new.0)) {
            (Ok(mut entry), Ok(new)) => *entry.get_mut() = new,
            (Ok(entry), Err(_)) => drop(entry.remove()),
            (Err(_), _) => {}
        }
    }

    fn hash_of(&self, page: PageNumber) -> ContentHash {
        usize::try_from(page.0)
            .ok()
            .and_then(|page| self.hashes.get(page).copied())
            .unwrap_or(ContentHash::NONE)
    }

    fn slot(&mut self, page: PageNumber) -> &mut ContentHash {
        let page = usize::try_from(page.0).expect("pages in memory are counted by usize");
        &mut self.hashes[page]
    }
}

fn place(hashes: &[ContentHash], page: u32) -> u64 {
    usize::try_from(page).map_or(0, |page| hashes[page].half())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PAGES: u64 = 12;

    fn content(number: u8) -> ContentHash {
        ContentHasher::new([3; 32]).hash(&[number; crate::PAGE_SIZE])
    }

    fn set(pages: impl IntoIterator<Item = u64>) -> Arc<PageSet> {
        let mut set = PageSet::empty(PageCount(PAGES));
        pages.into_iter().for_each(|page| set.insert(PageNumber(page)));
        Arc::new(set)
    }

    #[test]
    fn key_and_content_both_count() {
        let page = [7; crate::PAGE_SIZE];
        let other = ContentHasher::new([4; 32]);
        assert_eq!(content(7), ContentHasher::new([3; 32]).hash(&page));
        assert_ne!(content(7), other.hash(&page));
        assert_ne!(content(7), content(8));
    }

    #[test]
    fn a_page_is_sent_once_and_then_referred_to_until_it_changes() {
        let mut sent = Sent::new(PageCount(PAGES));
        sent.begin(set(0..4));
        let send = |sent: &mut Sent, page, number| sent.send(PageNumber(page), content(number));
        assert_eq!(send(&mut sent, 0, 1), Known::No);
        assert_eq!(send(&mut sent, 1, 1), Known::Like(PageNumber(0), Base::Coming));
        assert_eq!(send(&mut sent, 2, 2), Known::No);
        // Page 0 was written: what the destination has of it may change before page 3 is taken there.
        sent.begin(set([0, 3]));
        assert_eq!(send(&mut sent, 3, 1), Known::No);
        assert_eq!(send(&mut sent, 0, 1), Known::Unchanged);
        sent.begin(set([2, 4]));
        assert_eq!(send(&mut sent, 4, 1), Known::Like(PageNumber(3), Base::Settled));
        assert_eq!(send(&mut sent, 2, 2), Known::Unchanged);
        sent.forget(PageNumber(3));
        sent.begin(set([5]));
        assert_ne!(send(&mut sent, 5, 1), Known::Like(PageNumber(3), Base::Settled));
    }

    fn at(page: u64) -> usize {
        usize::try_from(page).unwrap()
    }

    proptest! {
        /// A destination that takes rounds stream by stream, in any order between the streams that lets
        /// references wait, always has what was sent.
        #[test]
        fn whatever_is_referred_to_is_there(
            rounds in prop::collection::vec(
                prop::collection::vec((0..PAGES, 0u8..4, any::<bool>()), 0..20), 1..8,
            ),
        ) {
            let mut sent = Sent::new(PageCount(PAGES));
            let mut there = vec![0u8; at(PAGES)];
            let mut guest = there.clone();
            for round in rounds {
                // Each page once a round.
                let mut pages = std::collections::BTreeMap::new();
                for (page, number, clear) in round {
                    pages.insert(page, (number + 1, clear));
                }
                sent.begin(set(pages.keys().copied()));
                let before = there.clone();
                let mut settled = Vec::new();
                let mut arrived = std::collections::BTreeSet::new();
                for (page, (number, clear)) in &pages {
                    let index = at(*page);
                    guest[index] = if *clear { 0 } else { *number };
                    if *clear {
                        sent.forget(PageNumber(*page));
                        there[index] = 0;
                        arrived.insert(*page);
                        continue;
                    }
                    match sent.send(PageNumber(*page), content(*number)) {
                        Known::No => there[index] = *number,
                        Known::There(_) | Known::OnDisk(..) => prop_assert!(false, "nothing is there"),
                        Known::Unchanged => {
                            prop_assert_eq!(before[index], *number);
                            continue;
                        }
                        Known::Like(like, base) => {
                            // Either it came in this round, or this round leaves it alone.
                            let came = arrived.contains(&like.0);
                            prop_assert_eq!(came, base == Base::Coming);
                            if base == Base::Settled {
                                settled.push(at(like.0));
                            }
                            there[index] = there[at(like.0)];
                        }
                    }
                    arrived.insert(*page);
                }
                prop_assert_eq!(&there, &guest);
                for page in settled {
                    prop_assert_eq!(there[page], before[page], "the other stream may be first");
                }
            }
        }
    }
}
