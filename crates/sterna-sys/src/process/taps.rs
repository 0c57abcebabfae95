//! The taps that a process has open.

use super::{Process, descriptors};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

/// The device that taps are opened through, as it is named within `/dev`: of one that was opened in a mount namespace that
/// is gone, as each start of an agent may have one, no more is told.
const DEVICE: &str = "net/tun";

/// A copy of `process`'s descriptor of the tap `name`. Both are one open file: what is set through one holds for
/// the other, and each packet comes to whichever reads first.
///
/// # Errors
/// When it has no such tap open or may not be looked into.
pub fn find_tap(process: &Process, name: &str) -> io::Result<OwnedFd> {
    let pid = process.pid();
    for descriptor in descriptors(pid)? {
        if !is_device(&descriptor.link) {
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

fn is_device(link: &Path) -> bool {
    link.is_absolute() && link.ends_with(DEVICE)
}

/// The interface that a descriptor of the device is attached to, as its `fdinfo` tells.
fn interface(told: &str) -> Option<&str> {
    told.lines().find_map(|line| line.strip_prefix("iff:")).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_device_is_known_also_where_its_mount_is_gone() {
        for (link, is) in [
            ("/dev/net/tun", true),
            ("/net/tun", true),
            ("/dev/net/tune", false),
            ("/tun", false),
            ("anon_inode:net/tun", false),
        ] {
            assert_eq!(is_device(Path::new(link)), is, "{link}");
        }
    }

    #[test]
    fn an_interface_is_told_only_where_there_is_one() {
        assert_eq!(interface("pos:\t0\nflags:\t0104002\nmnt_id:\t26\niff:\ttap0\n"), Some("tap0"));
        assert_eq!(interface("pos:\t0\nflags:\t02\n"), None);
        let process = Process::open(std::process::id()).unwrap();
        assert!(find_tap(&process, "tap0").is_err());
    }
}
