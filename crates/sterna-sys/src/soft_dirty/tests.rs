//! Tests against the real kernel. What needs its soft-dirty bits runs in the KVM lane if this machine's has none.

mod elsewhere;

use super::*;
use std::time::Instant;

const PAGES: u64 = 1024;
const NONE: [u64; 0] = [];

/// Memory of this process that is tracked, and a second way to it.
struct Tracked {
    guest: GuestMemory,
    outside: GuestMemory,
    tracker: SoftDirty,
}

/// Memory as this process maps it, and a second way to it that maps nothing.
fn memory() -> (GuestMemory, GuestMemory) {
    let size_bytes = PAGES * PAGE_SIZE_BYTES;
    let block = RamBlock { name: "ram0".into(), size_bytes, host_page_bytes: PAGE_SIZE_BYTES };
    let layout = RamLayout::new(vec![block]).unwrap();
    let file = create_shared("ram0", size_bytes, HugePages::No).unwrap();
    let copy = file.try_clone().unwrap();
    let guest = GuestMemory::map(layout.clone(), vec![file], Access::ReadWrite).unwrap();
    (guest, GuestMemory::open(layout, vec![copy]).unwrap())
}

fn part(guest: &GuestMemory) -> Part {
    let file = guest.files().next().unwrap().try_clone_to_owned().unwrap();
    Part { addresses: guest.addresses().next().unwrap(), file, offset: 0 }
}

/// Whether this machine's kernel keeps the bits; if not it is said.
fn kept() -> bool {
    let kept = keeps_bits().unwrap();
    if !kept {
        eprintln!("skipped: this kernel keeps no soft-dirty bits");
    }
    kept
}

/// Memory of which the pages of `existing` exist and were never touched by way of the mapping that is tracked.
fn tracked(existing: PageRun) -> Option<Tracked> {
    if !kept() {
        return None;
    }
    let (guest, outside) = memory();
    let bytes = vec![1; usize::try_from(existing.count.bytes()).unwrap()];
    outside.write(existing.first, &bytes).unwrap();
    let tracker = SoftDirty::start(Writers::Held, vec![part(&guest)]).unwrap();
    Some(Tracked { guest, outside, tracker })
}

impl Tracked {
    fn scan(&mut self, after: AfterScan) -> Vec<u64> {
        let mut pages = PageSet::empty(PageCount(PAGES));
        let stopped = self.tracker.scan(after, |part, run| {
            assert_eq!(part, 0);
            pages.insert_run(run);
        });
        assert_eq!(stopped.unwrap(), Duration::ZERO, "nobody had to be stopped");
        pages.iter().map(|page| page.0).collect()
    }

    fn write(&self, page: u64) {
        self.guest.write(PageNumber(page), &[7; PAGE_SIZE]).unwrap();
    }

    fn read(&self, page: u64) {
        self.guest.read(PageNumber(page), &mut [0; PAGE_SIZE]).unwrap();
    }
}

/// Where the kernel is asked to reclaim memory of whichever process.
const RECLAIM: &str = "/sys/fs/cgroup/memory.reclaim";

/// Whether the kernel reclaims shared memory, for which it needs somewhere to put it; if not it is said.
fn reclaims() -> bool {
    let swap = std::fs::read_to_string("/proc/swaps").unwrap_or_default().lines().count() > 1;
    let can = swap && Path::new(RECLAIM).exists();
    if !can {
        eprintln!("skipped: this machine has no swap, or no {RECLAIM}");
    }
    can
}

/// Has the kernel reclaim what it finds.
fn reclaim_some() {
    // It says that this was not all it was asked for.
    let _fewer = std::fs::write(RECLAIM, "512K swappiness=200");
}

/// Has the kernel reclaim memory until nothing of this is mapped.
fn reclaim(guest: &GuestMemory) {
    let range = guest.addresses().next().unwrap();
    let entries = Entries::open(std::process::id()).unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while !entries.read(range).unwrap().present.is_empty() {
        assert!(Instant::now() < deadline, "the kernel reclaims nothing");
        reclaim_some();
    }
}

fn all() -> PageRun {
    PageRun::new(0, PAGES)
}

#[test]
fn a_scan_reports_exactly_the_pages_written_by_any_thread() {
    let Some(mut tracked) = tracked(all()) else { return };
    let mut expected: Vec<u64> =
        (0..4).flat_map(|t| (0..60).map(move |i| t * 256 + i * 4)).collect();
    expected.sort_unstable();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let tracked = &tracked;
            scope.spawn(move || (0..60).for_each(|i| tracked.write(thread * 256 + i * 4)));
        }
    });
    assert_eq!(tracked.scan(AfterScan::Forget), expected);
    assert_eq!(tracked.scan(AfterScan::Forget), NONE, "reported once");
    tracked.write(9);
    assert_eq!(tracked.scan(AfterScan::Forget), [9]);
}

#[test]
fn pages_that_the_process_never_touched_are_not_reported() {
    let Some(mut tracked) = tracked(all()) else { return };
    assert_eq!(tracked.scan(AfterScan::Forget), NONE);
    (0..PAGES).for_each(|page| tracked.read(page));
    assert_eq!(tracked.scan(AfterScan::Forget), NONE);
}

#[test]
fn a_page_that_is_new_is_reported_twice_and_then_when_it_is_written() {
    let Some(mut tracked) = tracked(PageRun::new(0, 8)) else { return };
    tracked.write(100);
    assert_eq!(tracked.scan(AfterScan::Forget), [100]);
    assert_eq!(
        tracked.scan(AfterScan::Forget),
        [100],
        "it was mapped here only after the clearing"
    );
    assert_eq!(tracked.scan(AfterScan::Forget), NONE);
    tracked.write(100);
    assert_eq!(tracked.scan(AfterScan::Forget), [100]);
    assert_eq!(tracked.outside.populated().unwrap().count().0, 9, "no hole was filled");
}

#[test]
fn a_look_without_forgetting_changes_nothing() {
    let Some(mut tracked) = tracked(all()) else { return };
    tracked.write(9);
    for after in [AfterScan::Keep, AfterScan::Keep, AfterScan::Forget] {
        assert_eq!(tracked.scan(after), [9]);
    }
    assert_eq!(tracked.scan(AfterScan::Keep), NONE);
}

#[test]
fn a_written_page_is_reported_although_it_was_reclaimed_and_read_again() {
    if !kept() || !reclaims() {
        return;
    }
    let Some(mut tracked) = tracked(all()) else { return };
    tracked.write(3);
    reclaim(&tracked.guest);
    (0..PAGES).for_each(|page| tracked.read(page));
    for after in [AfterScan::Keep, AfterScan::Forget] {
        assert!(tracked.scan(after).contains(&3));
    }
    // What was written between the clearing and the moment at which pages were mapped anew may have been lost as well.
    tracked.write(5);
    reclaim(&tracked.guest);
    (0..PAGES).for_each(|page| tracked.read(page));
    assert!(tracked.scan(AfterScan::Forget).contains(&5));
    tracked.scan(AfterScan::Forget);
    assert_eq!(tracked.scan(AfterScan::Forget), NONE, "and it settles");
    tracked.write(5);
    assert_eq!(tracked.scan(AfterScan::Forget), [5]);
}

#[test]
fn a_page_that_is_not_mapped_counts_as_written() {
    if !kept() || !reclaims() {
        return;
    }
    let Some(mut tracked) = tracked(all()) else { return };
    reclaim(&tracked.guest);
    assert_eq!(tracked.scan(AfterScan::Keep).len() as u64, PAGES);
}

#[test]
fn a_punched_page_is_not_reported_unless_it_is_written_or_read_again() {
    let Some(mut tracked) = tracked(all()) else { return };
    tracked.write(3);
    tracked.outside.punch(PageRun::new(3, 2)).unwrap();
    assert_eq!(tracked.scan(AfterScan::Forget), NONE, "the punch itself is not");
    tracked.write(3);
    tracked.read(4);
    assert_eq!(tracked.scan(AfterScan::Forget), [3, 4]);
}

#[test]
fn what_is_unmapped_in_one_place_is_unmapped_by_the_witness() {
    let (guest, outside) = memory();
    guest.write(PageNumber(0), &vec![1; 64 * PAGE_SIZE]).unwrap();
    let own = Entries::open(std::process::id()).unwrap();
    let witness = Witness::new(&part(&guest)).unwrap();
    assert!(witness.mapped(&own).unwrap().is_empty());
    witness.map(PageRun::new(0, 64)).unwrap();
    assert_eq!(witness.mapped(&own).unwrap().count().0, 64);
    assert_eq!(outside.populated().unwrap().count().0, 64, "no hole was filled");
    outside.punch(PageRun::new(8, 8)).unwrap();
    assert_eq!(witness.mapped(&own).unwrap().count().0, 56);
    if reclaims() {
        reclaim(&guest);
        assert!(witness.mapped(&own).unwrap().is_empty());
        guest.read(PageNumber(0), &mut vec![0; 8 * PAGE_SIZE]).unwrap();
        assert!(witness.mapped(&own).unwrap().is_empty(), "what is read there stays unmapped here");
    }
}

#[test]
fn only_what_is_known_to_be_clean_is() {
    let set = |pages: &[u64]| {
        let mut set = PageSet::empty(PageCount(8));
        pages.iter().for_each(|page| set.insert(PageNumber(*page)));
        set
    };
    let seen = Mapped { present: set(&[0, 1, 2, 3, 4]), written: set(&[1]) };
    let clean = clean(&seen, &set(&[0, 1, 2, 4, 5]), &set(&[0, 1, 3, 4, 6]));
    assert_eq!(clean, set(&[0, 4]));
}

#[test]
fn huge_pages_and_kernels_without_bits_are_refused() {
    let (guest, _) = memory();
    let started = SoftDirty::start(Writers::Held, vec![part(&guest)]);
    if !kept() {
        assert!(matches!(started, Err(SoftDirtyError::None)), "{started:?}");
        return;
    }
    let file = create_shared("huge", 2 << 20, HugePages::TwoMiB).unwrap();
    let huge = Part { addresses: guest.addresses().next().unwrap(), file, offset: 0 };
    let started = SoftDirty::start(Writers::Held, vec![huge]);
    assert!(matches!(started, Err(SoftDirtyError::HugePages)), "{started:?}");
}
