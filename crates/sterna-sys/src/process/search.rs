//! Processes by what they were started with.

use super::Process;
use procfs::process::{Process as Entry, all_processes};
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
        assert_eq!(pids(), []);
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
        assert_eq!(pids(), []);
    }
}
