//! What is done to hosts: processes killed and stopped, and a move held where it hurts most.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};
use sterna_testkit::net::Host;

use super::{GUEST, PRE_COPY, Underway, World, until};

/// How often is looked whether the device state has been written or read.
const LOOK_INTERVAL: Duration = Duration::from_micros(500);
/// After the state was saved it is sent, with the last pages. Hashing RAM, which follows, takes many
/// times as long.
const STATE_SENT: Duration = Duration::from_millis(30);
/// Within this time a destination has hashed RAM and loaded the state, or was never told to.
const HASHED: Duration = Duration::from_secs(10);
/// After the state was read QEMU says so.
const LOAD_SAID: Duration = Duration::from_millis(100);
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
    /// For that the source's agent stands still while it hashes RAM, until the destination, which
    /// has hashed too, has loaded the state and waits for the word.
    ///
    /// The guest may have changed hosts meanwhile: [`Underway::from`] says where it was.
    pub(crate) fn hold_at_commitment(&mut self) -> Result<(Underway, Stopped)> {
        let (mut from, mut to) = (Host::A, Host::B);
        for _ in 0..TRIES {
            let underway = self.begin(from, to, &[&PRE_COPY[..], &["--verify"]].concat())?;
            let qemu = self.qemu(to)?;
            let limit = Instant::now() + super::LIMIT;
            let saved = self.has_transferred(from, limit)?;
            std::thread::sleep(STATE_SENT);
            let agent = Stopped::stop(self.lab.agent_pid(from)?)?;
            let loaded = saved && self.has_transferred(to, Instant::now() + HASHED)?;
            std::thread::sleep(LOAD_SAID);
            let stopped = Stopped::stop(qemu)?;
            drop(agent);
            if loaded && self.is_committing(&underway)? {
                return Ok((underway, stopped));
            }
            drop(stopped);
            underway.moved()?;
            (from, to) = (to, from);
        }
        anyhow::bail!("none of {TRIES} moves could be held")
    }

    /// Whether a host's hypervisor has written or read its device state to the end before a time:
    /// the socket for it is there and then is not.
    fn has_transferred(&self, host: Host, until: Instant) -> Result<bool> {
        let agent = self.lab.agent_pid(host)?;
        let socket = self.lab.folder(host).join("run/guests").join(GUEST).join("transfer.sock");
        let socket = socket.to_str().context("a path that is no text")?;
        let is_there = || -> Result<bool> {
            Ok(fs::read_to_string(format!("/proc/{agent}/net/unix"))?.contains(socket))
        };
        for wanted in [true, false] {
            while is_there()? != wanted {
                if Instant::now() > until {
                    return Ok(false);
                }
                std::thread::sleep(LOOK_INTERVAL);
            }
        }
        Ok(true)
    }

    /// Waits until a move is at its commitment; `false` if it is over instead.
    fn is_committing(&self, underway: &Underway) -> Result<bool> {
        until("the stage committing, or the end", || {
            let shown = self.show(underway)?;
            if shown["progress"]["stage"] == "committing" {
                return Ok(Some(true));
            }
            Ok((shown["state"] == "ended").then_some(false))
        })
    }
}
