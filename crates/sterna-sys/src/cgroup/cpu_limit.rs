//! A limit on the processor time of some threads of a process: the `cpu` controller of cgroups.
//!
//! The threads get a group of their own below the one in which their process is, so that whatever
//! holds for the process goes on holding for them. cgroup v2 calls such a group threaded; v1 knows
//! nothing else. Its name follows from the process, so that whoever comes later finds it.

use super::hierarchy::{Place, Version, write};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The time over which processor time is counted, where that leaves a quota that the kernel takes:
/// no thread stands still for longer at once.
const PERIOD: Duration = Duration::from_millis(10);

/// The least that the kernel takes for a quota.
const QUOTA_MIN: Duration = Duration::from_millis(1);

/// So much processor time in each period.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Quota {
    time: Duration,
    period: Duration,
}

impl Quota {
    /// `percent` of each of so many processors.
    fn of(percent: u8, processors: usize) -> Self {
        let percent = u32::from(percent.clamp(1, 100));
        let share = percent * u32::try_from(processors).unwrap_or(u32::MAX / 100).max(1);
        let period = PERIOD.max(QUOTA_MIN * 100 / share);
        Self { time: (period * share / 100).max(QUOTA_MIN), period }
    }
}

/// A limit that holds until it is lifted, whatever becomes of this value.
#[derive(Debug)]
pub struct CpuLimit {
    version: Version,
    /// Where the process is.
    home: PathBuf,
    /// Where the limited threads are.
    group: PathBuf,
}

impl CpuLimit {
    /// The limit of process `pid`, in effect or not.
    ///
    /// # Errors
    /// When no hierarchy with a `cpu` controller is mounted, or the process is gone.
    pub fn of(pid: u32) -> io::Result<Self> {
        match Place::of(pid, "cpu")? {
            Some(place) => Ok(Self::at(place.version, place.home, pid)),
            None => {
                let detail = "no cgroup hierarchy with a cpu controller is mounted";
                Err(io::Error::new(io::ErrorKind::Unsupported, detail))
            }
        }
    }

    fn at(version: Version, home: PathBuf, pid: u32) -> Self {
        let group = home.join(format!("sterna-{pid}"));
        Self { version, home, group }
    }

    /// Lets `threads` (thread ids of the process) have `percent` of a processor each, all of them
    /// together. May be called again with other threads or another share.
    ///
    /// # Errors
    /// When the kernel refuses; then nothing is limited.
    pub fn set(&self, threads: &[u32], percent: u8) -> io::Result<()> {
        let set = || {
            self.make_group()?;
            self.set_quota(Some(Quota::of(percent, threads.len())))?;
            threads.iter().try_for_each(|id| write(&self.threads_of(&self.group), id))
        };
        set().inspect_err(|_| {
            // The error that is told is the first one.
            let _ = self.lift();
        })
    }

    /// Lets all threads run as they can, at once, and leaves nothing behind. Harmless when there is
    /// no limit.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn lift(&self) -> io::Result<()> {
        if !self.group.exists() {
            return Ok(());
        }
        self.set_quota(None)?;
        for id in fs::read_to_string(self.threads_of(&self.group))?.lines() {
            match write(&self.threads_of(&self.home), &id) {
                // It has ended meanwhile.
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                other => other?,
            }
        }
        fs::remove_dir(&self.group)
    }

    /// For how long threads of the group have been held back while they had something to do, since
    /// the limit was set first; counted by the kernel, in time of processors.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn held_back(&self) -> io::Result<Duration> {
        match fs::read_to_string(self.group.join("cpu.stat")) {
            Ok(text) => Ok(self.version.held_back(&text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Duration::ZERO),
            Err(error) => Err(error),
        }
    }

    fn make_group(&self) -> io::Result<()> {
        match fs::create_dir(&self.group) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
            other => other?,
        }
        if self.version == Version::Two {
            write(&self.group.join("cgroup.type"), &"threaded")?;
            write(&self.home.join("cgroup.subtree_control"), &"+cpu")?;
        }
        Ok(())
    }

    fn set_quota(&self, quota: Option<Quota>) -> io::Result<()> {
        let micros = quota.map(|quota| (quota.time.as_micros(), quota.period.as_micros()));
        match (self.version, micros) {
            (Version::One, Some((time, period))) => {
                write(&self.group.join("cpu.cfs_period_us"), &period)?;
                write(&self.group.join("cpu.cfs_quota_us"), &time)
            }
            (Version::One, None) => write(&self.group.join("cpu.cfs_quota_us"), &-1),
            (Version::Two, Some((time, period))) => {
                write(&self.group.join("cpu.max"), &format_args!("{time} {period}"))
            }
            (Version::Two, None) => write(&self.group.join("cpu.max"), &"max"),
        }
    }

    fn threads_of(&self, group: &Path) -> PathBuf {
        group.join(match self.version {
            Version::One => "tasks",
            Version::Two => "cgroup.threads",
        })
    }
}

impl Version {
    /// The time in a `cpu.stat`; zero if it has none.
    fn held_back(self, text: &str) -> Duration {
        let value = |name| {
            let mut lines = text.lines().filter_map(|line| line.split_once(' '));
            lines.find(|(field, _)| *field == name).and_then(|(_, value)| value.parse().ok())
        };
        match self {
            Self::One => Duration::from_nanos(value("throttled_time").unwrap_or(0)),
            Self::Two => Duration::from_micros(value("throttled_usec").unwrap_or(0)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    use std::sync::mpsc::channel;

    #[test]
    fn a_limited_thread_gets_less_and_a_lifted_limit_leaves_nothing() {
        let pid = std::process::id();
        let limit = match CpuLimit::of(pid) {
            Ok(limit) => limit,
            Err(error) => return eprintln!("skipped: {error}"),
        };
        let (stop, work) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| {
            let (id_to, id) = channel();
            let (stop, work) = (&stop, &work);
            scope.spawn(move || {
                id_to.send(rustix::thread::gettid().as_raw_nonzero().get()).unwrap();
                while !stop.load(Ordering::Relaxed) {
                    work.fetch_add(1, Ordering::Relaxed);
                }
            });
            let id = u32::try_from(id.recv().unwrap()).unwrap();
            let result = limit.set(&[id], 10);
            if let Err(error) = &result
                && matches!(error.kind(), io::ErrorKind::PermissionDenied)
            {
                stop.store(true, Ordering::Relaxed);
                return eprintln!("skipped: {error}");
            }
            result.unwrap();
            // Counted until the kernel says so: how soon does not matter.
            while limit.held_back().unwrap() < Duration::from_millis(50) {
                std::thread::yield_now();
            }
            assert!(limit.group.exists());
            limit.set(&[id], 20).unwrap();
            limit.lift().unwrap();
            assert!(!limit.group.exists(), "nothing is left");
            limit.lift().unwrap();
            let before = work.load(Ordering::Relaxed);
            while work.load(Ordering::Relaxed) == before {
                std::thread::yield_now();
            }
            stop.store(true, Ordering::Relaxed);
        });
        assert_eq!(limit.held_back().unwrap(), Duration::ZERO);
    }

    #[test]
    fn a_small_share_of_one_processor_lengthens_the_period_and_nothing_else_does() {
        let millis = |time, period| Quota {
            time: Duration::from_millis(time),
            period: Duration::from_millis(period),
        };
        assert_eq!(Quota::of(50, 1), millis(5, 10));
        assert_eq!(Quota::of(10, 1), millis(1, 10));
        assert_eq!(Quota::of(2, 1), millis(1, 50));
        assert_eq!(Quota::of(2, 8), Quota { time: Duration::from_micros(1600), ..millis(0, 10) });
        assert_eq!(Quota::of(100, 4), millis(40, 10));
    }

    #[test]
    fn a_thread_that_is_none_is_refused_and_nothing_stays_limited() {
        let Ok(limit) = CpuLimit::of(std::process::id()) else { return };
        let limit = CpuLimit { group: limit.home.join("sterna-no-thread"), ..limit };
        assert!(limit.set(&[u32::MAX >> 2], 10).is_err());
        assert!(!limit.group.exists());
    }

    #[test]
    fn version_two_gets_a_threaded_group_and_its_own_files() {
        let folder = std::env::temp_dir().join(format!("sterna-cgroup-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let limit = CpuLimit::at(Version::Two, folder.clone(), 7);
        limit.set(&[41, 42], 25).unwrap();
        let read = |name: &str| fs::read_to_string(folder.join(name)).unwrap();
        assert_eq!(read("sterna-7/cgroup.type"), "threaded");
        assert_eq!(read("cgroup.subtree_control"), "+cpu");
        assert_eq!(read("sterna-7/cpu.max"), "5000 10000");
        assert_eq!(read("sterna-7/cgroup.threads"), "42");
        fs::write(folder.join("sterna-7/cpu.stat"), "usage_usec 9\nthrottled_usec 1500\n").unwrap();
        assert_eq!(limit.held_back().unwrap(), Duration::from_micros(1500));
        fs::remove_dir_all(folder).unwrap();
    }
}
