//! What the kernel tells of a real file's cache.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use rustix::fs::{Advice, fadvise};
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;
use std::slice;
use sterna_page::PAGE_SIZE_BYTES;
use sterna_sys::cached::{cached, read_cached};

#[test]
fn what_was_read_is_in_memory_and_what_was_given_up_is_not() {
    // Beside the binaries: a file system that is memory itself gives nothing up.
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = folder.path().join("file");
    let mut file = File::options().read(true).write(true).create_new(true).open(path).unwrap();
    file.write_all(&vec![7; 64 * 4096 + 100]).unwrap();
    let all = 0..65 * PAGE_SIZE_BYTES;
    assert_eq!(cached(&file, all.clone()).unwrap(), slice::from_ref(&all));
    file.sync_all().unwrap();
    fadvise(&file, 0, NonZeroU64::new(all.end), Advice::DontNeed).unwrap();
    assert_eq!(cached(&file, all.clone()).unwrap(), []);
    let mut page = [0; 4096];
    let not_there = read_cached(&file, &mut page, 60 * 4096).unwrap_err();
    assert_eq!(not_there.kind(), ErrorKind::WouldBlock);
    // Nobody reads ahead.
    fadvise(&file, 0, None, Advice::Random).unwrap();
    file.read_exact_at(&mut page, 5 * 4096).unwrap();
    let found = cached(&file, all.clone()).unwrap();
    assert!(found.iter().any(|range| range.contains(&(5 * 4096))), "{found:?}");
    assert_eq!(read_cached(&file, &mut page, 5 * 4096).unwrap(), 4096);
    assert_eq!(page, [7; 4096]);
}

#[test]
fn parts_of_pages_are_refused() {
    let file = tempfile::tempfile().unwrap();
    assert_eq!(cached(&file, 1..4096).unwrap_err().kind(), ErrorKind::InvalidInput);
    assert_eq!(cached(&file, 4096..4096).unwrap(), []);
}
