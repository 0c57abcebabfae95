//! A second mapping of guest RAM, by which is seen that the kernel has unmapped a page.

use super::Part;
use super::entries::Entries;
use crate::AddressRange;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap};
use std::ffi::c_void;
use std::io;
use std::ptr::NonNull;
use sterna_page::{PAGE_SIZE_BYTES, PageCount, PageRun, PageSet};

/// A mapping of a part of guest RAM in this process, which nobody ever reads through.
///
/// What makes the kernel unmap a page of a file, it does to all mappings of it, before anybody can map it
/// anew. So a page that is still mapped here was not unmapped there.
#[derive(Debug)]
pub(super) struct Witness {
    base: NonNull<c_void>,
    length: usize,
    /// Pages that have been mapped here since before the bits were last cleared.
    pub(super) since_cleared: PageSet,
}

// SAFETY: the pointer is used only as an address for the kernel; nothing is read or written through it.
unsafe impl Send for Witness {}
// SAFETY: as above.
unsafe impl Sync for Witness {}

impl Witness {
    /// Maps `part`; no page of it is mapped yet.
    pub(super) fn new(part: &Part) -> io::Result<Self> {
        let length = usize::try_from(part.addresses.bytes()).map_err(io::Error::other)?;
        let (read, shared) = (ProtFlags::READ, MapFlags::SHARED);
        // SAFETY: with a null hint and no MAP_FIXED the kernel picks addresses that nothing uses.
        let base =
            unsafe { mmap(std::ptr::null_mut(), length, read, shared, &part.file, part.offset)? };
        let base = NonNull::new(base).ok_or_else(|| io::Error::other("mapped at address zero"))?;
        let since_cleared = PageSet::empty(PageCount(part.addresses.bytes() / PAGE_SIZE_BYTES));
        Ok(Self { base, length, since_cleared })
    }

    /// The pages that are mapped here, by this process's own page map.
    pub(super) fn mapped(&self, own: &Entries) -> io::Result<PageSet> {
        let start = self.base.as_ptr().expose_provenance() as u64;
        let range = AddressRange::new(start, start + self.length as u64);
        let range = range.ok_or_else(|| io::Error::other("a mapping that is not whole pages"))?;
        Ok(own.read(range)?.present)
    }

    /// Maps the pages of `run`. Those that do not exist are made by it.
    pub(super) fn map(&self, run: PageRun) -> io::Result<()> {
        let bytes = |pages: u64| usize::try_from(pages * PAGE_SIZE_BYTES);
        let offset = bytes(run.first.0).map_err(io::Error::other)?;
        let length = bytes(run.count.0).map_err(io::Error::other)?;
        let end = offset.checked_add(length);
        assert!(end.is_some_and(|end| end <= self.length), "a run lies within the mapping");
        // SAFETY: the range lies within the mapping that this value owns; populating page tables for reading changes
        // nothing that it holds.
        let populated = unsafe {
            let start = self.base.as_ptr().cast::<u8>().add(offset).cast();
            madvise(start, length, Advice::LinuxPopulateRead)
        };
        Ok(populated?)
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        // SAFETY: base and length are those of a mapping this value alone owns, into which no reference was made.
        let unmapped = unsafe { munmap(self.base.as_ptr(), self.length) };
        debug_assert!(unmapped.is_ok(), "a whole mapping can always be unmapped");
    }
}
