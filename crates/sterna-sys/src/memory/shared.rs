//! Files without a name that hold a guest's RAM.

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use std::io;
use std::os::fd::OwnedFd;

/// Whether a file is made of huge pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HugePages {
    /// 4 KiB pages (which the kernel may join into huge ones as it sees fit).
    No,
    /// 2 MiB pages from the host's pool; the size must be a multiple of that.
    TwoMiB,
}

/// Makes a memfd of `size_bytes`, all holes, closed on exec, which nobody can shrink or grow: a
/// mapping of it never raises SIGBUS for want of a file behind it.
///
/// # Errors
/// When the kernel refuses; for huge pages also when it has no support for them.
pub fn create_shared(name: &str, size_bytes: u64, huge_pages: HugePages) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let flags = match huge_pages {
        HugePages::No => flags,
        HugePages::TwoMiB => flags | MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB,
    };
    let file = memfd_create(name, flags)?;
    ftruncate(&file, size_bytes)?;
    fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(file)
}
