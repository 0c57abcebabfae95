//! Whether a guest can move at all with this host's kernel and hypervisor: a small one is moved from an agent to another,
//! both of this host and of this program, and only for that.

use crate::agent::TrackerName;
use crate::agent::file::File;
use crate::units;
use anyhow::{Context as _, Result, anyhow, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;
use sterna_api::{Finding, Verdict};
use sterna_core::receipt::{Ending, RamCheck, Receipt, TrackedBy};
use sterna_pki::{AUTHORITY_FOLDER, Authority, Subject, Validity};
use tempfile::TempDir;
use tokio::net::UnixStream;
use tokio::process::{Child, Command};

/// The guest, which has nothing to boot from.
const GUEST: &str = "sterna-doctor";
const DEFINITION: &str = "name = \"sterna-doctor\"\nmemory = \"64MiB\"\nvcpus = 1\n";

/// How long an agent may take to begin, and to end.
const AGENT_MAX: Duration = Duration::from_secs(30);
/// How long all of it may take; an emulated guest takes a few seconds.
const ALL_MAX: Duration = Duration::from_secs(120);

/// Moves a guest, and takes away whatever was made for that.
pub(super) async fn examine(qemu: Option<&Path>, tracker: Option<TrackerName>) -> Finding {
    let moved = async { moves(Hosts::prepare(std::env::current_exe()?, qemu, tracker)?).await };
    let check = "test move".to_owned();
    match moved.await {
        Ok(receipt) => {
            let detail = format!(
                "a guest of 64 MiB moved between two agents here in {}, stood still for {}, and its RAM was the same; \
                 tracked by {}",
                units::time(receipt.total),
                units::time(receipt.downtime_uncompared()),
                receipt.tracking.by.map_or("nothing", TrackedBy::name),
            );
            Finding { check, verdict: Verdict::Good, detail, remedy: None }
        }
        Err(error) => {
            let detail = format!("no guest can move: {error:#}");
            let remedy = "mend what is missing above; if nothing is, this is a fault of sterna or of QEMU: tell with this \
                          line"
                .to_owned();
            Finding { check, verdict: Verdict::Missing, detail, remedy: Some(remedy) }
        }
    }
}

async fn moves(mut hosts: Hosts) -> Result<Receipt> {
    let moved = tokio::select! {
        moved = tokio::time::timeout(ALL_MAX, hosts.moves()) => match moved {
            Ok(moved) => moved,
            Err(_) => Err(anyhow!("it did not end within {} s", ALL_MAX.as_secs())),
        },
        _ = tokio::signal::ctrl_c() => Err(anyhow!("it was broken off")),
    };
    let last = hosts.last_words();
    hosts.end().await;
    moved.map_err(|error| if last.is_empty() { error } else { error.context(last) })
}

/// Two hosts on the loopback interface.
struct Hosts {
    folder: TempDir,
    program: PathBuf,
    agents: Vec<Child>,
    options: Vec<String>,
}

impl Hosts {
    fn prepare(
        program: PathBuf,
        qemu: Option<&Path>,
        tracker: Option<TrackerName>,
    ) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("sterna-doctor").tempdir()?;
        let authority = Authority::create(&folder.path().join(AUTHORITY_FOLDER))?;
        for name in ["a", "b"] {
            let addresses = vec![Ipv4Addr::LOCALHOST.into()];
            let subject = Subject { name: name.into(), addresses };
            authority.issue(&subject, Validity::by_hand())?.write(&folder.path().join(name))?;
        }
        std::fs::write(folder.path().join("guest.toml"), DEFINITION)?;
        // As the agent of this host is told, but for what would be in its way.
        let file = File::find(None).unwrap_or_default();
        let mut config = match file.guest_users() {
            Some(users) => format!("guest-uids = \"{users}\"\n"),
            None => String::new(),
        };
        if let Some(tracker) = tracker {
            config.push_str(&format!("tracker = \"{}\"\n", tracker.name()));
        }
        std::fs::write(folder.path().join("agent.toml"), config)?;
        let mut options = Vec::new();
        if let Some(qemu) = qemu.or(file.qemu()) {
            options.extend(["--qemu".to_owned(), qemu.to_str().context("--qemu")?.to_owned()]);
        }
        Ok(Self { folder, program, agents: Vec::new(), options })
    }

    /// Starts both agents and a guest, and moves it.
    async fn moves(&mut self) -> Result<Receipt> {
        self.start_agent("a").await?;
        let port = self.start_agent("b").await?;
        let definition = self.folder.path().join("guest.toml");
        self.say("a", &["vm", "start", definition.to_str().context("a path")?]).await?;
        let to = format!("{}:{port}", Ipv4Addr::LOCALHOST);
        let words = ["migrate", GUEST, "--to", &to, "--algorithm", "pre-copy", "--verify"];
        let said = self.say("a", &[&words[..], &["--output", "json"]].concat()).await?;
        let receipt: Receipt = serde_json::from_slice(&said.stdout).context("no receipt")?;
        ensure!(receipt.ending == Ending::Moved, "it ended as {:?}", receipt.ending);
        ensure!(receipt.ram_digest == RamCheck::Equal, "RAM was not compared");
        Ok(receipt)
    }

    /// Starts an agent, and waits until it listens; returns the port to which guests move.
    async fn start_agent(&mut self, name: &str) -> Result<u16> {
        let [api, moves, join] = free_ports()?;
        let folder = self.folder.path();
        let log = std::fs::File::create(self.log(name))?;
        let mut command = Command::new(&self.program);
        command.args(["agent", "--name", name, "--listen", "127.0.0.1"]).args(&self.options);
        for (option, port) in [("--api-port", api), ("--move-port", moves), ("--join-port", join)] {
            command.args([option, &port.to_string()]);
        }
        command.arg("--config").arg(folder.join("agent.toml"));
        command.arg("--identity").arg(folder.join(name));
        command.arg("--state").arg(folder.join(name).join("state"));
        command.arg("--runtime").arg(folder.join(name).join("run"));
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        // Ctrl-C is for this process, which then has things to take away.
        command.process_group(0).kill_on_drop(true);
        self.agents.push(command.spawn().context("no agent can be started")?);
        let socket = self.socket(name);
        let begun = async {
            while UnixStream::connect(&socket).await.is_err() {
                let ended = self.agents.last_mut().map(Child::try_wait).transpose()?.flatten();
                if let Some(status) = ended {
                    bail!("the agent ended: {status}");
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Ok(())
        };
        tokio::time::timeout(AGENT_MAX, begun).await.context("the agent does not begin")??;
        Ok(moves)
    }

    /// Runs this program against an agent.
    async fn say(&self, name: &str, words: &[&str]) -> Result<Output> {
        let mut command = Command::new(&self.program);
        command.args(words).arg("--socket").arg(self.socket(name)).kill_on_drop(true);
        let output = command.stdin(Stdio::null()).process_group(0).output().await?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{}", error.trim());
        Ok(output)
    }

    fn socket(&self, name: &str) -> PathBuf {
        self.folder.path().join(name).join("run/agent.sock")
    }

    fn log(&self, name: &str) -> PathBuf {
        self.folder.path().join(format!("{name}.log"))
    }

    /// What the agents said last.
    fn last_words(&self) -> String {
        let last = |name| {
            let text = std::fs::read_to_string(self.log(name)).unwrap_or_default();
            text.lines().last().map(|line| format!("its agent {name} said: {line}"))
        };
        let all: Vec<_> = ["a", "b"].into_iter().filter_map(last).collect();
        all.join("; ")
    }

    /// Ends guest and agents.
    async fn end(mut self) {
        for name in ["a", "b"] {
            // It is on one of them, if it was started at all.
            let _stopped = self.say(name, &["vm", "stop", GUEST]).await;
        }
        for agent in &mut self.agents {
            let id = agent.id().and_then(|id| Pid::from_raw(id.cast_signed()));
            let _asked = id.map(|id| kill_process(id, Signal::TERM));
            let _ended = tokio::time::timeout(AGENT_MAX, agent.wait()).await;
        }
    }
}

/// Ports on which nobody listens.
fn free_ports<const N: usize>() -> Result<[u16; N]> {
    let mut listeners = Vec::new();
    let mut ports = [0; N];
    for port in &mut ports {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        *port = listener.local_addr()?.port();
        listeners.push(listener);
    }
    Ok(ports)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_agent_that_does_not_begin_is_told_of_and_leaves_nothing() {
        let hosts = Hosts::prepare("/bin/false".into(), None, None).unwrap();
        let folder = hosts.folder.path().to_owned();
        let error = format!("{:#}", moves(hosts).await.unwrap_err());
        assert!(error.contains("the agent ended: exit status: 1"), "{error}");
        assert!(!folder.exists());
    }
}
