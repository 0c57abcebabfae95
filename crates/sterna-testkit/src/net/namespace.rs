//! One network namespace: made, entered, used by programs, removed with what runs in it.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, anyhow, ensure};
use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Where the `ip` program keeps the names of namespaces.
const NAMES: &str = "/run/netns";

/// `ip netns exec` mounts a `/sys` of the namespace's own, which hides the cgroups of the host's:
/// brings back what has the controllers `cpu` and `pids`, v1 or else v2, and becomes the program.
const WITH_CGROUPS: &str = "at=/sys/fs/cgroup; mount -t tmpfs none $at; mkdir $at/cpu $at/pids; \
     if mount -t cgroup -o cpu none $at/cpu 2>/dev/null; \
     then mount -t cgroup -o pids none $at/pids 2>/dev/null; \
     else umount $at; mount -t cgroup2 none $at; fi; exec \"$0\" \"$@\"";

/// A named network namespace, removed on drop together with the processes in it.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

/// Why this process cannot have network namespaces.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Why {
    /// An ordinary user.
    #[error("network namespaces need root")]
    NotRoot,
    /// A program is missing.
    #[error("the program {0} is missing (package iproute2)")]
    NoProgram(&'static str),
    /// The kernel or a container's rules refuse.
    #[error("a network namespace was refused: {0}")]
    Refused(String),
}

/// Finds out whether this process can have network namespaces, by making one.
///
/// # Errors
/// Why not, for a test to print when it skips itself.
pub fn namespaces_allowed() -> Result<(), Why> {
    if !rustix::process::geteuid().is_root() {
        return Err(Why::NotRoot);
    }
    for program in ["ip", "tc"] {
        if Command::new(program).arg("-Version").output().is_err() {
            return Err(Why::NoProgram(program));
        }
    }
    let name = format!("sterna-probe-{}", std::process::id());
    let tried = Namespace::create(&name).map(drop);
    tried.map_err(|error| Why::Refused(format!("{error:#}")))
}

impl Namespace {
    /// Makes a namespace with its loopback up and without IPv6, whose neighbour discovery would
    /// only add packets that nobody asked for.
    ///
    /// # Errors
    /// If it cannot be made or the name is taken.
    pub fn create(name: &str) -> Result<Self> {
        run(Command::new("ip").args(["netns", "add", name]))?;
        let namespace = Self { name: name.to_owned() };
        namespace.run_inside(disable_ipv6)??;
        namespace.ip(&["link", "set", "dev", "lo", "up"])?;
        Ok(namespace)
    }

    /// Removes the namespaces `<prefix>-*` of an earlier run and ends the processes in them.
    ///
    /// # Errors
    /// If one cannot be removed.
    pub(super) fn remove_all(prefix: &str) -> Result<()> {
        let Ok(entries) = fs::read_dir(NAMES) else { return Ok(()) };
        for entry in entries {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if name.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('-')) {
                remove(&name)?;
            }
        }
        Ok(())
    }

    /// Returns the namespace's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns a command that will run a program in this namespace.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, "sh", "-c", WITH_CGROUPS, program]);
        command
    }

    /// Runs some work in a thread of its own that has entered this namespace. Sockets opened there
    /// stay in the namespace, whoever uses them later.
    ///
    /// # Errors
    /// If the namespace cannot be entered.
    pub fn run_inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let path = Path::new(NAMES).join(&self.name);
        let enter = || -> io::Result<()> {
            let file = File::open(&path)?;
            Ok(move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?)
        };
        let inside = thread::scope(|scope| scope.spawn(|| enter().map(|()| work())).join());
        let entered = inside.map_err(|_| anyhow!("the work in {} panicked", self.name))?;
        entered.with_context(|| format!("cannot enter the network namespace {}", self.name))
    }

    /// Runs `ip` on this namespace.
    ///
    /// # Errors
    /// What `ip` says.
    pub fn ip(&self, arguments: &[&str]) -> Result<()> {
        run(Command::new("ip").args(["-n", &self.name]).args(arguments))
    }

    /// Runs `tc` on this namespace.
    ///
    /// # Errors
    /// What `tc` says.
    pub fn tc(&self, arguments: &[&str]) -> Result<()> {
        run(Command::new("tc").args(["-n", &self.name]).args(arguments))
    }

    /// Makes a pair of virtual interfaces, one end here, the other in another namespace.
    ///
    /// # Errors
    /// If a name is taken.
    pub fn veth(&self, name: &str, other: &Self, other_name: &str) -> Result<()> {
        let peer = ["peer", "name", other_name, "netns", &other.name];
        let mut arguments = vec!["link", "add", name, "type", "veth"];
        arguments.extend(peer);
        self.ip(&arguments)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.name) {
            eprintln!("warning: {error:#}");
        }
    }
}

/// Ends what runs in a namespace and removes it. Its devices go with it.
fn remove(name: &str) -> Result<()> {
    let output = Command::new("ip").args(["netns", "pids", name]).output();
    let output = output.context("cannot start ip")?;
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let pid = line.trim().parse().ok().and_then(Pid::from_raw);
        if let Some(pid) = pid {
            // It may have ended by itself in between, which is as good.
            let _ended = kill_process(pid, Signal::KILL);
        }
    }
    run(Command::new("ip").args(["netns", "delete", name]))
}

fn disable_ipv6() -> io::Result<()> {
    for scope in ["all", "default"] {
        let path = format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6");
        match fs::write(path, "1") {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            outcome => outcome?,
        }
    }
    Ok(())
}

/// Runs a program and returns what it complains of as an error.
fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("cannot start {command:?}"))?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}", complaint.trim());
    Ok(())
}
