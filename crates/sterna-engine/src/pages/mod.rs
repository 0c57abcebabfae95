//! Page streams: which stream a page travels on, and the threads at both ends.

#[cfg(test)]
mod both_ends;
mod coding;
mod cost;
mod deltas;
mod follow;
mod gauge;
mod hashes;
pub(crate) mod known;
mod likeness;
mod outbox;
mod pacing;
mod queue;
mod receiver;
mod sender;
mod senders;

use coding::Coding;
use deltas::Deltas;
pub(crate) use follow::{Follow, Followed, bits, read_bits};
use hashes::Hashes;
pub(crate) use hashes::KeepHashes;
pub(crate) use likeness::Alike;
use likeness::Likeness;
use likeness::Way;
use outbox::Outbox;
pub use pacing::Bandwidth;
pub(crate) use pacing::{GivingUp, Pacer};
use queue::Queue;
pub(crate) use receiver::{Heard, PageReceiver, Place, ReceiveError, StreamEvent};
pub(crate) use senders::{Manner, SenderPool, Sends};

use sterna_page::{PageNumber, PageRun, PageSet};
use sterna_proto::limits::RUN_PAGES_MAX;

/// Pages that stay together on one stream: the longest run of a frame.
pub(crate) const CHUNK_PAGES: u64 = RUN_PAGES_MAX as u64;

/// The stream a page travels on, always the same, so that its newest version is the last to arrive.
pub(crate) fn stream_of(page: PageNumber, streams: u16) -> u16 {
    let stream = (page.0 / CHUNK_PAGES) % u64::from(streams.max(1));
    u16::try_from(stream).expect("a remainder by a u16 is a u16")
}

/// The parts of `run` that lie in one chunk each and travel on `stream`.
pub(crate) fn parts_on(run: PageRun, stream: u16, streams: u16) -> impl Iterator<Item = PageRun> {
    let end = run.first.0 + run.count.0;
    let mut next = run.first.0;
    std::iter::from_fn(move || {
        while next < end {
            let first = next;
            next = ((first / CHUNK_PAGES + 1) * CHUNK_PAGES).min(end);
            if stream_of(PageNumber(first), streams) == stream {
                return Some(PageRun::new(first, next - first));
            }
        }
        None
    })
}

/// The chunks that hold pages of `set`, whole but for the last of the guest.
pub(crate) fn chunks_of(set: &PageSet) -> impl Iterator<Item = PageRun> + '_ {
    let mut from = PageNumber(0);
    std::iter::from_fn(move || {
        let first = set.runs_from(from).next()?.first.0 / CHUNK_PAGES * CHUNK_PAGES;
        let end = (first + CHUNK_PAGES).min(set.capacity().0);
        from = PageNumber(end);
        Some(PageRun::new(first, end - first))
    })
}

fn usize_of(count: u64) -> usize {
    usize::try_from(count).expect("pages in memory are counted by usize")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use sterna_page::PageCount;

    #[test]
    fn chunks_are_those_that_hold_something() {
        let mut set = PageSet::empty(PageCount(CHUNK_PAGES * 4 + 10));
        let pages = [0, 255, CHUNK_PAGES * 3 - 1, CHUNK_PAGES * 4 + 9];
        pages.iter().for_each(|page| set.insert(PageNumber(*page)));
        let chunks: Vec<_> = chunks_of(&set).map(|run| (run.first.0, run.count.0)).collect();
        assert_eq!(chunks, [(0, 256), (512, 256), (1024, 10)]);
    }

    proptest! {
        #[test]
        fn every_page_is_on_one_stream_and_in_one_part(
            first in 0u64..2000,
            count in 1u64..2000,
            streams in 1u16..9,
        ) {
            let mut seen = vec![0; usize::try_from(first + count).unwrap()];
            for stream in 0..streams {
                for part in parts_on(PageRun::new(first, count), stream, streams) {
                    prop_assert!(part.count.0 <= CHUNK_PAGES && part.count.0 > 0);
                    for page in part.first.0..part.first.0 + part.count.0 {
                        prop_assert_eq!(stream_of(PageNumber(page), streams), stream);
                        seen[usize::try_from(page).unwrap()] += 1;
                    }
                }
            }
            for (page, count) in (0u64..).zip(&seen) {
                prop_assert_eq!(*count, i32::from(page >= first));
            }
        }
    }
}
