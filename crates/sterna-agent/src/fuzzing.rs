//! The journal's records for the fuzz targets; no part of this crate's interface.

use crate::journal::{self, JournalError};
use crate::records::{GuestRecord, IncomingRecord, OutgoingRecord};
use serde::{Serialize, de::DeserializeOwned};

/// The kinds of records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordKind {
    /// A guest.
    Guest,
    /// A move to another host.
    Outgoing,
    /// A move to this host.
    Incoming,
}

/// Reads a record as the journal does, and writes it as the journal does.
///
/// # Errors
/// When it cannot be read, or, having been read, not be written.
pub fn read_and_write(kind: RecordKind, text: &str) -> Result<String, JournalError> {
    match kind {
        RecordKind::Guest => again::<GuestRecord>(text),
        RecordKind::Outgoing => again::<OutgoingRecord>(text),
        RecordKind::Incoming => again::<IncomingRecord>(text),
    }
}

fn again<T: DeserializeOwned + Serialize>(text: &str) -> Result<String, JournalError> {
    journal::to_text("fuzzed", &journal::parse::<T>("fuzzed", text)?)
}
