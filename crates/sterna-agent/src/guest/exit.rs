//! Notices the end of a process without asking for it again and again.

use crate::hypervisor::GuestProcess;
use std::io;
use std::os::fd::OwnedFd;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Waits for the end of one process, or for ever if there is none.
#[derive(Debug, Default)]
pub(super) struct Exit(Option<AsyncFd<OwnedFd>>);

impl Exit {
    /// Watches a process by its pidfd.
    #[expect(
        deprecated,
        reason = "deprecated for types that can lose their descriptor while it is registered, \
            which an OwnedFd cannot; the replacement is unsafe"
    )]
    pub(super) fn of(pidfd: OwnedFd) -> io::Result<Self> {
        Ok(Self(Some(AsyncFd::with_interest(pidfd, Interest::READABLE)?)))
    }

    /// Watches a guest's hypervisor; if that cannot be, its end is not noticed.
    pub(super) fn of_process(process: &dyn GuestProcess, guest: &str) -> Self {
        process.pidfd().and_then(Self::of).unwrap_or_else(|error| {
            tracing::error!(guest, %error, "cannot watch the hypervisor");
            Self::default()
        })
    }

    /// Returns once the process has ended.
    pub(super) async fn wait(&self) {
        match &self.0 {
            // An error of the wait itself cannot be told from an end, and is treated as one.
            Some(pidfd) => drop(pidfd.readable().await),
            None => std::future::pending().await,
        }
    }
}
