//! What is done to hosts: processes killed and stopped, and a move held where it hurts most.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use sterna_testkit::net::Host;

use super::{GUEST, Underway, World, until};

/// How often is looked whether the device state has been loaded.
const LOAD_INTERVAL: Duration = Duration::from_micros(500);
/// After the state was read QEMU says so. Hashing RAM, which follows, takes many times as long.
const LOAD_SAID: Duration = Duration::from_millis(30);
/// How often a move is begun anew that was over before it could be held.
const TRIES: u32 = 3;

/// A process that stands still until this is dropped.
pub(crate) struct Stopped(Pid);

impl Stopped {
    /// Stops a process.
    pub(crate) fn stop(pid: u32) -> Result<Self> {
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
pub(crate) fn kill(pid: u32) -> Result<()> {
    Ok(kill_process(process(pid)?, Signal::KILL)?)
}

fn process(pid: u32) -> Result<Pid> {
    i32::try_from(pid).ok().and_then(Pid::from_raw).context("no process id")
}

impl World {
    /// Kills the hypervisor of the guest on a host; returns once it is gone.
    pub(crate) fn kill_qemu(&self, host: Host) -> Result<()> {
        let pid = self.qemu(host)?;
        kill(pid)?;
        until("the end of a hypervisor", || Ok((!self.qemus(host)?.contains(&pid)).then_some(())))
    }

    /// Begins a move and holds it between `Commit` and `Active`: the source has given the guest
    /// away, the destination has it on record, and its hypervisor, stopped just before, does not
    /// let it run until the returned value is dropped.
    ///
    /// The guest may have changed hosts for that: [`Underway::from`] says where it was.
    pub(crate) fn hold_at_commitment(&mut self) -> Result<(Underway, Stopped)> {
        let (mut from, mut to) = (Host::A, Host::B);
        for _ in 0..TRIES {
            let underway = self.begin(from, to, &["--verify"])?;
            let qemu = self.qemu(to)?;
            self.state_is_loaded(to)?;
            let stopped = Stopped::stop(qemu)?;
            if self.comes_to(&underway, "committing").is_ok() {
                return Ok((underway, stopped));
            }
            drop(stopped);
            underway.moved()?;
            (from, to) = (to, from);
        }
        anyhow::bail!("none of {TRIES} moves could be held")
    }

    /// Returns when the destination's hypervisor has read the device state to its end: it then
    /// has closed the socket on which it came.
    fn state_is_loaded(&self, host: Host) -> Result<()> {
        let agent = self.lab.agent_pid(host)?;
        let socket = self.lab.folder(host).join("run/guests").join(GUEST).join("transfer.sock");
        let socket = socket.to_str().context("a path that is no text")?;
        let is_there = || -> Result<bool> {
            Ok(fs::read_to_string(format!("/proc/{agent}/net/unix"))?.contains(socket))
        };
        until("a hypervisor that waits for its state", || Ok(is_there()?.then_some(())))?;
        let deadline = std::time::Instant::now() + super::LIMIT;
        while is_there()? {
            ensure!(std::time::Instant::now() < deadline, "no device state came");
            std::thread::sleep(LOAD_INTERVAL);
        }
        std::thread::sleep(LOAD_SAID);
        Ok(())
    }
}
