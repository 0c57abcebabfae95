//! Blocks of real files, found by one host and read by the other.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use rustix::fs::{Advice, fadvise};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;
use sterna_known::{CachedBlocks, Effort, Places, SharedDisks, fresh_hasher};
use sterna_page::coding::PageBytes;
use sterna_page::known::{DiskBlock, DiskBlocks, KnownPages};
use sterna_page::sent::ContentHasher;
use sterna_page::{PAGE_SIZE, PageCount};
use tempfile::TempDir;

const BLOCKS: u64 = 500;
const ALL: Effort = Effort { pages: PageCount(20 * BLOCKS), time: Duration::from_secs(60) };

fn block(content: u64) -> PageBytes {
    let mut bytes = [0; PAGE_SIZE];
    bytes[88..96].copy_from_slice(&content.to_le_bytes());
    bytes
}

/// A disk whose block `i` has content `i + seed`, and half a block more. It is beside the binaries: a file
/// system that is memory itself forgets nothing.
fn disk(folder: &TempDir, name: &str, seed: u64) -> PathBuf {
    let path = folder.path().join(name);
    let mut bytes: Vec<u8> = (0..BLOCKS).flat_map(|number| block(number + seed)).collect();
    bytes.extend([9; PAGE_SIZE / 2]);
    fs::write(&path, bytes).unwrap();
    File::open(&path).unwrap().sync_all().unwrap();
    path
}

fn folder() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn find(blocks: &CachedBlocks, hasher: ContentHasher, content: u64) -> Option<(u16, u64)> {
    blocks.find(hasher.hash(&block(content))).map(|found| (found.disk, found.number))
}

#[test]
fn what_the_kernel_has_of_the_disks_is_found_and_can_be_read() {
    let (folder, hasher) = (folder(), fresh_hasher().unwrap());
    let none = folder.path().join("none");
    let disks = [disk(&folder, "one", 1), none, disk(&folder, "two", 10_000)];
    let blocks = CachedBlocks::look(&disks, &Places::default(), hasher, ALL);
    assert_eq!(blocks.len() as u64, 2 * BLOCKS);
    assert_eq!(find(&blocks, hasher, 1), Some((0, 0)));
    assert_eq!(find(&blocks, hasher, 10_077), Some((2, 77)));
    assert_eq!(find(&blocks, hasher, 5_000), None);
    let shared = SharedDisks::open(&disks, hasher, ALL.pages).unwrap();
    assert!(shared.has_disks() && shared.summary().is_empty());
    let mut page = [0; PAGE_SIZE];
    for content in (1..=BLOCKS).chain(10_000..10_000 + BLOCKS) {
        let found = blocks.find(hasher.hash(&block(content))).unwrap();
        assert!(shared.read_block(found, &mut page) && page == block(content), "{found:?}");
    }
}

#[test]
fn what_only_the_disk_has_is_not_looked_at() {
    let (folder, hasher) = (folder(), fresh_hasher().unwrap());
    let disks = [disk(&folder, "one", 1)];
    let file = File::open(&disks[0]).unwrap();
    fadvise(&file, 0, None, Advice::DontNeed).unwrap();
    let blocks = CachedBlocks::look(&disks, &Places::default(), hasher, ALL);
    assert!(blocks.is_empty(), "{} blocks", blocks.len());
    let mut read = vec![0; 64 * PAGE_SIZE];
    fadvise(&file, 0, None, Advice::Random).unwrap();
    file.read_exact_at(&mut read, 0).unwrap();
    let blocks = CachedBlocks::look(&disks, &Places::default(), hasher, ALL);
    assert!((64..BLOCKS).contains(&(blocks.len() as u64)), "{} blocks", blocks.len());
    let few = Effort { pages: PageCount(10), ..ALL };
    let blocks = CachedBlocks::look(&disks, &Places::default(), hasher, few);
    assert_eq!((blocks.len(), blocks.bytes()), (5, 40), "four bytes a page of the guest");
}

#[test]
fn a_disk_that_is_read_leaves_nothing_in_the_cache() {
    let (folder, hasher) = (folder(), fresh_hasher().unwrap());
    let disks = [disk(&folder, "one", 1)];
    fadvise(File::open(&disks[0]).unwrap(), 0, None, Advice::DontNeed).unwrap();
    let shared = SharedDisks::open(&disks, hasher, ALL.pages).unwrap();
    let mut page = [0; PAGE_SIZE];
    let number = 7;
    assert!(shared.read_block(DiskBlock { disk: 0, number }, &mut page) && page == block(8));
    assert!(CachedBlocks::look(&disks, &Places::default(), hasher, ALL).is_empty());
}

#[test]
fn what_was_read_here_is_found_when_the_guest_goes_on() {
    let (folder, hasher) = (folder(), fresh_hasher().unwrap());
    let disks = [folder.path().join("none"), disk(&folder, "two", 1)];
    fadvise(File::open(&disks[1]).unwrap(), 0, None, Advice::DontNeed).unwrap();
    let shared = SharedDisks::open(&disks, hasher, ALL.pages).unwrap();
    let places = shared.places();
    let mut page = [0; PAGE_SIZE];
    for number in [40, 41, BLOCKS - 1] {
        assert!(shared.read_block(DiskBlock { disk: 1, number }, &mut page));
    }
    let blocks = CachedBlocks::look(&disks, &places, hasher, ALL);
    // What lies around was read too: 32 blocks from the 32nd on, and the last ones.
    assert_eq!(blocks.len() as u64, 32 + BLOCKS % 32);
    assert_eq!(find(&blocks, hasher, 41), Some((1, 40)));
    assert_eq!(find(&blocks, hasher, BLOCKS), Some((1, BLOCKS - 1)));
    assert_eq!(find(&blocks, hasher, 1), None);
    // No more places than a guest can have cached.
    let small = SharedDisks::open(&disks, hasher, PageCount(8)).unwrap();
    for number in [40, 80, 120] {
        assert!(small.read_block(DiskBlock { disk: 1, number }, &mut page));
    }
    assert_eq!(CachedBlocks::look(&disks, &small.places(), hasher, ALL).len(), 32);
    // The disk has other blocks by now.
    fs::write(&disks[1], [7; PAGE_SIZE]).unwrap();
    let blocks = CachedBlocks::look(&disks, &places, hasher, ALL);
    assert_eq!(blocks.len(), 1);
}

#[test]
fn blocks_that_a_peer_made_up_are_none() {
    let (folder, hasher) = (folder(), fresh_hasher().unwrap());
    let disks = [disk(&folder, "one", 1)];
    let shared = SharedDisks::open(&disks, hasher, ALL.pages).unwrap();
    let mut page = [0; PAGE_SIZE];
    for (disk, number) in [(1, 0), (u16::MAX, 0), (0, BLOCKS), (0, (1 << 48) - 1)] {
        assert!(!shared.read_block(DiskBlock { disk, number }, &mut page), "{disk} {number}");
    }
    fs::write(&disks[0], "shorter").unwrap();
    assert!(!shared.read_block(DiskBlock { disk: 0, number: 5 }, &mut page));
}

#[test]
fn only_files_and_block_devices_are_opened() {
    let (folder, hasher) = (folder(), fresh_hasher().unwrap());
    let none = ["/dev/null".into(), folder.path().to_path_buf(), folder.path().join("none")];
    assert!(SharedDisks::open(&none, hasher, ALL.pages).is_none());
    assert!(CachedBlocks::look(&none, &Places::default(), hasher, ALL).is_empty());
}
