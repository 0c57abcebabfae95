//! What the engine needs of the agent: a journal, and a host that takes guests in.

use crate::identity::PeerName;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use sterna_core::destination::Ending;
use sterna_core::journal::{DestinationRecord, SourceRecord};
use sterna_core::source::Found;
use sterna_page::known::{DiskBlocks, KnownPages};
use sterna_page::sent::ContentHasher;
use sterna_page::{PageCount, PageSet};
use sterna_proto::message::{AttemptId, JournalId, Offer, Reason};
use sterna_sys::memory::GuestMemory;
use sterna_vmm::Destination;

/// The journal of a host whose guest leaves.
pub trait SourceJournal: Send + Sync {
    /// Makes a record durable before it returns.
    ///
    /// # Errors
    /// When it may not be durable.
    fn record(&self, attempt: AttemptId, record: &SourceRecord) -> io::Result<()>;
}

/// Takes the RAM of guests that have left, for when they come back.
pub trait Keeper: Send + Sync {
    /// The guest of this attempt has left, and its hypervisor has ended; nothing changes its RAM any more.
    /// Pages of `changing` are likely to differ when it comes back.
    fn keep(&self, attempt: AttemptId, memory: Arc<GuestMemory>, changing: PageSet);
}

/// The disks of a guest that leaves.
pub trait Disks: Send + Sync {
    /// Looks which blocks of them hold what, under this hasher, as far as that can be told soon, with no
    /// more than four bytes for each of the guest's pages.
    fn look(&self, hasher: ContentHasher, pages: PageCount) -> Arc<dyn DiskBlocks>;
}

/// A move that the journal knows, and what is left of its guest.
pub struct FoundMove {
    /// The journal's record of it, if there is one.
    pub record: Option<DestinationRecord>,
    /// How its guest was found.
    pub found: Found,
    /// The guest, if its hypervisor lives.
    pub guest: Option<Box<dyn Destination>>,
}

/// A host that takes guests in.
pub trait Host: Send + Sync {
    /// Identity of the journal in which moves are recorded.
    fn journal(&self) -> JournalId;

    /// Every reason why the guest of an offer could not come now. Nothing is reserved, and nothing is
    /// left behind.
    fn inspect(&self, attempt: AttemptId, offer: &Offer, peer: &PeerName) -> Vec<Reason>;

    /// Prepares an empty guest for an offer: its hypervisor waits for device state, its RAM does
    /// not exist yet.
    ///
    /// # Errors
    /// With every reason why the guest cannot come; nothing is left behind.
    fn reserve(
        &self,
        attempt: AttemptId,
        offer: &Offer,
        peer: &PeerName,
    ) -> Result<Box<dyn Destination>, Vec<Reason>>;

    /// Pages that this host has and the guest of an attempt may have too, if there are any.
    fn known_pages(&self, attempt: AttemptId) -> Option<Arc<dyn KnownPages>>;

    /// Makes a record durable before it returns. Called from the thread of the move; the time of
    /// `Owned` is part of the downtime.
    ///
    /// # Errors
    /// When it may not be durable.
    fn record(&self, attempt: AttemptId, record: DestinationRecord) -> io::Result<()>;

    /// The file in which it is kept, for a later agent, which pages of a guest are still with its
    /// source. Need not survive the host.
    fn missing_pages(&self, attempt: AttemptId) -> PathBuf;

    /// Looks up a move about which `peer` asks, and which no thread of this agent runs. `None` if it
    /// is another peer's move: that one gets no answer.
    fn find(&self, attempt: AttemptId, peer: &PeerName) -> Option<FoundMove>;

    /// Whether the operator of this host wants an arriving move to end. Asked twice a second.
    fn is_cancelled(&self, attempt: AttemptId) -> bool;

    /// Takes note that a move has ended: the guest is this host's to run, or was discarded.
    fn ended(&self, attempt: AttemptId, ending: &Ending);
}
