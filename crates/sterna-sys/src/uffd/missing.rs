//! Pages that are still to come: whoever touches one waits until its content is placed.
//!
//! A range is registered; from then on a thread of the process that touches a page of it which does
//! not exist (not in the page tables and not in the file either) waits, and a fault is there to be
//! read. Pages come into being by [`Userfaultfd::copy`] and [`Userfaultfd::zero`], atomically and
//! never over a page that exists; both wake who waits for them.
//!
//! **A waiting thread waits for ever** unless its page is placed, or it is woken, or the range is
//! unregistered, or the last holder closes the userfaultfd. A fault is read once. When its reader
//! dies, [`Userfaultfd::wake`] makes the threads try again, and their faults are there anew.
//!
//! A fault that was read must be answered even if the page exists by now: a thread may begin to
//! wait just after the page came into the file by other means than this. `copy` and `zero` of a page
//! that exists do answer it.

use super::{UffdError, Userfaultfd, failed, raw};
use crate::AddressRange;
use crate::process::is_shared;
use linux_raw_sys::general::{
    UFFD_EVENT_PAGEFAULT, UFFDIO_REGISTER_MODE_MISSING, uffd_msg, uffdio_copy, uffdio_register,
    uffdio_zeropage,
};
use linux_raw_sys::ioctl::{UFFDIO_COPY, UFFDIO_REGISTER, UFFDIO_WAKE, UFFDIO_ZEROPAGE};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use std::io;
use std::time::Duration;
use sterna_page::{PAGE_SIZE_BYTES, PageCount};

/// Bytes of one event. The address of a fault is its third 64-bit word, the kind its first byte.
const EVENT_BYTES: usize = 32;
const _: () = assert!(size_of::<uffd_msg>() == EVENT_BYTES);

/// Events taken in one read: more than most guests have vCPUs.
const EVENTS_PER_READ: usize = 64;

/// What became of pages that were to be placed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Filled {
    /// Pages that did not exist, and now do.
    pub placed: PageCount,
    /// Pages that existed, and were left as they are.
    pub present: PageCount,
}

impl std::ops::AddAssign for Filled {
    fn add_assign(&mut self, other: Self) {
        self.placed += other.placed;
        self.present += other.present;
    }
}

impl Userfaultfd {
    /// Registers `range`, which must be shared memory: who touches a page of it that does not exist
    /// waits. Registering it again is harmless. Replaces write protection, if there was any.
    ///
    /// # Errors
    /// With [`UffdError::NotShared`] for any other memory, as the process's own code relies on
    /// what that holds; or when the kernel refuses.
    pub fn register_missing(&self, range: AddressRange) -> Result<(), UffdError> {
        if !is_shared(self.pid, range).map_err(failed("reading memory maps"))? {
            return Err(UffdError::NotShared(range));
        }
        let mode = u64::from(UFFDIO_REGISTER_MODE_MISSING);
        let mut argument = uffdio_register { range: raw(range), mode, ioctls: 0 };
        self.request(UFFDIO_REGISTER, &mut argument).map_err(failed("UFFDIO_REGISTER"))
    }

    /// Waits at most `limit` for faults, and reports the address of each, rounded down to its page.
    /// Of several readers each fault goes to one. Returns early when there are faults.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn read_faults(
        &self,
        limit: Duration,
        report: &mut impl FnMut(u64),
    ) -> Result<(), UffdError> {
        let limit = Timespec::try_from(limit).ok();
        let mut readable = [PollFd::new(&self.file, PollFlags::IN)];
        match poll(&mut readable, limit.as_ref()) {
            Ok(0) | Err(Errno::INTR) => return Ok(()),
            Ok(_) => {}
            Err(error) => return Err(failed("waiting for faults")(error.into())),
        }
        let mut events = [0; EVENT_BYTES * EVENTS_PER_READ];
        let bytes = match rustix::io::read(&self.file, &mut events) {
            Ok(bytes) => bytes,
            // Another reader was faster, or the thread no longer waits.
            Err(Errno::AGAIN | Errno::INTR) => return Ok(()),
            Err(error) => return Err(failed("reading faults")(error.into())),
        };
        events[..bytes].as_chunks().0.iter().filter_map(fault_address).for_each(report);
        Ok(())
    }

    /// Places `bytes`, whole pages, from address `to` of the process on, which must be registered;
    /// and wakes who waits for them. Pages that exist are left as they are.
    ///
    /// # Errors
    /// With [`UffdError::Ended`] when the process is gone; or when the range is not registered or
    /// there is no memory: pages may have been placed all the same.
    ///
    /// # Panics
    /// When `to` or `bytes` are not whole pages, or none.
    pub fn copy(&self, to: u64, bytes: &[u8]) -> Result<Filled, UffdError> {
        let range = to.checked_add(bytes.len() as u64).and_then(|end| AddressRange::new(to, end));
        let range = range.expect("whole pages are placed");
        let source = bytes.as_ptr().expose_provenance() as u64;
        self.fill(range, "UFFDIO_COPY", |part| {
            let src = source + (part.start() - to);
            let (dst, len) = (part.start(), part.bytes());
            let mut argument = uffdio_copy { dst, src, len, mode: 0, copy: 0 };
            let result = self.request(UFFDIO_COPY, &mut argument);
            (result, argument.copy)
        })
    }

    /// Places zeroes in `range`, as [`Userfaultfd::copy`] places content.
    ///
    /// # Errors
    /// As [`Userfaultfd::copy`].
    pub fn zero(&self, range: AddressRange) -> Result<Filled, UffdError> {
        self.fill(range, "UFFDIO_ZEROPAGE", |part| {
            let mut argument = uffdio_zeropage { range: raw(part), mode: 0, zeropage: 0 };
            let result = self.request(UFFDIO_ZEROPAGE, &mut argument);
            (result, argument.zeropage)
        })
    }

    /// Makes all threads that wait for pages of `range` try again. Those whose page is still missing
    /// wait again, and their faults are there to be read, whoever has read them before.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn wake(&self, range: AddressRange) -> Result<(), UffdError> {
        let mut argument = raw(range);
        self.request(UFFDIO_WAKE, &mut argument).map_err(failed("UFFDIO_WAKE"))
    }

    /// Repeats a request until all of `range` exists. `request` gets what is left and returns, with
    /// the kernel's answer, how many bytes of it were placed (below one: none).
    fn fill(
        &self,
        range: AddressRange,
        operation: &'static str,
        mut request: impl FnMut(AddressRange) -> (io::Result<()>, i64),
    ) -> Result<Filled, UffdError> {
        let mut filled = Filled::default();
        let mut at = range.start();
        while let Some(rest) = AddressRange::new(at, range.end()) {
            let (result, done) = request(rest);
            let done = u64::try_from(done).unwrap_or(0).min(rest.bytes());
            filled.placed += PageCount(done / PAGE_SIZE_BYTES);
            at += done;
            let Err(error) = result else { continue };
            match error.raw_os_error().map(Errno::from_raw_os_error) {
                // A part was placed; or none, as the address space is being changed at this moment.
                Some(Errno::AGAIN) if done == 0 => std::thread::yield_now(),
                Some(Errno::AGAIN) => {}
                Some(Errno::EXIST) => {
                    let end = at + PAGE_SIZE_BYTES;
                    let page = AddressRange::new(at, end).expect("a page is whole pages");
                    // It may have come into being without anyone being woken: in the file.
                    self.wake(page)?;
                    filled.present += PageCount(1);
                    at = end;
                }
                Some(Errno::SRCH) => return Err(UffdError::Ended { pid: self.pid }),
                _ => return Err(failed(operation)(error)),
            }
        }
        Ok(filled)
    }
}

/// The address of the missing page that `event` tells of; `None` for an event of another kind.
fn fault_address(event: &[u8; EVENT_BYTES]) -> Option<u64> {
    let address = event.get(16..24)?.try_into().ok().map(u64::from_ne_bytes)?;
    let is_fault = u32::from(event[0]) == UFFD_EVENT_PAGEFAULT;
    is_fault.then_some(address - address % PAGE_SIZE_BYTES)
}

#[cfg(test)]
mod tests;
