//! A guest leaves: the source's machine over a real guest and real connections.
//!
//! The calling thread runs the machine. It is fed by the thread that reads the control connection
//! and by the `mover`, which has the guest; nothing in it blocks but short writes, so a cancel, a
//! lost link or a time limit is acted upon at once.

mod ballooning;
mod copying;
mod driver;
mod following;
mod holding;
mod mover;
mod native;
mod suspects;

use crate::host::{Disks, Keeper, SourceJournal};
use crate::identity::Identity;
use crate::pages::Bandwidth;
use crate::watch::Watch;
use driver::Driver;
use rustls::pki_types::ServerName;
use std::net::SocketAddr;
use std::sync::Arc;
use sterna_core::algorithm::AlgorithmName;
use sterna_core::balloon::Balloon;
use sterna_core::limits::{FIXED_DOWNTIME, Limits, StageLimits};
use sterna_core::prediction::{Choice, Surroundings};
use sterna_core::push::PushOrder;
use sterna_core::receipt::Receipt;
use sterna_core::source::{Config, Found};
use sterna_core::working_set::HoldBack;
use sterna_proto::message::{AttemptId, JournalId, Offer};
use sterna_vmm::Source;

/// Everything about a move but the guest.
#[derive(Clone)]
pub struct Move {
    /// The attempt; its epoch must be newer than any before.
    pub attempt: AttemptId,
    /// What is offered.
    pub offer: Offer,
    /// The algorithm.
    pub algorithm: AlgorithmName,
    /// The operator's limits.
    pub limits: Limits,
    /// What is known besides of the guest, and of moves like this one.
    pub surroundings: Surroundings,
    /// What was foreseen before the move was asked for, if it was.
    pub planned: Option<Choice>,
    /// Which pages rounds hold back.
    pub hold_back: HoldBack,
    /// Whether the guest is asked for memory before it is copied.
    pub balloon: Balloon,
    /// The stages' limits.
    pub stages: StageLimits,
    /// Bytes a second at most for the pages of this move; `None` for no limit.
    pub bandwidth_bytes_per_second: Option<u64>,
    /// What all moves from this host may send together.
    pub host_bandwidth: Arc<Bandwidth>,
    /// In which order pages follow the guest.
    pub push: PushOrder,
    /// Who takes the guest's RAM once it has left, if anybody does.
    pub keeper: Option<Arc<dyn Keeper>>,
    /// The guest's disks, if the destination may read what is on them.
    pub disks: Option<Arc<dyn Disks>>,
    /// Where the destination listens.
    pub to: SocketAddr,
    /// The name the destination's certificate must have.
    pub to_name: ServerName<'static>,
    /// Who this host is.
    pub identity: Identity,
    /// Name of this host, for the receipt.
    pub source_name: String,
    /// The destination as the operator called it, for the receipt.
    pub destination_name: String,
}

impl Move {
    fn config(&self) -> Config {
        Config {
            offer: self.offer.clone(),
            algorithm: self.algorithm.start(),
            limits: self.limits,
            stages: self.stages,
            fixed_downtime: FIXED_DOWNTIME,
            surroundings: self.surroundings,
            planned: self.planned.clone(),
        }
    }
}

/// What an earlier agent left of a move.
pub struct LeftOver {
    /// The destination's journal that accepted it, as recorded.
    pub journal: JournalId,
    /// How the guest was found.
    pub found: Found,
    /// The guest, if its hypervisor lives.
    pub guest: Option<Box<dyn Source>>,
}

/// Moves a guest; returns when the move has ended one way or the other.
pub fn migrate(
    request: &Move,
    guest: Box<dyn Source>,
    journal: &Arc<dyn SourceJournal>,
    watch: &Arc<Watch>,
) -> Receipt {
    Driver::new(request, None, Some(guest), journal, watch).migrate()
}

/// Ends a move that an earlier agent left unfinished, by asking the destination where that is
/// needed. May take as long as the destination cannot be reached; [`Watch::progress`] then says so.
pub fn resolve(
    request: &Move,
    left: LeftOver,
    journal: &Arc<dyn SourceJournal>,
    watch: &Arc<Watch>,
) -> Receipt {
    Driver::new(request, Some(left.journal), left.guest, journal, watch).resolve(left.found)
}
