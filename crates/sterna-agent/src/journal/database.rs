//! The journal's database, which is opened anew after its disk has failed.
//!
//! `redb` refuses everything after the first error of its disk, as what it has in memory may be other than what is on disk; opening
//! it anew finds what is. So an agent goes on once there is space again, or whatever else was missing.

use super::{JournalError, META};
use redb::{Database, ReadableDatabase as _};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};
use sterna_proto::message::JournalId;
use uuid::Uuid;

/// A database that is open whenever it can be.
#[derive(Debug)]
pub(super) struct Reopened {
    path: PathBuf,
    id: JournalId,
    /// None after it has failed.
    open: RwLock<Option<Database>>,
}

impl Reopened {
    /// Opens a file, which is made if there is none, and begins with it.
    pub(super) fn open(
        path: PathBuf,
        begin: impl FnOnce(&Database) -> Result<JournalId, JournalError>,
    ) -> Result<Self, JournalError> {
        let opened = || {
            let database = Database::create(&path).map_err(|e| JournalError::opening(&path, e))?;
            Ok((begin(&database)?, database))
        };
        let (id, database) = opened().map_err(|error| told(&path, error))?;
        Ok(Self { path, id, open: RwLock::new(Some(database)) })
    }

    /// Identity of the journal.
    pub(super) fn id(&self) -> JournalId {
        self.id
    }

    /// Does something with the database. If it fails by its disk, whoever asks next finds it opened anew.
    pub(super) fn with<T>(
        &self,
        work: impl FnOnce(&Database) -> Result<T, JournalError>,
    ) -> Result<T, JournalError> {
        self.ensure_open()?;
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        let done = match &*open {
            Some(database) => work(database),
            // It has failed for somebody else in between.
            None => Err(redb::StorageError::PreviousIo.into()),
        };
        drop(open);
        done.map_err(|error| {
            if is_of_disk(&error) {
                tracing::error!(%error, path = %self.path.display(), "the journal failed, and is opened anew");
                *self.open.write().unwrap_or_else(PoisonError::into_inner) = None;
            }
            told(&self.path, error)
        })
    }

    fn ensure_open(&self) -> Result<(), JournalError> {
        if self.open.read().unwrap_or_else(PoisonError::into_inner).is_some() {
            return Ok(());
        }
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        if open.is_none() {
            *open = Some(self.open_again().map_err(|error| told(&self.path, error))?);
        }
        Ok(())
    }

    /// Opens the file that was open before. One that is not there any more, or is another, must not be taken for it: it
    /// would know of no guest.
    fn open_again(&self) -> Result<Database, JournalError> {
        let opened = Database::open(&self.path);
        let database = opened.map_err(|error| JournalError::opening(&self.path, error))?;
        match identity(&database)? == Some(self.id) {
            true => Ok(database),
            false => Err(JournalError::Another(self.path.clone())),
        }
    }
}

/// The identity in a database.
pub(super) fn identity(database: &Database) -> Result<Option<JournalId>, JournalError> {
    let meta = database.begin_read()?.open_table(META)?;
    let id = meta.get("id")?.map(|text| Uuid::parse_str(text.value()));
    let id = id.transpose().map_err(|_| JournalError::Damaged("id"))?;
    Ok(id.map(JournalId))
}

/// An error as its reader needs it.
fn told(path: &Path, error: JournalError) -> JournalError {
    let is_full = matches!(&error, JournalError::Database(error)
        if matches!(&**error, redb::Error::Io(error) if error.kind() == io::ErrorKind::StorageFull));
    if is_full { JournalError::Full(path.into()) } else { error }
}

/// Whether the database takes nothing more after an error.
fn is_of_disk(error: &JournalError) -> bool {
    use redb::Error::{Io, LockPoisoned, PreviousIo};
    matches!(error, JournalError::Database(error) if matches!(**error, Io(_) | PreviousIo | LockPoisoned(_)))
}
