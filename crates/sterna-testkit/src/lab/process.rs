//! Processes of a lab's hosts: which hypervisors there are, and such as stand still or are killed.

use std::fs;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};

use super::{Lab, text};
use crate::net::Host;

/// The first 15 characters of QEMU's name, which is what the kernel keeps.
const QEMU_NAME: &str = "qemu-system-x86";
/// How often is looked whether the device state has been written or read.
const LOOK_INTERVAL: Duration = Duration::from_micros(500);

/// A process that stands still until this is dropped.
#[derive(Debug)]
pub struct Stopped(Pid);

impl Stopped {
    /// Stops a process.
    ///
    /// # Errors
    /// If there is none of this id.
    pub fn stop(pid: u32) -> Result<Self> {
        let pid = process(pid)?;
        kill_process(pid, Signal::STOP)?;
        Ok(Self(pid))
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // One that was killed meanwhile needs no leave to go on.
        let _continued = kill_process(self.0, Signal::CONT);
    }
}

/// Kills a process as `kill -9` does.
///
/// # Errors
/// If there is none of this id.
pub fn kill(pid: u32) -> Result<()> {
    Ok(kill_process(process(pid)?, Signal::KILL)?)
}

fn process(pid: u32) -> Result<Pid> {
    i32::try_from(pid).ok().and_then(Pid::from_raw).context("no process id")
}

impl Lab {
    /// Process ids of the hypervisors that exist on a host, whatever its agent says.
    ///
    /// # Errors
    /// If the host is not in a namespace.
    pub fn hypervisors(&self, host: Host) -> Result<Vec<u32>> {
        let name = self.topology()?.host(host)?.name();
        let output = Command::new("ip").args(["netns", "pids", name]).output()?;
        let pids = String::from_utf8(output.stdout)?;
        let is_qemu = |pid: &u32| {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            name.trim_end() == QEMU_NAME && !is_zombie(*pid)
        };
        Ok(pids.lines().filter_map(|line| line.trim().parse().ok()).filter(is_qemu).collect())
    }

    /// Whether a host's hypervisor has written or read its device state to the end before a time:
    /// the socket for it is there and then is not.
    ///
    /// # Errors
    /// If the host's agent does not run.
    pub fn has_transferred(&self, host: Host, guest: &str, until: Instant) -> Result<bool> {
        let agent = self.agent_pid(host)?;
        let socket = self.folder(host).join("run/guests").join(guest).join("transfer.sock");
        let socket = text(&socket)?;
        let is_there = || -> Result<bool> {
            Ok(fs::read_to_string(format!("/proc/{agent}/net/unix"))?.contains(socket))
        };
        for wanted in [true, false] {
            while is_there()? != wanted {
                if Instant::now() > until {
                    return Ok(false);
                }
                thread::sleep(LOOK_INTERVAL);
            }
        }
        Ok(true)
    }
}

fn is_zombie(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    status.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('Z'))
}
