//! The RAM of guests that run here.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use sterna_page::coding::PageBytes;
use sterna_page::known::KnownPages;
use sterna_page::sent::{ContentHash, ContentHasher};
use sterna_page::{PAGE_SIZE, PageCount, PageNumber, PageSet, is_zero};
use sterna_sys::memory::GuestMemory;

/// Pages that a thread looks at before it asks whether there is time for more.
const PIECE_PAGES: u64 = 256;

/// Guests of which no more than so many are looked at: their number must fit beside a page's.
const GUESTS_MAX: usize = 1 << 8;

/// An index of what guests have in RAM, 16 bytes a page.
pub struct RunningGuests {
    hasher: ContentHasher,
    memories: Vec<Arc<GuestMemory>>,
    /// Half of a page's hash and where it is, ascending by the former, each half once.
    pages: Vec<(u64, Place)>,
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

/// How much is looked at.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Pages of the index at most.
    pub pages: PageCount,
    /// How long it may take.
    pub time: Duration,
}

/// What is looked at, by all threads.
struct Work<'a> {
    memories: &'a [(Arc<GuestMemory>, PageSet)],
    hasher: ContentHasher,
    effort: Effort,
    deadline: Instant,
    next: AtomicU64,
    found: Mutex<Vec<(u64, Place)>>,
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
        let memories = populated.collect::<io::Result<Vec<_>>>()?;
        let work = Work {
            memories: &memories,
            hasher,
            effort,
            deadline: Instant::now() + effort.time,
            next: AtomicU64::new(0),
            found: Mutex::default(),
        };
        let workers = thread::available_parallelism().map_or(1, usize::from);
        thread::scope(|scope| {
            (0..workers).for_each(|_| drop(scope.spawn(|| work.look())));
        });
        let mut pages = work.found.into_inner().unwrap_or_else(PoisonError::into_inner);
        pages.sort_unstable_by_key(|(half, _)| *half);
        pages.dedup_by_key(|(half, _)| *half);
        pages.shrink_to_fit();
        let memories = memories.into_iter().map(|(memory, _)| memory).collect();
        Ok(Self { hasher, memories, pages })
    }

    /// Pages in the index.
    #[must_use]
    pub fn pages(&self) -> PageCount {
        PageCount(self.pages.len() as u64)
    }
}

impl Work<'_> {
    /// Takes pieces until there are no more, or there is no time or room for more.
    fn look(&self) {
        let mut found = Vec::new();
        while Instant::now() < self.deadline {
            let piece = self.next.fetch_add(1, Ordering::Relaxed);
            let Some((guest, first)) = self.piece(piece) else { return };
            found.clear();
            self.look_at(guest, first, &mut found);
            let mut all = self.found.lock().unwrap_or_else(PoisonError::into_inner);
            let room = self.effort.pages.0.saturating_sub(all.len() as u64);
            found.truncate(usize::try_from(room).unwrap_or(usize::MAX));
            all.append(&mut found);
            if all.len() as u64 >= self.effort.pages.0 {
                return;
            }
        }
    }

    /// A piece by its number: of which guest, from which page on.
    fn piece(&self, mut number: u64) -> Option<(usize, u64)> {
        for (guest, (_, pages)) in self.memories.iter().enumerate() {
            let pieces = pages.capacity().0.div_ceil(PIECE_PAGES);
            if number < pieces {
                return Some((guest, number * PIECE_PAGES));
            }
            number -= pieces;
        }
        None
    }

    fn look_at(&self, guest: usize, first: u64, found: &mut Vec<(u64, Place)>) {
        let (memory, populated) = &self.memories[guest];
        let end = (first + PIECE_PAGES).min(populated.capacity().0);
        let mut bytes = [0; PAGE_SIZE];
        for page in (first..end).map(PageNumber).filter(|page| populated.contains(*page)) {
            // A page that cannot be read is none that is known.
            if memory.read(page, &mut bytes).is_ok() && !is_zero(&bytes) {
                found.push((self.hasher.hash(&bytes).half(), Place::new(guest, page)));
            }
        }
    }
}

impl KnownPages for RunningGuests {
    fn hasher(&self) -> ContentHasher {
        self.hasher
    }

    fn summary(&self) -> Vec<u64> {
        self.pages.iter().map(|(half, _)| *half).collect()
    }

    fn read(&self, hash: ContentHash, page: &mut PageBytes) -> bool {
        let Ok(at) = self.pages.binary_search_by_key(&hash.half(), |(half, _)| *half) else {
            return false;
        };
        let place = self.pages[at].1;
        self.memories[place.guest()].read(place.page(), page).is_ok()
    }
}
