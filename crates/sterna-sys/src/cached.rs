//! Which parts of a file the kernel has in memory, and reading them without waiting for a disk.
//!
//! The kernel tells of all files that the caller may write to or owns; of others it says that they are in
//! memory all over (`mincore(2)`).

use rustix::io::{ReadWriteFlags, preadv2};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::fs::File;
use std::io::{self, IoSliceMut};
use std::ops::Range;
use sterna_page::{PAGE_SIZE, PAGE_SIZE_BYTES};

/// The parts of `range` that are in memory, ascending and apart; ranges of whole pages, the last
/// of which may go beyond the file's end. `range` must begin and end with a page.
///
/// # Errors
/// If the file cannot be mapped.
pub fn cached(file: &File, range: Range<u64>) -> io::Result<Vec<Range<u64>>> {
    let whole = |at: u64| at.is_multiple_of(PAGE_SIZE_BYTES);
    if !whole(range.start) || !whole(range.end) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    if range.is_empty() {
        return Ok(Vec::new());
    }
    let length = usize::try_from(range.end - range.start).map_err(io::Error::other)?;
    let mut pages = vec![0u8; length / PAGE_SIZE];
    // SAFETY: with a null hint and no MAP_FIXED the kernel picks addresses that nothing uses; nobody reads
    // through the mapping, so it matters to nobody what the file holds.
    let mapped = unsafe {
        mmap(std::ptr::null_mut(), length, ProtFlags::READ, MapFlags::SHARED, file, range.start)?
    };
    // SAFETY: the range is that of the mapping, and the kernel writes a byte for each page of it.
    let told = unsafe { libc::mincore(mapped, length, pages.as_mut_ptr()) };
    let error = io::Error::last_os_error();
    // SAFETY: base and length are those of the mapping just made, into which no reference was made.
    unsafe { munmap(mapped, length)? };
    if told != 0 {
        return Err(error);
    }
    let mut at = range.start;
    let mut found = Vec::new();
    for alike in pages.chunk_by(|one, next| one & 1 == next & 1) {
        let end = at + alike.len() as u64 * PAGE_SIZE_BYTES;
        if alike[0] & 1 == 1 {
            found.push(at..end);
        }
        at = end;
    }
    Ok(found)
}

/// Reads what is in memory from `offset` on: as many bytes as come without waiting.
///
/// # Errors
/// If the first are not in memory ([`io::ErrorKind::WouldBlock`]), or cannot be read.
pub fn read_cached(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut slices = [IoSliceMut::new(buffer)];
    Ok(preadv2(file, &mut slices, offset, ReadWriteFlags::NOWAIT)?)
}
