//! That a guest was handed over to its new process, noted in a moment.
//!
//! The journal outlives the host, and takes the time that a disk does; a guest that stands still pays for it. But both
//! processes end with the host, so which of them had the guest only has to outlive the agent. A file does that once it is
//! written, on whatever disk, and without waiting for it.

use serde_json::Value;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use sterna_proto::message::GuestId;

/// A file that names the process to which a guest was handed over.
#[derive(Debug)]
pub(crate) struct Note(PathBuf);

impl Note {
    /// That of a guest, in the agent's runtime folder.
    pub(crate) fn of(runtime: &Path, guest: GuestId) -> Self {
        Self(runtime.join("handed-over").join(guest.0.to_string()))
    }

    /// Notes that the guest is the new process's from now on. Whoever reads half of it does not find that.
    pub(super) fn write(&self, new: &Value) -> io::Result<()> {
        if let Some(folder) = self.0.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(&self.0, new.to_string())
    }

    /// Whether the guest was handed over to this process.
    pub(crate) fn names(&self, new: &Value) -> io::Result<bool> {
        match fs::read_to_string(&self.0) {
            // Compared as values: half of one is none.
            Ok(noted) => Ok(serde_json::from_str(&noted).is_ok_and(|noted: Value| noted == *new)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Takes it back, or away. Harmless if there is none.
    pub(super) fn remove(&self) -> io::Result<()> {
        match fs::remove_file(&self.0) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Takes it away once nobody asks for it any more.
    pub(crate) fn forget(&self) {
        if let Err(error) = self.remove() {
            tracing::warn!(path = %self.0.display(), %error, "the note of an upgrade stays");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use uuid::Uuid;

    #[test]
    fn only_the_process_that_was_noted_whole_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let note = Note::of(folder.path(), GuestId(Uuid::from_u128(7)));
        let (new, other) = (json!({ "pid": 7 }), json!({ "pid": 8 }));
        assert!(!note.names(&new).unwrap());
        note.remove().unwrap();
        note.write(&new).unwrap();
        assert!(note.names(&new).unwrap() && !note.names(&other).unwrap());
        assert!(!Note::of(folder.path(), GuestId(Uuid::from_u128(8))).names(&new).unwrap());
        fs::write(&note.0, &new.to_string()[..5]).unwrap();
        assert!(!note.names(&new).unwrap());
        note.remove().unwrap();
        assert!(!note.names(&new).unwrap());
    }
}
