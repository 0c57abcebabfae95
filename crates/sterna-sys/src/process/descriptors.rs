//! The open files of a process.

use super::Process;
use rustix::fs::{fstat, stat};
use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

/// Which file an open descriptor or a mapping is of, whatever its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileIdentity {
    /// Number of the file system's device.
    pub device: u64,
    /// Number of the file on it.
    pub inode: u64,
}

impl FileIdentity {
    /// The identity of an open file.
    ///
    /// # Errors
    /// When the kernel cannot tell.
    pub fn of(file: impl AsFd) -> io::Result<Self> {
        let stat = fstat(file)?;
        Ok(Self { device: stat.st_dev, inode: stat.st_ino })
    }
}

/// One open descriptor of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Its number in that process.
    pub number: i32,
    /// What `/proc/PID/fd` links it to.
    pub link: PathBuf,
}

/// The open descriptors of process `pid`.
///
/// # Errors
/// When there is no such process or it may not be looked into.
pub fn descriptors(pid: u32) -> io::Result<Vec<Descriptor>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd"))? {
        let entry = entry?;
        let number = entry.file_name().to_str().and_then(|name| name.parse().ok());
        // A descriptor closed since the folder was read is no longer one.
        if let (Some(number), Ok(link)) = (number, std::fs::read_link(entry.path())) {
            found.push(Descriptor { number, link });
        }
    }
    Ok(found)
}

/// A copy of `process`'s descriptor of the file `identity`.
///
/// # Errors
/// When it has no such file open or may not be looked into.
pub fn find_file(process: &Process, identity: FileIdentity) -> io::Result<OwnedFd> {
    for descriptor in descriptors(process.pid())? {
        let path = format!("/proc/{}/fd/{}", process.pid(), descriptor.number);
        let Ok(stat) = stat(path) else { continue };
        if (stat.st_dev, stat.st_ino) != (identity.device, identity.inode) {
            continue;
        }
        let file = process.copy_descriptor(descriptor.number)?;
        if FileIdentity::of(&file)? == identity {
            return Ok(file);
        }
    }
    Err(io::Error::from(io::ErrorKind::NotFound))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{HugePages, create_shared};

    #[test]
    fn a_file_without_a_name_is_found_by_its_identity() {
        let file = create_shared("found", 8192, HugePages::No).unwrap();
        let other = create_shared("found", 8192, HugePages::No).unwrap();
        let process = Process::open(std::process::id()).unwrap();
        let copy = find_file(&process, FileIdentity::of(&file).unwrap()).unwrap();
        assert_eq!(FileIdentity::of(&copy).unwrap(), FileIdentity::of(&file).unwrap());
        let gone = FileIdentity::of(&other).unwrap();
        assert_ne!(gone, FileIdentity::of(&file).unwrap());
        drop(other);
        assert!(find_file(&process, gone).is_err());
    }
}
