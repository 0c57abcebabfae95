//! Moves as the interface shows them.

use serde::{Deserialize, Serialize};
use sterna_core::algorithm::AlgorithmName;
use sterna_core::balloon::Balloon;
use sterna_core::compress::Compress;
use sterna_core::limits::Limits;
use sterna_core::progress::Progress;
use sterna_core::push::PushOrder;
use sterna_core::receipt::Receipt;
use sterna_core::working_set::HoldBack;
#[cfg(feature = "schema")]
use sterna_proto::limits::STREAMS_MAX;
use sterna_proto::message::{AttemptId, NativeMode, Verify};
use uuid::Uuid;

/// Page streams of a move whose caller does not say: one fills most links, a second keeps the
/// link busy while the first waits for the processor.
pub const STREAMS_DEFAULT: u16 = 2;

/// Which of the moves that wait on a host begins first.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Priority {
    /// After all others.
    Low,
    /// As most.
    #[default]
    Normal,
    /// Before all others.
    High,
}

impl Priority {
    fn is_normal(&self) -> bool {
        *self == Self::Normal
    }
}

/// Asks to move a guest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct MoveRequest {
    /// Identity of the move, drawn by the caller: asking twice moves once.
    pub id: Uuid,
    /// The other host: a name or address its certificate has, and the port on which guests arrive
    /// unless it is the usual one (`host`, `host:port`, `[address]:port`).
    pub to: String,
    /// The algorithm.
    #[serde(default)]
    pub algorithm: AlgorithmName,
    /// In which of its own ways the hypervisor copies, where the algorithm leaves that to it.
    #[serde(default)]
    pub native_mode: NativeMode,
    /// The operator's limits, among them the longest downtime; all of them or none.
    #[serde(default)]
    pub limits: Limits,
    /// Which pages rounds hold back, because the guest is likely to write them again soon.
    #[serde(default)]
    pub hold_back: HoldBack,
    /// Whether pages are sent in fewer bytes than they have.
    #[serde(default)]
    pub compress: Compress,
    /// Whether the guest is asked to give memory back first.
    #[serde(default)]
    pub balloon: Balloon,
    /// Bytes a second at most for the pages; `None` for no limit.
    #[serde(default)]
    pub bandwidth_bytes_per_second: Option<u64>,
    /// Page streams.
    #[serde(default = "streams_default")]
    #[cfg_attr(feature = "schema", schemars(range(min = 1, max = STREAMS_MAX)))]
    pub streams: u16,
    /// Which of the moves that wait on this host begins first. (Left out where it is the usual one, as older agents
    /// do not know it.)
    #[serde(default, skip_serializing_if = "Priority::is_normal")]
    pub priority: Priority,
    /// Whether both hosts hash all RAM before the guest resumes.
    #[serde(default)]
    pub verify: Verify,
    /// In which order pages follow the guest.
    #[serde(default)]
    pub push: PushOrder,
}

pub(crate) fn streams_default() -> u16 {
    STREAMS_DEFAULT
}

/// Which way a guest goes, seen from the host that was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// To another host.
    Outgoing,
    /// To this host.
    Incoming,
}

/// Where a move stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum MoveState {
    /// On its way.
    Moving,
    /// Handed over, and the other host does not say whether it runs the guest.
    InDoubt {
        /// What is waited for.
        reason: String,
    },
    /// Over: how is in the receipt, at the source.
    Ended {
        /// In a few words.
        summary: String,
    },
}

/// A move.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct MoveView {
    /// Identity of the move on this host.
    pub id: Uuid,
    /// Name of the guest.
    pub guest: String,
    /// The guest's identity, and the epoch of this attempt: the same on both hosts.
    pub attempt: AttemptId,
    /// Which way the guest goes.
    pub direction: Direction,
    /// The other host.
    pub peer: String,
    /// Where it stands.
    #[serde(flatten)]
    pub state: MoveState,
    /// Changes with every news; hand it back to wait for the next.
    pub version: String,
    /// Where it stands, in figures; at the source only.
    pub progress: Option<Progress>,
    /// All about it once it has ended; at the source only.
    pub receipt: Option<Receipt>,
}
