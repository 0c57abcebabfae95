//! Agents of a lab: started, killed, started again.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::os::unix::net::UnixStream;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use super::Lab;
use crate::net::Host;

/// How long an agent may take to listen; an emulated machine under load takes seconds.
const START_LIMIT: Duration = Duration::from_secs(60);
/// How long it may take to end when asked to.
const END_LIMIT: Duration = Duration::from_secs(10);

/// An agent's process.
#[derive(Debug)]
pub(super) struct RunningAgent {
    host: Host,
    child: Child,
}

impl RunningAgent {
    /// Ends the agent orderly; its guests run on.
    pub(super) fn end(mut self) {
        let id = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        // An agent that has ended already is as good.
        let _asked = id.map(|id| kill_process(id, Signal::TERM));
        let deadline = Instant::now() + END_LIMIT;
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(10));
        }
        let _killed = self.child.kill();
        let _status = self.child.wait();
    }
}

impl Lab {
    /// Starts a host's agent and waits until it listens.
    ///
    /// # Errors
    /// If it ends or does not come up, with the end of its log.
    pub fn start_agent(&mut self, host: Host) -> Result<()> {
        let folder = self.folder(host);
        fs::create_dir_all(&folder)?;
        let log = folder.join("agent.log");
        let log_file = OpenOptions::new().create(true).append(true).open(&log)?;
        let mut command = self.command_in(host, self.program(host))?;
        command
            .args(["agent", "--name", host.name(), "--listen", &self.address(host)])
            .arg("--state")
            .arg(folder.join("state"))
            .arg("--runtime")
            .arg(folder.join("run"))
            .arg("--identity")
            .arg(folder.join("identity"))
            .arg("--accept-peer-arguments")
            .args(&self.agent_options)
            .envs(self.environment.iter().filter(|one| one.0 == host).map(|one| (one.1, &one.2)))
            .stdin(Stdio::null())
            .stdout(log_file.try_clone()?)
            .stderr(log_file);
        let mut child = command.spawn().context("cannot start an agent")?;
        let socket = folder.join("run").join("agent.sock");
        let deadline = Instant::now() + START_LIMIT;
        while UnixStream::connect(&socket).is_err() {
            let ended = child.try_wait()?;
            if ended.is_some() || Instant::now() > deadline {
                let _killed = child.kill();
                bail!("the agent of {} did not start: {}", host.name(), tail(&log));
            }
            thread::sleep(Duration::from_millis(20));
        }
        self.agents.push(RunningAgent { host, child });
        Ok(())
    }

    /// Sets a variable in the environment of a host's agents that are started from now on.
    pub fn set_environment(&mut self, host: Host, name: &'static str, value: impl Into<OsString>) {
        self.environment.push((host, name, value.into()));
    }

    /// Ends a host's agent as its unit does; its guests run on.
    ///
    /// # Errors
    /// If it does not run.
    pub fn end_agent(&mut self, host: Host) -> Result<()> {
        self.take_agent(host)?.end();
        Ok(())
    }

    fn take_agent(&mut self, host: Host) -> Result<RunningAgent> {
        let at = self.agents.iter().position(|agent| agent.host == host);
        Ok(self.agents.swap_remove(at.context("the agent does not run")?))
    }

    /// Kills a host's agent without warning, as `kill -9` does.
    ///
    /// # Errors
    /// If it does not run.
    pub fn kill_agent(&mut self, host: Host) -> Result<()> {
        let mut agent = self.take_agent(host)?;
        agent.child.kill()?;
        agent.child.wait()?;
        Ok(())
    }

    /// Process id of a host's agent.
    ///
    /// # Errors
    /// If it does not run.
    pub fn agent_pid(&self, host: Host) -> Result<u32> {
        let agent = self.agents.iter().find(|agent| agent.host == host);
        Ok(agent.context("the agent does not run")?.child.id())
    }
}

fn tail(log: &std::path::Path) -> String {
    let read = || -> std::io::Result<String> {
        let text = std::io::read_to_string(File::open(log)?)?;
        let lines: Vec<&str> = text.lines().collect();
        Ok(lines[lines.len().saturating_sub(8)..].join("\n"))
    };
    read().unwrap_or_else(|error| error.to_string())
}
