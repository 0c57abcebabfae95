//! The folder in which a guest's sockets, log and preload library lie while it runs.

use crate::VmmError;
use crate::tracking::system;
use std::fs::{DirBuilder, File};
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// Bytes of a unix socket's path at most, without the ending zero.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// A guest's runtime folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Folder(PathBuf);

impl Folder {
    /// The folder of a guest that exists already.
    pub(super) fn existing(path: PathBuf) -> Self {
        Self(path)
    }

    /// Makes the folder, for this user only, and marks it. One that is left over from a dead guest is emptied.
    pub(super) fn create(path: PathBuf) -> Result<Self, VmmError> {
        let refused = |detail: String| VmmError::Refused { operation: "starting QEMU", detail };
        let text = path.as_os_str().as_bytes();
        // The loader splits LD_PRELOAD at colons and spaces; QEMU splits options at commas.
        let unsafe_byte = |byte: &u8| b":, \t\n".contains(byte);
        if !path.is_absolute() || text.iter().any(unsafe_byte) {
            return Err(refused(format!(
                "runtime folder {path:?} must be absolute, without colons, commas and spaces"
            )));
        }
        let folder = Self(path);
        let longest = folder.transfer_socket();
        if longest.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
            return Err(refused(format!("socket path {longest:?} is too long")));
        }
        if folder.0.exists() {
            std::fs::remove_dir_all(&folder.0).map_err(system("emptying the runtime folder"))?;
        }
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder.0)
            .map_err(system("making the runtime folder"))?;
        File::create(folder.mark()).map_err(system("marking the runtime folder"))?;
        Ok(folder)
    }

    /// Says that nobody has yet on record what is started here.
    fn mark(&self) -> PathBuf {
        self.0.join("not-on-record")
    }

    /// Whether what is started here was never on record.
    pub(super) fn is_marked(&self) -> bool {
        self.mark().exists()
    }

    /// What was started here is on record. Harmless if that was said before.
    pub(super) fn unmark(&self) -> Result<(), VmmError> {
        remove_file(&self.mark(), "taking the mark from the runtime folder")
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// The monitor of whoever moves the guest.
    pub(super) fn mover_socket(&self) -> PathBuf {
        self.0.join("mover.qmp")
    }

    /// The monitor for everything else.
    pub(super) fn control_socket(&self) -> PathBuf {
        self.0.join("control.qmp")
    }

    pub(super) fn console_socket(&self) -> PathBuf {
        self.0.join("console.sock")
    }

    /// Where a source listens for QEMU's stream, or a destination's QEMU for ours.
    pub(super) fn transfer_socket(&self) -> PathBuf {
        self.0.join("transfer.sock")
    }

    pub(super) fn log(&self) -> PathBuf {
        self.0.join("qemu.log")
    }

    pub(super) fn preload_library(&self) -> PathBuf {
        self.0.join("preload.so")
    }

    pub(super) fn taps_library(&self) -> PathBuf {
        self.0.join("taps.so")
    }

    /// Says that another QEMU uses this one's taps; returns the path of what says so.
    pub(super) fn mark_taps_in_use(&self) -> Result<PathBuf, VmmError> {
        let mark = self.taps_in_use();
        File::create(&mark).map_err(system("marking taps as in use"))?;
        Ok(mark)
    }

    /// The taps are this QEMU's own from now on. Harmless if they were.
    pub(super) fn unmark_taps(&self) -> Result<(), VmmError> {
        remove_file(&self.taps_in_use(), "taking the mark from taps")
    }

    fn taps_in_use(&self) -> PathBuf {
        self.0.join("taps-in-use")
    }

    /// Removes the folder and all in it. Harmless when it is gone.
    pub(super) fn remove(&self) -> Result<(), VmmError> {
        match std::fs::remove_dir_all(&self.0) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(system("removing the runtime folder")(error))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

/// Removes a file, if there is one.
fn remove_file(path: &Path, operation: &'static str) -> Result<(), VmmError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(system(operation)(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_whose_name_would_be_read_as_options_is_refused() {
        let base = tempfile::tempdir().unwrap();
        for name in ["a,b", "a:b", "a b", &"x".repeat(120)] {
            assert!(Folder::create(base.path().join(name)).is_err(), "{name:?}");
        }
        assert!(Folder::create(PathBuf::from("relative")).is_err());
        let folder = Folder::create(base.path().join("good")).unwrap();
        std::fs::write(folder.log(), "old").unwrap();
        let again = Folder::create(base.path().join("good")).unwrap();
        assert!(!again.log().exists(), "nothing is left of the guest before");
        assert!(again.is_marked());
        again.unmark().unwrap();
        again.unmark().unwrap();
        assert!(!again.is_marked());
        again.remove().unwrap();
        again.remove().unwrap();
    }
}
