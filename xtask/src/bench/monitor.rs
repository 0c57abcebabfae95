//! A QEMU that migrates by itself, and its monitor.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// After this time a migration that has not ended is given up: it never will.
const GIVE_UP: Duration = Duration::from_secs(60);
/// How long QEMU may take to open a socket.
const START_LIMIT: Duration = Duration::from_secs(30);

/// Connections of a migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Channels {
    /// QEMU's default.
    One,
    /// Multifd with two.
    Two,
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

    /// Lifts QEMU's cap on bandwidth, which would lose the comparison for a reason not its own.
    pub(crate) fn prepare(&mut self, channels: Channels) -> Result<()> {
        self.ask("migrate-set-parameters", &json!({ "max-bandwidth": 0 }))?;
        if channels == Channels::Two {
            let capability = json!({ "capability": "multifd", "state": true });
            self.ask("migrate-set-capabilities", &json!({ "capabilities": [capability] }))?;
            self.ask("migrate-set-parameters", &json!({ "multifd-channels": 2 }))?;
        }
        Ok(())
    }

    pub(crate) fn await_end(&mut self, begin: Instant) -> Result<Value> {
        loop {
            let state = self.ask("query-migrate", &json!({}))?;
            match state["status"].as_str() {
                Some("completed") => return Ok(state),
                Some("failed" | "cancelled") => bail!("QEMU's migration failed: {state}"),
                _ if begin.elapsed() > GIVE_UP => {
                    self.ask("migrate_cancel", &json!({}))?;
                    return Ok(json!({ "status": "given up" }));
                }
                _ => std::thread::sleep(Duration::from_millis(20)),
            }
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
