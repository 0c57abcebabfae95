//! Write tracking of a guest's RAM where the hypervisor (or a synthetic guest) has it mapped.

use crate::VmmError;
use serde::{Deserialize, Serialize};
use std::error::Error;
use std::fmt;
use std::io;
use std::time::Duration;
use sterna_page::{PAGE_SIZE_BYTES, PageCount, PageNumber, PageRun, PageSet, RamLayout};
use sterna_sys::AddressRange;
use sterna_sys::memory::{GuestMemory, MemoryError};
use sterna_sys::pagemap::{AfterScan, Pagemap};
use sterna_sys::process::{FileIdentity, Process, mappings_of};
use sterna_sys::soft_dirty::{Part, SoftDirty, SoftDirtyError, Writers};
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

/// How writes to a guest's RAM are tracked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tracker {
    /// By a userfaultfd that protects pages and `PAGEMAP_SCAN`, since Linux 6.7: exact, without stopping anybody.
    #[default]
    PagemapScan,
    /// By the soft-dirty bits of page tables: each scan stops the hypervisor for a moment, and reports a few pages
    /// that were not written. Not for huge pages.
    SoftDirty,
}

impl Tracker {
    /// Its name, as in options and receipts.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::PagemapScan => "pagemap-scan",
            Self::SoftDirty => "soft-dirty",
        }
    }
}

impl fmt::Display for Tracker {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// How a guest is tracked, and for how long scans have stopped it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tracked {
    /// By which tracker.
    pub tracker: Tracker,
    /// For how long it was stopped, all together.
    pub stopped: Duration,
    /// For how long at once, at most.
    pub longest_stop: Duration,
}

impl Tracked {
    pub(crate) fn by(tracker: Tracker) -> Self {
        Self { tracker, ..Self::default() }
    }

    /// Takes note of a scan that stopped the guest for so long.
    pub(crate) fn note(&mut self, stop: Duration) {
        self.stopped += stop;
        self.longest_stop = self.longest_stop.max(stop);
    }
}

/// Tracks all RAM of one guest. Dropping it leaves tracking as it is: harmless, as nobody waits.
#[derive(Debug)]
pub(crate) struct WriteTracker {
    mapped: Vec<MappedPages>,
    by: By,
}

#[derive(Debug)]
enum By {
    PagemapScan(Userfaultfd, Pagemap),
    SoftDirty(SoftDirty),
}

impl WriteTracker {
    /// Starts tracking: whatever is written after this returned is reported by a later scan.
    pub(crate) fn start(
        pid: u32,
        uffd: Userfaultfd,
        mapped: Vec<MappedPages>,
    ) -> Result<Self, VmmError> {
        let pagemap = Pagemap::open(pid).map_err(system("opening the page map"))?;
        let mut tracker = Self { mapped, by: By::PagemapScan(uffd, pagemap) };
        match tracker.protect() {
            Ok(()) => Ok(tracker),
            Err(error) => {
                // The first error is the one to tell.
                let _ = tracker.stop();
                Err(error)
            }
        }
    }

    /// As [`Self::start`], by soft-dirty bits. `memory` is what `process` has mapped.
    pub(crate) fn start_soft_dirty(
        process: Process,
        mapped: Vec<MappedPages>,
        memory: &GuestMemory,
    ) -> Result<Self, VmmError> {
        let parts = mapped.iter().map(|part| part_of(part, memory)).collect::<Result<_, _>>()?;
        let tracker = SoftDirty::start(Writers::Of(process), parts)?;
        Ok(Self { mapped, by: By::SoftDirty(tracker) })
    }

    fn protect(&mut self) -> Result<(), VmmError> {
        if let By::PagemapScan(uffd, _) = &self.by {
            for part in &self.mapped {
                uffd.register_write_protect(part.addresses)?;
                uffd.write_protect(part.addresses)?;
            }
        }
        Ok(())
    }

    /// Ends tracking and what it costs the guest.
    pub(crate) fn stop(&mut self) -> Result<(), VmmError> {
        // Bits of page tables protect nothing that was written once, and go with nobody.
        let By::PagemapScan(uffd, _) = &self.by else { return Ok(()) };
        let ended = self.mapped.iter().map(|part| uffd.unregister(part.addresses));
        ended.fold(Ok(()), Result::and).map_err(VmmError::from)
    }

    /// Adds to `dirty` the pages written since the last scan that forgot. Returns for how long the guest was stopped.
    pub(crate) fn scan(
        &mut self,
        dirty: &mut PageSet,
        after: AfterScan,
    ) -> Result<Duration, VmmError> {
        match &mut self.by {
            By::PagemapScan(_, pagemap) => {
                for part in &self.mapped {
                    let add = |written: AddressRange| {
                        let skipped = (written.start() - part.addresses.start()) / PAGE_SIZE_BYTES;
                        let count = written.bytes() / PAGE_SIZE_BYTES;
                        dirty.insert_run(PageRun::new(part.first.0 + skipped, count));
                    };
                    pagemap
                        .scan_written(part.addresses, after, add)
                        .map_err(system("scanning for written pages"))?;
                }
                Ok(Duration::ZERO)
            }
            By::SoftDirty(tracker) => {
                let mapped = &self.mapped;
                let stopped = tracker.scan(after, |part, run| {
                    let first = mapped[part].first.0 + run.first.0;
                    dirty.insert_run(PageRun { first: PageNumber(first), ..run });
                });
                Ok(stopped?)
            }
        }
    }
}

/// A part of a guest's RAM, with the file that it is of.
fn part_of(mapped: &MappedPages, memory: &GuestMemory) -> Result<Part, VmmError> {
    let blocks = memory.layout().block_runs().zip(memory.files());
    for (block, file) in blocks {
        let skipped = mapped.first.0.checked_sub(block.first.0);
        let Some(skipped) = skipped.filter(|skipped| *skipped < block.count.0) else { continue };
        let file = file.try_clone_to_owned().map_err(system("copying a descriptor"))?;
        let offset = PageCount(skipped).bytes();
        return Ok(Part { addresses: mapped.addresses, file, offset });
    }
    Err(untrackable("pages that are of no RAM block are mapped"))
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

impl From<SoftDirtyError> for VmmError {
    fn from(error: SoftDirtyError) -> Self {
        match error {
            SoftDirtyError::System { operation, source } => Self::System { operation, source },
            other => Self::Refused { operation: "tracking writes", detail: in_full(&other) },
        }
    }
}

/// An error with its causes.
pub(crate) fn in_full(error: &dyn Error) -> String {
    let causes = std::iter::successors(error.source(), |cause: &&dyn Error| (*cause).source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

impl From<MemoryError> for VmmError {
    fn from(error: MemoryError) -> Self {
        match error {
            MemoryError::System { operation, source } => Self::System { operation, source },
            other => Self::Refused { operation: "using guest RAM", detail: other.to_string() },
        }
    }
}
