//! A disk that can be full.

use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;

use anyhow::{Context, Result};
use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use sterna_guest::quantity::Bytes;

/// What takes the space, once it is full.
const FILLER: &str = "filler";

/// A file system of its own in memory, which no path leads to but [`SmallDisk::path`]: it is gone with whoever made it,
/// however that ends.
#[derive(Debug)]
pub struct SmallDisk {
    root: OwnedFd,
}

impl SmallDisk {
    /// Makes an empty one; needs root.
    ///
    /// # Errors
    /// If it cannot be mounted.
    pub fn new(size: Bytes) -> Result<Self> {
        let place = std::env::temp_dir().join(format!("sterna-disk-{}", std::process::id()));
        fs::create_dir_all(&place)?;
        let options = std::ffi::CString::new(format!("size={}", size.0))?;
        let mounted = mount("sterna", &place, "tmpfs", MountFlags::empty(), options.as_c_str())
            .context("cannot mount a file system")
            .and_then(|()| {
                let opened =
                    rustix::fs::open(&place, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
                unmount(&place, UnmountFlags::DETACH)?;
                Ok(Self { root: opened? })
            });
        fs::remove_dir(&place)?;
        mounted
    }

    /// Its folder, for every process of this machine.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.root.as_raw_fd()).into()
    }

    /// Takes all that is free.
    ///
    /// # Errors
    /// If something else than space is missing.
    pub fn fill(&self) -> Result<()> {
        let mut filler =
            File::options().create(true).append(true).open(self.path().join(FILLER))?;
        // At last byte by byte: a page that is half full is space, too.
        for size in [1 << 16, 1] {
            loop {
                match filler.write(&vec![0; size]) {
                    Ok(_) => {}
                    Err(error) if error.kind() == ErrorKind::StorageFull => break,
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }

    /// Gives back what [`SmallDisk::fill`] has taken.
    ///
    /// # Errors
    /// If it cannot.
    pub fn free(&self) -> Result<()> {
        match fs::remove_file(self.path().join(FILLER)) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_can_be_written_to_a_full_one() -> Result<()> {
        let Ok(disk) = SmallDisk::new(Bytes::mebibytes(1)) else {
            eprintln!("skipped: no file system can be mounted");
            return Ok(());
        };
        fs::write(disk.path().join("before"), "x")?;
        disk.fill()?;
        let refused = fs::write(disk.path().join("after"), "x").unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::StorageFull);
        disk.free()?;
        fs::write(disk.path().join("after"), "x")?;
        Ok(())
    }
}
