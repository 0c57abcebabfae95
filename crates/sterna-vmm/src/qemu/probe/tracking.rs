//! Which tracker works on this kernel, found out by writing and looking.
//!
//! What a kernel claims is not believed: a tracker that reports nothing looks like a guest that writes nothing, and
//! would lose what it writes.

use super::{Finding, Verdict};
use crate::Tracker;
use crate::tracking::in_full;
use std::error::Error;
use std::process::{Child, Command, Stdio};
use sterna_page::{PAGE_SIZE, PAGE_SIZE_BYTES, PageNumber, PageRun, RamBlock, RamLayout};
use sterna_sys::AddressRange;
use sterna_sys::memory::{Access, GuestMemory, HugePages, create_shared};
use sterna_sys::pagemap::{AfterScan, Pagemap};
use sterna_sys::process::Process;
use sterna_sys::soft_dirty::{Part, SoftDirty, Writers, check};
use sterna_sys::uffd::Userfaultfd;

const NAME: &str = "write tracking";

const PAGES: u64 = 8;

/// The pages that are written, one after the other, with a scan after each: a bit that is never cleared shows at the
/// second, and one that is never set at the first.
const WRITTEN: [u64; 2] = [5, 2];

/// The tracker to use, of those that were asked for, and what is to be said of it.
pub(super) fn find(asked: Option<Tracker>) -> (Finding, Option<Tracker>) {
    let candidates = match asked {
        Some(tracker) => vec![tracker],
        None => vec![Tracker::PagemapScan, Tracker::SoftDirty],
    };
    let mut reasons = Vec::new();
    for tracker in candidates {
        match try_out(tracker) {
            Ok(()) => return (works(tracker, asked), Some(tracker)),
            Err(error) => reasons.push(format!("{tracker}: {}", in_full(error.as_ref()))),
        }
    }
    let detail = format!("Linux {}: {}", release(), reasons.join("; "));
    let remedy = "use Linux 6.7 or later, or one with CONFIG_MEM_SOFT_DIRTY";
    (Finding::bad(NAME, Verdict::Missing, detail, remedy), None)
}

fn works(tracker: Tracker, asked: Option<Tracker>) -> Finding {
    let detail = format!("by {tracker}, exact, on Linux {}", release());
    let remedy = match (tracker, asked) {
        (Tracker::PagemapScan, _) => return Finding::good(NAME, detail),
        (Tracker::SoftDirty, None) => "use Linux 6.7 or later",
        (Tracker::SoftDirty, Some(_)) => {
            "do without tracker = \"soft-dirty\" on Linux 6.7 or later"
        }
    };
    let detail = format!(
        "{detail}: each round of a move stops the guest for some ms and some more for each GiB; guests of huge \
         pages cannot leave"
    );
    Finding::bad(NAME, Verdict::Warning, detail, remedy)
}

fn try_out(tracker: Tracker) -> Result<(), Box<dyn Error>> {
    let size_bytes = PAGES * PAGE_SIZE_BYTES;
    let block = RamBlock { name: "probe".into(), size_bytes, host_page_bytes: PAGE_SIZE_BYTES };
    let file = create_shared("sterna-probe", size_bytes, HugePages::No)?;
    let memory = GuestMemory::map(RamLayout::new(vec![block])?, vec![file], Access::ReadWrite)?;
    // Pages that do not exist are another matter.
    memory.write(PageNumber(0), &vec![1; usize::try_from(size_bytes)?])?;
    let range = memory.addresses().next().ok_or("nothing was mapped")?;
    match tracker {
        Tracker::PagemapScan => by_pagemap_scan(&memory, range),
        Tracker::SoftDirty => by_soft_dirty(&memory, range),
    }
}

fn by_pagemap_scan(memory: &GuestMemory, range: AddressRange) -> Result<(), Box<dyn Error>> {
    let uffd = Userfaultfd::create()?;
    uffd.register_write_protect(range)?;
    uffd.write_protect(range)?;
    let mut pagemap = Pagemap::open(std::process::id())?;
    reports_what_is_written(memory, || {
        let mut reported = Vec::new();
        let add = |written: AddressRange| {
            let first = (written.start() - range.start()) / PAGE_SIZE_BYTES;
            reported.extend(first..first + written.bytes() / PAGE_SIZE_BYTES);
        };
        pagemap.scan_written(range, AfterScan::Forget, add)?;
        Ok(reported)
    })
}

fn by_soft_dirty(memory: &GuestMemory, range: AddressRange) -> Result<(), Box<dyn Error>> {
    // Whether another process can be stopped is seen by one that does nothing.
    let idle = Idle(Command::new("sleep").arg("60").stdin(Stdio::null()).spawn()?);
    check(&Process::open(idle.0.id())?, memory.files())?;
    let file = memory.files().next().ok_or("nothing was mapped")?.try_clone_to_owned()?;
    let part = Part { addresses: range, file, offset: 0 };
    let mut tracker = SoftDirty::start(Writers::Held, vec![part])?;
    reports_what_is_written(memory, || {
        let mut reported = Vec::new();
        let add = |_, run: PageRun| reported.extend(run.first.0..run.first.0 + run.count.0);
        tracker.scan(AfterScan::Forget, add)?;
        Ok(reported)
    })
}

/// Writes a page, has it reported, then another one.
fn reports_what_is_written(
    memory: &GuestMemory,
    mut scan: impl FnMut() -> Result<Vec<u64>, Box<dyn Error>>,
) -> Result<(), Box<dyn Error>> {
    for page in WRITTEN {
        memory.write(PageNumber(page), &[2; PAGE_SIZE])?;
        let reported = scan()?;
        if reported != [page] {
            return Err(format!("page {page} was written, {reported:?} reported").into());
        }
    }
    Ok(())
}

/// A process that is ended when it is not needed any more.
struct Idle(Child);

impl Drop for Idle {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _status = self.0.wait();
    }
}

fn release() -> String {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease");
    release.map_or_else(|_| "of unknown release".into(), |text| text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tracker_that_reports_too_little_or_too_much_is_not_used() {
        let block = RamBlock {
            name: "probe".into(),
            size_bytes: PAGES * PAGE_SIZE_BYTES,
            host_page_bytes: PAGE_SIZE_BYTES,
        };
        let file = create_shared("probe", block.size_bytes, HugePages::No).unwrap();
        let layout = RamLayout::new(vec![block]).unwrap();
        let memory = GuestMemory::map(layout, vec![file], Access::ReadWrite).unwrap();
        let tried = |answers: [&[u64]; 2]| {
            let mut answers = answers.into_iter();
            reports_what_is_written(&memory, || Ok(answers.next().unwrap().to_vec()))
        };
        assert!(tried([&[5], &[2]]).is_ok());
        for wrong in [[&[][..], &[2]], [&[5], &[]], [&[5], &[2, 5]], [&[4, 5], &[2]]] {
            assert!(tried(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn one_that_is_asked_for_is_used_or_none() {
        for asked in [Tracker::PagemapScan, Tracker::SoftDirty] {
            let (finding, used) = find(Some(asked));
            assert!(used.is_none_or(|used| used == asked));
            assert_eq!(used.is_none(), finding.verdict == Verdict::Missing, "{finding:?}");
            assert!(used == Some(Tracker::PagemapScan) || finding.remedy.is_some());
        }
        let (_, chosen) = find(None);
        if find(Some(Tracker::PagemapScan)).1.is_some() {
            assert_eq!(chosen, Some(Tracker::PagemapScan));
        }
    }
}
