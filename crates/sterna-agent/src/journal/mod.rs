//! The agent's journal: what must be known after a crash, in one redb file.
//!
//! ```text
//!   meta      "format" → number, "id" → uuid drawn when the journal was made
//!   guests    guest id → GuestRecord
//!   deleted   guest id → epoch            (of guests that were deleted and had been moved: kept for good)
//!   outgoing  attempt  → OutgoingRecord   (the newest OUTGOING_ENDED_MAX that have ended are kept)
//!   incoming  attempt  → IncomingRecord   (kept for good: a source may ask after any time)
//! ```
//!
//! **Guarantee.** A write that returned `Ok` survives a power failure. A write that returned an
//! error may or may not have happened. [`Journal::record_destination`] is the compare-and-swap that
//! commits a move: of `Owned` and `Refused` of one attempt, only one that the rules of
//! `sterna_core::journal` allow is ever written.
//!
//! **Attempts.** The number of an attempt never goes back, whatever becomes of the guest: a deleted guest leaves the one
//! that it had come to, and one that is made again under its identity goes on from there.
//!
//! **Format.** 2 is the first that has deleted guests, and guests that are started again. An agent that did not know of
//! the former would count a guest's attempts from zero again; it says that a newer one is needed, and does not begin.
//!
//! **Failure.** After an error of its disk the file is opened anew for whatever is asked next, as after a crash: a disk that was
//! full is mended by space alone.
//!
//! One process at a time: the file is locked while it is open, by the kernel, so a killed agent
//! leaves no stale lock.

mod database;
mod error;
#[cfg(test)]
mod tests;

pub use error::JournalError;

use crate::records::{GuestRecord, IncomingRecord, OutgoingRecord};
use database::Reopened;
use redb::{
    Database, ReadOnlyTable, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::Path;
use sterna_core::journal::{DestinationRecord, SourceRecord};
use sterna_proto::message::{AttemptId, Epoch, GuestId, JournalId};
use uuid::Uuid;

/// Table of texts by text.
type Texts = TableDefinition<'static, &'static str, &'static str>;

const META: Texts = TableDefinition::new("meta");
const GUESTS: Texts = TableDefinition::new("guests");
const DELETED: Texts = TableDefinition::new("deleted");
const OUTGOING: Texts = TableDefinition::new("outgoing");
const INCOMING: Texts = TableDefinition::new("incoming");

/// Name of the file in the state folder.
pub(crate) const JOURNAL_FILE: &str = "journal.redb";

/// Format this release writes, and the newest it reads.
const FORMAT: u32 = 2;

/// Ended moves to other hosts that are remembered with their receipts.
const OUTGOING_ENDED_MAX: usize = 1000;

/// The journal.
#[derive(Debug)]
pub(crate) struct Journal {
    database: Reopened,
}

impl Journal {
    /// Opens the journal in a folder, which is made if there is none.
    ///
    /// # Errors
    /// When another agent has it open, a newer release wrote it, or it cannot be read.
    pub(crate) fn open(folder: &Path) -> Result<Self, JournalError> {
        std::fs::create_dir_all(folder)
            .map_err(|source| JournalError::Folder { folder: folder.into(), source })?;
        Ok(Self { database: Reopened::open(folder.join(JOURNAL_FILE), begin)? })
    }

    /// Identity of this journal.
    pub(crate) fn id(&self) -> JournalId {
        self.database.id()
    }

    /// Every guest that is known.
    pub(crate) fn guests(&self) -> Result<Vec<GuestRecord>, JournalError> {
        self.all(GUESTS)
    }

    /// One guest.
    pub(crate) fn guest(&self, id: GuestId) -> Result<Option<GuestRecord>, JournalError> {
        self.one(GUESTS, &id.to_string())
    }

    /// Every move to another host that is remembered.
    pub(crate) fn outgoing(&self) -> Result<Vec<OutgoingRecord>, JournalError> {
        self.all(OUTGOING)
    }

    /// Every move to this host.
    pub(crate) fn all_incoming(&self) -> Result<Vec<IncomingRecord>, JournalError> {
        self.all(INCOMING)
    }

    /// A move to this host.
    pub(crate) fn incoming(
        &self,
        attempt: AttemptId,
    ) -> Result<Option<IncomingRecord>, JournalError> {
        self.one(INCOMING, &key(attempt))
    }

    /// Writes what is known of a guest.
    pub(crate) fn put_guest(&self, guest: &GuestRecord) -> Result<(), JournalError> {
        self.write(|write| put(write, GUESTS, &guest.id.to_string(), guest))
    }

    /// The newest attempt to move a guest that this host knows of, whether the guest is here, has been, or was
    /// deleted.
    pub(crate) fn newest_epoch(&self, id: GuestId) -> Result<Epoch, JournalError> {
        let attempts = |table| -> Result<Epoch, JournalError> {
            self.read(table, |table| {
                let [first, last] =
                    [0, u64::MAX].map(|epoch| key(AttemptId { guest: id, epoch: Epoch(epoch) }));
                let newest =
                    table.range(first.as_str()..=last.as_str())?.next_back().transpose()?;
                newest.map_or(Ok(Epoch(0)), |(key, _)| epoch_of(key.value()))
            })
        };
        let recorded = self.guest(id)?.map_or(Epoch(0), |guest| guest.epoch);
        let all = [
            recorded,
            self.deleted(id)?.unwrap_or_default(),
            attempts(OUTGOING)?,
            attempts(INCOMING)?,
        ];
        Ok(all.into_iter().max().unwrap_or_default())
    }

    /// The newest attempt to move a guest that was deleted here.
    pub(crate) fn deleted(&self, id: GuestId) -> Result<Option<Epoch>, JournalError> {
        self.one(DELETED, &id.to_string())
    }

    /// Forgets a guest that its operator deletes, but for the number of its newest attempt. What moves recorded of it
    /// stays, as a source may ask after any time.
    pub(crate) fn delete_guest(&self, id: GuestId) -> Result<(), JournalError> {
        self.write(|write| {
            let key = id.to_string();
            let guest = read::<GuestRecord>(write, GUESTS, &key)?;
            let before = read::<Epoch>(write, DELETED, &key)?.unwrap_or_default();
            let newest = guest.map_or(before, |guest| guest.epoch.max(before));
            if newest > Epoch(0) {
                put(write, DELETED, &key, &newest)?;
            }
            write.open_table(GUESTS)?.remove(key.as_str())?;
            Ok(())
        })
    }

    /// Forgets a guest that was never this host's.
    pub(crate) fn remove_guest(&self, id: GuestId) -> Result<(), JournalError> {
        self.write(|write| {
            write.open_table(GUESTS)?.remove(id.to_string().as_str())?;
            Ok(())
        })
    }

    /// Writes a new move to another host together with its guest: both or neither.
    pub(crate) fn begin_outgoing(
        &self,
        guest: &GuestRecord,
        outgoing: &OutgoingRecord,
    ) -> Result<(), JournalError> {
        self.write(|write| {
            put(write, GUESTS, &guest.id.to_string(), guest)?;
            put(write, OUTGOING, &key(outgoing.attempt), outgoing)
        })
    }

    /// Writes how a move to another host ended, together with its guest: both or neither. What the
    /// move recorded itself stays. Ended moves beyond the limit are forgotten, the oldest first.
    pub(crate) fn end_outgoing(
        &self,
        guest: &GuestRecord,
        mut outgoing: OutgoingRecord,
    ) -> Result<(), JournalError> {
        self.write(|write| {
            let known = read::<OutgoingRecord>(write, OUTGOING, &key(outgoing.attempt))?;
            outgoing.record = known.and_then(|known| known.record).or(outgoing.record.take());
            put(write, GUESTS, &guest.id.to_string(), guest)?;
            put(write, OUTGOING, &key(outgoing.attempt), &outgoing)?;
            forget_old(write)
        })
    }

    /// Writes a new move to this host together with its guest: both or neither.
    ///
    /// # Errors
    /// When the attempt is known already, or it may not be durable.
    pub(crate) fn begin_incoming(
        &self,
        guest: &GuestRecord,
        incoming: &IncomingRecord,
    ) -> Result<(), JournalError> {
        self.write(|write| {
            let attempt = incoming.attempt;
            if read::<IncomingRecord>(write, INCOMING, &key(attempt))?.is_some() {
                return Err(JournalError::Repeated(attempt));
            }
            put(write, GUESTS, &guest.id.to_string(), guest)?;
            put(write, INCOMING, &key(incoming.attempt), incoming)
        })
    }

    /// Writes the record of a move to another host.
    ///
    /// # Errors
    /// When the move is unknown, or it may not be durable.
    pub(crate) fn record_source(
        &self,
        attempt: AttemptId,
        record: &SourceRecord,
    ) -> Result<(), JournalError> {
        self.write(|write| {
            let mut outgoing: OutgoingRecord =
                read(write, OUTGOING, &key(attempt))?.ok_or(JournalError::Unknown(attempt))?;
            outgoing.record = Some(record.clone());
            put(write, OUTGOING, &key(attempt), &outgoing)
        })
    }

    /// Writes the record of a move to this host, if it may follow the one that is there. A refusal
    /// of a move that is not known is written too, so that it can never be owned later.
    ///
    /// # Errors
    /// When it may not follow, or may not be durable.
    pub(crate) fn record_destination(
        &self,
        attempt: AttemptId,
        record: DestinationRecord,
    ) -> Result<(), JournalError> {
        self.write(|write| {
            let unknown = || IncomingRecord {
                id: Uuid::new_v4(),
                attempt,
                guest: attempt.guest.to_string(),
                peer: String::new(),
                record: None,
            };
            let mut incoming: IncomingRecord =
                read(write, INCOMING, &key(attempt))?.unwrap_or_else(unknown);
            if !may_follow(incoming.record, record) {
                let old = incoming.record;
                return Err(JournalError::Contradiction { attempt, old, new: record });
            }
            incoming.record = Some(record);
            put(write, INCOMING, &key(attempt), &incoming)
        })
    }

    fn write(
        &self,
        change: impl FnOnce(&WriteTransaction) -> Result<(), JournalError>,
    ) -> Result<(), JournalError> {
        // Durability is `Immediate` unless it is asked for less: commit returns after fsync. A
        // transaction that is dropped without a commit leaves nothing.
        self.database.with(|database| {
            let write = database.begin_write()?;
            change(&write)?;
            Ok(write.commit()?)
        })
    }

    fn read<T>(
        &self,
        table: Texts,
        look: impl FnOnce(&ReadOnlyTable<&'static str, &'static str>) -> Result<T, JournalError>,
    ) -> Result<T, JournalError> {
        self.database.with(|database| look(&database.begin_read()?.open_table(table)?))
    }

    fn all<T: DeserializeOwned>(&self, table: Texts) -> Result<Vec<T>, JournalError> {
        self.read(table, |table| {
            let rows = table.iter()?.map(|row| {
                let (key, value) = row?;
                parse(key.value(), value.value())
            });
            rows.collect()
        })
    }

    fn one<T: DeserializeOwned>(&self, table: Texts, key: &str) -> Result<Option<T>, JournalError> {
        self.read(table, |table| table.get(key)?.map(|value| parse(key, value.value())).transpose())
    }
}

/// Makes what is missing in a database; returns its identity.
fn begin(database: &Database) -> Result<JournalId, JournalError> {
    let write = database.begin_write()?;
    let id = {
        let mut meta = write.open_table(META)?;
        for table in [GUESTS, DELETED, OUTGOING, INCOMING] {
            write.open_table(table)?;
        }
        let format = meta.get("format")?.map(|text| text.value().to_owned());
        match format.as_deref().map(str::parse::<u32>) {
            None => drop(meta.insert("format", FORMAT.to_string().as_str())?),
            Some(Ok(FORMAT)) => {}
            Some(Ok(format)) if format < FORMAT => {
                drop(meta.insert("format", FORMAT.to_string().as_str())?);
            }
            Some(Ok(format)) => return Err(JournalError::Newer { format, known: FORMAT }),
            Some(Err(_)) => return Err(JournalError::Damaged("format")),
        }
        let id = meta.get("id")?.map(|text| Uuid::parse_str(text.value()));
        match id {
            Some(id) => id.map_err(|_| JournalError::Damaged("id"))?,
            None => {
                let id = Uuid::new_v4();
                meta.insert("id", id.to_string().as_str())?;
                id
            }
        }
    };
    write.commit()?;
    Ok(JournalId(id))
}

/// Whether a destination's record may follow another. `Owned` and `Owing` may be taken back as long
/// as the guest has not run, which the machine makes sure of; nothing follows `Refused`, `Active`
/// and `Lost`.
fn may_follow(old: Option<DestinationRecord>, new: DestinationRecord) -> bool {
    use DestinationRecord::{Active, Lost, Owing, Owned, Receiving, Refused};
    match (old, new) {
        (None, Receiving | Refused) => true,
        (None, Owned | Owing | Active | Lost) => false,
        (Some(Receiving), Receiving | Owned | Owing | Refused) => true,
        (Some(Receiving), Active | Lost) => false,
        (Some(Owned), Owned | Active | Refused) => true,
        (Some(Owned), Receiving | Owing | Lost) => false,
        (Some(Owing), Owing | Active | Lost | Refused) => true,
        (Some(Owing), Receiving | Owned) => false,
        (Some(old @ (Active | Lost | Refused)), new) => old == new,
    }
}

fn key(attempt: AttemptId) -> String {
    // Padded, so that the attempts of a guest are in order.
    format!("{}/{:020}", attempt.guest, attempt.epoch.0)
}

/// The epoch of the attempt that a key is of.
fn epoch_of(key: &str) -> Result<Epoch, JournalError> {
    let number = key.rsplit('/').next().and_then(|number| number.parse().ok());
    number.map(Epoch).ok_or(JournalError::Damaged("key of an attempt"))
}

/// Reads a record; `key` names it in the error.
pub(crate) fn parse<T: DeserializeOwned>(key: &str, text: &str) -> Result<T, JournalError> {
    serde_json::from_str(text).map_err(|source| JournalError::Record { key: key.into(), source })
}

/// Writes a record as text; `key` names it in the error.
pub(crate) fn to_text<T: Serialize>(key: &str, value: &T) -> Result<String, JournalError> {
    serde_json::to_string(value).map_err(|source| JournalError::Record { key: key.into(), source })
}

fn read<T: DeserializeOwned>(
    write: &WriteTransaction,
    table: Texts,
    key: &str,
) -> Result<Option<T>, JournalError> {
    let table = write.open_table(table)?;
    let value = table.get(key)?;
    value.map(|value| parse(key, value.value())).transpose()
}

fn put<T: Serialize>(
    write: &WriteTransaction,
    table: Texts,
    key: &str,
    value: &T,
) -> Result<(), JournalError> {
    let text = to_text(key, value)?;
    write.open_table(table)?.insert(key, text.as_str())?;
    Ok(())
}

fn forget_old(write: &WriteTransaction) -> Result<(), JournalError> {
    let mut table = write.open_table(OUTGOING)?;
    if redb::ReadableTableMetadata::len(&table)? <= OUTGOING_ENDED_MAX as u64 {
        return Ok(());
    }
    let mut ended = Vec::new();
    for row in table.iter()? {
        let (key, value) = row?;
        let outgoing: OutgoingRecord = parse(key.value(), value.value())?;
        if let Some(receipt) = outgoing.receipt {
            ended.push((receipt.started_unix_ms, key.value().to_owned()));
        }
    }
    ended.sort();
    for (_, key) in ended.iter().take(ended.len().saturating_sub(OUTGOING_ENDED_MAX)) {
        table.remove(key.as_str())?;
    }
    Ok(())
}
