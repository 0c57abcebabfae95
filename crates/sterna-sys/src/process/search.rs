//! Processes by what they were started with, and whose they are.

use super::Process;
use procfs::process::{Process as Entry, all_processes};
use std::collections::BTreeSet;
use std::io;

/// All processes that have an argument in which `text` occurs. Those that end meanwhile, or that nobody else may look
/// into, are not among them.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn with_argument(text: &str) -> io::Result<Vec<Process>> {
    let has = |pid: i32| {
        let words = Entry::new(pid).and_then(|entry| entry.cmdline());
        words.is_ok_and(|words| words.iter().any(|word| word.contains(text)))
    };
    let entries = all_processes().map_err(io::Error::other)?;
    let mut found = Vec::new();
    for pid in entries.filter_map(Result::ok).map(|entry| entry.pid).filter(|pid| has(*pid)) {
        let process = u32::try_from(pid).ok().and_then(|pid| Process::open(pid).ok());
        // Asked again, as the id may have become another's before it was opened.
        found.extend(process.filter(|_| has(pid)));
    }
    Ok(found)
}

/// The ids of all users and groups that processes have now, by whatever right.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn users() -> io::Result<BTreeSet<u32>> {
    let entries = all_processes().map_err(io::Error::other)?;
    // One that ends meanwhile has none.
    let statuses = entries.filter_map(Result::ok).filter_map(|entry| entry.status().ok());
    let ids = |status: procfs::process::Status| {
        let users = [status.ruid, status.euid, status.suid, status.fuid];
        let groups = [status.rgid, status.egid, status.sgid, status.fgid];
        users.into_iter().chain(groups).chain(status.groups).collect::<Vec<_>>()
    };
    Ok(statuses.flat_map(ids).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    #[test]
    fn a_process_is_found_by_what_it_was_started_with_while_it_runs() {
        let mark = format!("sterna-test-{}", std::process::id());
        let pids =
            || -> Vec<u32> { with_argument(&mark).unwrap().iter().map(Process::pid).collect() };
        assert!(pids().is_empty());
        let script = format!("read line # {mark}");
        let mut child =
            Command::new("sh").args(["-c", &script]).stdin(Stdio::piped()).spawn().unwrap();
        // A new process has its arguments a moment after its parent goes on.
        let deadline = Instant::now() + Duration::from_secs(10);
        while pids() != [child.id()] {
            assert!(Instant::now() < deadline, "{:?}", pids());
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(pids().is_empty());
    }

    #[test]
    fn a_user_is_in_use_for_as_long_as_a_process_is_its_own() {
        use std::os::unix::process::CommandExt;
        const USER: u32 = 61_001;
        if !rustix::process::geteuid().is_root() {
            return eprintln!("skipped: only root changes users");
        }
        assert!(users().unwrap().contains(&0) && !users().unwrap().contains(&USER));
        let mut child = Command::new("sleep").arg("1000").uid(USER).spawn().unwrap();
        assert!(users().unwrap().contains(&USER));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!users().unwrap().contains(&USER));
    }
}
