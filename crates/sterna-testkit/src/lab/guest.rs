//! Guests of a lab: the flight recorder under an agent.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sterna_guest::quantity::Bytes;

use super::{Lab, Place};
use crate::accelerator::Accelerator;
use crate::image::GuestImage;
use crate::net::Host;
use crate::probe::{ConsoleLog, KnownMove};
use crate::recorder::{Command, Line, Workload};

/// The guest's address on the guest network.
pub const GUEST_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 10);

/// Name of the guest's tap device on every host.
const TAP: &str = "tap-guest";

/// How often a host is asked whether the guest is arriving.
const ARRIVAL_INTERVAL: Duration = Duration::from_millis(100);

/// Ticks that must come anew before a guest is taken to run.
const NEW_TICKS: usize = 100;
/// How long one answer to `check` is waited for before it is asked again: an overfull console may
/// have lost it.
const CHECK_PATIENCE: Duration = Duration::from_secs(30);

/// Waits for a guest's console until it is dropped; a console that was found is followed on.
#[derive(Debug)]
pub struct Following {
    stop: Arc<AtomicBool>,
    over: Arc<AtomicBool>,
}

impl Following {
    /// Whether a console was found and has ended: the guest has left, or never came after all.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
    }
}

/// A guest to start.
#[derive(Clone, Debug)]
pub struct GuestPlan {
    /// Its name.
    pub name: String,
    /// Its RAM.
    pub memory: Bytes,
    /// What runs in it.
    pub workload: Workload,
    /// Further fields of its definition, such as disks; `null` takes one away.
    pub more: Value,
}

impl GuestPlan {
    /// A guest of this name, RAM and workload.
    #[must_use]
    pub fn new(name: &str, memory: Bytes, workload: Workload) -> Self {
        Self { name: name.into(), memory, workload, more: json!({}) }
    }

    fn definition(&self, image: &GuestImage, place: &Place) -> Result<Value> {
        let mut definition = json!({
            "name": self.name,
            "memory_bytes": self.memory.0,
            "kernel": image.kernel,
            "initrd": image.initramfs,
            "append": self.workload.command_line()?,
            "console": "virtio",
            "accelerator": match Accelerator::wanted() {
                Accelerator::Tcg => "tcg",
                // The agent is to find it by itself.
                Accelerator::Kvm => "auto",
            },
        });
        if let Place::Namespaces(_) = place {
            let network = json!({ "tap": TAP, "mac": "52:54:00:78:00:10" });
            definition["networks"] = json!([network]);
        }
        let fields = definition.as_object_mut().context("a definition is an object")?;
        fields.extend(self.more.as_object().cloned().unwrap_or_default());
        fields.retain(|_, value| !value.is_null());
        Ok(definition)
    }
}

impl Lab {
    /// Makes the tap device of the guest on both hosts; once for each lab.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn make_taps(&self) -> Result<()> {
        if let Place::Namespaces(topology) = &self.place {
            self.hosts.iter().try_for_each(|host| topology.tap(*host, TAP))?;
        }
        Ok(())
    }

    /// Starts a guest under a host's agent.
    ///
    /// # Errors
    /// If the image is missing or the agent refuses.
    pub fn start_guest(&self, host: Host, plan: &GuestPlan) -> Result<()> {
        self.start_defined(host, &plan.definition(&GuestImage::find()?, &self.place)?)
    }

    /// Starts a guest of any definition under a host's agent.
    ///
    /// # Errors
    /// If the agent refuses.
    pub fn start_defined(&self, host: Host, definition: &Value) -> Result<()> {
        let file = self.write(host, definition)?;
        self.run(host, &["vm", "start", super::text(&file)?]).map(drop)
    }

    /// Writes the file that describes a guest, in a host's folder.
    ///
    /// # Errors
    /// If the image is missing or the file cannot be written.
    pub fn describe(&self, host: Host, plan: &GuestPlan) -> Result<PathBuf> {
        self.write(host, &plan.definition(&GuestImage::find()?, &self.place)?)
    }

    fn write(&self, host: Host, definition: &Value) -> Result<PathBuf> {
        let name = definition["name"].as_str().context("a guest has a name")?;
        let file = self.folder(host).join(format!("{name}.toml"));
        std::fs::write(&file, toml::to_string(definition)?)?;
        Ok(file)
    }

    /// Ends a guest and forgets it.
    ///
    /// # Errors
    /// If the agent refuses either.
    pub fn take_away(&self, host: Host, guest: &str) -> Result<()> {
        self.run(host, &["vm", "stop", guest])?;
        self.run(host, &["vm", "delete", guest]).map(drop)
    }

    /// Follows a guest's console on a host; more than one host may be followed in one log.
    ///
    /// # Errors
    /// If `sterna` cannot be run.
    pub fn follow_console(&self, host: Host, guest: &str, log: &ConsoleLog) -> Result<()> {
        let mut command = self.sterna(host, &["vm", "console", guest, "--read-only"])?;
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let output = child.stdout.take().context("the output was piped")?;
        // It ends with its agent's guest, and at the latest with the agent.
        std::thread::spawn(move || child.wait());
        log.attach(output);
        Ok(())
    }

    /// Follows the console of a guest that is yet to arrive on a host, from its first byte there on,
    /// until the returned value is dropped.
    #[must_use]
    pub fn follow_arrival(&self, host: Host, guest: &str, log: &ConsoleLog) -> Following {
        let (stop, over) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let follow = |lab: &Self| lab.sterna(host, &["vm", "console", guest, "--read-only"]);
        let command = follow(self);
        let (stopped, ended, log) = (Arc::clone(&stop), Arc::clone(&over), log.clone());
        if let Ok(mut command) = command {
            std::thread::spawn(move || {
                while !stopped.load(Ordering::Acquire) {
                    let child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
                    let Ok(mut child) = child else { return };
                    if let Some(output) = child.stdout.take() {
                        log.attach(output);
                    }
                    // As long as the host does not know the guest, this ends at once with an error.
                    if child.wait().is_ok_and(|status| status.success()) {
                        ended.store(true, Ordering::Release);
                        return;
                    }
                    std::thread::sleep(ARRIVAL_INTERVAL);
                }
            });
        }
        Following { stop, over }
    }

    /// The guest, which must run on this host, ticks anew and checks all its memory; and all that it has ever said is of one
    /// life in one place at a time.
    ///
    /// # Errors
    /// If any of that is not so, or not within `limit`.
    pub fn guest_is_whole(
        &self,
        (host, guest): (Host, &str),
        console: &ConsoleLog,
        moves: &[KnownMove],
        limit: Duration,
    ) -> Result<()> {
        let before = console.ticks().samples().len();
        console.wait_for_ticks(before + NEW_TICKS, limit).context("the guest stands still")?;
        let deadline = Instant::now() + limit;
        let line = loop {
            let skip = console.lines().len();
            self.type_line(host, guest, &Command::Check.to_string())?;
            let checked = |line: &Line| matches!(line, Line::Checked { .. });
            match console.wait_for(skip, CHECK_PATIENCE, checked) {
                Ok(line) => break line,
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => {}
            }
        };
        ensure!(matches!(line, Line::Checked { wrong: 0, .. }), "the guest says {line:?}");
        let complaints = console.complaints();
        ensure!(complaints.is_empty(), "the guest complains: {complaints:?}");
        Ok(console.lived_once(moves)?)
    }

    /// Types a line on a guest's console.
    ///
    /// # Errors
    /// If `sterna` cannot be run.
    pub fn type_line(&self, host: Host, guest: &str, line: &str) -> Result<()> {
        use std::io::Write;
        let mut command = self.sterna(host, &["vm", "console", guest])?;
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let mut input = child.stdin.take().context("the input was piped")?;
        // Ctrl-] leaves the console once the line was taken.
        write!(input, "{line}\n\u{1d}")?;
        drop(input);
        child.wait()?;
        Ok(())
    }
}

/// Process id of a guest's hypervisor.
///
/// # Errors
/// If the host has no such guest.
pub fn guest_pid(lab: &Lab, host: Host, guest: &str) -> Result<u32> {
    let view = view(lab, host, guest)?;
    let pid = view["pid"].as_u64().with_context(|| format!("no pid in {view}"))?;
    Ok(u32::try_from(pid)?)
}

/// State of a guest in one word, `None` if the host does not know it.
#[must_use]
pub fn guest_state(lab: &Lab, host: Host, guest: &str) -> Option<String> {
    view(lab, host, guest).ok()?["state"].as_str().map(ToOwned::to_owned)
}

fn view(lab: &Lab, host: Host, guest: &str) -> Result<Value> {
    Ok(serde_json::from_str(&lab.run(host, &["vm", "show", guest, "--output", "json"])?)?)
}

/// Ends every guest of every agent that still answers.
pub(super) fn stop_all(lab: &Lab) {
    for host in lab.hosts().iter().copied() {
        let Ok(list) = lab.run(host, &["vm", "list", "--output", "json"]) else { continue };
        let Ok(guests) = serde_json::from_str::<Vec<Value>>(&list) else { continue };
        for guest in guests.iter().filter_map(|guest| guest["name"].as_str()) {
            // What cannot be stopped is ended with its namespace.
            let _stopped = lab.run(host, &["vm", "stop", guest]);
        }
    }
}
