//! A guest of which its host does not know whether another runs it.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// What is known of a guest that is in doubt, or paused because it may have run elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct DoubtView {
    /// Name of the guest.
    pub guest: String,
    /// The move by which it may have left.
    pub move_id: Uuid,
    /// Where it may run, as the move was told.
    pub destination: String,
    /// Why it is not known.
    pub reason: String,
    /// Whether the other host is still asked, again and again: as soon as it answers there is no doubt any more.
    pub is_asking: bool,
}

/// Where a guest runs, as an operator has found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(rename = "DoubtVerdict"))]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// At the destination of its last move. What is left of it here is ended.
    There,
    /// Nowhere, and it does not arrive anywhere either. It runs on here.
    Nowhere,
}

/// Ends a doubt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ResolveRequest {
    /// Where the guest runs. If it is not true the guest is lost, or there are two of it.
    pub runs: Verdict,
}
