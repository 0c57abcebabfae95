//! Copies between private buffers and memory that others write at the same time.
//!
//! # Why this is sound
//!
//! The shared side is guest RAM: vCPUs of another process (or, for a synthetic guest, threads
//! that write through another mapping) may store to it during the copy. An ordinary Rust or C
//! copy of it would be a data race, which the language leaves undefined: the compiler may assume
//! that two loads of one place agree, and load again after having checked a value. So the shared
//! side is touched by an instruction the compiler does not see into: an `asm!` block may read and
//! write any memory its pointers give it, and a concurrent store is then what it is for the
//! processor, namely one byte or the other. What arrives in the private buffer is plain, stable
//! data that no one else can reach; it may be torn between old and new, never undefined.
//!
//! `rep movsb` runs at the speed of `memcpy` for whole pages on every x86-64 processor of the last
//! ten years (ERMS). Elsewhere each word is a relaxed atomic access.

/// Copies `buffer.len()` bytes from `shared` into `buffer`.
///
/// # Safety
/// `shared` must be valid for reads of `buffer.len()` bytes, aligned to 8, for the whole call, and
/// must not overlap `buffer`. Others may write it meanwhile.
pub(super) unsafe fn from_shared(shared: *const u8, buffer: &mut [u8]) {
    // SAFETY: the caller vouches for `shared`; `buffer` is valid and private as a `&mut`.
    unsafe { raw(shared, buffer.as_mut_ptr(), buffer.len(), Shared::From) }
}

/// Copies `bytes` to `shared`.
///
/// # Safety
/// `shared` must be valid for writes of `bytes.len()` bytes, aligned to 8, for the whole call, and
/// must not overlap `bytes`. Others may read and write it meanwhile.
pub(super) unsafe fn to_shared(bytes: &[u8], shared: *mut u8) {
    // SAFETY: the caller vouches for `shared`; `bytes` is valid as a `&`.
    unsafe { raw(bytes.as_ptr(), shared, bytes.len(), Shared::To) }
}

/// Which side of a copy is shared with others.
#[cfg_attr(target_arch = "x86_64", allow(dead_code, reason = "one instruction serves both"))]
enum Shared {
    From,
    To,
}

#[cfg(target_arch = "x86_64")]
unsafe fn raw(source: *const u8, destination: *mut u8, length: usize, _: Shared) {
    // SAFETY: both pointers are valid for `length` bytes and do not overlap (the caller's promise);
    // the direction flag is clear as the calling convention demands; the block clobbers exactly
    // the registers and the memory it names.
    unsafe {
        std::arch::asm!(
            "rep movsb",
            inout("rcx") length => _,
            inout("rsi") source => _,
            inout("rdi") destination => _,
            options(nostack, preserves_flags)
        );
    }
}

#[cfg(not(target_arch = "x86_64"))]
unsafe fn raw(source: *const u8, destination: *mut u8, length: usize, shared: Shared) {
    use std::sync::atomic::{AtomicU64, Ordering};
    assert!(length.is_multiple_of(8), "copies are made of whole pages");
    for offset in (0..length).step_by(8) {
        // SAFETY: `offset + 8 <= length`, for which both pointers are valid; the shared one is
        // aligned to 8 and only ever accessed atomically by this process, the private one is
        // accessed unaligned.
        unsafe {
            match shared {
                Shared::From => {
                    let word = AtomicU64::from_ptr(source.add(offset).cast_mut().cast());
                    let value = word.load(Ordering::Relaxed);
                    destination.add(offset).cast::<u64>().write_unaligned(value);
                }
                Shared::To => {
                    let value = source.add(offset).cast::<u64>().read_unaligned();
                    let word = AtomicU64::from_ptr(destination.add(offset).cast());
                    word.store(value, Ordering::Relaxed);
                }
            }
        }
    }
}
