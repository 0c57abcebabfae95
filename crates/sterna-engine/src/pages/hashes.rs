//! What pages were sent as, for comparing them again: a page that was reported as written because nobody
//! can tell is sent only if it differs.

use super::{CHUNK_PAGES, usize_of};
use sterna_page::{PAGE_SIZE, PageCount, PageHash, PageHasher, PageNumber};

/// Whether hashes of sent pages are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KeepHashes {
    No,
    Yes { key: u64 },
}

/// Hashes of the pages of one stream, as last sent: 17 bytes for each of its pages.
pub(super) struct Hashes {
    hasher: PageHasher,
    streams: u16,
    sent: Vec<Option<PageHash>>,
}

impl Hashes {
    pub(super) fn new(keep: KeepHashes, pages: PageCount, streams: u16) -> Option<Self> {
        let KeepHashes::Yes { key } = keep else { return None };
        let chunks = pages.0.div_ceil(CHUNK_PAGES).div_ceil(streams.into());
        let sent = vec![None; usize_of(chunks * CHUNK_PAGES)];
        Some(Self { hasher: PageHasher::new(key), streams, sent })
    }

    fn index(&self, page: PageNumber) -> usize {
        let chunk = page.0 / CHUNK_PAGES / u64::from(self.streams);
        usize_of(chunk * CHUNK_PAGES + page.0 % CHUNK_PAGES)
    }

    pub(super) fn set(&mut self, page: PageNumber, bytes: &[u8; PAGE_SIZE]) {
        let index = self.index(page);
        self.sent[index] = Some(self.hasher.hash(bytes));
    }

    pub(super) fn matches(&self, page: PageNumber, bytes: &[u8; PAGE_SIZE]) -> bool {
        self.sent[self.index(page)] == Some(self.hasher.hash(bytes))
    }
}
