//! Which pages of a stream can go as what has changed of them.
//!
//! A page that was written once while the guest moved is likely to be written again: there are fingerprints of
//! all that is sent after the first round, 256 bytes a page. They may take one byte of 350 of the guest's RAM;
//! those that a round did not need make room.

use super::usize_of;
use std::collections::{HashMap, VecDeque};
use sterna_page::coding::PageBytes;
use sterna_page::delta::{Fingerprints, LINE_BYTES, LineHasher, Lines};
use sterna_page::sent::ContentHash;
use sterna_page::{PAGE_SIZE, PageCount, PageNumber};

/// Of the guest's RAM, one byte in so many may be taken by fingerprints, all streams together.
const RAM_SHARE: u64 = 350;

/// What an entry takes, with its place in the table.
const ENTRY_BYTES: u64 = 384;

/// Pages of which there may be fingerprints in any case.
const ENTRIES_MIN: u64 = 64;

/// So many entries are looked at for one that is not needed.
const TRIES: usize = 4;

/// A page goes as a delta if at most so many lines have changed: a coder makes as few bytes of text.
const LINES_MAX: usize = PAGE_SIZE / LINE_BYTES / 3;

#[derive(Debug)]
struct Entry {
    /// Of what the fingerprints are.
    content: ContentHash,
    fingerprints: Box<Fingerprints>,
    round: u32,
}

/// Fingerprints of a stream's pages as last sent.
#[derive(Debug)]
pub(super) struct Deltas {
    hasher: LineHasher,
    most: usize,
    entries: HashMap<PageNumber, Entry>,
    /// The pages that have entries, those first that were not looked at for long.
    order: VecDeque<PageNumber>,
    round: u32,
}

impl Deltas {
    /// Of one of so many streams of a guest of `pages` pages.
    pub(super) fn new(hasher: LineHasher, pages: PageCount, streams: u16) -> Self {
        let most = pages.bytes() / RAM_SHARE / ENTRY_BYTES / u64::from(streams);
        let most = usize_of(most.max(ENTRIES_MIN));
        Self { hasher, most, entries: HashMap::new(), order: VecDeque::new(), round: 0 }
    }

    /// A round begins.
    pub(super) fn begin(&mut self) {
        self.round = self.round.saturating_add(1);
    }

    /// Makes room for a page, if there is none and others are not needed.
    fn has_room(&mut self) -> bool {
        if self.entries.len() < self.most {
            return true;
        }
        for _ in 0..TRIES {
            let Some(page) = self.order.pop_front() else { return false };
            if self.entries.get(&page).is_some_and(|entry| entry.round < self.round) {
                self.entries.remove(&page);
                return true;
            }
            self.order.push_back(page);
        }
        false
    }

    /// A page is sent whose content the destination had as `before`, if it had any, and that is `content`
    /// now. Tells which lines of it need be sent, if not all.
    pub(super) fn send(
        &mut self,
        page: PageNumber,
        bytes: &PageBytes,
        (before, content): (Option<ContentHash>, ContentHash),
    ) -> Option<Lines> {
        let (hasher, round) = (self.hasher, self.round);
        if let Some(entry) = self.entries.get_mut(&page) {
            let known = before == Some(entry.content);
            let lines = hasher.changed(&mut entry.fingerprints, bytes);
            (entry.content, entry.round) = (content, round);
            return Some(lines).filter(|lines| known && lines.count() <= LINES_MAX);
        }
        if round > 1 && self.has_room() {
            let fingerprints = Box::new(hasher.fingerprints(bytes));
            self.order.push_back(page);
            self.entries.insert(page, Entry { content, fingerprints, round });
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Deltas {
        /// Bytes that the fingerprints have, by what the allocator gave out for tables of this kind.
        pub(in super::super) fn bytes(&self) -> usize {
            let slot = size_of::<(PageNumber, Entry)>() + 1;
            // A table that has as many slots again as it needs, and a boxed entry for each.
            let table = (self.entries.capacity() * 8 / 7).next_power_of_two() * slot;
            let order = self.order.capacity() * size_of::<PageNumber>();
            table + order + self.entries.len() * size_of::<Fingerprints>()
        }
    }
    use sterna_page::sent::ContentHasher;

    struct Page {
        deltas: Deltas,
        bytes: PageBytes,
        before: Option<ContentHash>,
    }

    impl Page {
        fn send(&mut self, number: u64) -> Option<usize> {
            let content = ContentHasher::new([1; 32]).hash(&self.bytes);
            let before = self.before.replace(content);
            let sent = self.deltas.send(PageNumber(number), &self.bytes, (before, content));
            sent.map(Lines::count)
        }
    }

    fn page() -> Page {
        let mut deltas = Deltas::new(LineHasher::new(5), PageCount(64), 1);
        deltas.begin();
        Page { deltas, bytes: [9; PAGE_SIZE], before: None }
    }

    #[test]
    fn a_page_that_was_sent_after_the_first_round_goes_as_what_has_changed() {
        let mut page = page();
        assert_eq!(page.send(3), None);
        page.bytes[7] = 1;
        assert_eq!(page.send(3), None, "not in the first round");
        page.deltas.begin();
        page.bytes[8] = 1;
        assert_eq!(page.send(3), None);
        page.bytes[4000] = 1;
        assert_eq!(page.send(3), Some(1));
        page.bytes[LINE_BYTES] = 1;
        page.bytes[LINE_BYTES - 1] = 1;
        assert_eq!(page.send(3), Some(2));
        page.bytes = [8; PAGE_SIZE];
        assert_eq!(page.send(3), None, "all of it is cheaper");
        page.bytes[0] = 1;
        assert_eq!(page.send(3), Some(1));
    }

    #[test]
    fn what_the_destination_does_not_have_is_no_ground() {
        let mut page = page();
        page.deltas.begin();
        (0..3).for_each(|at| {
            page.bytes[at * 500] = 1;
            page.send(3);
        });
        // It lacks the page, or got it in a way of which nobody made fingerprints.
        for before in [None, Some(ContentHasher::new([1; 32]).hash(&[77; PAGE_SIZE]))] {
            page.before = before;
            page.bytes[5] += 1;
            assert_eq!(page.send(3), None);
        }
        page.bytes[5] += 1;
        assert_eq!(page.send(3), Some(1));
    }

    #[test]
    fn fingerprints_have_a_bound_and_make_room_for_newer_ones() {
        let mut page = page();
        let again = |page: &mut Page, number| {
            page.bytes[9] ^= 1;
            page.send(number)
        };
        page.deltas.begin();
        page.send(0);
        for number in 0..100 {
            again(&mut page, number);
        }
        assert_eq!(page.deltas.entries.len(), 64);
        again(&mut page, 70);
        assert_eq!(again(&mut page, 70), None, "all are of this round");
        page.deltas.begin();
        // The first is needed in this round, too.
        again(&mut page, 0);
        again(&mut page, 70);
        assert_eq!(again(&mut page, 70), Some(1));
        assert!(page.deltas.entries.contains_key(&PageNumber(0)));
        assert_eq!((page.deltas.entries.len(), page.deltas.order.len()), (64, 64));
    }
}
