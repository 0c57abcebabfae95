//! Hypervisors that copy a guest among themselves: what they are told, and what they say of it.
//!
//! The source's hypervisor connects to a [`NativeListener`] once for each channel; the destination's
//! listens at a path of its own ([`crate::Destination::native_socket`]). Whoever moves the guest carries
//! the bytes between the two.

use crate::VmmError;
use crate::tracking::system;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

/// In which of its own ways a hypervisor copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NativeWay {
    /// Rounds of dirty pages.
    PreCopy,
    /// The same, and of pages that were sent before only what differs.
    Xbzrle,
    /// Rounds, with pages on channels of their own.
    Multifd {
        /// So many.
        channels: u8,
        /// Whether they are compressed.
        compression: Compression,
    },
}

/// How pages are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// By zstd.
    Zstd,
}

impl NativeWay {
    /// Connections that the source's hypervisor makes.
    #[must_use]
    pub fn connections(self) -> u16 {
        match self {
            Self::PreCopy | Self::Xbzrle => 1,
            Self::Multifd { channels, .. } => 1 + u16::from(channels),
        }
    }
}

/// How the source's hypervisor is to copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NativePlan {
    /// In which way.
    pub way: NativeWay,
    /// The longest downtime: what is left must fit it before the guest is paused.
    pub downtime_max: Duration,
    /// Bytes a second at most while the guest runs; `None` for no limit.
    pub bandwidth_bytes_per_second: Option<u64>,
    /// Whether the guest is slowed down where rounds do not help.
    pub slow_down: bool,
}

/// What a hypervisor has sent since it began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NativeSent {
    /// Pages with content.
    pub pages: u64,
    /// Pages of zeroes, sent as such.
    pub zero_pages: u64,
    /// Bytes of all.
    pub bytes: u64,
    /// Bytes of RAM that are still to be sent, as far as known.
    pub left_bytes: u64,
    /// At how many percent of their speed the vCPUs run.
    pub vcpu_percent: u8,
}

/// What a hypervisor that copies has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NativeStep {
    /// It goes on.
    Copying(NativeSent),
    /// It goes on, and has just found out what was written since it was sent.
    RoundEnded(NativeSent),
    /// The guest is paused, and [`crate::Source::finish_native`] is waited for.
    Paused {
        /// When the vCPUs stood still.
        stopped: Instant,
        /// From then until block I/O was drained.
        drained: Duration,
        /// What was sent before.
        sent: NativeSent,
    },
}

/// Whether RAM is to be compared after the hypervisors have copied it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compared {
    /// It is.
    Yes,
    /// It is not.
    No,
}

/// Where the source's hypervisor connects to.
#[derive(Debug)]
pub struct NativeListener(UnixListener);

impl NativeListener {
    /// Listens at `path`, in place of any earlier attempt's socket.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn bind(path: &Path) -> Result<Self, VmmError> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(system("removing an old socket")(error));
            }
            Ok(()) | Err(_) => {}
        }
        let listener = UnixListener::bind(path).map_err(system("listening for the hypervisor"))?;
        listener.set_nonblocking(true).map_err(system("listening for the hypervisor"))?;
        Ok(Self(listener))
    }

    /// Takes the next connection; `None` if there is none within `limit`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn accept(&self, limit: Duration) -> io::Result<Option<UnixStream>> {
        let timeout = Timespec::try_from(limit).ok();
        let mut ready = [PollFd::new(&self.0, PollFlags::IN)];
        if poll(&mut ready, timeout.as_ref())? == 0 {
            return Ok(None);
        }
        match self.0.accept() {
            Ok((socket, _)) => {
                socket.set_nonblocking(false)?;
                Ok(Some(socket))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// The refusal of a guest whose hypervisor cannot do this.
pub(crate) fn unable(operation: &'static str) -> VmmError {
    let detail = "this hypervisor does not copy guests by itself".to_owned();
    VmmError::Refused { operation, detail }
}
