//! The taps that a process has open.

use super::{Process, descriptors};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

/// The device that taps are opened through.
const DEVICE: &str = "/dev/net/tun";

/// A copy of `process`'s descriptor of the tap `name`. Both are one open file: what is set through one holds for
/// the other, and each packet comes to whichever reads first.
///
/// # Errors
/// When it has no such tap open or may not be looked into.
pub fn find_tap(process: &Process, name: &str) -> io::Result<OwnedFd> {
    let pid = process.pid();
    for descriptor in descriptors(pid)? {
        if descriptor.link != Path::new(DEVICE) {
            continue;
        }
        // One that was closed since is none.
        let Ok(told) = std::fs::read_to_string(format!("/proc/{pid}/fdinfo/{}", descriptor.number))
        else {
            continue;
        };
        if interface(&told) == Some(name) {
            return process.copy_descriptor(descriptor.number);
        }
    }
    Err(io::Error::new(io::ErrorKind::NotFound, format!("process {pid} has no tap {name} open")))
}

/// The interface that a descriptor of the device is attached to, as its `fdinfo` tells.
fn interface(told: &str) -> Option<&str> {
    told.lines().find_map(|line| line.strip_prefix("iff:")).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_is_told_only_where_there_is_one() {
        assert_eq!(interface("pos:\t0\nflags:\t0104002\nmnt_id:\t26\niff:\ttap0\n"), Some("tap0"));
        assert_eq!(interface("pos:\t0\nflags:\t02\n"), None);
        let process = Process::open(std::process::id()).unwrap();
        assert!(find_tap(&process, "tap0").is_err());
    }
}
