//! Pages that an arriving guest does not have yet: whoever touches one waits until it is placed.
//!
//! ```text
//!   Begin::Fresh      registered, missing pages freed     (before the device state is loaded)
//!   Begin::TakenOver  registered as it was, all who wait are told of again       (a new agent)
//!   serving           wait → page → place, or place_zero where nothing is owed
//!   ended             holes read as zeroes; nobody waits any more
//! ```
//!
//! **Guarantee.** A missing page is never seen as zeroes or in an old state between the two ends: its
//! content is placed once, as a whole, by [`Faults::place`], and a page that exists is never changed.
//!
//! **Every page that [`Faults::wait`] reports has to be answered**, with its content if it is still
//! owed, else by [`Faults::place_zero`], even if it was placed before: a balloon may have given it
//! back, and then it is zero; if it exists nothing is changed. Nobody else wakes the thread.
//!
//! **Not here.** Which pages are owed, and by whom. When an agent dies its guest's threads just wait:
//! the registration and the pages placed so far are the hypervisor's.

use crate::VmmError;
use crate::tracking::MappedPages;
use std::time::Duration;
use sterna_page::{PAGE_SIZE_BYTES, PageCount, PageNumber, PageRun, PageSet};
use sterna_sys::AddressRange;
use sterna_sys::memory::GuestMemory;
use sterna_sys::uffd::{Filled, UffdError, Userfaultfd};

/// In what state a guest is whose faults are to be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begin {
    /// It has no state yet, and nothing touches its RAM.
    Fresh,
    /// An agent that is gone has served it; it may run, and its threads may wait.
    TakenOver,
}

/// The faults of one arriving guest. Used by several threads at once.
#[derive(Debug)]
pub struct Faults {
    uffd: Userfaultfd,
    mapped: Vec<MappedPages>,
    pages: PageCount,
}

impl Faults {
    /// Begins to serve the guest that has `memory`, and that `uffd` and `mapped` belong to. The caller
    /// knows that `uffd` sees all faults that its threads take.
    pub(crate) fn begin(
        uffd: Userfaultfd,
        mapped: Vec<MappedPages>,
        memory: &GuestMemory,
        missing: &PageSet,
        guest: Begin,
    ) -> Result<Self, VmmError> {
        check_pages(memory)?;
        if missing.capacity() != memory.pages() {
            let (told, has) = (missing.capacity().0, memory.pages().0);
            return Err(refused(format!("a set of {told} pages for a guest of {has}")));
        }
        let this = Self { uffd, mapped, pages: memory.pages() };
        let begun = match guest {
            Begin::Fresh => this.register().and_then(|()| free(memory, missing)),
            Begin::TakenOver => this.register().and_then(|()| this.wake_all()),
        };
        if begun.is_err() && guest == Begin::Fresh {
            // Half a registration would make the hypervisor wait for what nobody serves. The first
            // error is the one to tell.
            let _ = this.end();
        }
        begun.map(|()| this)
    }

    fn register(&self) -> Result<(), VmmError> {
        let mut parts = self.mapped.iter();
        Ok(parts.try_for_each(|part| self.uffd.register_missing(part.addresses))?)
    }

    /// Appends the pages that threads of the guest have newly been found waiting for; may repeat
    /// pages. Returns after at most `limit`, earlier if there are some.
    ///
    /// Each fault is reported to one caller. [`Faults::wake_all`] makes them all be reported anew.
    ///
    /// # Errors
    /// When the kernel refuses. That the guest has ended is not seen here, only when pages are
    /// placed.
    pub fn wait(&self, limit: Duration, faulted: &mut Vec<PageNumber>) -> Result<(), VmmError> {
        let mut report = |address| faulted.extend(self.page_at(address));
        Ok(self.uffd.read_faults(limit, &mut report)?)
    }

    /// Places `bytes`, whole pages, from `first` on, and wakes who waits for them. Pages that exist
    /// stay as they are. Returns how many did not exist.
    ///
    /// # Errors
    /// With [`VmmError::Gone`] when the guest has ended; when `bytes` is not whole pages or the
    /// guest has no such pages (nothing is placed then); when there is no memory, or serving has
    /// ended (some may be placed).
    pub fn place(&self, first: PageNumber, bytes: &[u8]) -> Result<PageCount, VmmError> {
        let length = bytes.len() as u64;
        if !length.is_multiple_of(PAGE_SIZE_BYTES) {
            return Err(refused(format!("{length} bytes are not whole pages")));
        }
        let run = PageRun { first, count: PageCount(length / PAGE_SIZE_BYTES) };
        self.fill(run, |addresses, part| {
            let from = offset(PageCount(part.first.0 - first.0));
            let to = from + offset(part.count);
            self.uffd.copy(addresses.start(), &bytes[from..to])
        })
    }

    /// Places zeroes, as [`Faults::place`] places content.
    ///
    /// # Errors
    /// As [`Faults::place`].
    pub fn place_zero(&self, run: PageRun) -> Result<PageCount, VmmError> {
        self.fill(run, |addresses, _| self.uffd.zero(addresses))
    }

    /// Makes every thread that waits try again: those whose page is still missing wait again, and are
    /// reported anew, whoever was told of them before.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn wake_all(&self) -> Result<(), VmmError> {
        let mut parts = self.mapped.iter();
        Ok(parts.try_for_each(|part| self.uffd.wake(part.addresses))?)
    }

    /// Ends serving: holes read as zeroes, and nobody waits any more.
    pub(crate) fn end(&self) -> Result<(), VmmError> {
        end(&self.uffd, &self.mapped)
    }

    /// Fills `run` wherever the guest has it mapped: a thread waits at one of its mappings.
    fn fill(
        &self,
        run: PageRun,
        fill: impl Fn(AddressRange, PageRun) -> Result<Filled, UffdError>,
    ) -> Result<PageCount, VmmError> {
        if run.end().is_none_or(|end| end.0 > self.pages.0) {
            let (first, count) = (run.first, run.count.0);
            return Err(refused(format!("the guest does not have {count} pages from {first} on")));
        }
        let mut filled = Filled::default();
        for part in &self.mapped {
            if let Some((addresses, pages)) = part.part_of(run) {
                filled += fill(addresses, pages)?;
            }
        }
        Ok(filled.placed)
    }

    fn page_at(&self, address: u64) -> Option<PageNumber> {
        let is_in =
            |part: &&MappedPages| (part.addresses.start()..part.addresses.end()).contains(&address);
        let part = self.mapped.iter().find(is_in)?;
        Some(PageNumber(part.first.0 + (address - part.addresses.start()) / PAGE_SIZE_BYTES))
    }
}

/// Ends whatever `mapped` was registered for.
pub(crate) fn end(uffd: &Userfaultfd, mapped: &[MappedPages]) -> Result<(), VmmError> {
    let ended = mapped.iter().map(|part| uffd.unregister(part.addresses));
    ended.fold(Ok(()), Result::and).map_err(VmmError::from)
}

/// Frees the pages, all of which must be freed: one that stays would be seen as zeroes.
fn free(memory: &GuestMemory, missing: &PageSet) -> Result<(), VmmError> {
    for run in missing.runs() {
        memory.punch(run)?;
        if !memory.is_hole(run)? {
            let (first, count) = (run.first, run.count.0);
            return Err(refused(format!("{count} pages from {first} on cannot be freed")));
        }
    }
    Ok(())
}

/// Whether the guest's pages are such as can come later.
pub(crate) fn check_pages(memory: &GuestMemory) -> Result<(), VmmError> {
    if memory.layout().blocks().iter().any(|block| block.host_page_bytes > PAGE_SIZE_BYTES) {
        return Err(refused("pages that come later are not supported for huge pages".into()));
    }
    Ok(())
}

fn offset(pages: PageCount) -> usize {
    usize::try_from(pages.bytes()).expect("an offset into a slice fits the address space")
}

pub(crate) fn refused(detail: String) -> VmmError {
    VmmError::Refused { operation: "serving missing pages", detail }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tracking::system;
    use std::time::Instant;
    use sterna_page::{PAGE_SIZE, RamBlock, RamLayout};
    use sterna_sys::memory::{Access, HugePages, create_shared};

    const PAGES: u64 = 8;

    /// RAM that is mapped twice, as a hypervisor may, with every page missing; `None` where this
    /// kernel cannot.
    fn mapped_twice() -> Option<([GuestMemory; 2], Faults)> {
        let uffd = Userfaultfd::create().map_err(|error| eprintln!("skipped: {error}")).ok()?;
        let size_bytes = PAGES * PAGE_SIZE_BYTES;
        let block = RamBlock { name: "ram0".into(), size_bytes, host_page_bytes: 4096 };
        let layout = RamLayout::new(vec![block]).unwrap();
        let file = create_shared("ram0", size_bytes, HugePages::No).unwrap();
        let memories = [0, 1].map(|_| {
            let file = file.try_clone().map_err(system("copying")).unwrap();
            GuestMemory::map(layout.clone(), vec![file], Access::ReadWrite).unwrap()
        });
        let part = |memory: &GuestMemory| {
            let addresses = memory.addresses().next().unwrap();
            MappedPages { addresses, first: PageNumber(0) }
        };
        let mapped = memories.iter().map(part).collect();
        let missing = PageSet::full(memories[0].pages());
        let faults = Faults::begin(uffd, mapped, &memories[0], &missing, Begin::Fresh).unwrap();
        Some((memories, faults))
    }

    #[test]
    fn whoever_waits_at_any_mapping_of_a_page_goes_on_when_it_is_placed() {
        let Some((memories, faults)) = mapped_twice() else { return };
        std::thread::scope(|scope| {
            let read = |memory: &GuestMemory, page| {
                let mut bytes = vec![0; PAGE_SIZE];
                memory.read(PageNumber(page), &mut bytes).unwrap();
                bytes[0]
            };
            let threads = [(0, 3), (1, 3), (0, 5), (1, 5)].map(|(mapping, page)| {
                let memory = &memories[mapping];
                scope.spawn(move || read(memory, page))
            });
            let mut waiting = Vec::new();
            while waiting.len() < threads.len() {
                faults.wait(Duration::from_millis(100), &mut waiting).unwrap();
            }
            waiting.sort_unstable();
            assert_eq!(waiting, [3, 3, 5, 5].map(PageNumber));
            assert_eq!(faults.place(PageNumber(3), &[7; PAGE_SIZE]).unwrap(), PageCount(1));
            assert_eq!(faults.place_zero(PageRun::new(4, 2)).unwrap(), PageCount(2));
            let deadline = Instant::now() + Duration::from_secs(30);
            while Instant::now() < deadline && !threads.iter().all(|thread| thread.is_finished()) {
                std::thread::yield_now();
            }
            let went_on = threads.iter().all(|thread| thread.is_finished());
            faults.end().unwrap();
            assert_eq!(threads.map(|thread| thread.join().unwrap()), [7, 7, 0, 0]);
            assert!(went_on, "a thread was not woken");
        });
    }
}
