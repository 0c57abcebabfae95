//! What processes use: processor time, and the memory they have resident at most.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};

/// How often resident memory is looked at.
const INTERVAL: Duration = Duration::from_millis(20);

/// Watches processes until it is asked.
pub(crate) struct Usage {
    pids: Vec<u32>,
    ticks_before: u64,
    stop: Arc<AtomicBool>,
    largest: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl Usage {
    pub(crate) fn of(pids: &[u32]) -> Result<Self> {
        let ticks_before = ticks(pids)?;
        let stop = Arc::new(AtomicBool::new(false));
        let largest = Arc::new(AtomicU64::new(0));
        let (stopped, seen, watched) = (Arc::clone(&stop), Arc::clone(&largest), pids.to_vec());
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Acquire) {
                for pid in &watched {
                    seen.fetch_max(resident(*pid).unwrap_or(0), Ordering::AcqRel);
                }
                thread::sleep(INTERVAL);
            }
        });
        Ok(Self { pids: pids.to_vec(), ticks_before, stop, largest, thread })
    }

    /// Processor seconds of all processes together, and the bytes that the largest had resident.
    pub(crate) fn finish(self) -> Result<(f64, f64)> {
        self.stop.store(true, Ordering::Release);
        // A thread that panicked has seen less; the figure then is what it saw.
        let _joined = self.thread.join();
        let used = ticks(&self.pids)?.saturating_sub(self.ticks_before);
        let per_second = rustix::param::clock_ticks_per_second();
        let bytes = self.largest.load(Ordering::Acquire);
        Ok((as_float(used) / as_float(per_second), as_float(bytes)))
    }
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
pub(crate) fn as_float(count: u64) -> f64 {
    count as f64
}

fn ticks(pids: &[u32]) -> Result<u64> {
    pids.iter().map(|pid| process_ticks(*pid)).sum()
}

/// User and system time of a process, in clock ticks.
fn process_ticks(pid: u32) -> Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name, in parentheses, may contain anything; the fields after it are numbers.
    let (_, fields) = stat.rsplit_once(')').context("a process has a name")?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let field = |number: usize| -> Result<u64> {
        Ok(fields.get(number).context("a process has times")?.parse()?)
    };
    Ok(field(11)? + field(12)?)
}

/// Resident memory of a process in bytes.
fn resident(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_and_memory_of_this_process_are_seen() {
        let usage = Usage::of(&[std::process::id()]).unwrap();
        let before = process_ticks(std::process::id()).unwrap();
        while process_ticks(std::process::id()).unwrap() < before + 2 {}
        thread::sleep(INTERVAL * 3);
        let (seconds, bytes) = usage.finish().unwrap();
        assert!(seconds > 0.0 && bytes > 100_000.0, "{seconds} s, {bytes} bytes");
    }
}
