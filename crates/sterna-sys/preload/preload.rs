//! Creates a userfaultfd when the process that loads this library starts, and keeps it open.
//!
//! Does so only when the environment says `STERNA_PRELOAD=1`. Takes itself out of the environment
//! so that children do not inherit it. When no userfaultfd can be had it says so in one line and
//! lets the process start: such a guest runs, and is refused when it is to be moved.
//!
//! A process without the right to open `/dev/userfaultfd` inherits it open, under the number in `STERNA_USERFAULTFD`.
//!
//! The kernel does not tell of a userfaultfd whether it sees faults taken inside the kernel. If it
//! does, an empty memfd of a known name is kept beside it.
//!
//! Built without the standard library and linked against nothing: the few C functions below are
//! found in whichever C library the process itself brings along.

#![no_std]
#![crate_type = "cdylib"]

use core::ffi::{CStr, c_char, c_int, c_long, c_uint, c_ulong};

unsafe extern "C" {
    fn getenv(name: *const c_char) -> *mut c_char;
    fn unsetenv(name: *const c_char) -> c_int;
    fn syscall(number: c_long, ...) -> c_long;
    fn open(path: *const c_char, flags: c_int, ...) -> c_int;
    fn close(descriptor: c_int) -> c_int;
    fn ioctl(descriptor: c_int, request: c_ulong, ...) -> c_int;
    fn write(descriptor: c_int, bytes: *const u8, length: usize) -> isize;
}

#[cfg(target_arch = "x86_64")]
const SYS_USERFAULTFD: c_long = 323;
#[cfg(any(target_arch = "aarch64", target_arch = "riscv64"))]
const SYS_USERFAULTFD: c_long = 282;
#[cfg(target_arch = "x86_64")]
const SYS_MEMFD_CREATE: c_long = 319;
#[cfg(any(target_arch = "aarch64", target_arch = "riscv64"))]
const SYS_MEMFD_CREATE: c_long = 279;

const O_RDWR: c_int = 2;
const O_NONBLOCK: c_int = 0o4000;
const O_CLOEXEC: c_int = 0o2_000_000;
const UFFD_USER_MODE_ONLY: c_int = 1;
const MFD_CLOEXEC: c_uint = 1;
/// `_IO(0xAA, 0x00)`
const USERFAULTFD_IOC_NEW: c_ulong = 0xAA00;
const STANDARD_ERROR: c_int = 2;

const ENABLE: &CStr = c"STERNA_PRELOAD";
const LOADER: &CStr = c"LD_PRELOAD";
const INHERITED: &CStr = c"STERNA_USERFAULTFD";
const DEVICE: &CStr = c"/dev/userfaultfd";
/// `sterna_sys::preload` has it as well.
const SEES_ALL_FAULTS: &CStr = c"sterna-userfaultfd-sees-all-faults";
const FAILED: &[u8] = b"sterna-preload: no userfaultfd (not by the system call, not from \
/dev/userfaultfd, not for user mode only): this guest cannot be moved live\n";

#[used]
#[unsafe(link_section = ".init_array")]
static START: extern "C" fn() = start;

extern "C" fn start() {
    // SAFETY: runs once, before `main`, when no other thread exists that could use the
    // environment; all strings are NUL-terminated, and `getenv`'s answer is read before the
    // environment is changed.
    unsafe {
        let value = getenv(ENABLE.as_ptr());
        if value.is_null() || CStr::from_ptr(value) != c"1" {
            return;
        }
        let inherited = getenv(INHERITED.as_ptr());
        let device = if inherited.is_null() { -1 } else { number(CStr::from_ptr(inherited)) };
        unsetenv(LOADER.as_ptr());
        unsetenv(ENABLE.as_ptr());
        unsetenv(INHERITED.as_ptr());
        if create(device) < 0 {
            write(STANDARD_ERROR, FAILED.as_ptr(), FAILED.len());
        }
    }
}

/// The number of a descriptor; -1 if the text is none.
fn number(text: &CStr) -> c_int {
    let digit = |sum: c_int, byte: &u8| match byte {
        b'0'..=b'9' => sum.checked_mul(10)?.checked_add(c_int::from(byte - b'0')),
        _ => None,
    };
    text.to_bytes().iter().try_fold(0, digit).unwrap_or(-1)
}

/// What it creates is never closed: it lives and dies with the process. `device` is the open device, or negative.
fn create(device: c_int) -> c_int {
    let flags = O_CLOEXEC | O_NONBLOCK;
    let mut descriptor = if device < 0 { -1 } else { take_from(device, flags) };
    if descriptor < 0 {
        descriptor = userfaultfd(flags);
    }
    if descriptor < 0 {
        descriptor = from_device(flags);
    }
    if descriptor < 0 {
        return userfaultfd(flags | UFFD_USER_MODE_ONLY);
    }
    // Without the mark it passes for one that sees less, which is safe.
    // SAFETY: the name is NUL-terminated; a new descriptor is all that comes of it.
    unsafe { syscall(SYS_MEMFD_CREATE, SEES_ALL_FAULTS.as_ptr(), MFD_CLOEXEC) };
    descriptor
}

fn userfaultfd(flags: c_int) -> c_int {
    // SAFETY: the system call takes one integer and touches no memory.
    let descriptor = unsafe { syscall(SYS_USERFAULTFD, flags) };
    c_int::try_from(descriptor).unwrap_or(-1)
}

/// Where `userfaultfd(2)` is refused, the device may be open to this user's group.
fn from_device(flags: c_int) -> c_int {
    // SAFETY: the path is NUL-terminated; a new descriptor is all that comes of it.
    let device = unsafe { open(DEVICE.as_ptr(), O_RDWR | O_CLOEXEC) };
    if device < 0 { -1 } else { take_from(device, flags) }
}

/// Closes the device, which nobody needs any more.
fn take_from(device: c_int, flags: c_int) -> c_int {
    // SAFETY: the request takes its flags by value; the descriptor that is closed is this library's own, opened by it
    // or inherited for it.
    unsafe {
        let descriptor = ioctl(device, USERFAULTFD_IOC_NEW, flags as c_uint as c_ulong);
        close(device);
        descriptor
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // Nothing here panics; the compiler only wants to know what would happen.
    loop {}
}
