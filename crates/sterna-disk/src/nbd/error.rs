//! Why a served disk cannot be used.

use std::io;

/// Why something could not be done with a disk that is served.
#[derive(Debug, thiserror::Error)]
pub enum NbdError {
    /// The connection failed, or was closed.
    #[error("the connection to the disk failed")]
    Connection(#[from] io::Error),
    /// The server does not keep to the protocol.
    #[error("what serves the disk breaks the protocol: {0}")]
    Protocol(&'static str),
    /// The server refuses something before the disk is open.
    #[error("what serves the disk refuses {what}: {said}")]
    Refused {
        /// What was asked for.
        what: &'static str,
        /// The reason, in the server's words.
        said: String,
    },
    /// The server cannot tell what was asked for.
    #[error("what serves the disk knows no {0}")]
    NoContext(String),
    /// An operation on the disk failed; the connection can be used on.
    #[error("{operation} at byte {offset} of the disk failed: {error}")]
    Disk {
        /// What was done.
        operation: &'static str,
        /// Where it began.
        offset: u64,
        /// The disk's error.
        error: io::Error,
    },
    /// The caller asked for what is not on the disk.
    #[error("{length} bytes at byte {offset} are not within the disk's {size}")]
    Outside {
        /// Where it began.
        offset: u64,
        /// How much it was.
        length: u64,
        /// Bytes of the disk.
        size: u64,
    },
}

impl NbdError {
    /// Whether the disk has no space left.
    #[must_use]
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Disk { error, .. } if error.kind() == io::ErrorKind::StorageFull)
    }
}
