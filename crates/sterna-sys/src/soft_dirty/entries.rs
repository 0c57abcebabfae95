//! The entries of `/proc/PID/pagemap`: one number for each page of a process.

use crate::AddressRange;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use sterna_page::{PAGE_SIZE_BYTES, PageCount, PageRun, PageSet};

const ENTRY_BYTES: usize = size_of::<u64>();

/// Entries read in one call: enough that the calls themselves cost nothing.
const ENTRIES_PER_CALL: usize = 16384;

/// The page is mapped.
const PRESENT: u64 = 1 << 63;

/// The page was written since soft-dirty bits were cleared. Of a page that is not mapped it tells nothing.
const SOFT_DIRTY: u64 = 1 << 55;

/// What the entries of a range say; pages are counted from its start.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Mapped {
    /// Pages that are mapped.
    pub(super) present: PageSet,
    /// Those of them that are marked as written.
    pub(super) written: PageSet,
}

/// A process's page map, as entries.
#[derive(Debug)]
pub(super) struct Entries {
    file: File,
    buffer: Vec<u8>,
}

impl Entries {
    /// Opens that of process `pid`.
    ///
    /// # Errors
    /// When there is no such process or it may not be looked into.
    pub(super) fn open(pid: u32) -> io::Result<Self> {
        let file = File::open(format!("/proc/{pid}/pagemap"))?;
        Ok(Self { file, buffer: vec![0; ENTRIES_PER_CALL * ENTRY_BYTES] })
    }

    /// Reads the entries of `range`.
    ///
    /// # Errors
    /// When the process has ended, or the kernel refuses.
    pub(super) fn read(&mut self, range: AddressRange) -> io::Result<Mapped> {
        let pages = range.bytes() / PAGE_SIZE_BYTES;
        let mut present = PageSet::empty(PageCount(pages));
        let mut written = PageSet::empty(PageCount(pages));
        let mut page = 0;
        while page < pages {
            let most = (pages - page).min(ENTRIES_PER_CALL as u64);
            let wanted = usize::try_from(most).map_err(io::Error::other)? * ENTRY_BYTES;
            let at = (range.start() / PAGE_SIZE_BYTES + page) * ENTRY_BYTES as u64;
            let bytes = &mut self.buffer[..wanted];
            // Short of this there is no memory any more, and silence must not pass for clean pages.
            self.file.read_exact_at(bytes, at)?;
            page = sort(bytes, page, &mut present, &mut written);
        }
        Ok(Mapped { present, written })
    }
}

/// Adds the pages of `entries`, of which the first is `first`; returns the page after the last.
fn sort(entries: &[u8], first: u64, present: &mut PageSet, written: &mut PageSet) -> u64 {
    let (entries, _) = entries.as_chunks::<ENTRY_BYTES>();
    let flags = |entry: &[u8; ENTRY_BYTES]| u64::from_ne_bytes(*entry) & (PRESENT | SOFT_DIRTY);
    let mut page = first;
    for alike in entries.chunk_by(|one, next| flags(one) == flags(next)) {
        let run = PageRun::new(page, alike.len() as u64);
        let flags = flags(&alike[0]);
        if flags & PRESENT != 0 {
            present.insert_run(run);
        }
        if flags == PRESENT | SOFT_DIRTY {
            written.insert_run(run);
        }
        page += run.count.0;
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;
    use sterna_page::PageNumber;

    #[test]
    fn only_a_page_that_is_mapped_can_be_known_as_clean() {
        let numbers = [0, PRESENT, SOFT_DIRTY, PRESENT | SOFT_DIRTY, PRESENT | 7, 1 << 62];
        let bytes: Vec<u8> = numbers.iter().flat_map(|number: &u64| number.to_ne_bytes()).collect();
        let mut present = PageSet::empty(PageCount(16));
        let mut written = PageSet::empty(PageCount(16));
        assert_eq!(sort(&bytes, 10, &mut present, &mut written), 16);
        assert_eq!(present.iter().collect::<Vec<_>>(), [11, 13, 14].map(PageNumber));
        assert_eq!(written.iter().collect::<Vec<_>>(), [13].map(PageNumber));
    }

    #[test]
    fn addresses_without_memory_are_not_mapped_and_those_beyond_all_memory_are_an_error() {
        let mut entries = Entries::open(std::process::id()).unwrap();
        let zero = AddressRange::new(0, 4 * PAGE_SIZE_BYTES).unwrap();
        assert!(entries.read(zero).unwrap().present.is_empty());
        let beyond = AddressRange::new(1 << 60, (1 << 60) + PAGE_SIZE_BYTES).unwrap();
        assert!(entries.read(beyond).is_err());
    }
}
