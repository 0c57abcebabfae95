//! Keeps a process that waits for a guest from changing the network cards of the process that still runs it.
//!
//! Two processes have one tap: the one that runs the guest and the one that is about to. QEMU sets a tap to its own
//! beginnings when it starts (length of headers, offloads), and every packet of the guest that still runs would be torn.
//! While the file that `STERNA_TAPS_IN_USE` names exists, such a call does nothing and says that it was done: the settings are
//! those of the same guest, and come to be the new process's own when it has loaded the guest's state. (Linux 6.2 and later
//! accept all of them, so what QEMU learns by trying is right; Sterna needs 6.7.)
//!
//! All other calls go to the kernel unchanged. Built like `preload.rs`, beside which it is loaded.

#![no_std]
#![crate_type = "cdylib"]

use core::ffi::{c_char, c_int, c_long, c_ulong};
use core::ptr::null;
use core::sync::atomic::{AtomicPtr, Ordering};

unsafe extern "C" {
    fn getenv(name: *const c_char) -> *mut c_char;
    fn syscall(number: c_long, ...) -> c_long;
    fn access(path: *const c_char, mode: c_int) -> c_int;
}

#[cfg(target_arch = "x86_64")]
const SYS_IOCTL: c_long = 16;
#[cfg(any(target_arch = "aarch64", target_arch = "riscv64"))]
const SYS_IOCTL: c_long = 29;

/// `_IOW('T', 208, unsigned int)`
const TUNSETOFFLOAD: u32 = 0x4004_54d0;
/// `_IOW('T', 216, int)`
const TUNSETVNETHDRSZ: u32 = 0x4004_54d8;
const F_OK: c_int = 0;

/// `sterna_sys::preload` has it as well.
const IN_USE: *const c_char = c"STERNA_TAPS_IN_USE".as_ptr();

/// The file's path, in the environment, which QEMU never changes.
static FILE: AtomicPtr<c_char> = AtomicPtr::new(null::<c_char>().cast_mut());

#[used]
#[unsafe(link_section = ".init_array")]
static START: extern "C" fn() = start;

extern "C" fn start() {
    // SAFETY: runs before `main`, when no other thread exists; the name is NUL-terminated.
    FILE.store(unsafe { getenv(IN_USE) }, Ordering::Release);
}

/// In place of the C library's.
///
/// # Safety
/// As of the system call. Callers pass the argument as a variadic one, which arrives in the same register.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ioctl(descriptor: c_int, request: c_ulong, argument: c_ulong) -> c_int {
    // The kernel looks at 32 bits of it as well.
    if matches!(request as u32, TUNSETOFFLOAD | TUNSETVNETHDRSZ) && are_in_use() {
        return 0;
    }
    // SAFETY: the caller's own call; `syscall` sets `errno` as the C library's function does.
    unsafe { syscall(SYS_IOCTL, descriptor, request, argument) as c_int }
}

fn are_in_use() -> bool {
    let file = FILE.load(Ordering::Acquire);
    // SAFETY: the path is NUL-terminated and lasts as long as the process.
    !file.is_null() && unsafe { access(file, F_OK) } == 0
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // Nothing here panics; the compiler only wants to know what would happen.
    loop {}
}
