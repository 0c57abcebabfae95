//! A client of the disks that hypervisors serve by the NBD protocol.
//!
//! It has what copying disks needs: reads, writes, zeroes, flushes, and block status, by which a hypervisor tells what is
//! allocated and what a dirty bitmap holds. One request is under way at a time; who wants more has more connections.
//! The protocol is that of `doc/proto.md` of the NetworkBlockDevice project, fixed newstyle with structured replies.
//!
//! **What the server says is not trusted.** It may be a hypervisor that its guest has taken over: nothing is read beyond what
//! was asked for, and nothing is kept that grows with what it says.

mod error;
mod handshake;
mod status;
mod transmission;

pub use error::NbdError;
pub use status::{BASE_ALLOCATION, Extent, HOLE, IN_BITMAP, ZERO, dirty_bitmap};

use std::io::{Read, Write};

/// Bytes of one read or write at most: what any server takes.
const PAYLOAD_BYTES_MAX: usize = 32 << 20;

/// What is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Export {
    /// Bytes of the disk, as the guest sees it.
    pub size_bytes: u64,
    /// Whether it can be written.
    pub writable: bool,
    /// Whether it can be told to write zeroes, which then need not be sent nor kept.
    pub writes_zeroes: bool,
    /// Whether it can be told to flush.
    pub flushes: bool,
}

/// A connection to a disk that is served.
#[derive(Debug)]
pub struct Client<S: Read + Write> {
    stream: S,
    export: Export,
    /// The server's numbers of the contexts that were asked for, in that order.
    contexts: Vec<u32>,
    /// Of the newest request.
    cookie: u64,
}

impl<S: Read + Write> Client<S> {
    /// Opens the export `name` over a connected stream, with `contexts` for [`Client::status`]: [`BASE_ALLOCATION`], or
    /// what [`dirty_bitmap`] returns.
    ///
    /// # Errors
    /// When there is no such export, or it has not all of the contexts; when the server does not answer as it must.
    pub fn open(mut stream: S, name: &str, contexts: &[&str]) -> Result<Self, NbdError> {
        let (export, contexts) = handshake::perform(&mut stream, name, contexts)?;
        Ok(Self { stream, export, contexts, cookie: 0 })
    }

    /// What is served.
    pub fn export(&self) -> Export {
        self.export
    }
}

impl<S: Read + Write> Drop for Client<S> {
    fn drop(&mut self) {
        // So that the server does not take it for a broken connection.
        let _ = self.disconnect();
    }
}

#[cfg(test)]
mod tests;
