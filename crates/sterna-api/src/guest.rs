//! Guests as the interface shows them.

use serde::{Deserialize, Serialize};
use sterna_proto::message::{Epoch, GuestId};
use sterna_vmm::GuestDefinition;
use uuid::Uuid;

/// What a guest does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum GuestState {
    /// It runs here.
    Running,
    /// It stands still.
    Paused {
        /// Why.
        reason: String,
    },
    /// It is on its way here and does not run here yet.
    Arriving,
    /// It is on its way to another host.
    Leaving,
    /// It was handed over, and the other host does not say whether it runs it. It stays paused
    /// until that is known.
    InDoubt {
        /// What is waited for.
        reason: String,
    },
    /// Its hypervisor has ended by itself.
    Crashed {
        /// How.
        reason: String,
    },
    /// It was never started, was ended on request, or its system powered off.
    Stopped {
        /// Which of it.
        reason: String,
    },
}

impl GuestState {
    /// The state in one word.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused { .. } => "paused",
            Self::Arriving => "arriving",
            Self::Leaving => "leaving",
            Self::InDoubt { .. } => "in-doubt",
            Self::Crashed { .. } => "crashed",
            Self::Stopped { .. } => "stopped",
        }
    }

    /// Why, for the states that have a reason.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Running | Self::Arriving | Self::Leaving => None,
            Self::Paused { reason }
            | Self::InDoubt { reason }
            | Self::Crashed { reason }
            | Self::Stopped { reason } => Some(reason),
        }
    }
}

/// A guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct GuestView {
    /// Name, unique on its host.
    pub name: String,
    /// Identity, the same on every host.
    pub id: GuestId,
    /// What it does.
    #[serde(flatten)]
    pub state: GuestState,
    /// Attempts to move it so far.
    pub epoch: Epoch,
    /// Process id of its hypervisor; `None` if there is none.
    pub pid: Option<u32>,
    /// Version of its hypervisor; `None` if there is none, or that was not noted.
    #[serde(default)]
    pub hypervisor: Option<String>,
    /// Bytes of its RAM.
    pub memory_bytes: u64,
    /// The move it is on, if it is.
    pub current_move: Option<Uuid>,
    /// What it is made of: while it has a hypervisor with all that was chosen when it was started, such as its machine
    /// type.
    pub definition: GuestDefinition,
}

/// Asks to define a guest and to start it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct StartGuest {
    /// Identity for the guest, drawn by the caller: asking twice starts one guest.
    pub id: GuestId,
    /// What it is made of.
    pub definition: GuestDefinition,
}

/// Asks to let a guest run that stays paused after a move that went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct RunGuest {
    /// The caller has made sure that the guest runs on no other host. Without it the request is
    /// refused where another host may have run the guest.
    #[serde(default)]
    pub runs_nowhere_else: bool,
}
