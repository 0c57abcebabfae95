//! Having another process map pages of its memory.

use rustix::io::Errno;
use std::ffi::c_void;
use std::io;

/// Addresses in one call; the kernel takes 1024 at most.
const ADDRESSES_PER_CALL: usize = 1024;

/// Makes process `pid` map the page at each of `addresses`, as if it had read a byte there. Those that do not exist are
/// made by it; what is no memory is passed over.
///
/// # Errors
/// When there is no such process or it may not be looked into.
pub(crate) fn touch(pid: u32, addresses: &[u64]) -> io::Result<()> {
    let pid = i32::try_from(pid).map_err(io::Error::other)?;
    let mut rest = addresses;
    while !rest.is_empty() {
        let some = &rest[..rest.len().min(ADDRESSES_PER_CALL)];
        let read = read_bytes(pid, some)?;
        // Those before an address that cannot be read have been.
        rest = &rest[if read < some.len() { read + 1 } else { read }..];
    }
    Ok(())
}

/// Reads a byte at each address, up to the first that cannot be read; how many were.
fn read_bytes(pid: i32, addresses: &[u64]) -> io::Result<usize> {
    let mut bytes = [0u8; ADDRESSES_PER_CALL];
    let here = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: addresses.len() };
    let there: Vec<libc::iovec> = addresses
        .iter()
        .map(|address| {
            let address = usize::try_from(*address).map_err(io::Error::other)?;
            let iov_base = std::ptr::without_provenance_mut::<c_void>(address);
            Ok(libc::iovec { iov_base, iov_len: 1 })
        })
        .collect::<io::Result<_>>()?;
    let count = libc::c_ulong::try_from(there.len()).map_err(io::Error::other)?;
    // SAFETY: `here` is one buffer of this function, at least as long as it says; `there` is only read, and its
    // addresses are the other process's.
    let read = unsafe { libc::process_vm_readv(pid, &raw const here, 1, there.as_ptr(), count, 0) };
    match usize::try_from(read) {
        Ok(read) => Ok(read),
        Err(_) => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(Errno::FAULT.raw_os_error()) => Ok(0),
            error => Err(error),
        },
    }
}
