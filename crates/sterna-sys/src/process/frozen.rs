//! Stopping all threads of a process for a moment.
//!
//! By ptrace, not by a signal or a cgroup: the kernel lets a process go on whose tracer has ended, so nothing
//! stays stopped whenever this process is killed. What a thread was doing in the kernel, such as running a guest or
//! reading a file into memory, is over when it counts as stopped.

use super::{Liveness, Process};
use libc::{PTRACE_DETACH, PTRACE_GETSIGINFO, PTRACE_INTERRUPT, PTRACE_SEIZE};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::io;
use std::marker::PhantomData;
use std::time::{Duration, Instant};

/// Sleeps between two looks whether all threads have stopped. Most stop within some tens of microseconds.
const INTERVAL: Duration = Duration::from_micros(20);

/// `PTRACE_EVENT_STOP`: how a thread stops that was interrupted, or is stopped with its process anyway.
const EVENT_STOP: i32 = 128;

/// The number that no signal has.
const NO_SIGNAL: i32 = 0;

/// Why a process could not be stopped. It runs.
#[derive(Debug, thiserror::Error)]
pub enum FreezeError {
    /// Some of its threads did not stop in time, as if they waited for a disk.
    #[error("{running} of its threads did not stop within {limit:?}")]
    TimedOut {
        /// How many.
        running: usize,
        /// The limit that was given.
        limit: Duration,
    },
    /// A thread that nobody may stop: the kernel's own (vhost, io_uring), or one that a debugger has.
    #[error("its thread {name} cannot be stopped: it is the kernel's own, or traced already")]
    Unstoppable {
        /// The thread's name.
        name: String,
    },
    /// It has ended, or may not be looked into.
    #[error("stopping its threads failed")]
    System(#[source] io::Error),
}

/// All threads of a process, stopped until this is dropped. Only the thread that has stopped them can let them go on.
#[derive(Debug)]
pub struct Frozen {
    threads: BTreeMap<i32, Thread>,
    since: Instant,
    _same_thread: PhantomData<*const ()>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Thread {
    /// Asked to stop.
    Running,
    /// Stopped, when it was about to take this signal, which it takes once it goes on.
    Stopped { signal: i32 },
}

impl Frozen {
    /// Stops all threads of `process`, which must not be this one's.
    ///
    /// # Errors
    /// When they do not all stop within `limit`, or cannot be stopped; all go on then.
    pub fn stop(process: &Process, limit: Duration) -> Result<Self, FreezeError> {
        if process.liveness() == Liveness::Ended {
            return Err(FreezeError::System(io::ErrorKind::NotFound.into()));
        }
        let since = Instant::now();
        let mut frozen = Self { threads: BTreeMap::new(), since, _same_thread: PhantomData };
        // A thread that has not stopped yet may start others.
        while frozen.seize_new(process.pid())? {
            while !frozen.all_stopped() {
                if since.elapsed() > limit {
                    let running = frozen.threads.values().filter(|t| **t == Thread::Running);
                    return Err(FreezeError::TimedOut { running: running.count(), limit });
                }
                std::thread::sleep(INTERVAL);
            }
        }
        Ok(frozen)
    }

    /// For how long the first of its threads has been stopped.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.since.elapsed()
    }

    /// Asks threads to stop that are not known yet; whether there were any.
    fn seize_new(&mut self, pid: u32) -> Result<bool, FreezeError> {
        let mut found = false;
        for thread in threads(pid).map_err(FreezeError::System)? {
            if self.threads.contains_key(&thread) {
                continue;
            }
            match trace(PTRACE_SEIZE, thread, 0) {
                Ok(()) => {}
                Err(Errno::SRCH) => continue,
                // One that is about to end is refused as well.
                Err(Errno::PERM) if Status::of(thread).is_none_or(|status| status.ended) => {
                    continue;
                }
                Err(Errno::PERM) => {
                    let name = name(pid, thread);
                    return Err(FreezeError::Unstoppable { name });
                }
                Err(error) => return Err(FreezeError::System(error.into())),
            }
            found = true;
            self.threads.insert(thread, Thread::Running);
            match trace(PTRACE_INTERRUPT, thread, 0) {
                // It is about to end.
                Ok(()) | Err(Errno::SRCH) => {}
                Err(error) => return Err(FreezeError::System(error.into())),
            }
        }
        Ok(found)
    }

    /// Looks at those that ran, forgets those that have ended; whether all others are stopped.
    fn all_stopped(&mut self) -> bool {
        self.threads.retain(|thread, state| match (*state, stop_signal(*thread)) {
            (Thread::Stopped { .. }, _) => true,
            (Thread::Running, Some(signal)) => {
                *state = Thread::Stopped { signal };
                true
            }
            (Thread::Running, None) => !has_ended(*thread),
        });
        self.threads.values().all(|thread| *thread != Thread::Running)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // One that was killed meanwhile cannot be let go, but is to be taken note of.
        self.threads.retain(|thread, state| match state {
            Thread::Running => true,
            Thread::Stopped { signal } => trace(PTRACE_DETACH, *thread, *signal).is_err(),
        });
        // One that runs stops when it leaves the kernel, and can be let go only then; all others go on already.
        for thread in self.threads.keys() {
            while !has_ended(*thread) && is_traced(*thread) {
                if let Some(signal) = stop_signal(*thread) {
                    let _ended = trace(PTRACE_DETACH, *thread, signal);
                }
                std::thread::sleep(INTERVAL);
            }
        }
    }
}

/// What the kernel says of a thread.
struct Status {
    ended: bool,
    /// The process that it is a thread of.
    process: u32,
    /// That process's parent.
    parent: u32,
    tracer: u32,
}

impl Status {
    /// Nothing if there is no such thread.
    fn of(thread: i32) -> Option<Self> {
        let text = std::fs::read_to_string(format!("/proc/{thread}/status")).ok()?;
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            Some(line.trim().to_owned())
        };
        let number = |name| field(name)?.parse().ok();
        Some(Self {
            ended: field("State:")?.starts_with(['Z', 'X']),
            process: number("Tgid:")?,
            parent: number("PPid:")?,
            tracer: number("TracerPid:")?,
        })
    }
}

/// Whether a thread has ended. The kernel keeps one that is traced until its tracer has heard of that, and its whole process with
/// it; of a process that this one has started somebody else wants to hear.
fn has_ended(thread: i32) -> bool {
    let Some(status) = Status::of(thread) else { return true };
    let is_first = u32::try_from(thread) == Ok(status.process);
    if status.ended && !(is_first && status.parent == std::process::id()) {
        // SAFETY: no status is asked for, so nothing is written.
        let _gone =
            unsafe { libc::waitpid(thread, std::ptr::null_mut(), libc::__WALL | libc::WNOHANG) };
    }
    status.ended
}

/// Whether somebody traces a thread.
fn is_traced(thread: i32) -> bool {
    Status::of(thread).is_some_and(|status| status.tracer != 0)
}

/// The signal that a stopped thread is to take when it goes on; nothing while it runs.
fn stop_signal(thread: i32) -> Option<i32> {
    let mut info = std::mem::MaybeUninit::<libc::siginfo_t>::zeroed();
    // SAFETY: the request takes a thread's id, ignores its third argument, and writes a `siginfo_t` to the fourth. It fails unless this thread
    // traces that one and has it stopped.
    let told = unsafe { libc::ptrace(PTRACE_GETSIGINFO, thread, 0usize, info.as_mut_ptr()) };
    if told != 0 {
        return None;
    }
    // SAFETY: all zeroes is a valid value, whatever the kernel has written of it since.
    let info = unsafe { info.assume_init() };
    let interrupted = info.si_code >> 8 == EVENT_STOP;
    Some(if interrupted { NO_SIGNAL } else { info.si_signo })
}

fn trace(request: libc::c_uint, thread: i32, data: i32) -> Result<(), Errno> {
    let data = usize::try_from(data).unwrap_or_default();
    // SAFETY: the requests made with this (seize, interrupt, detach) take two numbers beside the thread's id and touch
    // no memory, neither this process's nor the other's.
    match unsafe { libc::ptrace(request, thread, 0usize, data) } {
        -1 => Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)),
        _ => Ok(()),
    }
}

/// The threads that a process has now.
fn threads(pid: u32) -> io::Result<Vec<i32>> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/task"))?;
    let id = |entry: io::Result<std::fs::DirEntry>| -> io::Result<Option<i32>> {
        Ok(entry?.file_name().to_str().and_then(|name| name.parse().ok()))
    };
    entries.filter_map(|entry| id(entry).transpose()).collect()
}

fn name(pid: u32, thread: i32) -> String {
    let name = std::fs::read_to_string(format!("/proc/{pid}/task/{thread}/comm"));
    name.map_or_else(|_| thread.to_string(), |name| name.trim().to_owned())
}

#[cfg(test)]
mod tests;
