//! Moves in which the destination derives most pages: from what it has, from others, from what they were.

#![allow(clippy::unwrap_used, reason = "functions of a test")]

mod kit;

use kit::cutting::cut_anywhere;
use kit::{Site, attempt, full_of, request, run, sites};
use std::collections::HashMap;
use std::sync::Arc;
use sterna_core::receipt::{Ending, PagesByCoding, RamCheck, Receipt};
use sterna_engine::Disks;
use sterna_engine::source::Move;
use sterna_page::coding::PageBytes;
use sterna_page::known::{DiskBlock, DiskBlocks, KnownPages};
use sterna_page::sent::{ContentHash, ContentHasher};
use sterna_page::{PAGE_SIZE, PageCount, PageNumber, is_zero};
use sterna_proto::message::Coding;
use sterna_vmm::Source;
use sterna_vmm::synthetic::{Content, Rewrite, SyntheticConfig, SyntheticGuest};

const HASHER_KEY: [u8; 32] = [7; 32];

/// Slow enough that all this pays.
const SLOW: u64 = 10 << 20;

/// What a guest had when it was last looked at: even pages of it in RAM, odd ones on a disk. One of seven is wrong
/// now, and another has gone.
#[derive(Clone, Debug)]
struct Snapshot {
    pages: Arc<Vec<PageBytes>>,
    by_hash: Arc<HashMap<ContentHash, usize>>,
}

impl Snapshot {
    fn of(guest: &SyntheticGuest) -> Self {
        let memory = Source::memory(&guest.source());
        let mut pages = Vec::new();
        for run in memory.populated().unwrap().runs() {
            for number in run.first.0..run.first.0 + run.count.0 {
                let mut page = [0; PAGE_SIZE];
                memory.read(PageNumber(number), &mut page).unwrap();
                if !is_zero(&page) {
                    pages.push(page);
                }
            }
        }
        let hasher = ContentHasher::new(HASHER_KEY);
        let by_hash = (0..).zip(&pages).map(|(place, page)| (hasher.hash(page), place)).collect();
        Self { pages: Arc::new(pages), by_hash: Arc::new(by_hash) }
    }

    fn read_place(&self, place: usize, page: &mut PageBytes) -> bool {
        *page = self.pages[place];
        page[99] ^= u8::from(place % 7 == 3);
        place % 7 != 5
    }
}

impl KnownPages for Snapshot {
    fn hasher(&self) -> ContentHasher {
        ContentHasher::new(HASHER_KEY)
    }

    fn summary(&self) -> Vec<u64> {
        let told = self.by_hash.iter().filter(|(_, place)| *place % 2 == 0);
        let mut halves: Vec<u64> = told.map(|(hash, _)| hash.half()).collect();
        halves.sort_unstable();
        halves
    }

    fn read(&self, hash: ContentHash, page: &mut PageBytes) -> bool {
        self.by_hash.get(&hash).is_some_and(|place| self.read_place(*place, page))
    }

    fn has_disks(&self) -> bool {
        true
    }

    fn read_block(&self, block: DiskBlock, page: &mut PageBytes) -> bool {
        block.disk == 1 && self.read_place(usize::try_from(block.number).unwrap(), page)
    }
}

impl DiskBlocks for Snapshot {
    fn find(&self, hash: ContentHash) -> Option<DiskBlock> {
        let place = self.by_hash.get(&hash).filter(|place| *place % 2 == 1)?;
        Some(DiskBlock { disk: 1, number: *place as u64 })
    }

    fn len(&self) -> usize {
        self.pages.len()
    }
}

impl Disks for Snapshot {
    fn look(&self, hasher: ContentHasher, _pages: PageCount) -> Arc<dyn DiskBlocks> {
        assert_eq!(hasher.key(), HASHER_KEY, "what the destination hashes by");
        Arc::new(self.clone())
    }
}

/// The destination has what the guest has now, and everything may be used that spares bytes.
fn derive(b: &Site, guest: &SyntheticGuest, request: &mut Move) {
    let snapshot = Snapshot::of(guest);
    b.host.know(Arc::new(snapshot.clone()));
    request.disks = Some(Arc::new(snapshot));
    let all = [Coding::Coded, Coding::Same, Coding::Changed, Coding::Known, Coding::OnDisk];
    request.offer.codings.extend(all);
    request.bandwidth_bytes_per_second = Some(SLOW);
}

fn pages(receipt: &Receipt) -> PagesByCoding {
    let mut all = PagesByCoding::default();
    receipt.rounds.iter().for_each(|round| all += round.pages);
    all
}

#[test]
fn what_the_destination_has_is_not_sent_and_what_it_lacks_is() {
    let (a, b) = sites();
    let config = SyntheticConfig { rewrite: Rewrite::Header, ..full_of(Content::Random) };
    let guest = SyntheticGuest::start(config).unwrap();
    let mut request = request(&a, b.listener.address(), &guest, 1);
    derive(&b, &guest, &mut request);
    let receipt = run(&a, &request, &guest);
    assert_eq!(receipt.ending, Ending::Moved, "{receipt:#?}");
    assert_eq!(receipt.ram_digest, RamCheck::Equal);
    assert!(b.host.arrived(attempt(1)).unwrap().check().unwrap().is_sound());
    let lacking: u64 = receipt.rounds.iter().map(|round| round.lacking.0).sum();
    let pages = pages(&receipt);
    // But for those that were written before their turn, and of disks some before it was known that reading pays.
    assert!((3500..=4096).contains(&pages.known.0), "{receipt:#?}");
    assert!((2000..=4096).contains(&pages.on_disk.0), "{receipt:#?}");
    // Two of seven, which were then sent; and some that the guest wrote.
    assert!((1500..3500).contains(&lacking), "{receipt:#?}");
    assert!((lacking..6500).contains(&pages.sent_with_content().0), "{receipt:#?}");
    assert!(receipt.rounds.last().unwrap().pages.got_there() == PageCount::ZERO, "{receipt:#?}");
}

#[test]
fn a_link_cut_after_any_number_of_bytes_leaves_exactly_one_guest_running() {
    let (a, b) = sites();
    let receipts = cut_anywhere((&a, &b), |guest, request| derive(&b, guest, request));
    let all = receipts.iter().map(pages);
    let used = all.filter(|pages| pages.known.0 > 0 && pages.on_disk.0 > 0).count();
    assert!(used > receipts.len() / 2, "{used} of {} moves derived pages", receipts.len());
}
