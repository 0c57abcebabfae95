//! What an agent's journal holds of a move, and in which order it is written.
//!
//! ```text
//!   source:       Moving (before the first page) ─▶ Released | Undone
//!   destination:  Receiving (before Accept) ─▶ Owned (before the guest runs) ─▶ Active
//!                       │                   └▶ Owing (the same, pages follow) ─▶ Active | Lost
//!                       └▶ Refused (before Never is said)
//! ```
//!
//! `Owned` (or `Owing`, where pages follow the guest) is the one step that commits a move. It is
//! written by the destination alone and never after `Refused` of the same attempt. `Refused` follows
//! it in one case: the guest was never started, because its hypervisor was gone or said no, or
//! because the record of it may not have become durable.

use serde::{Deserialize, Serialize};
use sterna_proto::message::JournalId;

/// The source's record of an attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum SourceRecord {
    /// On the way. Found after a restart: a running guest was not committed; a paused one may
    /// have been, and only the destination knows.
    Moving {
        /// The journal that will know.
        journal: JournalId,
    },
    /// The destination owns the guest and has run it.
    Released,
    /// The guest stays here.
    Undone,
}

/// The destination's record of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DestinationRecord {
    /// A place is reserved; the guest is not ours.
    Receiving,
    /// The guest is ours. It may have run.
    Owned,
    /// The guest is ours. It may have run. Pages of it are still with the source.
    Owing,
    /// The guest is ours, was seen to run, and is here as a whole.
    Active,
    /// The guest is ours and cannot go on: pages of it are lost.
    Lost,
    /// The guest will never be ours by this attempt.
    Refused,
}
