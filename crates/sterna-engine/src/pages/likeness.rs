//! Which pages need not be sent, or only as references, because the destination has their content.
//!
//! That costs a hash a page, and spares the sending of a share *h* of them. With *T* what the stream takes
//! for a page with its content, it is worth it where the hash takes less than *h T*. What *h* is shows only where
//! pages are hashed, so it is taken for a twentieth at least: a guest's kernel alone has as many.

use super::coding::processor_time;
use super::cost::PageCost;
use super::{Deltas, usize_of};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use sterna_page::coding::PageBytes;
use sterna_page::delta::{LineHasher, Lines};
use sterna_page::known::{DiskBlock, DiskBlocks, Summary};
use sterna_page::sent::{Base, ContentHash, ContentHasher, Known, Sent};
use sterna_page::{PageCount, PageNumber, PageRun, PageSet, is_zero};

/// The least share of pages that is taken to be known.
const SHARE_MIN: f64 = 0.05;

/// A page that the destination gets by itself takes it as long as so many hashes: it is read, unsealed and
/// hashed, while the source hashes the next.
const GETTING_HASHES: f64 = 3.0;

/// The same of a page that it reads from one of the guest's disks.
const READING_HASHES: f64 = 12.0;

/// What the destination has is of no more use after a round in which it was told to get fewer than one of so many
/// pages, if the round had some at least.
const TOLD_SHARE: u64 = 16;
const ASKED_MIN: u64 = 256;

/// How many times as long as thought getting may take before pages are sent to see what that takes.
const GETTING_TIMES_MAX: f64 = 2.0;

/// What the newest measurement counts for.
const NEWEST: f64 = 0.1;

/// What a hash takes before one was measured: 2 GB/s.
const HASH_AT_FIRST: f64 = 2e-6;

/// What was sent of each page, for all streams.
#[derive(Clone, Debug)]
pub(crate) struct Alike {
    state: Arc<Mutex<State>>,
    hasher: ContentHasher,
    pages: PageCount,
    /// Whether pages may go as what has changed of them.
    lines: Option<LineHasher>,
}

/// How a page is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Not at all: it is as it was.
    Unchanged,
    /// As a reference.
    Like(PageNumber, Base),
    /// As its hash.
    There(ContentHash),
    /// As its hash and a block of a disk.
    OnDisk(ContentHash, DiskBlock),
    /// As what has changed of it.
    Changed(Lines),
    /// With its content.
    Whole,
}

#[derive(Debug)]
struct State {
    sent: Sent,
    /// What the destination can get by itself.
    known: Option<Summary>,
    /// What it can read on the guest's disks.
    blocks: Option<Arc<dyn DiskBlocks>>,
    /// Pages that it could not get.
    refused: PageSet,
    /// Of the pages of this round: how many it could perhaps get, and how many it was told to.
    asked: u64,
    told: u64,
    /// Whether it has the time to say so if it cannot.
    may_lack: bool,
}

/// Where a page takes less if the destination gets it by itself.
#[derive(Clone, Copy, Debug)]
struct Pays {
    known: bool,
    on_disk: bool,
}

impl Pays {
    /// Where a page costs that much, and a hash so many seconds. While nobody knows, as long as the destination
    /// does not fall behind.
    fn of(cost: PageCost, hash: f64) -> Self {
        let PageCost { takes, getting_times, may_read_blindly } = cost;
        let pays = |hashes, blindly| match takes {
            Some(takes) => takes.as_secs_f64() >= hash * hashes * getting_times,
            None => blindly && getting_times <= GETTING_TIMES_MAX,
        };
        Self { known: pays(GETTING_HASHES, true), on_disk: pays(READING_HASHES, may_read_blindly) }
    }
}

impl State {
    fn send(&mut self, page: PageNumber, hash: ContentHash, pays: Pays) -> Known {
        match self.sent.send(page, hash) {
            Known::No if self.may_lack && !self.refused.contains(page) => {
                let known = self.get(hash, pays);
                self.asked += 1;
                self.told += u64::from(known != Known::No);
                known
            }
            known => known,
        }
    }

    /// How the destination can get a page by itself.
    fn get(&self, hash: ContentHash, pays: Pays) -> Known {
        let known = self.known.as_ref().filter(|_| pays.known);
        if known.is_some_and(|known| known.holds(hash)) {
            return Known::There(hash);
        }
        let blocks = self.blocks.as_ref().filter(|_| pays.on_disk);
        let block = blocks.and_then(|blocks| blocks.find(hash));
        block.map_or(Known::No, |block| Known::OnDisk(hash, block))
    }

    /// Frees what is of no more use.
    fn forget_what_is_not_gotten(&mut self) {
        let (asked, told) = (std::mem::take(&mut self.asked), std::mem::take(&mut self.told));
        if asked >= ASKED_MIN && told < asked / TOLD_SHARE {
            (self.known, self.blocks) = (None, None);
        }
    }

    /// Whether there is anything that it can get.
    fn may_get(&self) -> bool {
        self.known.as_ref().is_some_and(|known| !known.is_empty())
            || self.blocks.as_ref().is_some_and(|blocks| !blocks.is_empty())
    }
}

impl Alike {
    /// For a guest of `pages` pages, under a random key.
    pub(crate) fn new(pages: PageCount, key: [u8; 32]) -> Self {
        Self::hashing(pages, ContentHasher::new(key), None)
    }

    /// The same, of a guest whose destination can get these pages by itself.
    pub(crate) fn with(pages: PageCount, hasher: ContentHasher, known: Summary) -> Self {
        Self::hashing(pages, hasher, Some(known))
    }

    fn hashing(pages: PageCount, hasher: ContentHasher, known: Option<Summary>) -> Self {
        let state = State {
            sent: Sent::new(pages),
            known,
            blocks: None,
            refused: PageSet::empty(pages),
            asked: 0,
            told: 0,
            may_lack: false,
        };
        Self { state: Arc::new(Mutex::new(state)), hasher, pages, lines: None }
    }

    /// The same, where the destination can read these blocks of the guest's disks.
    pub(crate) fn with_disks(self, blocks: Arc<dyn DiskBlocks>) -> Self {
        self.lock().blocks = Some(blocks);
        self
    }

    /// The same, where pages may go as what has changed of them.
    pub(crate) fn with_deltas(self, seed: u64) -> Self {
        Self { lines: Some(LineHasher::new(seed)), ..self }
    }

    /// A round begins that may change these pages at the destination, and no others.
    pub(super) fn begin(&self, pages: Arc<PageSet>, may_lack: bool) {
        let mut state = self.lock();
        state.sent.begin(pages);
        state.may_lack = may_lack;
        state.forget_what_is_not_gotten();
    }

    /// The destination does not have what was sent of these pages as hashes or references, or does not
    /// say. Returns those that must be sent again.
    pub(super) fn lacking(&self, run: PageRun) -> Vec<PageNumber> {
        let mut state = self.lock();
        let State { sent, refused, .. } = &mut *state;
        let pages = (run.first.0..run.first.0 + run.count.0).map(PageNumber);
        let lacking = pages.filter(|page| {
            let is_lacking = sent.content(*page).is_some();
            if is_lacking {
                refused.insert(*page);
                sent.forget(*page);
            }
            is_lacking
        });
        lacking.collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one stream knows of the likeness of its pages.
#[derive(Debug)]
pub(super) struct Likeness {
    alike: Alike,
    deltas: Option<Deltas>,
    /// Of a page that is not zero, in seconds.
    hash: f64,
    /// *h*
    share: f64,
}

impl Likeness {
    /// Of one of so many streams.
    pub(super) fn new(alike: Alike, streams: u16) -> Self {
        let deltas = alike.lines.map(|lines| Deltas::new(lines, alike.pages, streams));
        let share = if alike.lock().may_get() { 1.0 } else { SHARE_MIN };
        Self { alike, deltas, hash: HASH_AT_FIRST, share }
    }

    /// A round begins.
    pub(super) fn begin(&mut self) {
        if let Some(deltas) = &mut self.deltas {
            deltas.begin();
        }
    }

    /// How the pages of a run are to be sent, each of which costs that much otherwise. They
    /// count as sent so from now on, so they must be, in this order.
    pub(super) fn send(&mut self, run: PageRun, pages: &[PageBytes], cost: PageCost) -> Vec<Way> {
        debug_assert_eq!(pages.len(), usize_of(run.count.0));
        let numbers = (run.first.0..).map(PageNumber);
        let spared = |takes: Duration| self.share.max(SHARE_MIN) * takes.as_secs_f64();
        if cost.takes.is_some_and(|takes| self.hash >= spared(takes)) {
            let State { sent, .. } = &mut *self.alike.lock();
            numbers.zip(pages).for_each(|(page, _)| sent.forget(page));
            return vec![Way::Whole; pages.len()];
        }
        let pays = Pays::of(cost, self.hash);
        let hashes = self.hashes(pages);
        let mut state = self.alike.lock();
        let may_get = state.may_get();
        let known: Vec<(Option<ContentHash>, Known)> = numbers
            .clone()
            .zip(&hashes)
            .map(|(page, hash)| match hash {
                Some(hash) => (state.sent.content(page), state.send(page, *hash, pays)),
                None => {
                    state.sent.forget(page);
                    (None, Known::No)
                }
            })
            .collect();
        drop(state);
        let way = |(((page, bytes), hash), (before, known))| match (known, hash) {
            (Known::Unchanged, _) => Way::Unchanged,
            (Known::Like(page, base), _) => Way::Like(page, base),
            (Known::There(hash), _) => Way::There(hash),
            (Known::OnDisk(hash, block), _) => Way::OnDisk(hash, block),
            (Known::No, None) => Way::Whole,
            (Known::No, Some(hash)) => {
                // There is room for one or the other.
                let deltas = self.deltas.as_mut().filter(|_| !may_get);
                let lines = deltas.and_then(|deltas| deltas.send(page, bytes, (before, hash)));
                lines.map_or(Way::Whole, Way::Changed)
            }
        };
        let ways: Vec<Way> =
            numbers.zip(pages).zip(hashes.iter().copied()).zip(known).map(way).collect();
        self.learn(&hashes, &ways);
        ways
    }

    /// The destination has nothing of these pages any more.
    pub(super) fn forget(&mut self, run: PageRun) {
        let mut state = self.alike.lock();
        (run.first.0..run.first.0 + run.count.0)
            .for_each(|page| state.sent.forget(PageNumber(page)));
    }

    /// Of the pages that are not zero.
    fn hashes(&mut self, pages: &[PageBytes]) -> Vec<Option<ContentHash>> {
        // Of the processor: what a destination takes for it does not depend on how busy this host is.
        let began = processor_time();
        let hash = |page| (!is_zero(page)).then(|| self.alike.hasher.hash(page));
        let hashes: Vec<_> = pages.iter().map(hash).collect();
        let hashed = hashes.iter().flatten().count();
        if let Ok(hashed @ 1..) = u32::try_from(hashed) {
            let took = processor_time().saturating_sub(began);
            let newest = (took / hashed).as_secs_f64();
            self.hash += (newest - self.hash) * NEWEST;
        }
        hashes
    }

    fn learn(&mut self, hashes: &[Option<ContentHash>], ways: &[Way]) {
        let hashed = hashes.iter().flatten().count();
        if hashed > 0 {
            let spared = ways.iter().filter(|way| **way != Way::Whole).count();
            #[expect(clippy::cast_precision_loss, reason = "an estimate")]
            let newest = spared as f64 / hashed as f64;
            self.share += (newest - self.share) * NEWEST;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sterna_page::PAGE_SIZE;

    fn likeness() -> Likeness {
        let alike = Alike::new(PageCount(16), [5; 32]);
        alike.begin(Arc::new(PageSet::full(PageCount(16))), true);
        Likeness::new(alike, 1)
    }

    /// What a page costs if it takes so long with its content.
    fn takes(takes: impl Into<Option<Duration>>) -> PageCost {
        PageCost { takes: takes.into(), getting_times: 1.0, may_read_blindly: true }
    }

    fn slow() -> PageCost {
        takes(Duration::from_secs(1))
    }

    fn pages(contents: &[u8]) -> Vec<PageBytes> {
        contents.iter().map(|content| [*content; PAGE_SIZE]).collect()
    }

    #[test]
    fn on_a_slow_link_pages_are_sent_once() {
        let mut likeness = likeness();
        let known = likeness.send(PageRun::new(0, 5), &pages(&[7, 0, 7, 8, 7]), slow());
        let like = Way::Like(PageNumber(0), Base::Coming);
        assert_eq!(known, [Way::Whole, Way::Whole, like, Way::Whole, like]);
        assert!(likeness.share > SHARE_MIN);
    }

    #[test]
    fn the_destination_gets_pages_by_itself_where_that_takes_less() {
        let hasher = ContentHasher::new([5; 32]);
        let there = hasher.hash(&[7; PAGE_SIZE]);
        let send = |cost, may_lack| {
            let summary = Summary::new(vec![there.half()]).unwrap();
            let alike = Alike::with(PageCount(16), hasher, summary);
            alike.begin(Arc::new(PageSet::full(PageCount(16))), may_lack);
            Likeness::new(alike, 1).send(PageRun::new(0, 2), &pages(&[7, 8]), cost)
        };
        let gotten = [Way::There(there), Way::Whole];
        assert_eq!(send(takes(None), true), gotten, "nobody knows yet");
        assert_eq!(send(slow(), true), gotten);
        assert_eq!(send(slow(), false), [Way::Whole; 2]);
        // Two hashes' time: worth a hash, if it is the page of another, and not what getting it takes.
        assert_eq!(send(takes(Duration::from_micros(4)), true), [Way::Whole; 2]);
        // The destination falls behind.
        let behind = |cost| PageCost { getting_times: 60.0, ..cost };
        assert_eq!(send(behind(takes(None)), true), [Way::Whole; 2]);
        assert_eq!(send(behind(takes(Duration::from_micros(40))), true), [Way::Whole; 2]);
        assert_eq!(send(behind(slow()), true), gotten);
    }

    /// A disk of one block, of this content.
    #[derive(Debug)]
    struct OneBlock(ContentHash);

    impl DiskBlocks for OneBlock {
        fn find(&self, hash: ContentHash) -> Option<DiskBlock> {
            (hash == self.0).then_some(DiskBlock { disk: 2, number: 9 })
        }

        fn len(&self) -> usize {
            1
        }
    }

    #[test]
    fn what_is_on_a_disk_and_nowhere_else_is_read_there_until_it_was_not_found() {
        let hasher = ContentHasher::new([5; 32]);
        let [there, on_disk] = [7, 8].map(|content| hasher.hash(&[content; PAGE_SIZE]));
        let summary = Summary::new(vec![there.half()]).unwrap();
        let alike = Alike::with(PageCount(16), hasher, summary);
        let alike = alike.with_disks(Arc::new(OneBlock(on_disk)));
        let send = |contents: &[u8], cost, may_lack| {
            alike.begin(Arc::new(PageSet::full(PageCount(16))), may_lack);
            let run = PageRun::new(0, contents.len() as u64);
            let ways = Likeness::new(alike.clone(), 1).send(run, &pages(contents), cost);
            // As if the destination could get none of them.
            (ways, alike.lacking(run).len())
        };
        let (slow, fast) = (slow(), takes(Duration::from_micros(10)));
        let refused =
            || std::mem::replace(&mut alike.lock().refused, PageSet::empty(PageCount(16)));
        assert_eq!(send(&[8], slow, false).0, [Way::Whole], "the last round");
        assert_eq!(refused().count(), PageCount(1));
        let hash_only = [Way::There(there), Way::Whole];
        assert_eq!(send(&[7, 8], fast, true).0, hash_only, "reading takes longer");
        assert_eq!(refused().count(), PageCount(2));
        let block = DiskBlock { disk: 2, number: 9 };
        let blind = PageCost { may_read_blindly: false, ..takes(None) };
        assert_eq!(send(&[7, 8], blind, true).0, hash_only, "nobody knows whether it pays");
        assert_eq!(refused().count(), PageCount(2));
        let both = [Way::There(there), Way::OnDisk(on_disk, block), Way::Whole];
        assert_eq!(send(&[7, 8, 9], slow, true), (both.to_vec(), 3));
        assert_eq!(send(&[7, 8, 9], slow, true).0, [Way::Whole; 3], "it could get none");
    }

    /// Of a guest of which every page is of its own, and every page is sent again, after the destination had all.
    #[test]
    fn tables_take_a_hundredth_of_ram_at_most() {
        // As many as a table has room for, and one more.
        for pages in [1 << 14, (1 << 14) / 8 * 7 + 1] {
            let hasher = ContentHasher::new([5; 32]);
            let content = |page: u64, round: u64| {
                let mut content = [1; PAGE_SIZE];
                content[..8].copy_from_slice(&(round << 32 | page).to_le_bytes());
                content
            };
            let mut halves: Vec<u64> =
                (0..pages).map(|page| hasher.hash(&content(page, 0)).half()).collect();
            halves.sort_unstable();
            let summary = Summary::new(halves).unwrap();
            let alike = Alike::with(PageCount(pages), hasher, summary);
            let alike = alike.with_disks(Arc::new(OneBlock(hasher.hash(&[9; PAGE_SIZE]))));
            let mut likeness = Likeness::new(alike.with_deltas(1), 1);
            let mut shares = Vec::new();
            for round in 0..4 {
                likeness.alike.begin(Arc::new(PageSet::full(PageCount(pages))), true);
                likeness.begin();
                for page in 0..pages {
                    likeness.send(PageRun::new(page, 1), &[content(page, round)], slow());
                }
                let State { sent, known, blocks, refused, .. } = &*likeness.alike.lock();
                // What a source of blocks may have; see `Disks::look`.
                let blocks = blocks.as_ref().map_or(0, |_| usize_of(pages) * 4);
                let known = known.as_ref().map_or(0, Summary::bytes);
                let deltas = likeness.deltas.as_ref().map_or(0, Deltas::bytes);
                let bytes = sent.bytes() + known + blocks + refused.bytes() + deltas;
                shares.push(bytes * 1000 / (usize_of(pages) * PAGE_SIZE));
            }
            assert!(shares.iter().all(|share| *share < 10), "{shares:?} thousandths");
            // Else this would have measured nothing.
            assert!(shares.iter().all(|share| *share >= 8), "{shares:?} thousandths");
        }
    }

    #[test]
    fn on_a_link_faster_than_hashes_nobody_hashes_and_what_was_known_is_forgotten() {
        let mut likeness = likeness();
        likeness.send(PageRun::new(0, 1), &pages(&[7]), takes(None));
        let fast = takes(Duration::from_nanos(500));
        assert_eq!(likeness.send(PageRun::new(0, 2), &pages(&[9, 9]), fast), [Way::Whole; 2]);
        assert_eq!(likeness.send(PageRun::new(2, 1), &pages(&[7]), slow()), [Way::Whole]);
    }
}
