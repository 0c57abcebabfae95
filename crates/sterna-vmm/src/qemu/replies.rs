//! The parts of QMP replies that are used.
//!
//! The commands come from the `qapi` crate. Its reply types are exact for one version of QEMU: a
//! newer one that adds a value to an enumeration would make them fail. These take what they need
//! and let the rest be.

use serde::Deserialize;
use std::fmt;

/// `query-status`
#[derive(Clone, Debug, Deserialize)]
pub(super) struct RunStatus {
    pub(super) status: String,
    pub(super) running: bool,
}

/// `query-migrate`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub(super) struct Migration {
    pub(super) status: Option<String>,
    pub(super) error_desc: Option<String>,
    pub(super) blocked_reasons: Vec<String>,
    pub(super) ram: Option<MigrationRam>,
    pub(super) xbzrle_cache: Option<XbzrleCache>,
    pub(super) cpu_throttle_percentage: u8,
}

/// What a migration has done with RAM.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub(super) struct MigrationRam {
    pub(super) transferred: u64,
    pub(super) remaining: u64,
    pub(super) normal: u64,
    pub(super) duplicate: u64,
}

/// What was sent as differences.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub(super) struct XbzrleCache {
    pub(super) pages: u64,
}

/// One of `query-migrate-capabilities`
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Capability {
    pub(super) capability: String,
}

/// One of `query-cpus-fast`
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Vcpu {
    pub(super) thread_id: u32,
}

/// One of `query-memdev`
#[derive(Clone, Debug, Deserialize)]
pub(super) struct MemoryBackend {
    pub(super) id: Option<String>,
    pub(super) share: bool,
}

/// One of `qom-list`
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Property {
    pub(super) name: String,
    #[serde(rename = "type")]
    pub(super) kind: String,
}

/// One of `query-machines`
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Machine {
    pub(super) name: String,
    pub(super) alias: Option<String>,
}

/// `query-version`
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Version {
    pub(super) qemu: VersionTriple,
    pub(super) package: String,
}

impl fmt::Display for Version {
    /// The numbers, and the package if it says of which it is.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let VersionTriple { major, minor, micro } = self.qemu;
        write!(f, "{major}.{minor}.{micro}")?;
        match self.package.trim() {
            "" => Ok(()),
            package => write!(f, " ({package})"),
        }
    }
}

/// The numbers of a version.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(super) struct VersionTriple {
    pub(super) major: u32,
    pub(super) minor: u32,
    pub(super) micro: u32,
}

/// One of `query-yank`: what has connections that could be cut.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct YankInstance {
    #[serde(rename = "type")]
    pub(super) kind: String,
}
