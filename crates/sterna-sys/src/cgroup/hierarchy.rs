//! Where the hierarchies of cgroups are mounted, and where a process is in them.

use procfs::ProcError;
use procfs::process::{MountInfo, Process};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Which interface a hierarchy has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    One,
    Two,
}

/// A process's place in a hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) version: Version,
    /// Where the hierarchy is mounted.
    pub(super) mount: PathBuf,
    /// The group in which the process is.
    pub(super) home: PathBuf,
}

impl Place {
    /// That of process `pid` where `controller` is to be had, if it is to be had anywhere.
    pub(super) fn of(pid: u32, controller: &str) -> io::Result<Option<Self>> {
        let process = Process::new(i32::try_from(pid).map_err(io::Error::other)?);
        let cgroups = process.and_then(|process| process.cgroups()).map_err(error)?;
        let mounts = Process::myself().and_then(|me| me.mountinfo()).map_err(error)?;
        // A v1 hierarchy that has the controller has taken it away from v2.
        for version in [Version::One, Version::Two] {
            let of_process = cgroups.0.iter().find(|cgroup| match version {
                Version::One => cgroup.controllers.iter().any(|name| name == controller),
                Version::Two => cgroup.hierarchy == 0,
            });
            let Some(cgroup) = of_process else { continue };
            // One that shows another part of the hierarchy is of no use.
            let place = |mount: &MountInfo| {
                let below = Path::new(&cgroup.pathname).strip_prefix(&mount.root).ok()?;
                let (mount, home) = (mount.mount_point.clone(), mount.mount_point.join(below));
                Some(Self { version, mount, home })
            };
            let found = mounts.0.iter().filter(|mount| version.is_mounted_by(mount, controller));
            if let Some(found) = found.filter_map(place).next() {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }
}

impl Version {
    fn is_mounted_by(self, mount: &MountInfo, controller: &str) -> bool {
        match self {
            Self::One => mount.fs_type == "cgroup" && mount.super_options.contains_key(controller),
            Self::Two => mount.fs_type == "cgroup2" && gives(&mount.mount_point, controller),
        }
    }
}

/// Whether a group of v2 has a controller, and can give it to groups below it.
pub(super) fn gives(group: &Path, controller: &str) -> bool {
    let controllers = fs::read_to_string(group.join("cgroup.controllers"));
    controllers.is_ok_and(|names| names.split_whitespace().any(|name| name == controller))
}

/// Writes to a file of a group.
pub(super) fn write(file: &Path, value: &impl ToString) -> io::Result<()> {
    fs::write(file, value.to_string()).map_err(|error| match error.raw_os_error() {
        // Told by their number, so that callers can tell them apart.
        Some(libc::ESRCH) => error,
        _ => io::Error::new(error.kind(), format!("{}: {error}", file.display())),
    })
}

fn error(error: ProcError) -> io::Error {
    io::Error::other(error)
}
