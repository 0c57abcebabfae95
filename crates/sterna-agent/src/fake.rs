//! A hypervisor for tests: its guests are idle processes without a virtual machine.

mod moving;

pub(crate) use moving::HandOvers;

use crate::agent::{Agent, Parts};
use crate::hypervisor::{Ended, GuestProcess, Hypervisor, Intervention, Prepared, Running};
use crate::images;
use crate::journal::Journal;
use crate::settings::{MoveLimits, PeerArguments, Settings};
use moving::{FakeDestination, FakeParts, FakeSource, kill, step};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::fs::File;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use sterna_api::Finding;
use sterna_engine::identity::Identity;
use sterna_page::{PAGE_SIZE, PAGE_SIZE_BYTES, PageNumber, RamBlock, RamLayout};
use sterna_proto::message::Reason;
use sterna_sys::memory::{GuestMemory, HugePages, create_shared};
use sterna_vmm::{Destination, GuestDefinition, NativeWay, Source, VmmError};

/// An agent in `folder` with a fake hypervisor. Must be called within a runtime.
pub(crate) fn agent(folder: &Path) -> (Arc<Agent>, Arc<FakeHypervisor>) {
    agent_at(folder, 0)
}

/// The same, in a cluster whose interfaces have this port.
pub(crate) fn agent_at(folder: &Path, api_port: u16) -> (Arc<Agent>, Arc<FakeHypervisor>) {
    let settings = Settings {
        name: "a".into(),
        state: folder.join("state"),
        runtime: folder.join("run"),
        identity: folder.join("id"),
        listen: "127.0.0.1".parse().unwrap(),
        move_listen: "127.0.0.1".parse().unwrap(),
        api_port,
        move_port: 0,
        join_port: 0,
        qemu: None,
        guest_users: None,
        tracker: None,
        peer_arguments: PeerArguments::Refused,
        images_bytes_max: 8 << 20,
        moves: MoveLimits::default(),
    };
    let fake = Arc::new(FakeHypervisor {
        folder: settings.runtime.clone(),
        machine: Mutex::new("fake-1".into()),
        guests: Mutex::default(),
        hand_overs: Arc::default(),
    });
    let journal = Journal::open(&settings.state).unwrap();
    let identity = identity(&settings.identity);
    let runtime = tokio::runtime::Handle::current();
    let hypervisor = Arc::clone(&fake) as Arc<dyn Hypervisor>;
    std::fs::create_dir_all(&settings.runtime).unwrap();
    let images = images::open(&settings).unwrap();
    let parts = Parts { identity, journal, hypervisor, images, runtime };
    (Arc::new(Agent::new(settings, parts)), fake)
}

/// The identity in a folder, or one that trusts itself alone.
fn identity(folder: &Path) -> Identity {
    if folder.join("host.pem").exists() {
        return Identity::load(folder).unwrap();
    }
    let made = rcgen::generate_simple_self_signed(vec!["a".to_owned()]).unwrap();
    std::fs::create_dir_all(folder).unwrap();
    std::fs::write(folder.join("ca.pem"), made.cert.pem()).unwrap();
    std::fs::write(folder.join("host.pem"), made.cert.pem()).unwrap();
    std::fs::write(folder.join("host.key"), made.signing_key.serialize_pem()).unwrap();
    Identity::load(folder).unwrap()
}

/// Starts and finds fake guests.
#[derive(Debug)]
pub(crate) struct FakeHypervisor {
    folder: PathBuf,
    /// The newest machine type that it has.
    machine: Mutex<String>,
    guests: Mutex<Vec<Arc<FakeGuest>>>,
    hand_overs: Arc<Mutex<HandOvers>>,
}

impl FakeHypervisor {
    /// Decides what becomes of guests that are handed over.
    pub(crate) fn hand_overs(&self, hand_overs: HandOvers) {
        *self.hand_overs.lock().unwrap() = hand_overs;
    }

    /// Guests started so far.
    pub(crate) fn started(&self) -> usize {
        self.guests.lock().unwrap().len()
    }

    /// The guest that was started last.
    pub(crate) fn newest(&self) -> Arc<FakeGuest> {
        Arc::clone(self.guests.lock().unwrap().last().unwrap())
    }

    /// Another machine type is the newest from now on.
    pub(crate) fn upgrade(&self, machine: &str) {
        *self.machine.lock().unwrap() = machine.into();
    }

    /// Ends the processes of all guests, behind the agent's back.
    pub(crate) fn kill_all(&self) {
        for guest in self.guests.lock().unwrap().iter() {
            guest.kill();
        }
    }

    fn spawn(&self, definition: &GuestDefinition, state: FakeState) -> Arc<FakeGuest> {
        let child = Command::new("sleep").arg("600").stdin(Stdio::null()).spawn().unwrap();
        let child_id = child.id();
        let guest = Arc::new(FakeGuest {
            definition: definition.clone(),
            pid: child.id(),
            child: Arc::new(Mutex::new(child)),
            state: Arc::new(Mutex::new(state)),
            is_powered_off: AtomicBool::new(false),
            console: PathBuf::from("/nowhere"),
            log: self.log_of(child_id),
            on_record: AtomicBool::new(false),
            hand_overs: Arc::clone(&self.hand_overs),
        });
        guest.says("begins");
        self.guests.lock().unwrap().push(Arc::clone(&guest));
        guest
    }

    fn log_of(&self, pid: u32) -> PathBuf {
        self.folder.join(format!("fake-{pid}.log"))
    }
}

impl Drop for FakeHypervisor {
    fn drop(&mut self) {
        self.kill_all();
    }
}

impl Hypervisor for FakeHypervisor {
    fn name(&self) -> &'static str {
        "fake"
    }

    fn findings(&self) -> Vec<Finding> {
        Vec::new()
    }

    fn objections(&self, _: &GuestDefinition) -> Vec<Reason> {
        Vec::new()
    }

    fn start(&self, definition: &GuestDefinition) -> Result<Arc<dyn GuestProcess>, VmmError> {
        let machine = self.machine.lock().unwrap().clone();
        let machine = definition.machine.clone().unwrap_or(machine);
        let definition = GuestDefinition { machine: Some(machine), ..definition.clone() };
        Ok(self.spawn(&definition, FakeState::Running))
    }

    fn prepare(
        &self,
        definition: &GuestDefinition,
        _: Option<NativeWay>,
    ) -> Result<Prepared, VmmError> {
        let process = self.spawn(definition, FakeState::Paused);
        let destination = process.destination()?;
        Ok(Prepared { process, destination })
    }

    fn prepare_beside(&self, record: &serde_json::Value) -> Result<Prepared, VmmError> {
        step(&self.hand_overs, "prepare")?;
        let old = self.reattach(record)?.unwrap();
        let new = self.spawn(&old.definition(), FakeState::Paused);
        let destination = new.destination()?;
        Ok(Prepared { process: new, destination })
    }

    fn end_strays(&self, on_record: &[serde_json::Value]) -> Result<usize, VmmError> {
        let guests = self.guests.lock().unwrap();
        let is_stray = |guest: &&Arc<FakeGuest>| {
            guest.lives() && !guest.is_on_record() && !on_record.contains(&guest.record())
        };
        let strays: Vec<_> = guests.iter().filter(is_stray).collect();
        strays.iter().try_for_each(|stray| stray.end())?;
        Ok(strays.len())
    }

    fn log(&self, record: &serde_json::Value) -> Option<PathBuf> {
        Some(self.log_of(record["pid"].as_u64()?.try_into().ok()?))
    }

    fn reattach(
        &self,
        record: &serde_json::Value,
    ) -> Result<Option<Arc<dyn GuestProcess>>, VmmError> {
        let guests = self.guests.lock().unwrap();
        let found = guests.iter().find(|guest| &guest.record() == record && guest.lives());
        if found.is_none() {
            // As with a real one, what is left of it goes.
            let _ = std::fs::remove_file(self.log(record).unwrap());
        }
        Ok(found.map(|guest| Arc::clone(guest) as Arc<dyn GuestProcess>))
    }
}

/// What a fake guest's vCPUs would do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FakeState {
    Running,
    Paused,
}

/// A fake guest.
#[derive(Debug)]
pub(crate) struct FakeGuest {
    definition: GuestDefinition,
    pid: u32,
    child: Arc<Mutex<Child>>,
    state: Arc<Mutex<FakeState>>,
    is_powered_off: AtomicBool,
    console: PathBuf,
    log: PathBuf,
    on_record: AtomicBool,
    hand_overs: Arc<Mutex<HandOvers>>,
}

impl FakeGuest {
    /// Whether the agent has said that it is on record.
    pub(crate) fn is_on_record(&self) -> bool {
        self.on_record.load(Ordering::Relaxed)
    }

    /// Whether its process lives.
    pub(crate) fn lives(&self) -> bool {
        self.child.lock().unwrap().try_wait().unwrap().is_none()
    }

    /// Puts a line into its log.
    pub(crate) fn says(&self, line: &str) {
        let mut log = File::options().create(true).append(true).open(&self.log).unwrap();
        writeln!(log, "{line}").unwrap();
    }

    /// Whether anything is left of it.
    pub(crate) fn leaves_something(&self) -> bool {
        self.lives() || self.log.exists()
    }

    fn kill(&self) {
        kill(&self.child);
    }

    /// What its vCPUs would do.
    pub(crate) fn state(&self) -> FakeState {
        *self.state.lock().unwrap()
    }
}

impl FakeGuest {
    fn parts(&self) -> FakeParts {
        let memory = self.memory();
        FakeParts {
            state: Arc::clone(&self.state),
            child: Arc::clone(&self.child),
            hand_overs: Arc::clone(&self.hand_overs),
            layout: memory.layout().clone(),
            memory,
        }
    }
}

impl GuestProcess for FakeGuest {
    fn record(&self) -> serde_json::Value {
        serde_json::json!({ "pid": self.pid })
    }

    fn on_record(&self) -> Result<(), VmmError> {
        self.on_record.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn definition(&self) -> GuestDefinition {
        self.definition.clone()
    }

    fn version(&self) -> Option<String> {
        None
    }

    fn pid(&self) -> u32 {
        self.pid
    }

    fn pidfd(&self) -> std::io::Result<OwnedFd> {
        let pid = Pid::from_child(&self.child.lock().unwrap());
        Ok(pidfd_open(pid, PidfdFlags::NONBLOCK)?)
    }

    fn console(&self) -> &Path {
        &self.console
    }

    fn running(&self) -> Result<Running, VmmError> {
        Ok(match self.state() {
            FakeState::Running => Running::Yes,
            FakeState::Paused => Running::No("paused".into()),
        })
    }

    fn run(&self) -> Result<(), VmmError> {
        *self.state.lock().unwrap() = FakeState::Running;
        Ok(())
    }

    fn intervene(&self, how: Intervention) -> Result<(), VmmError> {
        match how {
            Intervention::Pause => *self.state.lock().unwrap() = FakeState::Paused,
            Intervention::Reset => {}
            Intervention::Shutdown => {
                self.is_powered_off.store(true, Ordering::Relaxed);
                self.kill();
            }
        }
        Ok(())
    }

    fn end(&self) -> Result<(), VmmError> {
        if self.lives() {
            self.says("ends");
        }
        self.kill();
        let _ = std::fs::remove_file(&self.log);
        Ok(())
    }

    fn post_mortem(&self) -> Ended {
        if self.is_powered_off.load(Ordering::Relaxed) {
            return Ended::PoweredOff;
        }
        Ended::Crashed("it was killed".into())
    }

    fn source(&self) -> Result<Box<dyn Source>, VmmError> {
        step(&self.hand_overs, "leaving")?;
        Ok(Box::new(FakeSource { parts: self.parts() }))
    }

    fn destination(&self) -> Result<Box<dyn Destination>, VmmError> {
        Ok(Box::new(FakeDestination { parts: self.parts() }))
    }

    /// One page of it is that of every fake guest.
    fn memory(&self) -> Arc<GuestMemory> {
        let size_bytes = self.definition.memory_bytes;
        let host_page_bytes = PAGE_SIZE_BYTES;
        let block = RamBlock { name: "ram0".into(), size_bytes, host_page_bytes };
        let layout = RamLayout::new(vec![block]).unwrap();
        let file = create_shared("ram0", size_bytes, HugePages::No).unwrap();
        let memory = GuestMemory::open(layout, vec![file]).unwrap();
        memory.write(PageNumber(1), &[1; PAGE_SIZE]).unwrap();
        Arc::new(memory)
    }

    fn taken_over(&self) -> Box<dyn Destination> {
        self.destination().unwrap()
    }
}
