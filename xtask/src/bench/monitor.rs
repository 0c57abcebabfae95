//! A QEMU that migrates by itself, and its monitor.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::method::Kind;

/// How long QEMU may take to open a socket.
const START_LIMIT: Duration = Duration::from_secs(30);
/// The downtime that QEMU accepts, as Sterna does by default; QEMU's default too.
const DOWNTIME_LIMIT_MS: u32 = 300;

/// QEMU's word for a move that has ended well.
pub(crate) const COMPLETED: &str = "completed";
/// Our word, in the place of QEMU's, for one that had not ended within the limit.
pub(crate) const GIVEN_UP: &str = "given up";

/// How a migration ended.
#[derive(Debug)]
pub(crate) struct Ended {
    /// What `query-migrate` said last, or the status [`GIVEN_UP`].
    pub(crate) state: Value,
    /// By how many percent of their time the vCPUs were held back at most.
    pub(crate) throttle_percent: f64,
}

/// A QEMU with its monitor; killed on drop.
pub(crate) struct Qemu {
    child: Child,
    monitor: BufReader<UnixStream>,
}

impl Qemu {
    /// Takes a QEMU that was just started and opens its monitor at `socket`.
    pub(crate) fn new(child: Child, socket: &Path) -> Result<Self> {
        let monitor = BufReader::new(connect(socket)?);
        let mut this = Self { child, monitor };
        this.read()?;
        this.ask("qmp_capabilities", &json!({}))?;
        Ok(this)
    }

    /// Sets what both sides need, and lifts QEMU's cap on bandwidth, which would lose the
    /// comparison for a reason not its own.
    pub(crate) fn prepare(&mut self, kind: Kind) -> Result<()> {
        let capabilities: Vec<Value> = kind
            .capabilities()
            .iter()
            .map(|name| json!({ "capability": name, "state": true }))
            .collect();
        self.ask("migrate-set-capabilities", &json!({ "capabilities": capabilities }))?;
        let limits = json!({ "max-bandwidth": 0, "downtime-limit": DOWNTIME_LIMIT_MS });
        self.ask("migrate-set-parameters", &limits)?;
        self.ask("migrate-set-parameters", &kind.parameters())?;
        Ok(())
    }

    /// Waits for the end of a migration of this kind that began at `begin`, and gives up after
    /// `limit`. A post-copy is told to hand the guest over as soon as its first pass is over: all
    /// pages have been sent once then, and a further pass would send only what is written again.
    pub(crate) fn await_end(
        &mut self,
        kind: Kind,
        begin: Instant,
        limit: Duration,
    ) -> Result<Ended> {
        let mut asked = !kind.goes_first();
        let mut throttle_percent: f64 = 0.0;
        loop {
            let state = self.ask("query-migrate", &json!({}))?;
            let held_back = state["cpu-throttle-percentage"].as_f64().unwrap_or(0.0);
            throttle_percent = throttle_percent.max(held_back);
            let status = state["status"].as_str().unwrap_or_default();
            if matches!(status, COMPLETED | "failed" | "cancelled" | "postcopy-paused") {
                return Ok(Ended { state, throttle_percent });
            }
            if begin.elapsed() > limit {
                // A guest that has gone cannot be called back; all is killed soon anyway.
                let _cancelled = self.ask("migrate_cancel", &json!({}));
                return Ok(Ended { state: json!({ "status": GIVEN_UP }), throttle_percent });
            }
            // Dirty pages are gathered once when it begins, then after each pass.
            if !asked && state["ram"]["dirty-sync-count"].as_u64() >= Some(2) {
                self.ask("migrate-start-postcopy", &json!({}))?;
                asked = true;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub(crate) fn ask(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        let line = json!({ "execute": command, "arguments": arguments });
        writeln!(self.monitor.get_mut(), "{line}")?;
        loop {
            let mut answer = self.read()?;
            if let Some(error) = answer.get("error") {
                bail!("QEMU refuses {command}: {error}");
            }
            if answer.get("return").is_some() {
                return Ok(answer["return"].take());
            }
        }
    }

    fn read(&mut self) -> Result<Value> {
        let mut line = String::new();
        self.monitor.read_line(&mut line)?;
        serde_json::from_str(&line).context("QEMU's monitor is gone")
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        // Ended already is as good.
        let _killed = self.child.kill();
        let _status = self.child.wait();
    }
}

/// Connects to a socket that QEMU is about to open.
pub(crate) fn connect(socket: &Path) -> Result<UnixStream> {
    let deadline = Instant::now() + START_LIMIT;
    loop {
        match UnixStream::connect(socket) {
            Ok(stream) => return Ok(stream),
            Err(error) if Instant::now() > deadline => return Err(error.into()),
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}
