//! A group of its own for a process, in which it is from its first instruction.
//!
//! Names are their makers' own: whoever makes a group under a name that is in use by nobody gets it, and whoever knows
//! the name finds it. A group is removed when nothing runs in it, and never before: nothing here ends a process.

use super::hierarchy::{Place, Version, gives, write};
use rustix::fs::{Access, access, getxattr};
use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Name of the leaf of v2 in which whoever makes groups is, beside them.
pub const LEAF: &str = "agent";

/// What marks a group of v2 as its processes' own to divide: systemd writes these for `Delegate=yes`.
const DELEGATED: [&str; 2] = ["trusted.delegate", "user.delegate"];

/// How long the kernel may count a process that has ended as one of its group.
const GONE_MAX: Duration = Duration::from_secs(2);
const GONE_INTERVAL: Duration = Duration::from_millis(5);

/// Why a process can make no groups.
#[derive(Debug, thiserror::Error)]
pub enum NoGroups {
    /// There is no hierarchy for it.
    #[error("no cgroup hierarchy with a pids controller is mounted")]
    NotMounted,
    /// Its group is somebody else's to divide, or it is not in a leaf of it.
    #[error("{group} is no group named {LEAF} below one that is delegated")]
    NotDelegated {
        /// Where the process is.
        group: PathBuf,
    },
    /// Groups below could not be bounded.
    #[error("{group} has no pids controller to give")]
    NoController {
        /// Where groups would be made.
        group: PathBuf,
    },
    /// The kernel refuses.
    #[error("{group} cannot be written")]
    Refused {
        /// Where groups would be made.
        group: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Where the process is cannot be read.
    #[error("cannot see in which cgroups process {pid} is")]
    Unknown {
        /// The process.
        pid: u32,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// What a group is held to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Processes and threads at most.
    pub tasks_max: u32,
    /// For how many busy threads it counts where processors are short.
    pub weight: u32,
}

/// Where a process makes groups: in one hierarchy or more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parents(Vec<Parent>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Parent {
    version: Version,
    folder: PathBuf,
    /// Where in it whoever makes groups is, if it must not be where they are made.
    leaf: Option<PathBuf>,
}

/// A group of one name in each hierarchy, made or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Part {
    parent: Parent,
    folder: PathBuf,
}

impl Parents {
    /// Where process `pid` can make groups. Changes nothing.
    ///
    /// # Errors
    /// When it can in no hierarchy that counts processes.
    pub fn of(pid: u32) -> Result<Self, NoGroups> {
        let find = |controller| {
            Place::of(pid, controller).map_err(|source| NoGroups::Unknown { pid, source })
        };
        let counting = Parent::for_groups_of(&find("pids")?.ok_or(NoGroups::NotMounted)?)?;
        let mut parents = vec![counting];
        // In v1 it may be in a hierarchy of its own; there a group keeps together what limits its threads.
        let scheduling = find("cpu")?.filter(|place| place.version == Version::One);
        if let Some(Ok(parent)) = scheduling.as_ref().map(Parent::for_groups_of)
            && !parents.contains(&parent)
        {
            parents.push(parent);
        }
        Ok(Self(parents))
    }

    /// The group of this name.
    #[must_use]
    pub fn group(&self, name: &str) -> Group {
        let part =
            |parent: &Parent| Part { parent: parent.clone(), folder: parent.folder.join(name) };
        Group(self.0.iter().map(part).collect())
    }

    /// The groups that exist and whose names begin so.
    ///
    /// # Errors
    /// When the kernel does not list them.
    pub fn named(&self, prefix: &str) -> io::Result<Vec<Group>> {
        let mut names = std::collections::BTreeSet::new();
        for parent in &self.0 {
            for entry in fs::read_dir(&parent.folder)? {
                let name = entry?.file_name();
                names.extend(
                    name.to_str().filter(|name| name.starts_with(prefix)).map(String::from),
                );
            }
        }
        Ok(names.iter().map(|name| self.group(name)).collect())
    }
}

impl Parent {
    fn for_groups_of(place: &Place) -> Result<Self, NoGroups> {
        let Place { version, mount, home } = place;
        let (folder, leaf) = match version {
            Version::One => (home.clone(), None),
            // Of all groups only the root of the whole hierarchy has no type; that of a container has.
            Version::Two if home == mount && !home.join("cgroup.type").exists() => {
                (home.clone(), None)
            }
            Version::Two => match home.parent() {
                Some(parent) if home.ends_with(LEAF) && is_delegated(parent) => {
                    (parent.to_owned(), Some(home.clone()))
                }
                _ => return Err(NoGroups::NotDelegated { group: home.clone() }),
            },
        };
        if *version == Version::Two && !gives(&folder, "pids") {
            return Err(NoGroups::NoController { group: folder });
        }
        if let Err(error) = access(&folder, Access::WRITE_OK) {
            return Err(NoGroups::Refused { group: folder, source: error.into() });
        }
        Ok(Self { version: *version, folder, leaf })
    }

    /// Lets groups below have what bounds them.
    fn enable(&self) -> io::Result<()> {
        if self.version == Version::One {
            return Ok(());
        }
        let control = self.folder.join("cgroup.subtree_control");
        write(&control, &"+pids")?;
        // A host that has none cannot limit threads either, wherever they are.
        if !gives(&self.folder, "cpu") || write(&control, &"+cpu").is_err() {
            return Ok(());
        }
        let Some(leaf) = &self.leaf else { return Ok(()) };
        // As many threads as can be busy at once: as if there were no groups.
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        weigh(self.version, leaf, u32::try_from(processors).unwrap_or(u32::MAX))
    }
}

fn is_delegated(group: &Path) -> bool {
    let says_so = |name: &str| {
        let mut value = [0; 2];
        getxattr(group, name, &mut value).is_ok_and(|length| value[..length] == *b"1")
    };
    DELEGATED.into_iter().any(says_so)
}

/// Sets for how many busy threads a group counts, if the hierarchy counts that.
fn weigh(version: Version, group: &Path, threads: u32) -> io::Result<()> {
    let (file, value) = match version {
        Version::One => ("cpu.shares", threads.saturating_mul(1024).clamp(2, 1 << 18)),
        Version::Two => ("cpu.weight", threads.saturating_mul(100).clamp(1, 10_000)),
    };
    let file = group.join(file);
    if file.exists() { write(&file, &value) } else { Ok(()) }
}

impl Group {
    /// Makes the group, and returns by what a child enters it: see [`crate::process::spawn_detached`]. What
    /// is left over under its name is removed first.
    ///
    /// # Errors
    /// When something runs in it already, or the kernel refuses; nothing is left of it then that was not there.
    pub fn make(&self, bounds: Bounds) -> io::Result<Vec<OwnedFd>> {
        self.remove()?;
        let made: io::Result<Vec<_>> = self.0.iter().map(|part| part.make(bounds)).collect();
        made.inspect_err(|_| {
            // The error that is told is the first one.
            let _ = self.remove();
        })
    }

    /// Whether a process is in it.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn has(&self, pid: u32) -> io::Result<bool> {
        let pid = pid.to_string();
        for part in &self.0 {
            let pids = fs::read_to_string(part.folder.join("cgroup.procs"))?;
            if !pids.lines().any(|line| line == pid) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Takes process `pid` in if it is where groups are made, as one that was started when there were none: as long as
    /// something is there, no group below can be bounded. Bounds it, if it is or was in this group, as far as that can
    /// be done now. Does nothing to a process that is anywhere else, nor in v1, which does not ask for it.
    ///
    /// # Errors
    /// When the kernel refuses to take it in.
    pub fn adopt(&self, pid: u32, bounds: Bounds) -> io::Result<()> {
        let Some(place) = Place::of(pid, "pids")? else { return Ok(()) };
        for part in self.0.iter().filter(|part| part.parent.leaf.is_some()) {
            if place.home == part.parent.folder {
                part.remove()?;
                fs::create_dir(&part.folder)?;
                write(&part.folder.join("cgroup.procs"), &pid)?;
            }
            if [&part.parent.folder, &part.folder].contains(&&place.home) {
                // As long as another is there that will be taken in as well it cannot.
                let _ = part.parent.enable().and_then(|()| part.bound(bounds));
            }
        }
        Ok(())
    }

    /// Removes it, with the groups of limited threads below it. Harmless when there is none.
    ///
    /// # Errors
    /// With [`ErrorKind::ResourceBusy`] when something runs in it; it stays then.
    pub fn remove(&self) -> io::Result<()> {
        let removed: Vec<_> = self.0.iter().map(Part::remove).collect();
        removed.into_iter().collect()
    }

    /// Its folders that exist.
    #[must_use]
    pub fn folders(&self) -> Vec<PathBuf> {
        let folders = self.0.iter().map(|part| part.folder.clone());
        folders.filter(|folder| folder.exists()).collect()
    }
}

impl Part {
    fn make(&self, bounds: Bounds) -> io::Result<OwnedFd> {
        self.parent.enable()?;
        fs::create_dir(&self.folder)?;
        self.bound(bounds)?;
        Ok(OpenOptions::new().write(true).open(self.folder.join("cgroup.procs"))?.into())
    }

    fn bound(&self, bounds: Bounds) -> io::Result<()> {
        let limit = self.folder.join("pids.max");
        // In v1 another hierarchy may count.
        if self.parent.version == Version::Two || limit.exists() {
            write(&limit, &bounds.tasks_max)?;
        }
        weigh(self.parent.version, &self.folder, bounds.weight)
    }

    fn remove(&self) -> io::Result<()> {
        let deadline = Instant::now() + GONE_MAX;
        loop {
            match self.try_remove() {
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
                Err(error) if error.kind() == ErrorKind::ResourceBusy => {
                    if self.has_threads() || Instant::now() > deadline {
                        return Err(error);
                    }
                }
                other => return other,
            }
            std::thread::sleep(GONE_INTERVAL);
        }
    }

    fn try_remove(&self) -> io::Result<()> {
        self.below()?.iter().try_for_each(fs::remove_dir)?;
        fs::remove_dir(&self.folder)
    }

    /// The groups below it, which are of limited threads.
    fn below(&self) -> io::Result<Vec<PathBuf>> {
        let mut below = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                below.push(entry.path());
            }
        }
        Ok(below)
    }

    /// Whether any thread runs in it: one that has ended is not listed.
    fn has_threads(&self) -> bool {
        let file = match self.parent.version {
            Version::One => "tasks",
            Version::Two => "cgroup.threads",
        };
        let lists_any = |group: &PathBuf| {
            fs::read_to_string(group.join(file)).is_ok_and(|threads| !threads.is_empty())
        };
        let below = self.below().unwrap_or_default();
        below.iter().chain([&self.folder]).any(lists_any)
    }
}

#[cfg(test)]
mod tests;
