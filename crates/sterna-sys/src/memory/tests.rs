//! Tests of mapped guest RAM on real memfds.

use super::*;
use sterna_page::{PAGE_SIZE, RamBlock};

fn block(name: &str, pages: u64) -> RamBlock {
    RamBlock { name: name.into(), size_bytes: pages * PAGE_SIZE_BYTES, host_page_bytes: 4096 }
}

fn files() -> (RamLayout, Vec<OwnedFd>) {
    let layout = RamLayout::new(vec![block("a", 4), block("b", 8)]).unwrap();
    let blocks = layout.blocks().iter();
    let files =
        blocks.map(|b| create_shared(&b.name, b.size_bytes, HugePages::No).unwrap()).collect();
    (layout, files)
}

fn two_blocks(access: Access) -> GuestMemory {
    let (layout, files) = files();
    GuestMemory::map(layout, files, access).unwrap()
}

fn both_ways() -> [GuestMemory; 2] {
    let (layout, files) = files();
    [two_blocks(Access::ReadWrite), GuestMemory::open(layout, files).unwrap()]
}

fn pattern(pages: usize) -> Vec<u8> {
    (0..pages * PAGE_SIZE).map(|i| u8::try_from((i * 7 + i / 4096) % 251).unwrap()).collect()
}

#[test]
fn what_is_written_across_blocks_is_read_back() {
    for memory in both_ways() {
        let data = pattern(5);
        memory.write(PageNumber(2), &data).unwrap();
        let mut back = vec![0; data.len()];
        memory.read(PageNumber(2), &mut back).unwrap();
        assert_eq!(data, back);
        let mut before = vec![1; 2 * PAGE_SIZE];
        memory.read(PageNumber(0), &mut before).unwrap();
        assert!(before.iter().all(|byte| *byte == 0), "the pages before are untouched");
    }
}

#[test]
fn accesses_outside_the_guest_are_errors() {
    for memory in both_ways() {
        let page = vec![0; PAGE_SIZE];
        let out = |result| matches!(result, Err(MemoryError::OutOfBounds { .. }));
        assert!(out(memory.write(PageNumber(12), &page)));
        assert!(out(memory.write(PageNumber(u64::MAX), &page)));
        assert!(out(memory.read(PageNumber(11), &mut vec![0; 2 * PAGE_SIZE])));
        assert!(out(memory.punch(PageRun::new(4, u64::MAX))));
        let odd = memory.read(PageNumber(0), &mut [0; 100]);
        assert!(matches!(odd, Err(MemoryError::NotWholePages(100))));
    }
}

#[test]
fn read_only_memory_is_not_written() {
    let memory = two_blocks(Access::ReadOnly);
    let result = memory.write(PageNumber(0), &vec![1; PAGE_SIZE]);
    assert!(matches!(result, Err(MemoryError::ReadOnly)));
    assert!(matches!(memory.punch_all(), Err(MemoryError::ReadOnly)));
}

#[test]
fn populated_tells_what_exists_and_makes_nothing_exist() {
    for memory in both_ways() {
        assert!(memory.populated().unwrap().is_empty());
        memory.write(PageNumber(3), &pattern(3)).unwrap();
        memory.write(PageNumber(11), &pattern(1)).unwrap();
        let expected = [PageRun::new(3, 3), PageRun::new(11, 1)];
        for _ in 0..2 {
            assert_eq!(memory.populated().unwrap().runs().collect::<Vec<_>>(), expected);
        }
        memory.punch(PageRun::new(3, 2)).unwrap();
        let expected = [PageRun::new(5, 1), PageRun::new(11, 1)];
        assert_eq!(memory.populated().unwrap().runs().collect::<Vec<_>>(), expected);
        memory.punch_all().unwrap();
        assert!(memory.populated().unwrap().is_empty());
    }
}

#[test]
fn a_punched_page_reads_as_zeroes() {
    for memory in both_ways() {
        memory.write(PageNumber(7), &pattern(1)).unwrap();
        memory.punch(PageRun::new(7, 1)).unwrap();
        let mut page = vec![1; PAGE_SIZE];
        memory.read(PageNumber(7), &mut page).unwrap();
        assert!(page.iter().all(|byte| *byte == 0));
    }
}

#[test]
fn a_file_shorter_than_its_block_is_refused() {
    let layout = RamLayout::new(vec![block("a", 4)]).unwrap();
    let file = create_shared("a", 3 * PAGE_SIZE_BYTES, HugePages::No).unwrap();
    let result = GuestMemory::map(layout.clone(), vec![file], Access::ReadOnly);
    assert!(matches!(result, Err(MemoryError::FileTooShort { .. })));
    let result = GuestMemory::map(layout, vec![], Access::ReadOnly);
    assert!(matches!(result, Err(MemoryError::FileCount { .. })));
}

#[test]
fn shared_files_cannot_be_resized() {
    let file = create_shared("a", PAGE_SIZE_BYTES, HugePages::No).unwrap();
    assert!(rustix::fs::ftruncate(&file, 0).is_err());
    assert!(rustix::fs::ftruncate(&file, 2 * PAGE_SIZE_BYTES).is_err());
}

#[test]
fn what_is_read_and_written_as_a_file_is_what_is_mapped() {
    let (layout, files) = files();
    let copies = files.iter().map(|file| file.try_clone().unwrap()).collect();
    let mapped = GuestMemory::map(layout.clone(), files, Access::ReadWrite).unwrap();
    let opened = GuestMemory::open(layout, copies).unwrap();
    assert_eq!(opened.addresses().count(), 0, "nothing is mapped");
    mapped.write(PageNumber(1), &pattern(4)).unwrap();
    let mut seen = vec![0; 4 * PAGE_SIZE];
    opened.read(PageNumber(1), &mut seen).unwrap();
    assert_eq!(seen, pattern(4));
    opened.write(PageNumber(7), &pattern(2)).unwrap();
    mapped.read(PageNumber(7), &mut seen[..2 * PAGE_SIZE]).unwrap();
    assert_eq!(seen[..2 * PAGE_SIZE], pattern(2));
}
