//! Whether and where a guest could move.

use serde::{Deserialize, Serialize};
use sterna_proto::message::Reason;

/// Other hosts that one question may name at most.
pub const HOSTS_MAX: usize = 64;

/// Asks whether a guest could move. Nothing is changed, and nothing reserved anywhere.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct CheckRequest {
    /// The hosts to ask, as in [`crate::MoveRequest::to`].
    #[serde(default)]
    #[cfg_attr(feature = "schema", schemars(length(max = HOSTS_MAX)))]
    pub to: Vec<String>,
}

/// Whether and where a guest could move.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct CheckView {
    /// Name of the guest.
    pub guest: String,
    /// What keeps the guest on its host, whichever way Sterna would copy it; every reason.
    pub bound: Vec<Reason>,
    /// What keeps its hypervisor from moving it by itself (`native`); every reason.
    pub bound_natively: Vec<Reason>,
    /// What each of the other hosts says.
    pub hosts: Vec<HostCheck>,
}

/// What another host says of a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct HostCheck {
    /// The host, as it was named.
    pub to: String,
    /// Why the guest cannot go there, every reason; empty if it can.
    pub refused: Vec<Reason>,
}

impl CheckView {
    /// Whether the guest could move to any host that was asked, or at all if none was.
    #[must_use]
    pub fn movable(&self) -> bool {
        let leaves = self.bound.is_empty() || self.bound_natively.is_empty();
        let arrives = self.hosts.iter().any(|host| host.refused.is_empty());
        leaves && (self.hosts.is_empty() || arrives)
    }
}
