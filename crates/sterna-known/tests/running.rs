//! What guests that run have in RAM, while they go on writing.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::time::Duration;
use sterna_known::{Effort, ImageStore, RunningGuests, Union, fresh_hasher};
use sterna_page::coding::PageBytes;
use sterna_page::known::KnownPages;
use sterna_page::{PAGE_SIZE, PageCount, PageNumber, PageSet, RamBlock, RamLayout};
use sterna_sys::memory::{GuestMemory, HugePages, create_shared};
use uuid::Uuid;

const PAGES: u64 = 1000;
const ALL: Effort = Effort { pages: PageCount(10 * PAGES), time: Duration::from_secs(60) };

fn page(content: u64) -> PageBytes {
    let mut bytes = [0; PAGE_SIZE];
    bytes[4000..4008].copy_from_slice(&content.to_le_bytes());
    bytes
}

/// A guest whose page `i` has content `i + seed`, but for its last hundred, which do not exist.
fn guest(seed: u64) -> Arc<GuestMemory> {
    let size_bytes = PageCount(PAGES).bytes();
    let block = RamBlock { name: "ram".into(), size_bytes, host_page_bytes: PAGE_SIZE as u64 };
    let file = create_shared("ram", size_bytes, HugePages::No).unwrap();
    let memory = GuestMemory::open(RamLayout::new(vec![block]).unwrap(), vec![file]).unwrap();
    for number in 0..PAGES - 100 {
        memory.write(PageNumber(number), &page(number + seed)).unwrap();
    }
    Arc::new(memory)
}

fn got(known: &dyn KnownPages, content: u64) -> bool {
    let hash = known.hasher().hash(&page(content));
    let mut read = [0; PAGE_SIZE];
    known.read(hash, &mut read) && read == page(content)
}

#[test]
fn all_that_guests_have_is_found_until_they_change_it() {
    let (one, two) = (guest(1), guest(500));
    let memories = vec![Arc::clone(&one), two];
    let known = RunningGuests::look(memories, fresh_hasher().unwrap(), ALL).unwrap();
    // What both have is there once, and nothing that does not exist.
    assert_eq!(known.pages(), PageCount(500 + 899));
    let halves = known.summary();
    assert!(halves.is_sorted() && halves.len() == 1399);
    assert!((1..=1399).all(|content| got(&known, content)));
    assert!(!got(&known, 0) && !got(&known, 1400));
    assert_eq!(one.populated().unwrap().count(), PageCount(900), "holes stay holes");
    one.write(PageNumber(10), &page(77_777)).unwrap();
    assert!(!got(&known, 11) && !got(&known, 77_777) && got(&known, 12));
}

#[test]
fn no_more_is_looked_at_than_was_asked_for() {
    let hasher = fresh_hasher().unwrap();
    let few = Effort { pages: PageCount(300), ..ALL };
    let known = RunningGuests::look(vec![guest(1)], hasher, few).unwrap();
    assert_eq!((known.pages(), known.summary().len()), (PageCount(300), 300));
    let never = Effort { time: Duration::ZERO, ..ALL };
    let known = RunningGuests::look(vec![guest(1)], hasher, never).unwrap();
    assert_eq!(known.pages(), PageCount(0));
}

#[test]
fn what_one_place_has_lost_another_may_have() {
    let folder = tempfile::tempdir().unwrap();
    let store =
        ImageStore::open(&folder.path().join("images"), &folder.path().join("keys"), 1 << 30)
            .unwrap();
    let (id, memory) = (Uuid::new_v4(), guest(1));
    store.keep(id, &memory, &PageSet::empty(memory.pages())).unwrap();
    let image = Arc::new(store.find(id).unwrap().unwrap());
    let running = RunningGuests::look(vec![Arc::clone(&memory)], store.hasher(), ALL).unwrap();
    let places: Vec<Arc<dyn KnownPages>> = vec![Arc::new(running), image];
    let known = Union::new(store.hasher(), places);
    assert_eq!(known.summary().len(), 900);
    memory.write(PageNumber(10), &page(77_777)).unwrap();
    assert!(got(&known, 11), "the image has it");
    store.remove(id).unwrap();
    assert!(!got(&known, 11) && got(&known, 12), "the guest has it");
}
