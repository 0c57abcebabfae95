//! The entries of `/proc/PID/pagemap`: one number for each page of a process.

use crate::AddressRange;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use sterna_page::{PAGE_SIZE_BYTES, PageCount, PageRun, PageSet};

const ENTRY_BYTES: usize = size_of::<u64>();

/// Entries read in one call: enough that the calls themselves cost nothing, and of 64 MiB, so that small guests need no
/// other thread.
const ENTRIES_PER_CALL: u64 = 16384;

/// Threads that read at once: the process stands still meanwhile, so its processors are free.
const THREADS_MAX: u64 = 8;

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
}

impl Entries {
    /// Opens that of process `pid`.
    ///
    /// # Errors
    /// When there is no such process or it may not be looked into.
    pub(super) fn open(pid: u32) -> io::Result<Self> {
        Ok(Self { file: File::open(format!("/proc/{pid}/pagemap"))? })
    }

    /// Reads the entries of `range`, by several threads if they are many.
    ///
    /// # Errors
    /// When the process has ended, or the kernel refuses.
    pub(super) fn read(&self, range: AddressRange) -> io::Result<Mapped> {
        let pages = range.bytes() / PAGE_SIZE_BYTES;
        let mut present = PageSet::empty(PageCount(pages));
        let mut written = PageSet::empty(PageCount(pages));
        for run in self.runs(range.start() / PAGE_SIZE_BYTES, pages)? {
            if run.flags & PRESENT != 0 {
                present.insert_run(run.pages);
            }
            if run.flags == PRESENT | SOFT_DIRTY {
                written.insert_run(run.pages);
            }
        }
        Ok(Mapped { present, written })
    }

    /// The entries of `pages` pages from the address page `start` on. Each thread takes the next slice until there is none.
    fn runs(&self, start: u64, pages: u64) -> io::Result<Vec<Run>> {
        let slices = pages.div_ceil(ENTRIES_PER_CALL);
        let processors = std::thread::available_parallelism().map_or(1, |count| count.get() as u64);
        let next = AtomicU64::new(0);
        let read = || -> io::Result<Vec<Run>> {
            let mut buffer = Vec::new();
            let mut runs = Vec::new();
            loop {
                let first = next.fetch_add(1, Ordering::Relaxed) * ENTRIES_PER_CALL;
                if first >= pages {
                    return Ok(runs);
                }
                let count = (pages - first).min(ENTRIES_PER_CALL);
                buffer.resize(usize::try_from(count).map_err(io::Error::other)? * ENTRY_BYTES, 0);
                // Short of this there is no memory any more, and silence must not pass for clean pages.
                self.file.read_exact_at(&mut buffer, (start + first) * ENTRY_BYTES as u64)?;
                sort(&buffer, first, &mut runs);
            }
        };
        std::thread::scope(|scope| {
            let others: Vec<_> =
                (1..slices.min(processors).min(THREADS_MAX)).map(|_| scope.spawn(read)).collect();
            let mut runs = read()?;
            for other in others {
                runs.extend(other.join().map_err(|_| io::Error::other("a thread panicked"))??);
            }
            Ok(runs)
        })
    }
}

/// Consecutive pages whose entries are alike.
#[derive(Debug, PartialEq, Eq)]
struct Run {
    pages: PageRun,
    flags: u64,
}

/// Adds what `entries` say, of which the first is that of page `first`.
fn sort(entries: &[u8], first: u64, runs: &mut Vec<Run>) {
    let (entries, _) = entries.as_chunks::<ENTRY_BYTES>();
    let flags = |entry: &[u8; ENTRY_BYTES]| u64::from_ne_bytes(*entry) & (PRESENT | SOFT_DIRTY);
    let mut page = first;
    for alike in entries.chunk_by(|one, next| flags(one) == flags(next)) {
        let pages = PageRun::new(page, alike.len() as u64);
        page += pages.count.0;
        runs.push(Run { pages, flags: flags(&alike[0]) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{Access, GuestMemory, HugePages, create_shared};
    use sterna_page::{PAGE_SIZE, PageNumber, RamBlock, RamLayout};

    #[test]
    fn what_entries_say_beside_the_two_bits_does_not_matter() {
        let numbers = [0, PRESENT, PRESENT | 7, PRESENT | SOFT_DIRTY, SOFT_DIRTY, 1 << 62];
        let bytes: Vec<u8> = numbers.iter().flat_map(|number: &u64| number.to_ne_bytes()).collect();
        let mut runs = Vec::new();
        sort(&bytes, 10, &mut runs);
        let run = |first, count, flags| Run { pages: PageRun::new(first, count), flags };
        let both = PRESENT | SOFT_DIRTY;
        let expected = [
            run(10, 1, 0),
            run(11, 2, PRESENT),
            run(13, 1, both),
            run(14, 1, SOFT_DIRTY),
            run(15, 1, 0),
        ];
        assert_eq!(runs, expected);
    }

    #[test]
    fn many_entries_are_all_read_once() {
        let size_bytes = 3 * (ENTRIES_PER_CALL + 5) * PAGE_SIZE_BYTES;
        let block = RamBlock { name: "ram0".into(), size_bytes, host_page_bytes: PAGE_SIZE_BYTES };
        let file = create_shared("ram0", size_bytes, HugePages::No).unwrap();
        let layout = RamLayout::new(vec![block]).unwrap();
        let memory = GuestMemory::map(layout, vec![file], Access::ReadWrite).unwrap();
        let pages = memory.pages().0;
        let mut expected = PageSet::empty(memory.pages());
        for page in (0..pages).step_by(97).chain([pages - 1]) {
            memory.write(PageNumber(page), &[1; PAGE_SIZE]).unwrap();
            expected.insert(PageNumber(page));
        }
        let entries = Entries::open(std::process::id()).unwrap();
        let mapped = entries.read(memory.addresses().next().unwrap()).unwrap();
        assert_eq!(mapped.present, expected);
        assert!(
            mapped.written == expected || mapped.written.is_empty(),
            "new memory is all written, where bits are kept"
        );
    }

    #[test]
    fn addresses_without_memory_are_not_mapped_and_those_beyond_all_memory_are_an_error() {
        let entries = Entries::open(std::process::id()).unwrap();
        let zero = AddressRange::new(0, 4 * PAGE_SIZE_BYTES).unwrap();
        assert!(entries.read(zero).unwrap().present.is_empty());
        let beyond = AddressRange::new(1 << 60, (1 << 60) + PAGE_SIZE_BYTES).unwrap();
        assert!(entries.read(beyond).is_err());
    }
}
