//! Why the journal cannot be used.

use std::io;
use std::path::{Path, PathBuf};
use sterna_core::journal::DestinationRecord;
use sterna_proto::message::{AttemptId, GuestId};

/// Why a journal could not be opened, read or written.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The folder cannot be made.
    #[error("cannot make the state folder {folder}")]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another agent has it open.
    #[error("another agent uses the journal {0}; end it first, or use another state folder")]
    InUse(PathBuf),
    /// A newer release wrote it.
    #[error("the journal has format {format}, this release knows up to {known}; use a newer one")]
    Newer {
        /// Its format.
        format: u32,
        /// The newest format this release reads.
        known: u32,
    },
    /// An entry of the journal about itself cannot be read.
    #[error("the journal's {0} is damaged")]
    Damaged(&'static str),
    /// A record cannot be read or written.
    #[error("the journal's record {key} is damaged")]
    Record {
        /// Its key.
        key: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// Whether an upgrade was over cannot be told.
    #[error("cannot read which hypervisor has guest {guest}, which was being upgraded")]
    Note {
        /// The guest.
        guest: GuestId,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// There is no such move.
    #[error("the journal knows no attempt {0}")]
    Unknown(AttemptId),
    /// An attempt that was made before.
    #[error("attempt {0} is in the journal already")]
    Repeated(AttemptId),
    /// A record that would undo a decision.
    #[error("attempt {attempt} is recorded as {old:?}, which {new:?} may not follow")]
    Contradiction {
        /// The attempt.
        attempt: AttemptId,
        /// What is recorded.
        old: Option<DestinationRecord>,
        /// What should have been.
        new: DestinationRecord,
    },
    /// There is no space for it.
    #[error("no space is left for the journal {0}: free some, and try again")]
    Full(PathBuf),
    /// After its disk has failed there is another journal in its place.
    #[error(
        "{0} is not the journal that this agent began with: put it back, or start the agent anew"
    )]
    Another(PathBuf),
    /// The database failed.
    #[error("the journal cannot be read or written")]
    Database(#[source] Box<redb::Error>),
}

impl JournalError {
    /// Why the file at `path` cannot be opened.
    pub(super) fn opening(path: &Path, error: redb::DatabaseError) -> Self {
        match error {
            redb::DatabaseError::DatabaseAlreadyOpen => Self::InUse(path.into()),
            other => Self::Database(Box::new(other.into())),
        }
    }
}

/// The database's own errors are large and many; they are told apart by nobody.
macro_rules! from_database {
    ($($error:ty),*) => {$(
        impl From<$error> for JournalError {
            fn from(error: $error) -> Self {
                Self::Database(Box::new(error.into()))
            }
        }
    )*};
}
from_database!(redb::TransactionError, redb::TableError, redb::StorageError, redb::CommitError);

impl From<JournalError> for io::Error {
    fn from(error: JournalError) -> Self {
        Self::other(error)
    }
}
