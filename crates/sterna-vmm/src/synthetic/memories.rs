//! The two mappings of a synthetic guest's RAM: the guest's and the engine's.

use crate::tracking::{MappedPages, system};
use crate::{Begin, Faults, VmmError};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use sterna_page::{PageSet, RamBlock, RamLayout};
use sterna_sys::memory::{Access, GuestMemory, HugePages, create_shared};
use sterna_sys::uffd::Userfaultfd;

/// The RAM of one guest.
#[derive(Debug)]
pub(super) struct Memories {
    /// The mapping that the writers use, that is tracked, and that faults.
    pub(super) inside: GuestMemory,
    /// What the engine uses.
    pub(super) outside: Arc<GuestMemory>,
    /// The faults, while they are served. Kept here as a hypervisor keeps its userfaultfd: without
    /// it nobody could let go of the writers that wait.
    faults: Mutex<Option<Arc<Faults>>>,
}

impl Memories {
    pub(super) fn create(layout: &RamLayout) -> Result<Self, VmmError> {
        let create = |block: &RamBlock| {
            create_shared(&block.name, block.size_bytes, HugePages::No)
                .map_err(system("creating RAM"))
        };
        let files = layout.blocks().iter().map(create).collect::<Result<_, _>>()?;
        Self::over(layout, files)
    }

    /// In these files, one for each block.
    pub(super) fn over(layout: &RamLayout, files: Vec<OwnedFd>) -> Result<Self, VmmError> {
        let copies = files.iter().map(OwnedFd::try_clone).collect::<Result<_, _>>();
        let copies = copies.map_err(system("creating RAM"))?;
        let inside = GuestMemory::map(layout.clone(), files, Access::ReadWrite)?;
        let outside = Arc::new(GuestMemory::open(layout.clone(), copies)?);
        Ok(Self { inside, outside, faults: Mutex::default() })
    }

    /// Where the mapping lies that the writers use.
    pub(super) fn mapped(&self) -> Vec<MappedPages> {
        let runs = self.inside.layout().block_runs();
        let parts = self.inside.addresses().zip(runs);
        parts.map(|(addresses, run)| MappedPages { addresses, first: run.first }).collect()
    }

    pub(super) fn serve_faults(
        &self,
        missing: &PageSet,
        guest: Begin,
    ) -> Result<Arc<Faults>, VmmError> {
        let mut faults = self.faults();
        match (guest, &*faults) {
            (Begin::TakenOver, Some(served)) => {
                served.wake_all()?;
                return Ok(Arc::clone(served));
            }
            (Begin::Fresh, Some(served)) => served.end()?,
            (Begin::Fresh | Begin::TakenOver, None) => {}
        }
        // Of this process's own threads every fault is seen: none of them is inside the kernel.
        let uffd = Userfaultfd::create()?;
        let begun = Faults::begin(uffd, self.mapped(), &self.outside, missing, guest)?;
        Ok(Arc::clone(faults.insert(Arc::new(begun))))
    }

    /// Lets go of all who wait.
    pub(super) fn end_faults(&self) -> Result<(), VmmError> {
        self.faults().take().map_or(Ok(()), |faults| faults.end())
    }

    fn faults(&self) -> MutexGuard<'_, Option<Arc<Faults>>> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
