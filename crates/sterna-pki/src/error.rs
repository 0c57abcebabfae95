//! What can go wrong with certificates and keys.

use std::io;
use std::path::{Path, PathBuf};

/// Why something cannot be signed, read or written.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file or folder cannot be written.
    #[error("cannot write {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file is there already, and nothing was written.
    #[error("{0} is there already; nothing was written")]
    Exists(PathBuf),
    /// Something is not what it should be.
    #[error("{what} is no {wanted}")]
    Not {
        /// What, such as a file.
        what: String,
        /// What it should be.
        wanted: &'static str,
    },
    /// Keys or signatures cannot be made.
    #[error("cannot make {0}")]
    Make(&'static str, #[source] rcgen::Error),
    /// A name that no host or user can have.
    #[error("{name:?} is no name of a {whose}: {allowed}")]
    Name {
        /// The name.
        name: String,
        /// Whose it would be.
        whose: &'static str,
        /// What is allowed.
        allowed: &'static str,
    },
    /// A list is not signed by the authority.
    #[error("the list of revoked certificates is not signed by this cluster's authority")]
    Signature,
    /// A newer list would look older than the one that hosts have.
    #[error("the clock was set back behind the list of revoked certificates: nothing was revoked")]
    ClockSetBack,
}

impl PkiError {
    pub(crate) fn not(what: impl ToString, wanted: &'static str) -> Self {
        Self::Not { what: what.to_string(), wanted }
    }

    pub(crate) fn not_in(path: &Path, wanted: &'static str) -> Self {
        Self::not(path.display(), wanted)
    }
}
