//! Which pages of a process were written: the `PAGEMAP_SCAN` ioctl of `/proc/PID/pagemap`.
//!
//! A page counts as written when its write protection (set through a userfaultfd in asynchronous
//! mode, see [`crate::uffd`]) was taken off by a write. One call reports such pages and protects
//! them again, atomically for each page: a write is either in this report or in the next.

use crate::AddressRange;
use linux_raw_sys::general::{
    PAGE_IS_WRITTEN, PM_SCAN_CHECK_WPASYNC, PM_SCAN_WP_MATCHING, page_region, pm_scan_arg,
};
use rustix::ioctl::{Opcode, opcode};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

const PAGEMAP_SCAN: Opcode = opcode::read_write::<pm_scan_arg>(b'f', 16);

/// Regions the kernel reports in one call: 96 KiB of buffer, and enough that a scan of a whole
/// guest is mostly one call.
const REGIONS_PER_CALL: usize = 4096;

const NO_REGION: page_region = page_region { start: 0, end: 0, categories: 0 };

/// What a scan does with the pages it reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterScan {
    /// Protects them again, so that only a new write reports them again.
    Forget,
    /// Leaves them as they are: the next scan reports them too.
    Keep,
}

/// The page map of one process.
#[derive(Debug)]
pub struct Pagemap {
    file: File,
    regions: Vec<page_region>,
}

impl Pagemap {
    /// Opens the page map of process `pid`.
    ///
    /// # Errors
    /// When there is no such process or it may not be looked into.
    pub fn open(pid: u32) -> io::Result<Self> {
        let file = File::open(format!("/proc/{pid}/pagemap"))?;
        Ok(Self { file, regions: vec![NO_REGION; REGIONS_PER_CALL] })
    }

    /// Reports every written page in `range`, as ranges in ascending order.
    ///
    /// # Errors
    /// When the kernel lacks the call, or part of `range` is not tracked (no memory there, or not
    /// registered for asynchronous write protection). What was reported until then is forgotten.
    pub fn scan_written(
        &mut self,
        range: AddressRange,
        after: AfterScan,
        mut report: impl FnMut(AddressRange),
    ) -> io::Result<()> {
        let mut position = range.start();
        while position < range.end() {
            let (found, walk_end) = self.call(position, range.end(), after)?;
            for region in &self.regions[..found] {
                if let Some(written) = AddressRange::new(region.start, region.end) {
                    report(written);
                }
            }
            if walk_end <= position {
                return Err(io::Error::other("the kernel's page scan made no progress"));
            }
            position = walk_end;
        }
        Ok(())
    }

    /// One ioctl: the number of regions found and the address it got to.
    fn call(&mut self, start: u64, end: u64, after: AfterScan) -> io::Result<(usize, u64)> {
        let flags = match after {
            AfterScan::Forget => PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC,
            AfterScan::Keep => PM_SCAN_CHECK_WPASYNC,
        };
        let mut argument = pm_scan_arg {
            size: size_of::<pm_scan_arg>() as u64,
            flags: u64::from(flags),
            start,
            end,
            walk_end: 0,
            vec: self.regions.as_mut_ptr().expose_provenance() as u64,
            vec_len: self.regions.len() as u64,
            max_pages: 0,
            category_inverted: 0,
            category_mask: u64::from(PAGE_IS_WRITTEN),
            category_anyof_mask: 0,
            return_mask: u64::from(PAGE_IS_WRITTEN),
        };
        // SAFETY: the argument is the struct this request takes; its `vec` points to `vec_len`
        // regions that `self` owns and nothing else accesses during the call.
        let found = unsafe {
            libc::ioctl(self.file.as_raw_fd(), libc::Ioctl::from(PAGEMAP_SCAN), &raw mut argument)
        };
        let found = usize::try_from(found).map_err(|_| io::Error::last_os_error())?;
        Ok((found.min(self.regions.len()), argument.walk_end))
    }
}

#[cfg(test)]
impl Pagemap {
    /// Makes each call return few regions, so that a scan takes many.
    pub(crate) fn limit_regions(&mut self, regions: usize) {
        self.regions.truncate(regions);
    }
}
