//! userfaultfds, for write tracking and for pages that are still to come (see `uffd::missing`).
//!
//! A userfaultfd acts on the address space of the process that created it, whoever holds it and
//! issues the requests. The hypervisor creates one when it starts (see [`crate::preload`]); an
//! agent takes a copy of it with [`Userfaultfd::take`], and after that agent's death the next one
//! does the same.
//!
//! In asynchronous mode a write to a protected page just takes the protection off; nobody is
//! asked and nobody waits. So neither the death nor the slowness of the tracker can hurt a guest.

mod missing;

pub use missing::Filled;

use crate::AddressRange;
use crate::preload::SEES_ALL_FAULTS;
use crate::process::{self, Process};
use linux_raw_sys::general::{
    UFFD_API, UFFD_FEATURE_MISSING_HUGETLBFS, UFFD_FEATURE_MISSING_SHMEM,
    UFFD_FEATURE_PAGEFAULT_FLAG_WP, UFFD_FEATURE_WP_ASYNC, UFFD_FEATURE_WP_HUGETLBFS_SHMEM,
    UFFD_FEATURE_WP_UNPOPULATED, UFFDIO_REGISTER_MODE_WP, uffdio_api, uffdio_copy, uffdio_range,
    uffdio_register, uffdio_writeprotect, uffdio_zeropage,
};
use linux_raw_sys::ioctl::{UFFDIO_API, UFFDIO_REGISTER, UFFDIO_UNREGISTER, UFFDIO_WRITEPROTECT};
use rustix::io::Errno;
use rustix::ioctl::Opcode;
use rustix::mm::UserfaultfdFlags;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

/// What `/proc/PID/fd` shows for a userfaultfd.
const LINK: &str = "anon_inode:[userfaultfd]";

/// `1 << 0`: set the protection rather than take it off.
const UFFDIO_WRITEPROTECT_MODE_WP: u64 = 1;

/// What tracking needs, and what demand paging of RAM files needs: the features of a userfaultfd
/// are set once and for all.
const FEATURES: u64 = (UFFD_FEATURE_WP_ASYNC
    | UFFD_FEATURE_WP_UNPOPULATED
    | UFFD_FEATURE_WP_HUGETLBFS_SHMEM
    | UFFD_FEATURE_PAGEFAULT_FLAG_WP
    | UFFD_FEATURE_MISSING_SHMEM
    | UFFD_FEATURE_MISSING_HUGETLBFS) as u64;

/// Why a userfaultfd cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum UffdError {
    /// The process holds none.
    #[error("process {pid} holds no userfaultfd")]
    None {
        /// The process.
        pid: u32,
    },
    /// The kernel lacks features (they came with Linux 6.7), or the userfaultfd was set up without.
    #[error("the userfaultfd lacks features {0:#x}")]
    Features(u64),
    /// Memory that is not mapped shared, or not mapped at all.
    #[error("{0:x?} is not all shared memory")]
    NotShared(AddressRange),
    /// The process has ended, and its memory is gone.
    #[error("process {pid} has ended")]
    Ended {
        /// The process.
        pid: u32,
    },
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

fn failed(operation: &'static str) -> impl Fn(io::Error) -> UffdError {
    move |source| UffdError::System { operation, source }
}

/// Which faults a userfaultfd lets its holder answer. The others fail where a page is missing: with
/// `EFAULT`, as if there were no memory. Of no consequence for write tracking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultsSeen {
    /// All: also those taken inside the kernel, when a system call reads or writes the memory, or
    /// KVM runs a guest in it.
    All,
    /// Those of the process's own instructions.
    UserMode,
}

/// A userfaultfd whose features are set.
#[derive(Debug)]
pub struct Userfaultfd {
    file: OwnedFd,
    /// The process whose memory this acts on.
    pid: u32,
    faults_seen: FaultsSeen,
}

impl Userfaultfd {
    /// Creates one for this process.
    ///
    /// Falls back to one that does not see faults taken inside the kernel on behalf of this
    /// process, which needs no privilege and is enough for tracking.
    ///
    /// # Errors
    /// When the kernel refuses or lacks features.
    pub fn create() -> Result<Self, UffdError> {
        let flags = UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK;
        let user_only = UserfaultfdFlags::from_bits_retain(1);
        // SAFETY: a new userfaultfd has no effect on memory until a range is registered. This type
        // registers for asynchronous write protection, which no thread can see, and shared memory
        // for missing pages, which no reference points into (see `register_missing`).
        let create = |flags| unsafe { rustix::mm::userfaultfd(flags) };
        let file = create(flags).map(|file| (file, FaultsSeen::All));
        let file = file.or_else(|_| Ok((create(flags | user_only)?, FaultsSeen::UserMode)));
        let (file, faults_seen) =
            file.map_err(|error: Errno| failed("creating a userfaultfd")(error.into()))?;
        Self { file, pid: std::process::id(), faults_seen }.with_features()
    }

    /// Takes a copy of the userfaultfd that `process` holds.
    ///
    /// # Errors
    /// When it holds none, may not be looked into, or the kernel lacks features.
    pub fn take(process: &Process) -> Result<Self, UffdError> {
        let pid = process.pid();
        let descriptors =
            process::descriptors(pid).map_err(failed("listing the descriptors of a process"))?;
        let number = descriptors
            .iter()
            .find(|descriptor| descriptor.link.as_os_str() == LINK)
            .ok_or(UffdError::None { pid })?
            .number;
        // The kernel does not tell, so whoever created it has to.
        let is_mark =
            |link: &Path| link.to_str().is_some_and(|link| link.contains(SEES_ALL_FAULTS));
        let marked = descriptors.iter().any(|descriptor| is_mark(&descriptor.link));
        let faults_seen = if marked { FaultsSeen::All } else { FaultsSeen::UserMode };
        let file = process
            .copy_descriptor(number)
            .map_err(failed("copying a descriptor of another process"))?;
        Self { file, pid, faults_seen }.with_features()
    }

    /// Which faults this sees: as far as known, when it was taken from a process.
    #[must_use]
    pub fn faults_seen(&self) -> FaultsSeen {
        self.faults_seen
    }

    /// Sets the features, or finds them set by the agent that held this userfaultfd before.
    fn with_features(self) -> Result<Self, UffdError> {
        let mut api = uffdio_api { api: u64::from(UFFD_API), features: FEATURES, ioctls: 0 };
        match self.request(UFFDIO_API, &mut api) {
            Ok(()) => Ok(self),
            // The kernel answers EINVAL both for "not known" and for "done before".
            Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
                let set = self.features_set().map_err(failed("reading fdinfo"))?;
                match FEATURES & !set {
                    0 => Ok(self),
                    missing => Err(UffdError::Features(missing)),
                }
            }
            Err(error) => Err(failed("setting userfaultfd features")(error)),
        }
    }

    /// The features that are in force, from the line `API: <api>:<in force>:<known>`.
    fn features_set(&self) -> io::Result<u64> {
        let path = format!("/proc/self/fdinfo/{}", self.file.as_raw_fd());
        let text = std::fs::read_to_string(path)?;
        let line = text.lines().find_map(|line| line.strip_prefix("API:"));
        let field = line.and_then(|line| line.trim().split(':').nth(1));
        let features = field.and_then(|field| u64::from_str_radix(field, 16).ok());
        features.ok_or_else(|| io::Error::other("no features in the userfaultfd's fdinfo"))
    }

    /// Registers `range` for asynchronous write protection. Registering it again is harmless.
    ///
    /// # Errors
    /// When the range is not memory that can be tracked.
    pub fn register_write_protect(&self, range: AddressRange) -> Result<(), UffdError> {
        let mode = u64::from(UFFDIO_REGISTER_MODE_WP);
        let mut argument = uffdio_register { range: raw(range), mode, ioctls: 0 };
        self.request(UFFDIO_REGISTER, &mut argument).map_err(failed("UFFDIO_REGISTER"))
    }

    /// Protects all of `range`, which must be registered: every page counts as not written.
    ///
    /// # Errors
    /// When the range is not registered.
    pub fn write_protect(&self, range: AddressRange) -> Result<(), UffdError> {
        let mode = UFFDIO_WRITEPROTECT_MODE_WP;
        loop {
            let mut argument = uffdio_writeprotect { range: raw(range), mode };
            match self.request(UFFDIO_WRITEPROTECT, &mut argument) {
                // The address space is being changed at this moment.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::yield_now(),
                result => return result.map_err(failed("UFFDIO_WRITEPROTECT")),
            }
        }
    }

    /// Ends whatever `range` is registered for, harmless where it is not: it is no longer protected
    /// or tracked, pages that are missing read as zeroes, and who waits for them goes on.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn unregister(&self, range: AddressRange) -> Result<(), UffdError> {
        let mut argument = raw(range);
        self.request(UFFDIO_UNREGISTER, &mut argument).map_err(failed("UFFDIO_UNREGISTER"))?;
        // The kernel (6.18) wakes who waits, and only then takes the range away: a thread that comes
        // in between would wait for ever.
        self.wake(range)
    }

    fn request<T: Argument>(&self, opcode: u32, argument: &mut T) -> io::Result<()> {
        let opcode = Opcode::from(opcode);
        // SAFETY: `T` is the struct that userfaultfd requests take (`Argument` is private and
        // implemented for those only), valid for reads and writes. The requests made here change
        // page protections, or fill pages that did not exist in memory that `register_missing` let
        // pass: such memory is shared, and nothing in Rust relies on what it holds.
        let result = unsafe {
            libc::ioctl(
                self.file.as_raw_fd(),
                libc::Ioctl::from(opcode),
                std::ptr::from_mut(argument),
            )
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

fn raw(range: AddressRange) -> uffdio_range {
    uffdio_range { start: range.start(), len: range.bytes() }
}

/// The structs that userfaultfd requests take.
trait Argument {}
impl Argument for uffdio_api {}
impl Argument for uffdio_copy {}
impl Argument for uffdio_range {}
impl Argument for uffdio_register {}
impl Argument for uffdio_writeprotect {}
impl Argument for uffdio_zeropage {}

#[cfg(test)]
mod tests;
