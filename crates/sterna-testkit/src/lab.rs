//! Hosts with agents, as operators have them: everything goes through the `sterna` program.
//!
//! A lab has a host `a`, a host `b` and a client outside, each in a network namespace (see
//! [`crate::net`]), or, where namespaces are not allowed, two agents on loopback without a network
//! for guests. It ends its guests and agents on drop, by the process ids it started or was told.

mod agent;
mod guest;
mod process;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use sterna_core::receipt::Receipt;

use crate::net::{Host, LinkRate, Topology, namespaces_allowed};
use agent::RunningAgent;

pub use guest::{Following, GUEST_ADDRESS, GuestPlan, guest_pid, guest_state};
pub use process::{Stopped, kill};

/// Where the hosts are.
#[derive(Debug)]
pub enum Place {
    /// In namespaces, joined by a link of a given rate.
    Namespaces(Topology),
    /// On loopback, with no network for guests.
    Loopback,
}

/// How many hosts a lab has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hosts {
    /// A and B.
    Two,
    /// C, too.
    Three,
}

/// Hosts with agents.
#[derive(Debug)]
pub struct Lab {
    /// Where the hosts are.
    pub place: Place,
    hosts: &'static [Host],
    program: PathBuf,
    /// Hosts that have another build of the program.
    others: BTreeMap<Host, PathBuf>,
    folder: PathBuf,
    agent_options: Vec<String>,
    environment: Vec<(Host, &'static str, OsString)>,
    agents: Vec<RunningAgent>,
}

/// How a `sterna migrate` ended.
#[derive(Debug)]
pub struct Migrated {
    /// Its exit code.
    pub exit: Option<i32>,
    /// The receipt, if it printed one.
    pub receipt: Option<Receipt>,
    /// The receipt as it was printed.
    pub json: String,
    /// What it said besides.
    pub messages: String,
}

impl Lab {
    /// Makes hosts in namespaces that carry `prefix`, with agents of `program` (the built
    /// `sterna`), whose state lies in `folder`.
    ///
    /// # Errors
    /// If namespaces or agents cannot be started.
    pub fn in_namespaces(
        prefix: &str,
        rate: LinkRate,
        program: &Path,
        folder: &Path,
    ) -> Result<Self> {
        Self::with(prefix, (Hosts::Two, rate), &[], (program, folder))
    }

    /// As [`Lab::in_namespaces`], with as many hosts and with options of their agents.
    ///
    /// # Errors
    /// If namespaces or agents cannot be started.
    pub fn with(
        prefix: &str,
        (hosts, rate): (Hosts, LinkRate),
        agent_options: &[&str],
        (program, folder): (&Path, &Path),
    ) -> Result<Self> {
        let topology = match hosts {
            Hosts::Two => Topology::new(prefix, rate)?,
            Hosts::Three => Topology::of_three(prefix, rate)?,
        };
        Self::start(Place::Namespaces(topology), hosts, agent_options, (program, folder))
    }

    /// As [`Lab::in_namespaces`] where they are allowed, else on loopback; says which.
    ///
    /// # Errors
    /// If agents cannot be started.
    pub fn anywhere(prefix: &str, rate: LinkRate, program: &Path, folder: &Path) -> Result<Self> {
        match namespaces_allowed() {
            Ok(()) => Self::in_namespaces(prefix, rate, program, folder),
            Err(why) => {
                eprintln!("no network namespaces ({why}): both hosts on loopback, unshaped");
                Self::start(Place::Loopback, Hosts::Two, &[], (program, folder))
            }
        }
    }

    fn start(
        place: Place,
        hosts: Hosts,
        agent_options: &[&str],
        (program, folder): (&Path, &Path),
    ) -> Result<Self> {
        let hosts: &'static [Host] = match hosts {
            Hosts::Two => &[Host::A, Host::B],
            Hosts::Three => &[Host::A, Host::B, Host::C],
        };
        let (program, folder) = (program.to_path_buf(), folder.to_path_buf());
        let agent_options = agent_options.iter().map(|word| (*word).to_owned()).collect();
        let agents = Vec::new();
        let (environment, others) = (Vec::new(), BTreeMap::new());
        let mut lab =
            Self { place, hosts, program, others, folder, agent_options, environment, agents };
        let authority = lab.folder.join("authority");
        lab.run_sterna(&["pki", "init", text(&authority)?])?;
        for host in hosts.iter().copied() {
            let identity = lab.folder.join(host.name()).join("identity");
            let address = lab.address(host);
            let words = ["pki", "host", text(&authority)?, host.name(), "--address", &address];
            lab.run_sterna(&[&words[..], &["--out", text(&identity)?]].concat())?;
            lab.start_agent(host)?;
        }
        Ok(lab)
    }

    /// The address at which a host's agent listens.
    #[must_use]
    pub fn address(&self, host: Host) -> String {
        match (&self.place, host) {
            (Place::Namespaces(_), host) => host.migration_address().to_string(),
            (Place::Loopback, Host::A) => "127.0.0.1".into(),
            (Place::Loopback, Host::B) => "127.0.0.2".into(),
            (Place::Loopback, Host::C) => "127.0.0.3".into(),
        }
    }

    /// All hosts.
    #[must_use]
    pub fn hosts(&self) -> &'static [Host] {
        self.hosts
    }

    /// The topology, if the hosts are in namespaces.
    ///
    /// # Errors
    /// If they are on loopback.
    pub fn topology(&self) -> Result<&Topology> {
        match &self.place {
            Place::Namespaces(topology) => Ok(topology),
            Place::Loopback => bail!("the hosts are on loopback"),
        }
    }

    /// The folder of a host's state, sockets, identity and log.
    #[must_use]
    pub fn folder(&self, host: Host) -> PathBuf {
        self.folder.join(host.name())
    }

    /// Gives a host another build of the program: what is run and started there from now on is that.
    pub fn install(&mut self, host: Host, program: &Path) {
        self.others.insert(host, program.to_path_buf());
    }

    fn program(&self, host: Host) -> &Path {
        self.others.get(&host).unwrap_or(&self.program)
    }

    /// A command to run in a host.
    ///
    /// # Errors
    /// If there is no such host.
    pub fn command_in(&self, host: Host, program: &Path) -> Result<Command> {
        match &self.place {
            Place::Namespaces(topology) => topology.command_in(host, text(program)?),
            Place::Loopback => Ok(Command::new(program)),
        }
    }

    /// `sterna` with arguments, speaking to a host's agent over its unix socket.
    ///
    /// # Errors
    /// If there is no such host.
    pub fn sterna(&self, host: Host, arguments: &[&str]) -> Result<Command> {
        let mut command = self.command_in(host, self.program(host))?;
        let socket = self.folder(host).join("run").join("agent.sock");
        command.args(arguments).arg("--socket").arg(socket).stdin(Stdio::null());
        Ok(command)
    }

    /// Runs `sterna` against a host; returns what it printed.
    ///
    /// # Errors
    /// If it fails, with what it said.
    pub fn run(&self, host: Host, arguments: &[&str]) -> Result<String> {
        let output = self.sterna(host, arguments)?.output()?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("sterna {} on {}: {}", arguments.join(" "), host.name(), said.trim());
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    fn run_sterna(&self, arguments: &[&str]) -> Result<()> {
        let output = Command::new(&self.program).args(arguments).output();
        let output = output.with_context(|| format!("cannot run {}", self.program.display()))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("sterna {}: {}", arguments.join(" "), said.trim());
        }
        Ok(())
    }

    /// Moves a guest and waits for the end, however it ends.
    ///
    /// # Errors
    /// If `sterna` cannot be run.
    pub fn migrate(&self, from: Host, to: Host, guest: &str, more: &[&str]) -> Result<Migrated> {
        let child = self.begin_migrate(from, to, guest, more)?;
        Self::finish_migrate(child)
    }

    /// Begins to move a guest; [`Lab::finish_migrate`] waits for the end.
    ///
    /// # Errors
    /// If `sterna` cannot be run.
    pub fn begin_migrate(
        &self,
        from: Host,
        to: Host,
        guest: &str,
        more: &[&str],
    ) -> Result<std::process::Child> {
        let address = self.address(to);
        let words = ["migrate", guest, "--to", &address, "--output", "json"];
        let mut command = self.sterna(from, &[&words[..], more].concat())?;
        Ok(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?)
    }

    /// Waits for a move that was begun.
    ///
    /// # Errors
    /// If its output cannot be read.
    pub fn finish_migrate(child: std::process::Child) -> Result<Migrated> {
        let output = child.wait_with_output()?;
        let json = String::from_utf8(output.stdout)?;
        Ok(Migrated {
            exit: output.status.code(),
            receipt: serde_json::from_str(&json).ok(),
            json,
            messages: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }
}

impl Migrated {
    /// The receipt.
    ///
    /// # Errors
    /// If there is none, with what `sterna` said instead.
    pub fn receipt(&self) -> Result<&Receipt> {
        let exit = self.exit;
        self.receipt.as_ref().with_context(|| {
            format!("no receipt (exit {exit:?}): {} {}", self.messages.trim(), self.json.trim())
        })
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        guest::stop_all(self);
        for agent in self.agents.drain(..) {
            agent.end();
        }
    }
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is not text", path.display()))
}
