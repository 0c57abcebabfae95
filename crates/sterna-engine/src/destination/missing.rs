//! The file that says which pages of a guest are still missing. It outlives the agent.
//!
//! One bit a page, lowest first, set while the page is missing. A bit is cleared after its page was
//! placed. So after a crash a page may count as missing that is there, which costs that it is sent
//! again and not placed; a page that is missing never counts as here. The file need not survive the
//! host, as the guest does not.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use sterna_page::{PageCount, PageNumber, PageRun, PageSet};

/// The missing pages of one guest, in memory and in the file.
#[derive(Debug)]
pub(super) struct Missing {
    pages: PageSet,
    left: u64,
    file: File,
}

impl Missing {
    /// Writes a new file, in place of any that was there.
    pub(super) fn create(path: &Path, pages: PageSet) -> io::Result<Self> {
        let mut bytes = vec![0u8; file_bytes(pages.capacity())?];
        for page in pages.iter() {
            let (byte, bit) = place(page)?;
            bytes[byte] |= bit;
        }
        // Complete or not there at all: a new agent must not take half of it for the whole.
        let fresh = path.with_extension("new");
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true).mode(0o600);
        let file = options.open(&fresh)?;
        file.write_all_at(&bytes, 0)?;
        fs::rename(&fresh, path)?;
        Ok(Self { left: pages.count().0, pages, file })
    }

    /// Reads the file that an earlier agent left.
    pub(super) fn open(path: &Path, capacity: PageCount) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let mut bytes = vec![0u8; file_bytes(capacity)?];
        if file.metadata()?.len() != bytes.len() as u64 {
            return Err(io::Error::other(format!("{} is of another guest", path.display())));
        }
        file.read_exact_at(&mut bytes, 0)?;
        let mut pages = PageSet::empty(capacity);
        for page in (0..capacity.0).map(PageNumber) {
            let (byte, bit) = place(page)?;
            if bytes[byte] & bit != 0 {
                pages.insert(page);
            }
        }
        Ok(Self { left: pages.count().0, pages, file })
    }

    /// The pages that are missing.
    pub(super) fn pages(&self) -> &PageSet {
        &self.pages
    }

    pub(super) fn contains(&self, page: PageNumber) -> bool {
        self.pages.contains(page)
    }

    /// The parts of `run` that are missing.
    pub(super) fn part_of(&self, run: PageRun) -> Vec<PageRun> {
        let end = run.first.0 + run.count.0;
        let within = |part: PageRun| {
            let last = (part.first.0 + part.count.0).min(end);
            PageRun::new(part.first.0, last - part.first.0)
        };
        self.pages.runs_from(run.first).take_while(|part| part.first.0 < end).map(within).collect()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.left == 0
    }

    /// The pages of `run` have been placed.
    pub(super) fn remove(&mut self, run: PageRun) -> io::Result<()> {
        let end = run.first.0 + run.count.0;
        for page in (run.first.0..end).map(PageNumber) {
            self.left -= u64::from(self.pages.contains(page));
        }
        self.pages.remove_run(run);
        // The bytes that hold the run, as they are now.
        let (first, last) = (run.first.0 / 8 * 8, end.div_ceil(8) * 8);
        let mut bytes = vec![0u8; usize::try_from((last - first) / 8).map_err(io::Error::other)?];
        for (offset, page) in (first..last).enumerate() {
            bytes[offset / 8] |= u8::from(self.pages.contains(PageNumber(page))) << (offset % 8);
        }
        self.file.write_all_at(&bytes, first / 8)
    }
}

fn file_bytes(pages: PageCount) -> io::Result<usize> {
    usize::try_from(pages.0.div_ceil(8)).map_err(io::Error::other)
}

fn place(page: PageNumber) -> io::Result<(usize, u8)> {
    Ok((usize::try_from(page.0 / 8).map_err(io::Error::other)?, 1 << (page.0 % 8)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(pages: &[u64]) -> PageSet {
        let mut set = PageSet::empty(PageCount(100));
        pages.iter().for_each(|page| set.insert(PageNumber(*page)));
        set
    }

    #[test]
    fn what_was_placed_is_not_missing_to_the_next_agent() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("guest.missing");
        let mut missing = Missing::create(&path, set(&[1, 7, 8, 9, 63, 64, 99])).unwrap();
        missing.remove(PageRun::new(7, 2)).unwrap();
        missing.remove(PageRun::new(99, 1)).unwrap();
        missing.remove(PageRun::new(20, 16)).unwrap();
        let parts = |first, count| {
            let parts = missing.part_of(PageRun::new(first, count));
            parts.iter().map(|part| (part.first.0, part.count.0)).collect::<Vec<_>>()
        };
        assert_eq!(parts(5, 59), [(9, 1), (63, 1)]);
        assert_eq!(parts(63, 1), [(63, 1)]);
        assert_eq!(parts(65, 30), []);
        drop(missing);
        let mut again = Missing::open(&path, PageCount(100)).unwrap();
        assert_eq!(*again.pages(), set(&[1, 9, 63, 64]));
        again.remove(PageRun::new(0, 100)).unwrap();
        assert!(again.is_empty());
        assert!(Missing::open(&path, PageCount(100)).unwrap().is_empty());
        assert!(Missing::open(&path, PageCount(200)).is_err(), "of another guest");
    }
}
