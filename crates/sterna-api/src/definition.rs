//! Definitions of guests: made, read and edited while the guest does not run.

use serde::{Deserialize, Serialize};
use sterna_proto::message::GuestId;
use sterna_vmm::GuestDefinition;

/// Asks to define a guest, which is not started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct DefineGuest {
    /// Identity for the guest, drawn by the caller: asking twice defines one guest.
    pub id: GuestId,
    /// What it is made of.
    pub definition: GuestDefinition,
}

/// A guest's definition as its operator wrote it, without what a start has chosen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct DefinitionView {
    /// Name of the guest.
    pub guest: String,
    /// Its identity.
    pub id: GuestId,
    /// Changes with the definition; hand it back with what is to take its place.
    pub version: String,
    /// What it is started by.
    pub definition: GuestDefinition,
}

/// Asks to put another definition in place of the one that was read. Refused if somebody else has done so meanwhile.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct EditGuest {
    /// The version that was edited, as it was read.
    pub version: String,
    /// What the guest is to be made of from its next start on.
    pub definition: GuestDefinition,
}

/// Asks to start a guest that is defined.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct StartDefined {
    /// The caller has made sure that the guest runs on no other host. Without it the request is refused where another
    /// host may run the guest, or still has it paused.
    #[serde(default)]
    pub runs_nowhere_else: bool,
}
