//! Where content is, by half of its hash: 16 bytes for each. Made by all cores within a given time.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use sterna_page::PageCount;
use sterna_page::sent::ContentHash;

/// How much is looked at.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Pages of the index at most.
    pub pages: PageCount,
    /// How long it may take.
    pub time: Duration,
}

/// What can be looked at piece by piece.
pub(crate) trait Pieces: Sync {
    /// Where a page is.
    type Place: Copy + Send;

    /// How many pieces there are.
    fn count(&self) -> u64;

    /// Tells of the pages of a piece, but for zero pages, half of each hash and where it is.
    fn look_at(&self, piece: u64, found: &mut Vec<(u64, Self::Place)>);
}

/// Half of a page's hash and where it is, ascending by the former, each half once.
#[derive(Debug)]
pub(crate) struct Index<P>(Vec<(u64, P)>);

/// What is looked at, by all threads.
struct Work<'a, W: Pieces> {
    what: &'a W,
    pages: u64,
    deadline: Instant,
    next: AtomicU64,
    found: Mutex<Vec<(u64, W::Place)>>,
}

impl<P: Copy + Send> Index<P> {
    /// Looks at these pieces, as far as `effort` goes.
    pub(crate) fn of<W: Pieces<Place = P>>(what: &W, effort: Effort) -> Self {
        let work = Work {
            what,
            pages: effort.pages.0,
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
        Self(pages)
    }

    /// Pages in it.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The halves.
    pub(crate) fn halves(&self) -> Vec<u64> {
        self.0.iter().map(|(half, _)| *half).collect()
    }

    /// Halves and places, ascending by the former.
    pub(crate) fn into_entries(self) -> Vec<(u64, P)> {
        self.0
    }

    /// Where a page with this hash was, most probably.
    pub(crate) fn find(&self, hash: ContentHash) -> Option<P> {
        let found = self.0.binary_search_by_key(&hash.half(), |(half, _)| *half);
        found.ok().map(|at| self.0[at].1)
    }
}

impl<W: Pieces> Work<'_, W> {
    /// Takes pieces until there are no more, or there is no time or room for more.
    fn look(&self) {
        let mut found = Vec::new();
        while Instant::now() < self.deadline {
            let piece = self.next.fetch_add(1, Ordering::Relaxed);
            if piece >= self.what.count() {
                return;
            }
            found.clear();
            self.what.look_at(piece, &mut found);
            let mut all = self.found.lock().unwrap_or_else(PoisonError::into_inner);
            let room = self.pages.saturating_sub(all.len() as u64);
            found.truncate(usize::try_from(room).unwrap_or(usize::MAX));
            all.append(&mut found);
            if all.len() as u64 >= self.pages {
                return;
            }
        }
    }
}
