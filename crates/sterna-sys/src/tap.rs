//! Tap devices, opened for a process that may not do so itself.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

/// Bytes of a network interface's name at most, with the ending zero.
const NAME_BYTES: usize = 16;

/// `_IOW('T', 202, int)`
const TUNSETIFF: libc::Ioctl = 0x4004_54ca;

/// What `TUNSETIFF` takes: an `ifreq`, of which it reads the name and the flags.
#[repr(C)]
struct Request {
    name: [u8; NAME_BYTES],
    flags: libc::c_short,
    rest: [u8; 22],
}

const _: () = assert!(size_of::<Request>() == size_of::<libc::ifreq>());

/// Opens the tap device `name` of this process's network, as hypervisors do: whole Ethernet frames, with a header for
/// what the other end leaves to be computed. A device takes one such opener at a time.
///
/// # Errors
/// When there is none of that name, another has it open, or this process may not.
pub fn open(name: &str) -> io::Result<OwnedFd> {
    let invalid = || io::Error::new(io::ErrorKind::InvalidInput, "no name of a network device");
    if name.is_empty() || name.len() >= NAME_BYTES || name.contains(['/', '\0', '%']) {
        return Err(invalid());
    }
    // The request below would make a device that is not there.
    if !std::path::Path::new("/sys/class/net").join(name).exists() {
        return Err(io::Error::from(io::ErrorKind::NotFound));
    }
    let tun = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")?;
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    let flags = libc::c_short::try_from(flags).map_err(|_| invalid())?;
    let mut request = Request { name: [0; NAME_BYTES], flags, rest: [0; 22] };
    request.name[..name.len()].copy_from_slice(name.as_bytes());
    // SAFETY: the request reads and writes an `ifreq`, and `Request` has its size and the layout of the part that is
    // used; it is valid for both while the call lasts. The descriptor is the one opened here.
    let result =
        unsafe { libc::ioctl(tun.as_raw_fd(), TUNSETIFF, std::ptr::from_mut(&mut request)) };
    if result == 0 { Ok(tun.into()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_tap_device_is_not_made_one() {
        for name in ["", "a/b", "sterna%d", "0123456789abcdef"] {
            assert_eq!(open(name).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{name:?}");
        }
        let error = open("no-such-tap").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(open("lo").is_err(), "a device of another kind");
    }
}
