//! Which pages of a process were written, on kernels before 6.7: its page tables' soft-dirty bits.
//!
//! Writing `4` to `/proc/PID/clear_refs` protects every page of a process and clears its bit; the first write to
//! a page sets it, and bit 55 of the page's entry in `/proc/PID/pagemap` tells. That alone loses writes, in two
//! ways:
//!
//! - *Reading and clearing are two steps.* A write in between is cleared and was not read. So all threads of the process
//!   are stopped for as long as the two take ([`Frozen`]). What the first clearing loses was written before tracking
//!   began, so nothing is stopped for that one.
//! - *The bit belongs to the mapping of a page, not to the page.* When the kernel unmaps a page of a file (it reclaims
//!   memory, splits or makes a transparent huge page) the bit is gone, and when the page is next read it is mapped anew, clean. So this
//!   process has a mapping of its own of the same file, the *witness*, through which nobody reads. Whatever unmaps a page of a
//!   file, unmaps it from all mappings, and is done before anybody can map it anew. A page counts as clean only if
//!
//!   1. it is mapped by the process, and its bit is clear;
//!   2. it was mapped by the witness when that was looked at after the last clearing, at which time nothing had been mapped anew; so it was
//!      mapped before the clearing as well;
//!   3. it is still mapped by the witness, looked at after the bit was read.
//!
//! All other pages count as written, unless the file has a hole there. After each clearing both mappings are completed, so that a
//! page that was unmapped, and one that is new, is reported once or twice more and then only when it is written. A page that the process has
//! never touched, as after it got its memory from another one, is mapped before tracking begins.
//!
//! What this cannot see: memory that the process itself unmaps without giving it back (`MADV_DONTNEED` alone) and then reads;
//! a second one that clears the bits of the same process, such as CRIU; transparent huge pages being made, so tracking does not begin where
//! the kernel may make them of shared memory; huge pages of hugetlbfs, whose bits are not kept. Threads of the kernel that write for the
//! process (vhost, io_uring) cannot be stopped: a process that has such is refused.

mod entries;
mod witness;

use crate::AddressRange;
use crate::memory::{Access, GuestMemory, HugePages, create_shared};
use crate::pagemap::AfterScan;
use crate::process::{FreezeError, Frozen, Process, descriptors, touch};
use entries::{Entries, Mapped};
use rustix::fs::{SeekFrom, fstatfs, seek};
use rustix::io::Errno;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;
use sterna_page::{
    PAGE_SIZE, PAGE_SIZE_BYTES, PageCount, PageNumber, PageRun, PageSet, RamBlock, RamLayout,
};
use witness::Witness;

/// What `clear_refs` takes for soft-dirty bits.
const CLEAR_SOFT_DIRTY: &[u8] = b"4";

/// How long threads may take to stop, and what they are given to go on before they are asked again: a thread that
/// waits for a disk stops only when the disk has answered, and the others stand still meanwhile.
const STOP_LIMIT: Duration = Duration::from_millis(100);
const STOP_PAUSE: Duration = Duration::from_millis(100);

/// How often they are asked.
const STOP_ATTEMPTS: u32 = 20;

/// Where the kernel says whether it makes transparent huge pages of shared memory.
const SHARED_HUGE_PAGES: &str = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";

/// What `statfs` tells of a file of huge pages.
const HUGETLBFS: i64 = 0x9584_58f6;

/// Why writes of a process cannot be tracked.
#[derive(Debug, thiserror::Error)]
pub enum SoftDirtyError {
    /// The kernel was built without them.
    #[error(
        "the kernel keeps no soft-dirty bits: use one with CONFIG_MEM_SOFT_DIRTY, or Linux 6.7 or later"
    )]
    None,
    /// Memory of huge pages, whose bits the kernel does not keep.
    #[error(
        "the kernel keeps no soft-dirty bits of huge pages: use Linux 6.7 or later, or ordinary pages"
    )]
    HugePages,
    /// The kernel may make transparent huge pages, whose making clears bits.
    #[error(
        "the kernel may make transparent huge pages of shared memory, by which soft-dirty bits are lost: \
         echo never > {SHARED_HUGE_PAGES}"
    )]
    TransparentHugePages,
    /// The kernel writes for the process by threads that cannot be stopped.
    #[error(
        "the process has {device} open, through which the kernel writes its memory unseen: do without vhost"
    )]
    KernelWrites {
        /// The device.
        device: String,
    },
    /// Its threads cannot be stopped, which takes a moment of every scan.
    #[error("it cannot be stopped for a scan")]
    Freeze(#[from] FreezeError),
    /// A request failed.
    #[error("{operation} failed")]
    System {
        /// What was tried.
        operation: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

fn failed(operation: &'static str) -> impl Fn(io::Error) -> SoftDirtyError {
    move |source| SoftDirtyError::System { operation, source }
}

/// Consecutive pages of a file at consecutive addresses of a process.
#[derive(Debug)]
pub struct Part {
    /// Where the process has them mapped, shared.
    pub addresses: AddressRange,
    /// The file.
    pub file: OwnedFd,
    /// From which offset of the file on, in bytes.
    pub offset: u64,
}

/// Who writes while a scan reads and clears.
#[derive(Debug)]
pub enum Writers {
    /// The threads of this process, which are stopped for that moment.
    Of(Process),
    /// Nobody, which the caller sees to: the pages are this process's own.
    Held,
}

/// Tracks the writes of one process by its soft-dirty bits. Dropping it ends nothing that anybody would notice.
#[derive(Debug)]
pub struct SoftDirty {
    pid: u32,
    writers: Writers,
    clear_refs: File,
    entries: Entries,
    own: Entries,
    parts: Vec<(Part, Witness)>,
}

impl SoftDirty {
    /// Starts tracking: whatever is written to `parts` after this returned is reported by a later scan. Takes the time
    /// of mapping all pages that exist, unless the process has them mapped.
    ///
    /// # Errors
    /// When the kernel lacks soft-dirty bits or loses them, or a process cannot be looked into.
    pub fn start(writers: Writers, parts: Vec<Part>) -> Result<Self, SoftDirtyError> {
        let pid = match &writers {
            Writers::Of(process) => process.pid(),
            Writers::Held => std::process::id(),
        };
        check_kernel(parts.iter().map(|part| part.file.as_fd()))?;
        if let Writers::Of(process) = &writers {
            check_kernel_writers(process.pid())?;
        }
        let clear_refs = OpenOptions::new().write(true).open(format!("/proc/{pid}/clear_refs"));
        let witnessed = |part: Part| Ok((Witness::new(&part)?, part));
        let parts =
            parts.into_iter().map(|part| witnessed(part).map(|(witness, part)| (part, witness)));
        let mut tracker = Self {
            clear_refs: clear_refs.map_err(failed("opening clear_refs"))?,
            entries: Entries::open(pid).map_err(failed("opening the page map"))?,
            own: Entries::open(std::process::id()).map_err(failed("opening the own page map"))?,
            parts: parts.collect::<io::Result<_>>().map_err(failed("mapping memory"))?,
            pid,
            writers,
        };
        tracker.complete_all(None)?;
        tracker.clear()?;
        tracker.note_witnessed()?;
        Ok(tracker)
    }

    /// Reports pages as the number of their part and runs within it: every page written since the last scan that forgot, and some that
    /// were not. Returns for how long the process was stopped.
    ///
    /// # Errors
    /// When the process cannot be stopped, has ended, or the kernel refuses. What was written may then never be
    /// reported.
    pub fn scan(
        &mut self,
        after: AfterScan,
        mut report: impl FnMut(usize, PageRun),
    ) -> Result<Duration, SoftDirtyError> {
        let (seen, stopped) = match after {
            AfterScan::Keep => (self.read()?, Duration::ZERO),
            AfterScan::Forget => self.read_and_clear()?,
        };
        let mut existing = Vec::with_capacity(self.parts.len());
        for (number, ((part, witness), seen)) in self.parts.iter_mut().zip(seen).enumerate() {
            // After the bits were read, and before anything is mapped here anew.
            let witnessed =
                witness.mapped(&self.own).map_err(failed("reading the own page map"))?;
            let exist = existing_pages(part, &seen.present).map_err(failed("looking for holes"))?;
            let mut written = exist.clone();
            written.subtract(&clean(&seen, &witness.since_cleared, &witnessed));
            written.runs().for_each(|run| report(number, run));
            if after == AfterScan::Forget {
                witness.since_cleared = witnessed;
            }
            existing.push((seen.present, exist));
        }
        if after == AfterScan::Forget {
            self.complete_all(Some(existing))?;
        }
        Ok(stopped)
    }

    fn read(&self) -> Result<Vec<Mapped>, SoftDirtyError> {
        let seen = self.parts.iter().map(|(part, _)| self.entries.read(part.addresses));
        seen.collect::<io::Result<_>>().map_err(failed("reading the page map"))
    }

    fn read_and_clear(&mut self) -> Result<(Vec<Mapped>, Duration), SoftDirtyError> {
        let frozen = match &self.writers {
            Writers::Of(process) => Some(stop(process)?),
            Writers::Held => None,
        };
        let seen = self.read()?;
        self.clear()?;
        let stopped = frozen.as_ref().map_or(Duration::ZERO, Frozen::elapsed);
        Ok((seen, stopped))
    }

    fn clear(&mut self) -> Result<(), SoftDirtyError> {
        self.clear_refs.write_all(CLEAR_SOFT_DIRTY).map_err(failed("clearing soft-dirty bits"))
    }

    fn note_witnessed(&mut self) -> Result<(), SoftDirtyError> {
        for (_, witness) in &mut self.parts {
            let witnessed = witness.mapped(&self.own);
            witness.since_cleared = witnessed.map_err(failed("reading the own page map"))?;
        }
        Ok(())
    }

    /// Has the process and the witness map all pages that exist. For each part `known` has those that the process has
    /// mapped, and those that exist.
    fn complete_all(
        &mut self,
        known: Option<Vec<(PageSet, PageSet)>>,
    ) -> Result<(), SoftDirtyError> {
        let known = match known {
            Some(known) => known,
            None => {
                let seen = self.read()?;
                let exist = self.parts.iter().zip(seen).map(|((part, _), seen)| {
                    Ok((existing_pages(part, &seen.present)?, seen.present))
                });
                let known = exist.map(|found| found.map(|(exist, present)| (present, exist)));
                known.collect::<io::Result<_>>().map_err(failed("looking for holes"))?
            }
        };
        for ((part, witness), (present, exist)) in self.parts.iter().zip(known) {
            let mut missing = exist.clone();
            missing.subtract(&witness.since_cleared);
            for run in missing.runs() {
                witness.map(run).map_err(failed("mapping pages"))?;
            }
            let mut missing = exist;
            missing.subtract(&present);
            let address = |page: PageNumber| part.addresses.start() + page.0 * PAGE_SIZE_BYTES;
            let addresses: Vec<u64> = missing.iter().map(address).collect();
            touch(self.pid, &addresses).map_err(failed("having pages mapped"))?;
        }
        Ok(())
    }
}

/// Whether writes of `process` to memory of `files` could be tracked, found out by stopping it for an instant.
///
/// # Errors
/// With what is in the way.
pub fn check<'a>(
    process: &Process,
    files: impl IntoIterator<Item = BorrowedFd<'a>>,
) -> Result<(), SoftDirtyError> {
    check_kernel(files)?;
    check_kernel_writers(process.pid())?;
    stop(process).map(drop)
}

fn check_kernel<'a>(files: impl IntoIterator<Item = BorrowedFd<'a>>) -> Result<(), SoftDirtyError> {
    if !keeps_bits().map_err(failed("looking for soft-dirty bits"))? {
        return Err(SoftDirtyError::None);
    }
    if may_make_huge_pages() {
        return Err(SoftDirtyError::TransparentHugePages);
    }
    for file in files {
        let kind = fstatfs(file).map_err(|error| failed("statfs")(error.into()))?.f_type;
        if kind == HUGETLBFS {
            return Err(SoftDirtyError::HugePages);
        }
    }
    Ok(())
}

/// Threads of the kernel that write for a process and are not its own, so that they are not found when it is stopped.
fn check_kernel_writers(pid: u32) -> Result<(), SoftDirtyError> {
    let open = descriptors(pid).map_err(failed("listing the descriptors of a process"))?;
    let mut names = open.iter().map(|open| open.link.to_string_lossy());
    match names.find(|name| name.starts_with("/dev/vhost")) {
        Some(device) => Err(SoftDirtyError::KernelWrites { device: device.into_owned() }),
        None => Ok(()),
    }
}

/// Stops a process, however often that has to be tried.
fn stop(process: &Process) -> Result<Frozen, SoftDirtyError> {
    for _ in 1..STOP_ATTEMPTS {
        match Frozen::stop(process, STOP_LIMIT) {
            Err(FreezeError::TimedOut { .. }) => std::thread::sleep(STOP_PAUSE),
            stopped => return Ok(stopped?),
        }
    }
    Ok(Frozen::stop(process, STOP_LIMIT)?)
}

/// The pages that are known not to have been written.
fn clean(seen: &Mapped, since_cleared: &PageSet, witnessed: &PageSet) -> PageSet {
    let mut clean = seen.present.clone();
    clean.subtract(&seen.written);
    for needed in [since_cleared, witnessed] {
        let mut lacking = clean.clone();
        lacking.subtract(needed);
        clean.subtract(&lacking);
    }
    clean
}

/// The pages that exist: those that are mapped, and of the others those that are no hole of the file.
fn existing_pages(part: &Part, present: &PageSet) -> io::Result<PageSet> {
    let mut unmapped = PageSet::full(PageCount(part.addresses.bytes() / PAGE_SIZE_BYTES));
    unmapped.subtract(present);
    let mut exist = present.clone();
    for run in unmapped.runs() {
        let start = part.offset + run.first.0 * PAGE_SIZE_BYTES;
        let end = start + run.count.bytes();
        let mut position = start;
        while position < end {
            let Some(data) = next(part, SeekFrom::Data(position))?.filter(|data| *data < end)
            else {
                break;
            };
            // Punched in between: it has become the end of the file.
            let hole = next(part, SeekFrom::Hole(data))?.unwrap_or(end).clamp(data, end);
            let page = |at: u64| (at - part.offset) / PAGE_SIZE_BYTES;
            let count = page(hole.next_multiple_of(PAGE_SIZE_BYTES)) - page(data);
            exist.insert_run(PageRun::new(page(data), count));
            position = hole.max(data + PAGE_SIZE_BYTES);
        }
    }
    Ok(exist)
}

/// Where data or a hole begins next; nothing if none does.
fn next(part: &Part, wanted: SeekFrom) -> io::Result<Option<u64>> {
    match seek(&part.file, wanted) {
        Ok(at) => Ok(Some(at)),
        Err(Errno::NXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Whether the kernel has bits at all: those of new memory are set. Where it has none, silence would pass for clean pages.
fn keeps_bits() -> io::Result<bool> {
    let layout = RamLayout::new(vec![RamBlock {
        name: "probe".into(),
        size_bytes: PAGE_SIZE_BYTES,
        host_page_bytes: PAGE_SIZE_BYTES,
    }]);
    let file = create_shared("sterna-probe", PAGE_SIZE_BYTES, HugePages::No)?;
    let memory = GuestMemory::map(layout.map_err(io::Error::other)?, vec![file], Access::ReadWrite);
    let memory = memory.map_err(io::Error::other)?;
    memory.write(PageNumber(0), &[1; PAGE_SIZE]).map_err(io::Error::other)?;
    let range = memory.addresses().next().ok_or_else(|| io::Error::other("nothing was mapped"))?;
    Ok(!Entries::open(std::process::id())?.read(range)?.written.is_empty())
}

/// Whether the kernel may make transparent huge pages of a memfd.
fn may_make_huge_pages() -> bool {
    let Ok(text) = std::fs::read_to_string(Path::new(SHARED_HUGE_PAGES)) else { return false };
    !["[never]", "[deny]"].iter().any(|off| text.contains(off))
}

#[cfg(test)]
mod tests;
