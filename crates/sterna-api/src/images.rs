//! Kept RAM images as the interface shows them.

use serde::{Deserialize, Serialize};
use sterna_proto::message::GuestId;

/// RAM of a guest that has left, kept for when it comes back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ImageView {
    /// Whose it is.
    pub guest: GuestId,
    /// The guest's name, if this host knows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// When it was kept, in milliseconds since 1970.
    pub kept_unix_ms: u64,
    /// Pages in it: each content once, and none that was likely to change soon.
    pub pages: u32,
    /// Its size on disk.
    pub bytes: u64,
}
