//! What is done to hosts: processes killed and stopped, and a move held where it hurts most.

use std::time::{Duration, Instant};

use anyhow::Result;
use sterna_testkit::lab::{Stopped, kill};
use sterna_testkit::net::Host;

use super::{GUEST, PRE_COPY, Underway, World, until};

/// After the state was saved it is sent, with the last pages. Hashing RAM, which follows, takes many
/// times as long.
const STATE_SENT: Duration = Duration::from_millis(30);
/// Within this time a destination has hashed RAM and loaded the state, or was never told to.
const HASHED: Duration = Duration::from_secs(10);
/// After the state was read QEMU says so.
const LOAD_SAID: Duration = Duration::from_millis(100);
/// How often a move is begun anew that was over before it could be held.
const TRIES: u32 = 3;

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
            let saved = self.lab.has_transferred(from, GUEST, limit)?;
            std::thread::sleep(STATE_SENT);
            let agent = Stopped::stop(self.lab.agent_pid(from)?)?;
            let loaded = saved && self.lab.has_transferred(to, GUEST, Instant::now() + HASHED)?;
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
