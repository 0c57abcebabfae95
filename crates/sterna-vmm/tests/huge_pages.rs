//! Guest RAM of huge pages: what exists, what is freed, what a scan reports.
//!
//! They take huge pages from the machine, or print why they skip where it has none to give.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::os::fd::OwnedFd;
use sterna_page::{PAGE_SIZE, PAGE_SIZE_BYTES, PageNumber, PageRun, PageSet, RamBlock, RamLayout};
use sterna_sys::AddressRange;
use sterna_sys::memory::{Access, GuestMemory, HugePages as Kind, create_shared};
use sterna_sys::pagemap::{AfterScan, Pagemap};
use sterna_sys::uffd::Userfaultfd;
use sterna_testkit::huge_pages::HugePages;
use sterna_testkit::recorder::Bytes;

const HUGE_PAGE_BYTES: u64 = 2 << 20;
/// Ordinary pages in a huge one.
const PART: u64 = HUGE_PAGE_BYTES / PAGE_SIZE_BYTES;
const HUGE_PAGES: u64 = 6;
const BYTES: u64 = HUGE_PAGES * HUGE_PAGE_BYTES;

fn pool() -> Option<HugePages> {
    HugePages::reserve(Bytes(BYTES)).map_err(|why| eprintln!("skipped: {why}")).ok()
}

fn file() -> (RamLayout, OwnedFd) {
    let name = "ram0".to_owned();
    let block = RamBlock { name, size_bytes: BYTES, host_page_bytes: HUGE_PAGE_BYTES };
    let file = create_shared("ram0", BYTES, Kind::TwoMiB).unwrap();
    (RamLayout::new(vec![block]).unwrap(), file)
}

/// Memory as an agent has it.
fn opened() -> GuestMemory {
    let (layout, file) = file();
    GuestMemory::open(layout, vec![file]).unwrap()
}

fn existing(memory: &GuestMemory) -> u64 {
    let file = memory.files().next().unwrap();
    u64::try_from(rustix::fs::fstat(file).unwrap().st_blocks).unwrap() * 512 / HUGE_PAGE_BYTES
}

fn page_of(byte: u8) -> Vec<u8> {
    vec![byte; PAGE_SIZE]
}

fn read(memory: &GuestMemory, page: u64) -> Vec<u8> {
    let mut bytes = page_of(0xff);
    memory.read(PageNumber(page), &mut bytes).unwrap();
    bytes
}

#[test]
fn reading_all_memory_makes_none_of_it_exist() {
    let Some(_pool) = pool() else { return };
    let memory = opened();
    memory.write(PageNumber(PART + 7), &page_of(7)).unwrap();
    assert_eq!(existing(&memory), 1);
    for page in memory.populated().unwrap().iter() {
        let expected = page_of(if page.0 == PART + 7 { 7 } else { 0 });
        assert!(read(&memory, page.0) == expected, "{page}");
    }
    assert_eq!(existing(&memory), 1);
}

#[test]
fn a_part_of_a_huge_page_is_zeroed_and_a_whole_one_freed() {
    let Some(_pool) = pool() else { return };
    let memory = opened();
    memory.write(PageNumber(0), &vec![9; 2 * usize::try_from(HUGE_PAGE_BYTES).unwrap()]).unwrap();
    memory.punch(PageRun::new(3, 2)).unwrap();
    let zeroes: Vec<u64> =
        (0..2 * PART).filter(|page| read(&memory, *page) == page_of(0)).collect();
    assert_eq!((zeroes, existing(&memory)), (vec![3, 4], 2));
    memory.punch(PageRun::new(PART - 1, PART + 1)).unwrap();
    assert_eq!(existing(&memory), 1);
    assert!(read(&memory, PART - 1) == page_of(0) && read(&memory, PART - 2) == page_of(9));
    memory.punch_all().unwrap();
    assert_eq!(existing(&memory), 0);
}

#[test]
fn what_was_freed_stays_reserved_and_can_be_written_when_the_pool_is_empty() {
    let Some(_pool) = pool() else { return };
    let memory = opened();
    let others = HugePages::free().unwrap();
    memory.write(PageNumber(0), &page_of(1)).unwrap();
    memory.write(PageNumber(PART), &page_of(1)).unwrap();
    memory.punch_all().unwrap();
    assert_eq!(HugePages::free().unwrap(), others, "they are promised to this memory");
    let size_bytes = (others + 1) * HUGE_PAGE_BYTES;
    let block = RamBlock { name: "other".into(), size_bytes, host_page_bytes: HUGE_PAGE_BYTES };
    let other = create_shared("other", size_bytes, Kind::TwoMiB).unwrap();
    let layout = RamLayout::new(vec![block]).unwrap();
    assert!(GuestMemory::open(layout, vec![other]).is_err(), "another took what was promised");
    for page in 0..HUGE_PAGES {
        memory.write(PageNumber(page * PART), &page_of(2)).unwrap();
    }
    assert_eq!(existing(&memory), HUGE_PAGES);
}

#[test]
fn a_scan_reports_the_whole_huge_page_of_each_write_and_no_other() {
    let Some(_pool) = pool() else { return };
    let (layout, file) = file();
    let copy = file.try_clone().unwrap();
    let outside = GuestMemory::open(layout.clone(), vec![copy]).unwrap();
    let guest = GuestMemory::map(layout, vec![file], Access::ReadWrite).unwrap();
    let range = guest.addresses().next().unwrap();
    let uffd = Userfaultfd::create().unwrap();
    let mut pagemap = Pagemap::open(std::process::id()).unwrap();
    let mut scan = || {
        let mut pages = PageSet::empty(guest.pages());
        let add = |written: AddressRange| {
            let first = (written.start() - range.start()) / PAGE_SIZE_BYTES;
            pages.insert_run(PageRun::new(first, written.bytes() / PAGE_SIZE_BYTES));
        };
        pagemap.scan_written(range, AfterScan::Forget, add).unwrap();
        pages.runs().collect::<Vec<_>>()
    };
    // One that exists before it is tracked, one that does not.
    guest.write(PageNumber(PART), &page_of(1)).unwrap();
    uffd.register_write_protect(range).unwrap();
    uffd.write_protect(range).unwrap();
    assert_eq!(scan(), []);
    let _seen = read(&outside, 0);
    guest.write(PageNumber(PART + 3), &page_of(2)).unwrap();
    guest.write(PageNumber(4 * PART + 511), &page_of(2)).unwrap();
    let expected = [PageRun::new(PART, PART), PageRun::new(4 * PART, PART)];
    assert_eq!(scan(), expected);
    assert_eq!(scan(), []);
    guest.write(PageNumber(PART), &page_of(3)).unwrap();
    assert_eq!(scan(), [PageRun::new(PART, PART)], "protected again by the scan");
}
