//! One shared mapping of a file, unmapped when dropped.

use super::{Access, MemoryError, copy};
use crate::AddressRange;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::ffi::c_void;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;

/// A file mapped shared, whole, and never handed out as a reference.
#[derive(Debug)]
pub(super) struct Mapping {
    base: NonNull<c_void>,
    length: usize,
    access: Access,
}

// SAFETY: the pointer is only used by `read` and `write`, which make no reference of it and copy
// in a way that any number of threads and processes may do at once (see `copy`).
unsafe impl Send for Mapping {}
// SAFETY: as above; no method changes the value itself.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the first `bytes` bytes of `file`.
    pub(super) fn new(
        file: BorrowedFd<'_>,
        bytes: u64,
        access: Access,
    ) -> Result<Self, MemoryError> {
        let length = usize::try_from(bytes).map_err(|_| MemoryError::TooLarge(bytes))?;
        let protection = match access {
            Access::ReadOnly => ProtFlags::READ,
            Access::ReadWrite => ProtFlags::READ | ProtFlags::WRITE,
        };
        // SAFETY: with a null hint and no MAP_FIXED the kernel picks addresses that nothing uses.
        let base =
            unsafe { mmap(std::ptr::null_mut(), length, protection, MapFlags::SHARED, file, 0) };
        let system = |source| MemoryError::System { operation: "mapping", source };
        let base = base.map_err(|error| system(error.into()))?;
        let base = NonNull::new(base)
            .ok_or_else(|| system(std::io::Error::other("the kernel mapped at address zero")))?;
        Ok(Self { base, length, access })
    }

    /// Where this is mapped.
    pub(super) fn addresses(&self) -> AddressRange {
        let start = self.base.as_ptr().expose_provenance() as u64;
        AddressRange::new(start, start + self.length as u64)
            .expect("the kernel maps whole pages, and a mapping is never empty")
    }

    /// Copies from `offset` on into `buffer`.
    pub(super) fn read(&self, offset: usize, buffer: &mut [u8]) {
        let pointer = self.checked(offset, buffer.len());
        // SAFETY: `checked` proved the range to lie within the mapping, which is readable and
        // lives as long as `self`; a page-aligned base and offset keep the alignment; `buffer` is
        // a Rust object and so not part of the mapping.
        unsafe { copy::from_shared(pointer, buffer) }
    }

    /// Copies `bytes` to `offset`.
    pub(super) fn write(&self, offset: usize, bytes: &[u8]) {
        assert_eq!(self.access, Access::ReadWrite, "only a writable mapping is written");
        let pointer = self.checked(offset, bytes.len());
        // SAFETY: as in `read`, and the mapping is writable.
        unsafe { copy::to_shared(bytes, pointer) }
    }

    fn checked(&self, offset: usize, length: usize) -> *mut u8 {
        let end = offset.checked_add(length);
        assert!(
            end.is_some_and(|end| end <= self.length) && offset.is_multiple_of(8),
            "an access lies within the mapping: GuestMemory has checked it"
        );
        // SAFETY: `offset` is at most the length of the one mapping that `base` points to.
        unsafe { self.base.as_ptr().cast::<u8>().add(offset) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: base and length are those of a mapping this value alone owns; no reference into
        // it exists as none is ever made.
        let unmapped = unsafe { munmap(self.base.as_ptr(), self.length) };
        debug_assert!(unmapped.is_ok(), "a whole mapping can always be unmapped");
    }
}
