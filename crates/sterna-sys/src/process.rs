//! Other processes: held by a pidfd, looked into through `/proc`, started so that they outlive us.
//!
//! A process id alone may come to mean another process at any time. A [`Process`] holds the very
//! process it was opened for; across a restart of the agent the start time tells whether an id
//! still means the same one.

mod descriptors;
mod frozen;
mod mappings;
mod search;
mod spawn;
mod taps;
mod touch;

pub use descriptors::{Descriptor, FileIdentity, descriptors, find_file};
pub use frozen::{FreezeError, Frozen};
pub(crate) use mappings::is_shared;
pub use mappings::{FileMapping, mappings_in, mappings_of};
pub use search::{users, with_argument};
pub use spawn::{Unprivileged, spawn_detached};
pub use taps::find_tap;
pub(crate) use touch::touch;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, PidfdFlags, PidfdGetfdFlags, Signal, pidfd_getfd, pidfd_open, pidfd_send_signal,
};
use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// When a process started, in clock ticks since boot: with its id, its identity until reboot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StartTime(u64);

impl StartTime {
    /// The start time that `stat`, the text of a `/proc/PID/stat`, tells in its field 22; `None`
    /// if it tells none. The name in field 2 may contain anything, even `)`.
    #[must_use]
    pub fn in_stat(stat: &str) -> Option<Self> {
        let (_, rest) = stat.rsplit_once(')')?;
        rest.split_whitespace().nth(19)?.parse().ok().map(Self)
    }
}

/// Whether a process still runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Liveness {
    /// It runs.
    Alive,
    /// It has ended, reaped or not.
    Ended,
}

/// One process, which this value cannot mistake for another.
#[derive(Debug)]
pub struct Process {
    pid: u32,
    pidfd: OwnedFd,
    start_time: StartTime,
}

impl Process {
    /// Opens the process that has the id `pid` now.
    ///
    /// # Errors
    /// When there is none.
    pub fn open(pid: u32) -> io::Result<Self> {
        let id = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let id = id.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        let pidfd = pidfd_open(id, PidfdFlags::empty())?;
        // Read after the pidfd was opened: the id cannot have changed hands in between unless the
        // process has ended, and then the comparison in `reopen` is of no consequence.
        let start_time = start_time(pid)?;
        Ok(Self { pid, pidfd, start_time })
    }

    /// Opens process `pid` if it is still the one that started at `start_time`.
    ///
    /// # Errors
    /// When that process is gone.
    pub fn reopen(pid: u32, start_time: StartTime) -> io::Result<Self> {
        let process = Self::open(pid)?;
        if process.start_time != start_time || process.liveness() == Liveness::Ended {
            return Err(io::Error::from(io::ErrorKind::NotFound));
        }
        Ok(process)
    }

    /// The process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// When it started.
    #[must_use]
    pub fn start_time(&self) -> StartTime {
        self.start_time
    }

    /// A descriptor of it that becomes readable when it ends.
    ///
    /// # Errors
    /// When this process has no descriptor left.
    pub fn descriptor(&self) -> io::Result<OwnedFd> {
        self.pidfd.try_clone()
    }

    /// Whether it runs at this moment.
    #[must_use]
    pub fn liveness(&self) -> Liveness {
        self.wait_for_end(Duration::ZERO)
    }

    /// Waits until it has ended, at most `limit`.
    #[must_use]
    pub fn wait_for_end(&self, limit: Duration) -> Liveness {
        let deadline = Instant::now() + limit;
        loop {
            let rest = deadline.saturating_duration_since(Instant::now());
            let mut pidfd = [PollFd::new(&self.pidfd, PollFlags::IN)];
            let timeout = Timespec::try_from(rest).ok();
            match poll(&mut pidfd, timeout.as_ref()) {
                Ok(0) if rest.is_zero() => return Liveness::Alive,
                Ok(0) | Err(rustix::io::Errno::INTR) => {}
                Ok(_) => return Liveness::Ended,
                // poll of one valid descriptor does not fail; if it did, nothing is known to have
                // ended.
                Err(_) => return Liveness::Alive,
            }
        }
    }

    /// Ends it at once (SIGKILL). Harmless when it has ended.
    ///
    /// # Errors
    /// When not permitted.
    pub fn kill(&self) -> io::Result<()> {
        self.signal(Signal::KILL)
    }

    /// Stops all its threads (SIGSTOP) until it is continued or killed. Harmless when it has ended.
    ///
    /// # Errors
    /// When not permitted.
    pub fn stop(&self) -> io::Result<()> {
        self.signal(Signal::STOP)
    }

    fn signal(&self, signal: Signal) -> io::Result<()> {
        match pidfd_send_signal(&self.pidfd, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// A copy of the descriptor that the process knows as `number`.
    ///
    /// # Errors
    /// When it has none of that number or may not be looked into.
    pub fn copy_descriptor(&self, number: i32) -> io::Result<OwnedFd> {
        Ok(pidfd_getfd(&self.pidfd, number, PidfdGetfdFlags::empty())?)
    }
}

fn start_time(pid: u32) -> io::Result<StartTime> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    StartTime::in_stat(&stat).ok_or_else(|| io::Error::other("no start time in the process's stat"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_process_is_seen_to_end_and_is_not_mistaken_for_another() {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let process = Process::open(child.id()).unwrap();
        assert_eq!(process.liveness(), Liveness::Alive);
        let again = Process::reopen(child.id(), process.start_time()).unwrap();
        assert_eq!(again.pid(), child.id());
        assert!(Process::reopen(std::process::id(), process.start_time()).is_err());
        process.kill().unwrap();
        assert_eq!(process.wait_for_end(Duration::from_secs(10)), Liveness::Ended);
        assert!(Process::reopen(child.id(), process.start_time()).is_err(), "a zombie is no guest");
        child.wait().unwrap();
        assert_eq!(process.liveness(), Liveness::Ended);
        process.kill().unwrap();
    }

    #[test]
    fn impossible_ids_are_not_found() {
        for pid in [0, u32::MAX] {
            assert!(Process::open(pid).is_err(), "{pid}");
        }
    }
}
