//! The RAM of guests that run here.

use crate::index::{Effort, Index, Pieces};
use std::io;
use std::sync::Arc;
use sterna_page::coding::PageBytes;
use sterna_page::known::KnownPages;
use sterna_page::sent::{ContentHash, ContentHasher};
use sterna_page::{PAGE_SIZE, PageCount, PageNumber, PageSet, is_zero};
use sterna_sys::memory::GuestMemory;

/// Pages of a piece.
const PIECE_PAGES: u64 = 256;

/// Guests of which no more than so many are looked at: their number must fit beside a page's.
const GUESTS_MAX: usize = 1 << 8;

/// An index of what guests have in RAM, 16 bytes a page.
pub struct RunningGuests {
    hasher: ContentHasher,
    memories: Vec<Arc<GuestMemory>>,
    pages: Index<Place>,
}

/// A page of one of the guests.
#[derive(Clone, Copy, Debug)]
struct Place(u64);

impl Place {
    fn new(guest: usize, page: PageNumber) -> Self {
        Self((guest as u64) << 56 | page.0)
    }

    fn guest(self) -> usize {
        usize::try_from(self.0 >> 56).expect("eight bits")
    }

    fn page(self) -> PageNumber {
        PageNumber(self.0 & ((1 << 56) - 1))
    }
}

/// The guests' RAM, and which of it exists.
struct Rams {
    hasher: ContentHasher,
    memories: Vec<(Arc<GuestMemory>, PageSet)>,
}

impl RunningGuests {
    /// Looks at the RAM of guests that go on running, as far as `effort` goes.
    ///
    /// # Errors
    /// If the kernel does not tell which memory a guest has.
    pub fn look(
        memories: Vec<Arc<GuestMemory>>,
        hasher: ContentHasher,
        effort: Effort,
    ) -> io::Result<Self> {
        let populated = memories.into_iter().take(GUESTS_MAX).map(|memory| {
            let pages = memory.populated()?;
            Ok((memory, pages))
        });
        let rams = Rams { hasher, memories: populated.collect::<io::Result<Vec<_>>>()? };
        let pages = Index::of(&rams, effort);
        let memories = rams.memories.into_iter().map(|(memory, _)| memory).collect();
        Ok(Self { hasher, memories, pages })
    }

    /// Pages in the index.
    #[must_use]
    pub fn pages(&self) -> PageCount {
        PageCount(self.pages.len() as u64)
    }
}

impl Pieces for Rams {
    type Place = Place;

    fn count(&self) -> u64 {
        self.memories.iter().map(|(_, pages)| pieces(pages)).sum()
    }

    fn look_at(&self, mut piece: u64, found: &mut Vec<(u64, Place)>) {
        for (guest, (memory, populated)) in self.memories.iter().enumerate() {
            if piece >= pieces(populated) {
                piece -= pieces(populated);
                continue;
            }
            let first = piece * PIECE_PAGES;
            let end = (first + PIECE_PAGES).min(populated.capacity().0);
            let mut bytes = [0; PAGE_SIZE];
            for page in (first..end).map(PageNumber).filter(|page| populated.contains(*page)) {
                // A page that cannot be read is none that is known.
                if memory.read(page, &mut bytes).is_ok() && !is_zero(&bytes) {
                    found.push((self.hasher.hash(&bytes).half(), Place::new(guest, page)));
                }
            }
            return;
        }
    }
}

fn pieces(pages: &PageSet) -> u64 {
    pages.capacity().0.div_ceil(PIECE_PAGES)
}

impl KnownPages for RunningGuests {
    fn hasher(&self) -> ContentHasher {
        self.hasher
    }

    fn summary(&self) -> Vec<u64> {
        self.pages.halves()
    }

    fn read(&self, hash: ContentHash, page: &mut PageBytes) -> bool {
        let Some(place) = self.pages.find(hash) else { return false };
        self.memories[place.guest()].read(place.page(), page).is_ok()
    }
}
