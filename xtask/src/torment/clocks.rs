//! Clocks of hosts, which are all one machine: each agent is told a time of its own by libfaketime.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use sterna_testkit::lab::Lab;
use sterna_testkit::net::Host;

use crate::packages::Apt;

/// What comes with the package `faketime`, for programs with threads.
const LIBRARY: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";

/// The clock of each host.
pub(super) struct Clocks {
    folder: PathBuf,
}

impl Clocks {
    /// Starts all agents of a lab anew, each with a clock that can be set.
    pub(super) fn give(lab: &mut Lab) -> Result<Self> {
        if !fs::exists(LIBRARY)? {
            println!("installing faketime");
            Apt::new()?.install(&["faketime"], None)?;
        }
        let this = Self { folder: lab.folder(Host::A).join("clocks") };
        fs::create_dir_all(&this.folder)?;
        for host in lab.hosts().iter().copied() {
            this.set(host, "+0")?;
            lab.set_environment(host, "LD_PRELOAD", LIBRARY);
            lab.set_environment(host, "FAKETIME_TIMESTAMP_FILE", this.file(host));
            // What is set holds at once, and nothing but the time of day is.
            lab.set_environment(host, "FAKETIME_NO_CACHE", "1");
            lab.set_environment(host, "FAKETIME_DONT_FAKE_MONOTONIC", "1");
            lab.set_environment(host, "NO_FAKE_STAT", "1");
            lab.kill_agent(host)?;
            lab.start_agent(host)?;
        }
        Ok(this)
    }

    /// Sets a clock, by how far it is from the right time.
    pub(super) fn set(&self, host: Host, from_right: &str) -> Result<()> {
        // Whoever reads it meanwhile reads one or the other.
        let new = self.folder.join("new");
        fs::write(&new, from_right)?;
        fs::rename(new, self.file(host)).context("a clock cannot be set")
    }

    fn file(&self, host: Host) -> PathBuf {
        self.folder.join(host.name())
    }
}
