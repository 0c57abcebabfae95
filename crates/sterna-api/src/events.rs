//! What happens on a host, as the interface tells it.

use crate::guest::GuestState;
use crate::moves::{Direction, MoveState};
use serde::{Deserialize, Serialize};
use sterna_proto::message::GuestId;
use uuid::Uuid;

/// Something that has happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Event {
    /// Ascending, also over restarts of the agent as long as the host's clock is not set back.
    pub number: u64,
    /// When, in milliseconds since 1970.
    pub unix_ms: u64,
    /// What.
    #[serde(flatten)]
    pub what: Happened,
}

/// What has happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Happened {
    /// A guest is new on this host, or does something else than before.
    Guest {
        /// Its name.
        name: String,
        /// Its identity.
        id: GuestId,
        /// What it does now.
        #[serde(flatten)]
        state: GuestState,
    },
    /// A guest's definition is new, or another than before.
    GuestDefined {
        /// Its name.
        name: String,
        /// Its identity.
        id: GuestId,
        /// As in [`crate::DefinitionView::version`].
        version: String,
    },
    /// A guest is no longer this host's.
    GuestGone {
        /// Its name.
        name: String,
        /// Its identity.
        id: GuestId,
    },
    /// A move has begun or ended.
    Move {
        /// Identity of the move on this host.
        id: Uuid,
        /// Name of the guest.
        guest: String,
        /// Which way it goes.
        direction: Direction,
        /// The other host.
        peer: String,
        /// Where it stands.
        #[serde(flatten)]
        state: MoveState,
    },
    /// More has happened before the next event than this host remembers.
    Missed,
    /// Something that this release does not know.
    #[serde(other)]
    Unknown,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_flat_object_and_an_unknown_one_can_be_read() {
        let text = r#"{"number":7,"unix_ms":1,"event":"guest","name":"web-1",
            "id":"00000000-0000-0000-0000-000000000007","state":"crashed","reason":"killed"}"#;
        let event: Event = serde_json::from_str(text).unwrap();
        let again = serde_json::to_value(&event).unwrap();
        assert_eq!(again, serde_json::from_str::<serde_json::Value>(text).unwrap());
        let text = r#"{"number":8,"unix_ms":1,"event":"eclipse","of":"the sun"}"#;
        assert_eq!(serde_json::from_str::<Event>(text).unwrap().what, Happened::Unknown);
    }
}
