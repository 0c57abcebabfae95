//! Write tracking of a guest's RAM where the hypervisor (or a synthetic guest) has it mapped.

use crate::VmmError;
use std::io;
use sterna_page::{PAGE_SIZE_BYTES, PageCount, PageNumber, PageRun, PageSet, RamLayout};
use sterna_sys::AddressRange;
use sterna_sys::memory::MemoryError;
use sterna_sys::pagemap::{AfterScan, Pagemap};
use sterna_sys::process::{FileIdentity, mappings_of};
use sterna_sys::uffd::{UffdError, Userfaultfd};

/// Consecutive pages of the guest at consecutive addresses of the process that writes them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MappedPages {
    pub(crate) addresses: AddressRange,
    pub(crate) first: PageNumber,
}

impl MappedPages {
    /// The pages of `run` that lie here, and their addresses.
    pub(crate) fn part_of(&self, run: PageRun) -> Option<(AddressRange, PageRun)> {
        let here = PageRun { first: self.first, count: self.pages() };
        let first = here.first.0.max(run.first.0);
        let end = here.end()?.0.min(run.end()?.0);
        let address = |page| self.addresses.start() + (page - self.first.0) * PAGE_SIZE_BYTES;
        let run = (first < end).then(|| PageRun::new(first, end - first))?;
        Some((AddressRange::new(address(first), address(end))?, run))
    }

    fn pages(&self) -> PageCount {
        PageCount(self.addresses.bytes() / PAGE_SIZE_BYTES)
    }
}

/// Where process `pid` has mapped the RAM blocks, whose files are `files`.
pub(crate) fn find_mapped(
    pid: u32,
    layout: &RamLayout,
    files: &[FileIdentity],
) -> Result<Vec<MappedPages>, VmmError> {
    let mut found = Vec::new();
    for (run, file) in layout.block_runs().zip(files) {
        let mut mapped = 0;
        for mapping in mappings_of(pid, *file).map_err(system("reading memory maps"))? {
            let first = PageNumber(run.first.0 + mapping.offset / PAGE_SIZE_BYTES);
            let end = mapping.offset.saturating_add(mapping.addresses.bytes());
            if end > run.count.bytes() {
                return Err(untrackable("a RAM file is mapped beyond its block"));
            }
            mapped += mapping.addresses.bytes();
            found.push(MappedPages { addresses: mapping.addresses, first });
        }
        if mapped < run.count.bytes() {
            return Err(untrackable("a RAM block is not mapped whole by the hypervisor"));
        }
    }
    Ok(found)
}

fn untrackable(detail: &str) -> VmmError {
    VmmError::Refused { operation: "tracking writes", detail: detail.into() }
}

/// Tracks all RAM of one guest. Dropping it leaves tracking as it is: harmless, as nobody waits.
#[derive(Debug)]
pub(crate) struct WriteTracker {
    uffd: Userfaultfd,
    pagemap: Pagemap,
    mapped: Vec<MappedPages>,
}

impl WriteTracker {
    /// Starts tracking: whatever is written after this returned is reported by a later scan.
    pub(crate) fn start(
        pid: u32,
        uffd: Userfaultfd,
        mapped: Vec<MappedPages>,
    ) -> Result<Self, VmmError> {
        let pagemap = Pagemap::open(pid).map_err(system("opening the page map"))?;
        let mut tracker = Self { uffd, pagemap, mapped };
        match tracker.protect() {
            Ok(()) => Ok(tracker),
            Err(error) => {
                // The first error is the one to tell.
                let _ = tracker.stop();
                Err(error)
            }
        }
    }

    fn protect(&mut self) -> Result<(), VmmError> {
        for part in &self.mapped {
            self.uffd.register_write_protect(part.addresses)?;
            self.uffd.write_protect(part.addresses)?;
        }
        Ok(())
    }

    /// Ends tracking and what it costs the guest.
    pub(crate) fn stop(&mut self) -> Result<(), VmmError> {
        let ended = self.mapped.iter().map(|part| self.uffd.unregister(part.addresses));
        ended.fold(Ok(()), Result::and).map_err(VmmError::from)
    }

    /// Adds to `dirty` the pages written since the last scan that forgot.
    pub(crate) fn scan(&mut self, dirty: &mut PageSet, after: AfterScan) -> Result<(), VmmError> {
        for part in &self.mapped {
            let add = |written: AddressRange| {
                let skipped = (written.start() - part.addresses.start()) / PAGE_SIZE_BYTES;
                let count = written.bytes() / PAGE_SIZE_BYTES;
                dirty.insert_run(PageRun::new(part.first.0 + skipped, count));
            };
            self.pagemap
                .scan_written(part.addresses, after, add)
                .map_err(system("scanning for written pages"))?;
        }
        Ok(())
    }
}

/// Turns an I/O error into one that says what was tried.
pub(crate) fn system(operation: &'static str) -> impl Fn(io::Error) -> VmmError {
    move |source| VmmError::System { operation, source }
}

impl From<UffdError> for VmmError {
    fn from(error: UffdError) -> Self {
        match error {
            UffdError::System { operation, source } => Self::System { operation, source },
            UffdError::Ended { .. } => Self::Gone { detail: error.to_string() },
            UffdError::None { .. } | UffdError::Features(_) | UffdError::NotShared(_) => {
                Self::Refused { operation: "using the userfaultfd", detail: error.to_string() }
            }
        }
    }
}

impl From<MemoryError> for VmmError {
    fn from(error: MemoryError) -> Self {
        match error {
            MemoryError::System { operation, source } => Self::System { operation, source },
            other => Self::Refused { operation: "using guest RAM", detail: other.to_string() },
        }
    }
}
