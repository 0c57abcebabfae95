//! A QEMU is started: with RAM, in a folder, as a user.

use super::binary::QemuBinary;
use super::cgroup;
use super::command_line::{self, RAM_BLOCK, StartMode};
use super::folder::Folder;
use super::inherited::{self, Inherited, Opened};
use super::instance::{Inner, QemuGuest, QemuRecord, Reaped};
use super::qmp::Qmp;
use super::replies::Version;
use super::strays;
use super::user::UserId;
use crate::definition::HUGE_PAGE_BYTES;
use crate::tracking::system;
use crate::{GuestDefinition, VmmError};
use qapi::qmp::{query_status, query_version};
use rustix::fs::{Mode, fchmod, fchown};
use rustix::process::{Gid, Uid};
use std::fs::OpenOptions;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use sterna_page::{PAGE_SIZE_BYTES, RamBlock, RamLayout};
use sterna_sys::memory::{GuestMemory, HugePages, create_shared};
use sterna_sys::preload;
use sterna_sys::process::{
    FileIdentity, Liveness, Process, Unprivileged, find_file, spawn_detached,
};

/// How long QEMU may take to open its monitor. Large huge-page guests reserve memory first.
const START_LIMIT: Duration = Duration::from_secs(30);

/// However long a hypervisor runs, it is waited for in spans of this.
const A_DAY: Duration = Duration::from_secs(86_400);

impl QemuGuest {
    /// Starts a guest in `folder`, which is made for it and must be no other guest's. Until
    /// [`QemuGuest::on_record`] is said it is one that [`super::end_strays`] ends.
    ///
    /// `definition` is resolved first; [`QemuRecord::definition`] tells the outcome, which is what
    /// a destination has to be prepared with.
    ///
    /// # Errors
    /// When the definition cannot be started or QEMU ends at once.
    pub fn start(
        binary: &QemuBinary,
        definition: &GuestDefinition,
        folder: PathBuf,
        mode: StartMode,
    ) -> Result<Self, VmmError> {
        Self::start_as(binary, definition, folder, mode, None)
    }

    /// As [`QemuGuest::start`], with `user`'s rights, if one is given; no other process may have that user. Only root can.
    ///
    /// # Errors
    /// As [`QemuGuest::start`], and when something that the guest needs cannot be opened, or not be handed to such a QEMU.
    pub fn start_as(
        binary: &QemuBinary,
        definition: &GuestDefinition,
        folder: PathBuf,
        mode: StartMode,
        user: Option<UserId>,
    ) -> Result<Self, VmmError> {
        definition.validate().map_err(|error| VmmError::Refused {
            operation: "starting QEMU",
            detail: error.to_string(),
        })?;
        let definition = binary.resolve(definition, mode);
        let ram = Ram::create(&definition, user)?;
        let machine = Machine { ram, taps: Vec::new(), user };
        Self::launch(binary, definition, folder, machine, mode)
    }

    /// Starts a QEMU for a resolved definition with what it is given.
    pub(super) fn launch(
        binary: &QemuBinary,
        definition: GuestDefinition,
        folder: PathBuf,
        machine: Machine,
        mode: StartMode,
    ) -> Result<Self, VmmError> {
        unused(&folder)?;
        let Machine { ram: Ram { file, memory, took_over }, mut taps, user } = machine;
        let opened = user.map(|_| Opened::of(&definition)).transpose()?;
        let shared = !taps.is_empty();
        if user.is_some() && !shared {
            taps = inherited::taps(&definition)?;
        }
        let folder = Folder::create(folder)?;
        let identity = FileIdentity::of(&file).map_err(system("identifying RAM"))?;
        let (first, theirs) = UnixStream::pair().map_err(system("making a monitor's socket"))?;
        let inherited = Inherited { ram: file, first_monitor: theirs.into(), taps, opened };
        let how = How { mode, user, shares_taps: shared };
        let begin = || spawn(binary, &definition, &folder, inherited, how);
        let child = begin().inspect_err(|_| {
            // Nothing was started in it; why not is the error to tell.
            let _ = folder.remove();
        })?;
        let pid = child.id();
        // The child is not reaped before it has been opened: its id cannot be another's.
        let process = Process::open(pid).map_err(system("opening the QEMU process"));
        let reaped = reap(child)?;
        let process = process?;
        cgroup::check(&folder, &process);
        let record = QemuRecord {
            definition,
            folder: folder.path().to_owned(),
            pid,
            start_time: process.start_time(),
            ram: vec![identity],
            took_ram_over: took_over,
            version: None,
            user,
        };
        let served = folder.served();
        let control = Mutex::new(());
        let mut inner = Inner { record, folder, process, memory, reaped: Some(reaped), control };
        match inner.while_lent(&served, || await_start(first)) {
            Ok(version) => {
                inner.record.version = Some(version);
                Ok(Self(Arc::new(inner)))
            }
            Err(error) => {
                let guest = Self(Arc::new(inner));
                let error = guest.without_rights(guest.explain(error));
                // The reason why it did not start is the one to tell.
                let _ = guest.kill();
                Err(error)
            }
        }
    }
}

/// Refuses a folder in which a hypervisor runs already: it may be the same guest.
fn unused(folder: &Path) -> Result<(), VmmError> {
    let others = strays::processes_of(&Folder::existing(folder.to_owned()))?;
    let Some(other) = others.first() else { return Ok(()) };
    let detail = format!(
        "process {} runs a guest in {} that is not on record here; end it, if it is not needed",
        other.pid(),
        folder.display()
    );
    Err(VmmError::Refused { operation: "starting QEMU", detail })
}

/// Waits until QEMU has made the machine and its monitors serve; returns its version.
fn await_start(first_monitor: UnixStream) -> Result<String, VmmError> {
    let mut qmp = Qmp::over(first_monitor, START_LIMIT)?;
    // Answered by the main loop, which runs when all is made.
    qmp.execute(&query_status {}, START_LIMIT)?;
    let version: Version = qmp.query(&query_version {})?;
    Ok(version.to_string())
}

/// The one RAM block of a definition.
pub(super) fn layout(definition: &GuestDefinition) -> Result<RamLayout, VmmError> {
    let host_page_bytes = if definition.huge_pages { HUGE_PAGE_BYTES } else { PAGE_SIZE_BYTES };
    let size_bytes = definition.memory_bytes;
    let block = RamBlock { name: RAM_BLOCK.into(), size_bytes, host_page_bytes };
    RamLayout::new(vec![block]).map_err(|error| VmmError::Refused {
        operation: "laying out RAM",
        detail: error.to_string(),
    })
}

/// A guest's RAM: its file, and the file mapped into this process.
pub(super) struct Ram {
    file: OwnedFd,
    memory: Arc<GuestMemory>,
    took_over: bool,
}

impl Ram {
    /// RAM of which no page exists.
    pub(super) fn create(
        definition: &GuestDefinition,
        user: Option<UserId>,
    ) -> Result<Self, VmmError> {
        let huge_pages = if definition.huge_pages { HugePages::TwoMiB } else { HugePages::No };
        let file = create_shared(RAM_BLOCK, definition.memory_bytes, huge_pages)
            .map_err(system("creating RAM"))?;
        if let Some(user) = user {
            give(&file, user).map_err(system("giving RAM to its user"))?;
        }
        Self::of(definition, file, false)
    }

    /// The RAM that `guest` has.
    pub(super) fn of_guest(guest: &QemuGuest) -> Result<Self, VmmError> {
        let Some(identity) = guest.record().ram.first() else {
            let detail = "it has no RAM on record".to_owned();
            return Err(VmmError::Refused { operation: "taking RAM over", detail });
        };
        let file = find_file(guest.process(), *identity).map_err(system("finding RAM"))?;
        Self::of(guest.definition(), file, true)
    }

    fn of(definition: &GuestDefinition, file: OwnedFd, took_over: bool) -> Result<Self, VmmError> {
        let ours = file.try_clone().map_err(system("creating RAM"))?;
        let memory = GuestMemory::open(layout(definition)?, vec![ours])?;
        Ok(Self { file, memory: Arc::new(memory), took_over })
    }
}

/// What a QEMU is given when it starts.
pub(super) struct Machine {
    pub(super) ram: Ram,
    /// Taps that another QEMU uses until the guest is handed over, in the order of the definition's networks;
    /// none if this one opens them itself.
    pub(super) taps: Vec<OwnedFd>,
    /// The user that it runs as; `None` for the agent's.
    pub(super) user: Option<UserId>,
}

/// How a QEMU is started.
#[derive(Clone, Copy)]
struct How {
    mode: StartMode,
    user: Option<UserId>,
    /// Whether another QEMU uses its taps as well.
    shares_taps: bool,
}

/// QEMU opens its RAM anew by the descriptor that it has, for which its user must be allowed to; nobody else need be.
fn give(file: &OwnedFd, user: UserId) -> std::io::Result<()> {
    let (uid, gid) = (Uid::from_raw(user.number()), Gid::from_raw(user.number()));
    fchown(file, Some(uid), Some(gid))?;
    Ok(fchmod(file, Mode::RUSR | Mode::WUSR)?)
}

fn spawn(
    binary: &QemuBinary,
    definition: &GuestDefinition,
    folder: &Folder,
    inherited: Inherited,
    how: How,
) -> Result<Child, VmmError> {
    let How { mode, user, shares_taps } = how;
    let own = user.map(|user| folder.make_own(user)).transpose()?;
    let mut libraries = vec![library(preload::LIBRARY)?];
    let mut in_use = None;
    if shares_taps {
        libraries.push(library(preload::TAPS_LIBRARY)?);
        in_use = Some((preload::TAPS_IN_USE_VARIABLE, folder.mark_taps_in_use(user)?));
    }
    let names: Vec<_> = libraries.iter().map(preload::by_number).collect();
    let log = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(folder.log())
        .map_err(system("opening the log"))?;
    let log_too = log.try_clone().map_err(system("opening the log"))?;
    let device = inherited.userfaultfd().map(|number| number.to_string());
    let mut command = Command::new(binary.path());
    command
        .args(command_line::arguments(definition, folder, &inherited.numbers(), mode)?)
        .current_dir(Path::new("/"))
        // Nothing of the agent's environment is QEMU's business.
        .env_clear()
        .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
        .env(preload::PATH_VARIABLE, names.join(":"))
        .env(preload::ENABLE_VARIABLE, "1")
        .envs(in_use)
        .envs(device.map(|number| (preload::DEVICE_VARIABLE, number)))
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(log_too);
    let unprivileged =
        user.zip(own).map(|(user, folder)| Unprivileged { id: user.number(), folder });
    let entrances = cgroup::make(folder, definition);
    let descriptors = inherited.into_descriptors().into_iter().chain(libraries).collect();
    spawn_detached(command, descriptors, unprivileged, entrances).map_err(system("starting QEMU"))
}

fn library(library: &[u8]) -> Result<OwnedFd, VmmError> {
    preload::in_memory(library).map_err(system("writing the library"))
}

/// Waits for the child on a thread of its own, so that it never stays as a zombie. Its end is waited for by its pidfd: to
/// wait for a child also tells of its threads' being stopped for a scan.
fn reap(mut child: Child) -> Result<Reaped, VmmError> {
    let process = Process::open(child.id()).map_err(system("opening the QEMU process"))?;
    let reaped = Reaped::default();
    let result = Arc::clone(&reaped);
    std::thread::Builder::new()
        .name("qemu-reaper".into())
        .spawn(move || {
            while process.wait_for_end(A_DAY) == Liveness::Alive {}
            let _ = result.set(child.wait().ok());
        })
        .map_err(system("starting a thread"))?;
    Ok(reaped)
}
