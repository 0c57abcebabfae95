//! Who belongs to the cluster, as the interface shows it.

use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// Asks for an invitation of a new host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct InviteRequest {
    /// Name that the host is to have.
    pub name: String,
    /// Addresses by which it may be reached besides; if there are none, the one from which it joins.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
    /// Where the new host reaches this one, with a port if it is not the usual one; if not given, the first address in
    /// this host's certificate, or its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
}

/// An invitation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct InvitationView {
    /// Name that the host will have.
    pub name: String,
    /// What the host joins by; whoever has it can become that host.
    pub code: String,
    /// Until when it is valid, in milliseconds since 1970. It is valid once.
    pub until_unix_ms: u64,
}

/// A host's request for a certificate to follow the one that it calls with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct RenewRequest {
    /// The request to be signed (PKCS #10), as PEM. Only its key counts.
    pub request: String,
}

/// A certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Certificate {
    /// As PEM.
    pub certificate: String,
}

/// A host of the cluster, as its authority knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ClusterHost {
    /// Its name.
    pub name: String,
    /// Addresses in its certificate.
    pub addresses: Vec<IpAddr>,
    /// Until when its certificate is valid, in milliseconds since 1970.
    pub until_unix_ms: u64,
}

/// What became of revoking a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct HostRevoked {
    /// Its name.
    pub name: String,
    /// Certificates of it that are no longer accepted.
    pub certificates: usize,
    /// Hosts that refuse them from now on.
    pub told: Vec<String>,
    /// Hosts that do not know yet, with the reason. They ask within the hour if they run.
    pub not_told: Vec<NotTold>,
}

/// A host that could not be told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct NotTold {
    /// Its name.
    pub host: String,
    /// Why.
    pub why: String,
}
