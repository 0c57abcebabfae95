//! Three hosts, the guest that moves among them, and what must hold after each move.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use sterna_core::receipt::{Ending, Receipt};
use sterna_testkit::lab::{Following, GuestPlan, Hosts, Lab, guest_pid, guest_state};
use sterna_testkit::net::{Host, LinkRate};
use sterna_testkit::probe::{ConsoleLog, MoveLog, MoveUnderway};
use sterna_testkit::recorder::{Bytes, Line, Rate, Workload};
use sterna_testkit::small_disk::SmallDisk;
use sterna_vmm::qemu::cgroups_below;

use super::clocks::Clocks;
use super::fault::{Fault, Side};

const GUEST: &str = "torment";
/// Slow enough that copying a real guest takes seconds, and a synthetic one a good part of one.
const LINK: LinkRate = LinkRate::BitsPerSecond(200_000_000);
/// Next to nothing, in one direction.
const CHOKED: LinkRate = LinkRate::BitsPerSecond(20_000);
/// For the journal of a host and all else that is in its state folder.
const DISK: Bytes = Bytes(8 << 20);
/// Within this everything must have settled once all is mended.
const LIMIT: Duration = Duration::from_secs(300);
const INTERVAL: Duration = Duration::from_millis(50);
/// Ticks that must come anew before the guest is taken to run.
const NEW_TICKS: usize = 100;

/// The hosts and the guest.
pub(super) struct Ring {
    at: Host,
    console: ConsoleLog,
    moves: MoveLog,
    following: BTreeMap<Host, Following>,
    plan: GuestPlan,
    clocks: Clocks,
    lab: Lab,
    disks: BTreeMap<Host, SmallDisk>,
}

fn real() -> GuestPlan {
    let workload = Workload::new(Bytes::mebibytes(96))
        .rewrite(Bytes::mebibytes(12), Rate::mebibytes_per_second(3))
        .check_at_most(Rate::mebibytes_per_second(20));
    GuestPlan::new(GUEST, Bytes::mebibytes(192), workload)
}

fn synthetic() -> GuestPlan {
    let workload = Workload::new(Bytes::mebibytes(6))
        .rewrite(Bytes::mebibytes(2), Rate::mebibytes_per_second(4));
    let mut plan = GuestPlan::new(GUEST, Bytes::mebibytes(16), workload);
    plan.more = serde_json::json!({ "balloon": false });
    plan
}

/// Makes a disk for the state of each host, where its agent will look for it.
fn disks(state: &Path) -> Result<BTreeMap<Host, SmallDisk>> {
    let disk = |host: Host| {
        let disk = SmallDisk::new(DISK)?;
        std::fs::create_dir_all(state.join(host.name()))?;
        std::os::unix::fs::symlink(disk.path(), state.join(host.name()).join("state"))?;
        Ok((host, disk))
    };
    [Host::A, Host::B, Host::C].into_iter().map(disk).collect()
}

/// A move that was begun.
pub(super) struct Underway {
    id: String,
    from: Host,
    to: Host,
    child: Child,
    known: MoveUnderway,
    others: Vec<Child>,
    killed_hypervisor: bool,
}

impl Ring {
    /// With a guest in `hypervisor`, which passes for QEMU and has a synthetic one, or else a real one.
    pub(super) fn new(sterna: &Path, hypervisor: Option<&Path>, state: &Path) -> Result<Self> {
        let options = match hypervisor {
            None => Vec::new(),
            Some(program) => vec!["--qemu", program.to_str().context("a path that is text")?],
        };
        let disks = disks(state)?;
        let mut lab = Lab::with("sterna-tm", (Hosts::Three, LINK), &options, (sterna, state))?;
        let clocks = Clocks::give(&mut lab)?;
        lab.make_taps()?;
        let (console, moves) = (ConsoleLog::new(), MoveLog::default());
        let plan = if hypervisor.is_some() { synthetic() } else { real() };
        let following = BTreeMap::new();
        let mut ring = Self { at: Host::A, console, moves, following, plan, clocks, lab, disks };
        ring.start_guest()?;
        Ok(ring)
    }

    pub(super) fn at(&self) -> Host {
        self.at
    }

    /// The hosts on which the guest is not.
    pub(super) fn others(&self) -> Vec<Host> {
        self.lab.hosts().iter().copied().filter(|host| *host != self.at).collect()
    }

    /// Starts the guest, of which nothing is left.
    fn start_guest(&mut self) -> Result<()> {
        self.following.clear();
        // Whoever has just looked for the guest that was must not find this one.
        std::thread::sleep(Duration::from_millis(300));
        (self.console, self.moves) = (ConsoleLog::new(), MoveLog::default());
        self.follow(self.at);
        self.lab.start_guest(self.at, &self.plan)?;
        self.console.wait_for(0, LIMIT, |line| matches!(line, Line::Ready { .. }))?;
        self.console.wait_for_ticks(NEW_TICKS, LIMIT)
    }

    /// Reads the guest's console on a host, also of agents that are started anew, until the guest leaves. One reader that
    /// still waits there is enough: two would hear all twice.
    fn follow(&mut self, host: Host) {
        if self.following.get(&host).is_none_or(Following::is_over) {
            let following = self.lab.follow_arrival(host, GUEST, &self.console);
            self.following.insert(host, following);
        }
    }

    pub(super) fn begin(&mut self, to: Host, words: &[&str]) -> Result<Underway> {
        self.follow(to);
        let id = uuid::Uuid::new_v4().to_string();
        let known = self.moves.begin();
        let words = [&["--id", &id], words].concat();
        let child = self.lab.begin_migrate(self.at, to, GUEST, &words)?;
        Ok(Underway {
            id,
            from: self.at,
            to,
            child,
            known,
            others: Vec::new(),
            killed_hypervisor: false,
        })
    }

    /// The stage of a move, as its source says.
    pub(super) fn stage(&self, underway: &Underway) -> String {
        let shown = self.json(underway.from, &["moves", "show", &underway.id]);
        let stage = shown.ok().and_then(|shown| match shown["state"].as_str() {
            Some("moving" | "in-doubt") => shown["progress"]["stage"].as_str().map(str::to_owned),
            state => state.map(str::to_owned),
        });
        stage.unwrap_or_else(|| "source does not answer".into())
    }

    /// Lets a fault strike; whether it did.
    pub(super) fn strike(&mut self, fault: Fault, underway: &mut Underway) -> Result<bool> {
        let host = |side| match side {
            Side::Source => underway.from,
            Side::Destination => underway.to,
        };
        match fault {
            Fault::KillAgent(side) => {
                self.lab.kill_agent(host(side))?;
            }
            Fault::KillHypervisor => {
                let Ok(pid) = guest_pid(&self.lab, underway.to, GUEST) else { return Ok(false) };
                let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).context("no process")?;
                kill_process(pid, Signal::KILL)?;
                underway.killed_hypervisor = true;
            }
            Fault::Cut(side) => self.lab.topology()?.cut(host(side))?,
            Fault::Choke(side) => self.lab.topology()?.set_rate(host(side), CHOKED)?,
            Fault::Cancel(Side::Source) => {
                self.attempt(underway, underway.from, &["moves", "cancel", &underway.id.clone()])?
            }
            Fault::Cancel(Side::Destination) => {
                let Ok(moves) = self.json(underway.to, &["moves", "list"]) else {
                    return Ok(false);
                };
                let newest = moves.as_array().and_then(|moves| moves.last().cloned());
                let Some(id) = newest.as_ref().and_then(|newest| newest["id"].as_str()) else {
                    return Ok(false);
                };
                self.attempt(underway, underway.to, &["moves", "cancel", id])?;
            }
            Fault::SecondMove => {
                let hosts = self.lab.hosts().iter();
                let third =
                    hosts.copied().find(|host| ![underway.from, underway.to].contains(host));
                let third = third.context("there are three")?;
                // It gets there if the move that was first has come to nothing by then.
                self.follow(third);
                let address = self.lab.address(third);
                self.attempt(underway, underway.from, &["migrate", GUEST, "--to", &address])?;
            }
            Fault::Stop => {
                // Where it has just arrived it would be stopped, and rightly so.
                if guest_state(&self.lab, underway.from, GUEST).as_deref() != Some("leaving") {
                    return Ok(false);
                }
                self.attempt(underway, underway.from, &["vm", "stop", GUEST])?;
            }
            Fault::Start(side) => {
                // One that has crashed would be started anew, and rightly so.
                let state = guest_state(&self.lab, host(side), GUEST);
                let is_moving = matches!(state.as_deref(), Some("leaving" | "arriving"));
                if !is_moving || underway.killed_hypervisor {
                    return Ok(false);
                }
                self.attempt(underway, host(side), &["vm", "start", GUEST])?;
            }
            Fault::FullDisk(side) => self.disk(host(side))?.fill()?,
            Fault::ClockBack(side) => self.clocks.set(host(side), "-2d")?,
            Fault::ClockAhead(side) => self.clocks.set(host(side), "+2d")?,
        }
        Ok(true)
    }

    /// Says something to a host, whatever it answers.
    fn attempt(&self, underway: &mut Underway, host: Host, words: &[&str]) -> Result<()> {
        let mut command: Command = self.lab.sterna(host, words)?;
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        underway.others.push(command.spawn()?);
        Ok(())
    }

    /// Takes a fault back.
    pub(super) fn mend(&mut self, fault: Fault, underway: &Underway) -> Result<()> {
        let host = |side| match side {
            Side::Source => underway.from,
            Side::Destination => underway.to,
        };
        match fault {
            Fault::KillAgent(side) => self.start_agent(host(side)),
            Fault::Cut(side) => self.lab.topology()?.mend(host(side)),
            Fault::Choke(side) => self.lab.topology()?.set_rate(host(side), LINK),
            Fault::FullDisk(side) => self.disk(host(side))?.free(),
            Fault::ClockBack(side) | Fault::ClockAhead(side) => self.clocks.set(host(side), "+0"),
            Fault::KillHypervisor | Fault::Cancel(_) | Fault::SecondMove => Ok(()),
            Fault::Stop | Fault::Start(_) => Ok(()),
        }
    }

    fn disk(&self, host: Host) -> Result<&SmallDisk> {
        self.disks.get(&host).context("each host has a disk")
    }

    /// Starts an agent anew. On a disk that is full it may not begin; then there is space again, as after its operator has
    /// looked.
    fn start_agent(&mut self, host: Host) -> Result<()> {
        let Err(refused) = self.lab.start_agent(host) else { return Ok(()) };
        let full = format!("{refused:#}").contains("no space is left for the journal");
        ensure!(full, "{refused:#}");
        self.disk(host)?.free()?;
        self.lab.start_agent(host)
    }

    /// Waits until the move has ended and the guest runs in one place; sees that it is whole and that nothing else is
    /// left. Returns how the move ended.
    pub(super) fn settle(&mut self, mut underway: Underway) -> Result<String> {
        let deadline = Instant::now() + LIMIT;
        for other in &mut underway.others {
            wait(other, deadline).context("a command that was said meanwhile")?;
        }
        wait(&mut underway.child, deadline).context("`sterna migrate`")?;
        let found = loop {
            match self.look(&underway)? {
                Ok(found) => break found,
                Err(why) if Instant::now() > deadline => bail!("it does not settle: {why}"),
                Err(_) => std::thread::sleep(INTERVAL),
            }
        };
        let receipts = self.json(underway.from, &["moves", "show", &underway.id]);
        let receipt = receipts
            .ok()
            .and_then(|shown| serde_json::from_value::<Receipt>(shown["receipt"].clone()).ok());
        if let Some(receipt) = &receipt {
            underway.known.ended(receipt);
        }
        let ending =
            receipt.map_or("refused, or settled by another agent", |receipt| word(&receipt.ending));
        let Some(at) = found else {
            self.clear()?;
            self.start_guest()?;
            return Ok(format!("{ending}; the guest was killed with its hypervisor"));
        };
        self.at = at;
        self.guest_is_whole()?;
        self.nothing_is_left()?;
        Ok(ending.to_owned())
    }

    /// Where the guest runs, if all moves have ended and it runs in one place; nowhere if its hypervisor was killed.
    /// Else what is not yet so.
    fn look(&self, underway: &Underway) -> Result<Result<Option<Host>, String>> {
        let mut running = Vec::new();
        let mut others = Vec::new();
        for host in self.lab.hosts().iter().copied() {
            let Ok(moves) = self.json(host, &["moves", "list"]) else {
                return Ok(Err(format!("{} does not answer", host.name())));
            };
            let moves = moves.as_array().cloned().unwrap_or_default();
            if let Some(open) = moves.iter().find(|shown| shown["state"] != "ended") {
                return Ok(Err(format!("a move goes on at {}: {open}", host.name())));
            }
            match guest_state(&self.lab, host, GUEST).as_deref() {
                Some("running") => running.push(host),
                Some(state) => others.push(format!("{state} at {}", host.name())),
                None => {}
            }
        }
        ensure!(running.len() < 2, "the guest runs at {running:?}");
        let lost = underway.killed_hypervisor && running.is_empty() && !others.is_empty();
        let settled =
            others.iter().all(|other| other.starts_with("crashed") || other.starts_with("paused"));
        Ok(match running[..] {
            [at] if others.is_empty() => Ok(Some(at)),
            [] if lost && settled => Ok(None),
            _ => Err(format!("it runs at {running:?}, and is {others:?}")),
        })
    }

    /// The guest runs, and checks all its memory; and all that it has ever said is of one life in one place at a time.
    fn guest_is_whole(&self) -> Result<()> {
        self.lab.guest_is_whole((self.at, GUEST), &self.console, &self.moves.moves(), LIMIT)
    }

    /// On each host there are its agent and, where the guest is, one hypervisor: no process, cgroup, folder or file besides.
    fn nothing_is_left(&self) -> Result<()> {
        for host in self.lab.hosts().iter().copied() {
            let wanted = usize::from(host == self.at);
            let deadline = Instant::now() + LIMIT;
            // Processes take a moment to be gone.
            while self.hypervisors(host)? != wanted && Instant::now() < deadline {
                std::thread::sleep(INTERVAL);
            }
            let found = self.hypervisors(host)?;
            ensure!(found == wanted, "{found} hypervisors at {}", host.name());
            let run = self.lab.folder(host).join("run");
            // None where agents can make none.
            let empty = || {
                let groups = cgroups_below(&run.join("guests")).unwrap_or_default();
                let is_empty = |group: &std::path::PathBuf| {
                    let pids = std::fs::read_to_string(group.join("cgroup.procs"));
                    pids.is_ok_and(|pids| pids.is_empty())
                };
                groups.into_iter().find(is_empty)
            };
            // They go a moment after their processes.
            while empty().is_some() && Instant::now() < deadline {
                std::thread::sleep(INTERVAL);
            }
            ensure!(empty().is_none(), "a cgroup is left at {}: {:?}", host.name(), empty());
            let guests = entries(&run.join("guests"))?;
            ensure!(guests.len() == wanted, "folders of guests at {}: {guests:?}", host.name());
            let missing: Vec<_> =
                entries(&run)?.into_iter().filter(|name| name.ends_with(".missing")).collect();
            ensure!(missing.is_empty(), "files of owed pages at {}: {missing:?}", host.name());
        }
        Ok(())
    }

    fn hypervisors(&self, host: Host) -> Result<usize> {
        Ok(self.lab.hypervisors(host)?.len())
    }

    /// Takes away what is left of a guest whose hypervisor was killed.
    fn clear(&mut self) -> Result<()> {
        for host in self.lab.hosts().iter().copied() {
            if guest_state(&self.lab, host, GUEST).is_none() {
                continue;
            }
            if self.lab.take_away(host, GUEST).is_err() {
                // Of one that may have run elsewhere that is said, and true by now: it is gone.
                self.lab.run(host, &["migrate", "resolve", GUEST, "--runs-there"])?;
            }
        }
        Ok(())
    }

    fn json(&self, host: Host, words: &[&str]) -> Result<Value> {
        let text = self.lab.run(host, &[words, &["--output", "json"]].concat())?;
        Ok(serde_json::from_str(&text)?)
    }
}

fn entries(folder: &Path) -> Result<Vec<String>> {
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let names = std::fs::read_dir(folder)?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    names.collect()
}

fn wait(child: &mut Child, deadline: Instant) -> Result<()> {
    while child.try_wait()?.is_none() {
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            bail!("it does not end");
        }
        std::thread::sleep(INTERVAL);
    }
    Ok(())
}

fn word(ending: &Ending) -> &'static str {
    match ending {
        Ending::Moved => "moved",
        Ending::Undone { .. } => "undone",
        Ending::GuestGone { .. } => "guest gone",
        Ending::Stuck { .. } => "stuck",
        Ending::Lost { .. } => "lost",
    }
}
