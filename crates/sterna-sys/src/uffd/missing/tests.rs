//! Tests of missing pages against the real kernel, in this process: threads use one mapping of a
//! memfd, which is registered, and the test fills in what they wait for.

use super::*;
use crate::memory::{Access, GuestMemory, HugePages, create_shared};
use crate::pagemap::{AfterScan, Pagemap};
use std::os::fd::AsRawFd;
use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;
use sterna_page::{PAGE_SIZE, PageNumber, PageRun, RamBlock, RamLayout};

const PAGES: u64 = 64;
const LIMIT: Duration = Duration::from_secs(30);

struct Missing {
    guest: GuestMemory,
    outside: GuestMemory,
    uffd: Userfaultfd,
    range: AddressRange,
}

impl Drop for Missing {
    /// A failed assertion must not leave threads waiting, which a scope would wait for in turn.
    fn drop(&mut self) {
        let _ = self.uffd.unregister(self.range);
    }
}

/// Memory that is not registered yet, or `None` with the reason printed.
fn missing() -> Option<Missing> {
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
    let outside = GuestMemory::open(layout, vec![copy]).unwrap();
    let range = guest.addresses().next().unwrap();
    Some(Missing { guest, outside, uffd, range })
}

fn page_of(byte: u8) -> Vec<u8> {
    vec![byte; PAGE_SIZE]
}

impl Missing {
    fn register(&self) {
        self.uffd.register_missing(self.range).unwrap();
    }

    fn address(&self, page: u64) -> u64 {
        self.range.start() + page * PAGE_SIZE_BYTES
    }

    fn pages(&self, first: u64, count: u64) -> AddressRange {
        AddressRange::new(self.address(first), self.address(first + count)).unwrap()
    }

    fn copy(&self, page: u64, bytes: &[u8]) -> (u64, u64) {
        let filled = self.uffd.copy(self.address(page), bytes).unwrap();
        (filled.placed.0, filled.present.0)
    }

    /// What the guest's threads see.
    fn read(&self, page: u64) -> Vec<u8> {
        let mut bytes = page_of(0xee);
        self.guest.read(PageNumber(page), &mut bytes).unwrap();
        bytes
    }

    /// The next `count` faults, in ascending order of their pages.
    fn faults(&self, count: usize) -> Vec<u64> {
        let deadline = Instant::now() + LIMIT;
        let mut pages = Vec::new();
        while pages.len() < count {
            assert!(Instant::now() < deadline, "only {pages:?}");
            let mut add = |at| pages.push((at - self.range.start()) / PAGE_SIZE_BYTES);
            self.uffd.read_faults(Duration::from_millis(100), &mut add).unwrap();
        }
        pages.sort_unstable();
        pages
    }

    fn has_fault(&self) -> bool {
        let mut any = false;
        self.uffd.read_faults(Duration::from_millis(50), &mut |_| any = true).unwrap();
        any
    }

    /// Runs `test` while threads read the pages that they are told of; they send what they read.
    fn while_reading(&self, pages: &[u64], test: impl FnOnce(&Receiver<(u64, Vec<u8>)>)) {
        std::thread::scope(|scope| {
            let (sender, receiver) = channel();
            for page in pages.iter().copied() {
                let sender = sender.clone();
                scope.spawn(move || sender.send((page, self.read(page))).unwrap());
            }
            // Threads that a failed test leaves waiting would keep the scope from ending.
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| test(&receiver)));
            self.uffd.unregister(self.range).unwrap();
            if let Err(cause) = result {
                std::panic::resume_unwind(cause);
            }
        });
    }
}

#[test]
fn a_thread_waits_for_its_page_and_goes_on_with_what_was_placed() {
    let Some(memory) = missing() else { return };
    memory.register();
    memory.while_reading(&[5], |read| {
        assert_eq!(memory.faults(1), [5]);
        assert!(!memory.has_fault(), "a fault is read once");
        assert!(read.try_recv().is_err(), "it waits");
        assert_eq!(memory.copy(5, &page_of(7)), (1, 0));
        assert_eq!(read.recv_timeout(LIMIT).unwrap(), (5, page_of(7)));
    });
}

#[test]
fn several_threads_wait_for_several_pages_each_of_which_is_told_of() {
    let Some(memory) = missing() else { return };
    memory.register();
    let wanted: Vec<u64> = (0..PAGES).step_by(4).collect();
    memory.while_reading(&wanted, |read| {
        assert_eq!(memory.faults(wanted.len()), wanted);
        // One request for all of them: every page in between is placed too.
        let bytes: Vec<u8> = (1..=64).flat_map(page_of).collect();
        assert_eq!(memory.copy(0, &bytes), (PAGES, 0));
        for _ in &wanted {
            let (page, bytes) = read.recv_timeout(LIMIT).unwrap();
            assert!(bytes == page_of(u8::try_from(page).unwrap() + 1), "page {page}");
        }
    });
}

#[test]
fn a_page_is_placed_once_and_what_the_guest_wrote_since_stays() {
    let Some(memory) = missing() else { return };
    memory.register();
    assert_eq!(memory.copy(3, &page_of(1)), (1, 0));
    memory.guest.write(PageNumber(3), &page_of(2)).unwrap();
    let five: Vec<u8> = [9; 5].into_iter().flat_map(page_of).collect();
    assert_eq!(memory.copy(1, &five), (4, 1), "in the midst of others");
    assert_eq!(memory.copy(1, &five), (0, 5));
    assert_eq!(memory.uffd.zero(memory.pages(1, 5)).unwrap().present, PageCount(5));
    let expected = [9, 9, 2, 9, 9].map(page_of);
    assert_eq!((1..6).map(|page| memory.read(page)).collect::<Vec<_>>(), expected);
}

#[test]
fn zeroes_are_placed_like_content() {
    let Some(memory) = missing() else { return };
    memory.register();
    memory.copy(9, &page_of(1));
    memory.while_reading(&[8], |read| {
        assert_eq!(memory.faults(1), [8]);
        let filled = memory.uffd.zero(memory.pages(7, 4)).unwrap();
        assert_eq!((filled.placed.0, filled.present.0), (3, 1));
        assert_eq!(read.recv_timeout(LIMIT).unwrap(), (8, page_of(0)));
        assert_eq!(memory.read(9), page_of(1));
    });
}

#[test]
fn a_fault_that_a_dead_reader_has_read_is_there_again_after_a_wake() {
    let Some(memory) = missing() else { return };
    memory.register();
    memory.while_reading(&[2, 30], |read| {
        assert_eq!(memory.faults(2), [2, 30], "read by one who then dies");
        assert!(!memory.has_fault());
        memory.uffd.wake(memory.range).unwrap();
        assert_eq!(memory.faults(2), [2, 30]);
        assert!(read.try_recv().is_err(), "to wake places nothing");
        memory.copy(2, &page_of(2));
        memory.copy(30, &page_of(30));
        let mut bytes = [0, 1].map(|_| read.recv_timeout(LIMIT).unwrap());
        bytes.sort();
        assert!(bytes == [(2, page_of(2)), (30, page_of(30))]);
    });
}

#[test]
fn pages_that_are_in_the_file_are_not_missing() {
    let Some(memory) = missing() else { return };
    memory.outside.write(PageNumber(4), &page_of(4)).unwrap();
    memory.register();
    assert_eq!(memory.read(4), page_of(4), "nobody serves: this would wait");
    assert_eq!(memory.copy(4, &page_of(5)), (0, 1));
    assert_eq!(memory.read(4), page_of(4));
}

#[test]
fn a_page_that_came_into_the_file_behind_a_waiting_thread_wakes_it_when_it_is_placed() {
    let Some(memory) = missing() else { return };
    memory.register();
    memory.while_reading(&[4], |read| {
        assert_eq!(memory.faults(1), [4]);
        memory.outside.write(PageNumber(4), &page_of(4)).unwrap();
        assert_eq!(memory.copy(4, &page_of(5)), (0, 1));
        assert_eq!(read.recv_timeout(LIMIT).unwrap(), (4, page_of(4)));
    });
}

#[test]
fn a_page_that_is_given_back_is_missing_again() {
    let Some(memory) = missing() else { return };
    memory.register();
    memory.copy(6, &page_of(6));
    memory.outside.punch(PageRun::new(6, 1)).unwrap();
    memory.while_reading(&[6], |read| {
        assert_eq!(memory.faults(1), [6]);
        assert_eq!(memory.uffd.zero(memory.pages(6, 1)).unwrap().placed, PageCount(1));
        assert_eq!(read.recv_timeout(LIMIT).unwrap(), (6, page_of(0)));
    });
}

#[test]
fn when_it_ends_holes_read_as_zeroes_and_writes_can_be_tracked() {
    let Some(memory) = missing() else { return };
    memory.register();
    memory.register();
    memory.copy(1, &page_of(1));
    memory.while_reading(&[12], |read| {
        assert_eq!(memory.faults(1), [12]);
        memory.uffd.unregister(memory.range).unwrap();
        assert_eq!(read.recv_timeout(LIMIT).unwrap(), (12, page_of(0)));
    });
    assert_eq!(memory.read(20), page_of(0));
    let late = memory.uffd.copy(memory.address(21), &page_of(1));
    assert!(matches!(late, Err(UffdError::System { .. })), "{late:?}");
    memory.uffd.register_write_protect(memory.range).unwrap();
    memory.uffd.write_protect(memory.range).unwrap();
    memory.guest.write(PageNumber(1), &page_of(2)).unwrap();
    memory.guest.write(PageNumber(22), &page_of(2)).unwrap();
    let mut written = Vec::new();
    let mut pagemap = Pagemap::open(std::process::id()).unwrap();
    pagemap.scan_written(memory.range, AfterScan::Forget, |range| written.push(range)).unwrap();
    assert_eq!(written, [memory.pages(1, 1), memory.pages(22, 1)]);
    assert!(!memory.has_fault());
}

#[test]
fn whoever_begins_to_wait_at_the_moment_it_ends_goes_on() {
    let Some(memory) = missing() else { return };
    for round in 0..200 {
        memory.outside.punch(PageRun::new(0, PAGES)).unwrap();
        memory.register();
        std::thread::scope(|scope| {
            let read_all = || (0..PAGES).for_each(|page| drop(memory.read(page)));
            let threads = [(); 4].map(|()| scope.spawn(read_all));
            memory.faults(1);
            memory.uffd.unregister(memory.range).unwrap();
            let deadline = Instant::now() + LIMIT;
            while Instant::now() < deadline && !threads.iter().all(|thread| thread.is_finished()) {
                std::thread::yield_now();
            }
            let went_on = threads.iter().all(|thread| thread.is_finished());
            memory.uffd.wake(memory.range).unwrap();
            assert!(went_on, "round {round}: a thread waits that nobody will wake");
        });
    }
}

#[test]
fn a_system_call_that_touches_a_missing_page_waits_like_a_thread() {
    let Some(memory) = missing() else { return };
    if memory.uffd.faults_seen() != super::super::FaultsSeen::All {
        return eprintln!("skipped: this process may not see faults inside the kernel");
    }
    memory.register();
    let file = create_shared("read", PAGE_SIZE_BYTES, HugePages::No).unwrap();
    rustix::io::pwrite(&file, &page_of(7)[..100], 0).unwrap();
    std::thread::scope(|scope| {
        // As a hypervisor reads a disk into guest RAM.
        let read = scope.spawn(|| {
            let (file, to) = (file.as_raw_fd(), memory.address(3));
            let to = std::ptr::with_exposed_provenance_mut(usize::try_from(to).unwrap());
            // SAFETY: 100 bytes of the mapping, which outlives this scope, and which no reference
            // points into.
            unsafe { libc::pread(file, to, 100, 0) }
        });
        let page = memory.faults(1);
        memory.copy(3, &page_of(3));
        assert_eq!((page, read.join().unwrap()), (vec![3], 100));
    });
    assert!(memory.read(3) == [&page_of(7)[..100], &page_of(3)[100..]].concat());
}

#[test]
fn memory_that_is_not_shared_cannot_be_registered() {
    let Some(memory) = missing() else { return };
    let private = vec![1u8; 16 * PAGE_SIZE];
    let start = (private.as_ptr().expose_provenance() as u64).next_multiple_of(PAGE_SIZE_BYTES);
    let range = AddressRange::new(start, start + PAGE_SIZE_BYTES).unwrap();
    let refused = memory.uffd.register_missing(range);
    assert!(matches!(refused, Err(UffdError::NotShared(_))), "{refused:?}");
}

#[test]
fn a_process_that_has_ended_takes_no_pages() {
    use crate::preload;
    use crate::process::{Process, spawn_detached};
    let library = preload::in_memory(preload::LIBRARY).unwrap();
    let mut command = std::process::Command::new("sleep");
    command
        .arg("1000")
        .env(preload::PATH_VARIABLE, preload::by_number(&library))
        .env(preload::ENABLE_VARIABLE, "1");
    let mut child = spawn_detached(command, vec![library], None, vec![]).unwrap();
    let process = Process::open(child.id()).unwrap();
    let deadline = Instant::now() + LIMIT;
    let taken = loop {
        match Userfaultfd::take(&process) {
            Err(UffdError::None { .. }) if Instant::now() < deadline => std::thread::yield_now(),
            result => break result,
        }
    };
    process.kill().unwrap();
    child.wait().unwrap();
    let Ok(uffd) = taken else {
        return eprintln!("skipped: this kernel cannot track writes: {taken:?}");
    };
    let placed = uffd.copy(0x10_0000, &page_of(1));
    assert!(matches!(placed, Err(UffdError::Ended { .. })), "{placed:?}");
}
