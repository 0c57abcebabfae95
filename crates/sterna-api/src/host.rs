//! The host as the interface shows it.

use serde::{Deserialize, Serialize};

/// How a check of the host went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// All is there.
    Good,
    /// Guests can run and move, but not all of them or not as well.
    Limited,
    /// No guest can move.
    Missing,
}

/// One check of the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Finding {
    /// What was checked.
    pub check: String,
    /// How it went.
    pub verdict: Verdict,
    /// What was found.
    pub detail: String,
    /// The command or setting that makes it good, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

/// A host and its agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct HostInfo {
    /// Name of the host.
    pub name: String,
    /// Version of the agent.
    pub version: String,
    /// Identity of the agent's journal; changes when the journal is lost.
    pub journal: String,
    /// Port on which guests arrive.
    pub move_port: u16,
    /// Number of guests.
    pub guests: usize,
    /// Findings of the probe that was made when the agent started.
    pub findings: Vec<Finding>,
}
