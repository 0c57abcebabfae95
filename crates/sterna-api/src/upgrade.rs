//! A running guest's new hypervisor on the same host.

use crate::GuestView;
use serde::{Deserialize, Serialize};
use sterna_core::receipt::RamCheck;

/// Asks to move a running guest into a new hypervisor's process on its host, in the same RAM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct UpgradeRequest {
    /// Compares all RAM before and after, while the guest stands still: that takes as long as hashing it twice.
    #[serde(default)]
    pub verify: bool,
}

/// What has become of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct UpgradeView {
    /// The guest, as it is now.
    pub guest: GuestView,
    /// For how long it stood still, in microseconds.
    pub gap_us: u64,
    /// Version of the hypervisor that it had; `None` if that was not noted.
    pub from: Option<String>,
    /// Version of the one that it has.
    pub to: Option<String>,
    /// Whether RAM was the same before and after.
    pub ram_digest: RamCheck,
}
