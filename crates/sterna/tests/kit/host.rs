//! What is on a host: its agent, its hypervisors, its moves.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use sterna_testkit::accelerator::Accelerator;
use sterna_testkit::lab::guest_state;
use sterna_testkit::net::Host;
use sterna_testkit::recorder::Bytes;
use sterna_vmm::qemu::cgroups_below;

use super::{GUEST, STERNA, World, until};

/// What a file's size is counted in.
const BLOCK_BYTES: u64 = 512;

impl World {
    /// Process ids of the hypervisors that exist on a host, whatever its agent says.
    pub(crate) fn qemus(&self, host: Host) -> Result<Vec<u32>> {
        self.lab.hypervisors(host)
    }

    /// The one hypervisor on a host, once there is one.
    pub(crate) fn qemu(&self, host: Host) -> Result<u32> {
        let what = format!("one hypervisor on {}", host.name());
        until(&what, || match self.qemus(host)?[..] {
            [pid] => Ok(Some(pid)),
            _ => Ok(None),
        })
    }

    /// How much exists of the RAM of the one guest on a host, as its file's system counts it.
    pub(crate) fn ram_that_exists(&self, host: Host) -> Result<Bytes> {
        let folder = format!("/proc/{}/fd", self.qemu(host)?);
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            let target = fs::read_link(&path).unwrap_or_default();
            if target.to_string_lossy().starts_with("/memfd:ram0") {
                return Ok(Bytes(fs::metadata(&path)?.blocks() * BLOCK_BYTES));
            }
        }
        bail!("the hypervisor on {} has no RAM", host.name())
    }

    /// How much of its RAM the guest on a host has in its balloon, as its hypervisor says.
    pub(crate) fn in_balloon(&self, host: Host) -> Result<Bytes> {
        let socket = self.lab.folder(host).join("run/guests").join(GUEST).join("control.qmp");
        let mut monitor = UnixStream::connect(&socket)?;
        monitor.set_read_timeout(Some(super::LIMIT))?;
        for command in ["qmp_capabilities", "query-balloon", "query-memory-size-summary"] {
            writeln!(monitor, "{}", json!({ "execute": command, "id": command }))?;
        }
        let (mut actual, mut lines) = (None, BufReader::new(monitor).lines());
        loop {
            let line = lines.next().context("the monitor was closed")??;
            let reply: Value = serde_json::from_str(&line)?;
            if reply["id"] == "query-balloon" {
                actual = reply["return"]["actual"].as_u64();
            } else if reply["id"] == "query-memory-size-summary" {
                let size = reply["return"]["base-memory"].as_u64();
                let sizes = size.zip(actual).with_context(|| format!("{actual:?}, {reply}"))?;
                return Ok(Bytes(sizes.0 - sizes.1));
            }
        }
    }

    /// The guest really runs on KVM, or really is emulated, whichever the environment wants.
    pub(crate) fn runs_on_what_was_asked_for(&self, host: Host) -> Result<()> {
        let (found, wanted) = (Accelerator::of_process(self.qemu(host)?)?, Accelerator::wanted());
        ensure!(found == wanted, "the guest runs on {found:?} and not on {wanted:?}");
        Ok(())
    }

    /// The guest's hypervisor may not do all that its user may: no thread of it is without a seccomp filter.
    pub(crate) fn is_confined(&self, host: Host) -> Result<()> {
        for thread in fs::read_dir(format!("/proc/{}/task", self.qemu(host)?))? {
            // One that has ended meanwhile does no harm.
            let Ok(status) = fs::read_to_string(thread?.path().join("status")) else { continue };
            ensure!(status.contains("Seccomp:\t2"), "a thread without a filter: {status}");
        }
        Ok(())
    }

    /// Waits until each hypervisor on a host is in a cgroup of its own, which bounds it, and no other group is left of what
    /// its agents have made.
    pub(crate) fn is_grouped(&self, host: Host) -> Result<()> {
        if let Err(why) = cgroups_below(&self.lab.folder(host).join("run/guests")) {
            eprintln!("without cgroups: {why}");
            return Ok(());
        }
        until(&format!("a cgroup for each hypervisor on {}", host.name()), || {
            let qemus = self.qemus(host)?;
            let groups = self.cgroups(host);
            let are_right = groups.iter().all(|group| {
                let pids = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
                let pids: Vec<u32> = pids.lines().filter_map(|pid| pid.parse().ok()).collect();
                matches!(pids[..], [pid] if qemus.contains(&pid))
            });
            let limits =
                groups.iter().filter_map(|group| fs::read_to_string(group.join("pids.max")).ok());
            let limited = limits.filter(|limit| limit.trim().parse::<u32>().is_ok()).count();
            Ok((are_right && limited == qemus.len()).then_some(()))
        })
        .with_context(|| format!("{:?} for {:?}", self.cgroups(host), self.qemus(host)))
    }

    /// The cgroups on a host that its agents have made for hypervisors; they make none where this process could not.
    fn cgroups(&self, host: Host) -> Vec<PathBuf> {
        cgroups_below(&self.lab.folder(host).join("run/guests")).unwrap_or_default()
    }

    /// Waits until a host has neither hypervisor nor guest, nor a cgroup of one.
    pub(crate) fn becomes_empty(&self, host: Host) -> Result<()> {
        until(&format!("nothing left on {}", host.name()), || {
            let empty = self.qemus(host)?.is_empty()
                && self.guests(host)?.is_empty()
                && self.cgroups(host).is_empty();
            Ok(empty.then_some(()))
        })
    }

    /// Waits until a host says that the guest is in this state.
    pub(crate) fn becomes(&self, host: Host, state: &str) -> Result<()> {
        let what = format!("the guest {state} on {}", host.name());
        until(&what, || {
            Ok((guest_state(&self.lab, host, GUEST).as_deref() == Some(state)).then_some(()))
        })
        .with_context(|| format!("it is {:?}", guest_state(&self.lab, host, GUEST)))
    }

    /// The guests of a host, as it lists them.
    pub(crate) fn guests(&self, host: Host) -> Result<Vec<Value>> {
        Ok(serde_json::from_str(&self.lab.run(host, &["vm", "list", "--output", "json"])?)?)
    }

    /// The moves that a host knows.
    pub(crate) fn moves(&self, host: Host) -> Result<Vec<Value>> {
        Ok(serde_json::from_str(&self.lab.run(host, &["moves", "list", "--output", "json"])?)?)
    }

    /// Starts an agent after the last one was killed.
    pub(crate) fn restart_agent(&mut self, host: Host) -> Result<()> {
        self.lab.start_agent(host)
    }

    /// Puts an agent with another identity, and perhaps another QEMU, in place of a host's own.
    pub(crate) fn replace_agent(
        &mut self,
        host: Host,
        identity: &Path,
        qemu: Option<&Path>,
    ) -> Result<OtherAgent> {
        self.lab.kill_agent(host)?;
        let folder = self.lab.folder(host);
        let log = fs::File::create(folder.join("other-agent.log"))?;
        let mut command = self.lab.command_in(host, Path::new(STERNA))?;
        command.args(["agent", "--name", host.name(), "--listen", &self.lab.address(host)]);
        command.arg("--state").arg(folder.join("state")).arg("--runtime").arg(folder.join("run"));
        command.arg("--identity").arg(identity);
        if let Some(qemu) = qemu {
            command.arg("--qemu").arg(qemu);
        }
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let other = OtherAgent(command.spawn().context("cannot start an agent")?);
        until("another agent that answers", || {
            Ok(self.lab.run(host, &["vm", "list"]).is_ok().then_some(()))
        })?;
        Ok(other)
    }
}

/// An agent that the lab does not know; killed on drop.
pub(crate) struct OtherAgent(Child);

impl Drop for OtherAgent {
    fn drop(&mut self) {
        let _killed = self.0.kill();
        let _status = self.0.wait();
    }
}
