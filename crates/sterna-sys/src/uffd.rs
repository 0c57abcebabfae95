//! userfaultfds, for write tracking.
//!
//! A userfaultfd acts on the address space of the process that created it, whoever holds it and
//! issues the requests. The hypervisor creates one when it starts (see [`crate::preload`]); an
//! agent takes a copy of it with [`Userfaultfd::take`], and after that agent's death the next one
//! does the same.
//!
//! In asynchronous mode a write to a protected page just takes the protection off; nobody is
//! asked and nobody waits. So neither the death nor the slowness of the tracker can hurt a guest.

use crate::AddressRange;
use crate::process::{self, Process};
use linux_raw_sys::general::{
    UFFD_API, UFFD_FEATURE_MISSING_HUGETLBFS, UFFD_FEATURE_MISSING_SHMEM,
    UFFD_FEATURE_PAGEFAULT_FLAG_WP, UFFD_FEATURE_WP_ASYNC, UFFD_FEATURE_WP_HUGETLBFS_SHMEM,
    UFFD_FEATURE_WP_UNPOPULATED, UFFDIO_REGISTER_MODE_WP, uffdio_api, uffdio_range,
    uffdio_register, uffdio_writeprotect,
};
use linux_raw_sys::ioctl::{UFFDIO_API, UFFDIO_REGISTER, UFFDIO_UNREGISTER, UFFDIO_WRITEPROTECT};
use rustix::io::Errno;
use rustix::ioctl::Opcode;
use rustix::mm::UserfaultfdFlags;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

/// What `/proc/PID/fd` shows for a userfaultfd.
const LINK: &str = "anon_inode:[userfaultfd]";

/// `1 << 0`: set the protection rather than take it off.
const UFFDIO_WRITEPROTECT_MODE_WP: u64 = 1;

/// What tracking needs, and what later demand paging of RAM files needs: the features of a
/// userfaultfd are set once and for all.
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

/// A userfaultfd whose features are set.
#[derive(Debug)]
pub struct Userfaultfd {
    file: OwnedFd,
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
        // SAFETY: a new userfaultfd has no effect on memory until a range is registered, and this
        // type registers only for asynchronous write protection, which no thread can see.
        let file = unsafe {
            rustix::mm::userfaultfd(flags).or_else(|_| rustix::mm::userfaultfd(flags | user_only))
        };
        let file = file.map_err(|error| failed("creating a userfaultfd")(error.into()))?;
        Self::with_features(file)
    }

    /// Takes a copy of the userfaultfd that `process` holds.
    ///
    /// # Errors
    /// When it holds none, may not be looked into, or the kernel lacks features.
    pub fn take(process: &Process) -> Result<Self, UffdError> {
        let pid = process.pid();
        let number = process::descriptors(pid)
            .map_err(failed("listing the descriptors of a process"))?
            .into_iter()
            .find(|descriptor| descriptor.link.as_os_str() == LINK)
            .ok_or(UffdError::None { pid })?
            .number;
        let file = process
            .copy_descriptor(number)
            .map_err(failed("copying a descriptor of another process"))?;
        Self::with_features(file)
    }

    /// Sets the features, or finds them set by the agent that held this userfaultfd before.
    fn with_features(file: OwnedFd) -> Result<Self, UffdError> {
        let this = Self { file };
        let mut api = uffdio_api { api: u64::from(UFFD_API), features: FEATURES, ioctls: 0 };
        match this.request(UFFDIO_API, &mut api) {
            Ok(()) => Ok(this),
            // The kernel answers EINVAL both for "not known" and for "done before".
            Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
                let set = this.features_set().map_err(failed("reading fdinfo"))?;
                match FEATURES & !set {
                    0 => Ok(this),
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

    /// Ends protection and tracking of `range`; harmless where none was registered.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn unregister(&self, range: AddressRange) -> Result<(), UffdError> {
        let mut argument = raw(range);
        self.request(UFFDIO_UNREGISTER, &mut argument).map_err(failed("UFFDIO_UNREGISTER"))
    }

    fn request<T: Argument>(&self, opcode: u32, argument: &mut T) -> io::Result<()> {
        let opcode = Opcode::from(opcode);
        // SAFETY: `T` is the struct that userfaultfd requests take (`Argument` is private and
        // implemented for those only), valid for reads and writes. The requests made here change
        // page protections and no contents.
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
impl Argument for uffdio_range {}
impl Argument for uffdio_register {}
impl Argument for uffdio_writeprotect {}

#[cfg(test)]
mod tests;
