//! What the journal holds, as JSON: guests, and moves in both directions.

use serde::{Deserialize, Serialize};
use sterna_api::MoveRequest;
use sterna_core::journal::{DestinationRecord, SourceRecord};
use sterna_core::receipt::Receipt;
use sterna_proto::message::{AttemptId, Epoch, GuestId, Offer};
use sterna_vmm::{GuestDefinition, Wishes};
use uuid::Uuid;

/// Whether another host may have run a guest that stays paused here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Elsewhere {
    /// It never ran anywhere else since it was paused.
    No,
    /// It may have.
    MayHaveRun,
}

/// Where a guest is, as far as this host is concerned.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "place", rename_all = "kebab-case")]
pub(crate) enum Place {
    /// This host's to run, though a move may be on its way.
    Here,
    /// Not this host's yet; the record of the attempt decides.
    Arriving {
        /// The attempt by which it comes.
        attempt: AttemptId,
        /// What was known of the guest before, from an earlier stay.
        before: Option<Box<GuestRecord>>,
    },
    /// Here and paused until an operator decides.
    Paused {
        /// Why.
        reason: String,
        /// Whether it may have run elsewhere since.
        elsewhere: Elsewhere,
    },
    /// Its hypervisor ended by itself.
    Crashed {
        /// How.
        reason: String,
    },
    /// It was never started, was ended on request, or its system powered off.
    Stopped {
        /// Which of it.
        reason: String,
    },
    /// Another host's. Kept so that a record of before the move is known to be old.
    Elsewhere {
        /// The host.
        host: String,
    },
}

/// A guest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct GuestRecord {
    /// Identity, the same on every host.
    pub id: GuestId,
    /// What it is made of: as it was started, or as it would be.
    pub definition: GuestDefinition,
    /// What its operator wants of what each start chooses. None in a record of an earlier release, and of a guest that
    /// came from one: then all stays as it was chosen.
    #[serde(default)]
    pub wishes: Option<Wishes>,
    /// The newest attempt to move it.
    pub epoch: Epoch,
    /// How the driver finds its hypervisor again: the driver's own data.
    pub process: Option<serde_json::Value>,
    /// How far it is on its way to another hypervisor of this host, if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upgrade: Option<Upgrade>,
    /// Where it is.
    #[serde(flatten)]
    pub place: Place,
}

/// A guest's way to another hypervisor of its host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "stage", rename_all = "kebab-case")]
pub(crate) enum Upgrade {
    /// As earlier releases have recorded it: it is the old one's, which may stand still for it.
    Begun,
    /// It is the old one's, which may stand still for it, unless a note names the new one: see [`crate::guest::upgrade`].
    UnderWay {
        /// What finds the new one.
        new: serde_json::Value,
    },
    /// It is the new one's, which is its process on record. The old one never runs it again, and is to be ended.
    HandedOver {
        /// What finds the old one again.
        old: serde_json::Value,
    },
}

impl GuestRecord {
    /// What the guest is started by: what its operator wrote, and nothing that an earlier start chose.
    pub(crate) fn written(&self) -> GuestDefinition {
        match &self.wishes {
            Some(wishes) => self.definition.with_wishes(wishes),
            None => self.definition.clone(),
        }
    }
}

/// A move to another host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct OutgoingRecord {
    /// The attempt.
    pub attempt: AttemptId,
    /// What was asked for.
    pub request: MoveRequest,
    /// What was offered.
    pub offer: Offer,
    /// What the move recorded last; `None` before its first page.
    pub record: Option<SourceRecord>,
    /// How it ended; `None` before that.
    pub receipt: Option<Box<Receipt>>,
}

/// A move to this host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct IncomingRecord {
    /// Identity of the move on this host.
    pub id: Uuid,
    /// The attempt.
    pub attempt: AttemptId,
    /// Name of the guest.
    pub guest: String,
    /// The host it comes from, as its certificate says.
    pub peer: String,
    /// What the move recorded last; `None` before it accepted.
    pub record: Option<DestinationRecord>,
}
