//! Tests of write tracking against the real kernel, in this process: the threads write through one
//! mapping of a memfd, which is tracked.

use super::*;
use crate::memory::{Access, GuestMemory, HugePages, create_shared};
use crate::pagemap::{AfterScan, Pagemap};
use sterna_page::{PAGE_SIZE, PAGE_SIZE_BYTES, PageNumber, PageRun, PageSet, RamBlock, RamLayout};

const PAGES: u64 = 1024;

struct Tracked {
    guest: GuestMemory,
    outside: GuestMemory,
    uffd: Userfaultfd,
    pagemap: Pagemap,
    range: AddressRange,
}

/// A tracked mapping and another one of the same memory, or `None` with the reason printed.
fn tracked() -> Option<Tracked> {
    let uffd = match Userfaultfd::create() {
        Ok(uffd) => uffd,
        Err(error) => {
            eprintln!("skipped: this kernel cannot track writes: {error}");
            return None;
        }
    };
    let size_bytes = PAGES * PAGE_SIZE_BYTES;
    let block = RamBlock { name: "ram0".into(), size_bytes, host_page_bytes: 4096 };
    let layout = RamLayout::new(vec![block]).unwrap();
    let file = create_shared("ram0", size_bytes, HugePages::No).unwrap();
    let copy = file.try_clone().unwrap();
    let guest = GuestMemory::map(layout.clone(), vec![file], Access::ReadWrite).unwrap();
    let outside = GuestMemory::map(layout, vec![copy], Access::ReadWrite).unwrap();
    let range = guest.addresses().next().unwrap();
    let pagemap = Pagemap::open(std::process::id()).unwrap();
    Some(Tracked { guest, outside, uffd, pagemap, range })
}

impl Tracked {
    fn start(&self) {
        self.uffd.register_write_protect(self.range).unwrap();
        self.uffd.write_protect(self.range).unwrap();
    }

    fn scan(&mut self, after: AfterScan) -> PageSet {
        let mut pages = PageSet::empty(self.guest.pages());
        let start = self.range.start();
        let add = |written: AddressRange| {
            let first = (written.start() - start) / PAGE_SIZE_BYTES;
            pages.insert_run(PageRun::new(first, written.bytes() / PAGE_SIZE_BYTES));
        };
        self.pagemap.scan_written(self.range, after, add).unwrap();
        pages
    }

    fn write(&self, page: u64) {
        self.guest.write(PageNumber(page), &[7; PAGE_SIZE]).unwrap();
    }
}

fn numbers(pages: &PageSet) -> Vec<u64> {
    pages.iter().map(|page| page.0).collect()
}

#[test]
fn a_scan_reports_exactly_the_pages_written_by_any_thread() {
    let Some(mut tracked) = tracked() else { return };
    tracked.outside.write(PageNumber(0), &vec![1; 512 * PAGE_SIZE]).unwrap();
    tracked.start();
    let mut expected: Vec<u64> =
        (0..4).flat_map(|t| (0..60).map(move |i| t * 256 + i * 4)).collect();
    expected.sort_unstable();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let tracked = &tracked;
            scope.spawn(move || (0..60).for_each(|i| tracked.write(thread * 256 + i * 4)));
        }
    });
    assert_eq!(numbers(&tracked.scan(AfterScan::Forget)), expected, "existing pages and new ones");
    assert!(tracked.scan(AfterScan::Forget).is_empty(), "reported once");
}

#[test]
fn reads_and_writes_through_another_mapping_are_not_reported() {
    let Some(mut tracked) = tracked() else { return };
    tracked.start();
    tracked.guest.read(PageNumber(5), &mut [0; PAGE_SIZE]).unwrap();
    tracked.outside.write(PageNumber(6), &[1; PAGE_SIZE]).unwrap();
    assert!(tracked.scan(AfterScan::Forget).is_empty());
    tracked.write(5);
    tracked.write(6);
    assert_eq!(numbers(&tracked.scan(AfterScan::Forget)), [5, 6], "still protected");
}

#[test]
fn a_look_without_forgetting_changes_nothing() {
    let Some(mut tracked) = tracked() else { return };
    tracked.start();
    tracked.write(9);
    for after in [AfterScan::Keep, AfterScan::Keep, AfterScan::Forget] {
        assert_eq!(numbers(&tracked.scan(after)), [9]);
    }
    assert!(tracked.scan(AfterScan::Keep).is_empty());
}

#[test]
fn a_page_written_after_a_hole_was_punched_is_reported() {
    let Some(mut tracked) = tracked() else { return };
    tracked.write(3);
    tracked.start();
    tracked.outside.punch(PageRun::new(3, 1)).unwrap();
    assert!(tracked.scan(AfterScan::Forget).is_empty(), "the punch itself is not");
    tracked.write(3);
    assert_eq!(numbers(&tracked.scan(AfterScan::Forget)), [3]);
}

#[test]
fn more_regions_than_one_call_returns_are_all_reported() {
    let Some(mut tracked) = tracked() else { return };
    tracked.pagemap.limit_regions(7);
    tracked.start();
    (0..PAGES).step_by(2).for_each(|page| tracked.write(page));
    let expected: Vec<u64> = (0..PAGES).step_by(2).collect();
    assert_eq!(numbers(&tracked.scan(AfterScan::Forget)), expected);
}

#[test]
fn tracking_ends_and_begins_anew() {
    let Some(mut tracked) = tracked() else { return };
    tracked.uffd.unregister(tracked.range).unwrap();
    tracked.start();
    tracked.write(1);
    tracked.uffd.unregister(tracked.range).unwrap();
    let range = tracked.range;
    let scanned = tracked.pagemap.scan_written(range, AfterScan::Forget, |_| {});
    assert!(scanned.is_err(), "memory that is not tracked must not look clean");
    tracked.start();
    assert!(tracked.scan(AfterScan::Forget).is_empty());
    tracked.write(2);
    assert_eq!(numbers(&tracked.scan(AfterScan::Forget)), [2]);
}
