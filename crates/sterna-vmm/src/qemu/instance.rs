//! A QEMU process with its guest: started here or found again.

use super::binary::QemuBinary;
use super::command_line::{self, RAM_BLOCK, StartMode};
use super::folder::Folder;
use super::inherited::{self, Inherited, Opened};
use super::log;
use super::qmp::{Qmp, REPLY_LIMIT};
use super::replies::{RunStatus, Version};
use super::strays;
use super::user::UserId;
use crate::definition::HUGE_PAGE_BYTES;
use crate::tracking::system;
use crate::{GuestDefinition, VmmError};
use qapi::qmp::{cont, query_status, query_version, quit, stop, system_powerdown, system_reset};
use rustix::fs::{Mode, fchmod, fchown};
use rustix::process::{Gid, Uid};
use serde::{Deserialize, Serialize};
use std::fs::{OpenOptions, Permissions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use sterna_page::{PAGE_SIZE_BYTES, RamBlock, RamLayout};
use sterna_sys::memory::{GuestMemory, HugePages, create_shared};
use sterna_sys::preload;
use sterna_sys::process::{
    FileIdentity, Liveness, Process, StartTime, Unprivileged, find_file, spawn_detached,
};

/// How long QEMU may take to open its monitor. Large huge-page guests reserve memory first.
const START_LIMIT: Duration = Duration::from_secs(30);

/// How long QEMU may take to end when asked to; it then writes back what its disks cache.
pub(super) const QUIT_LIMIT: Duration = Duration::from_secs(10);

/// How long a killed process may take to be gone: freeing a large RAM takes a while.
pub(super) const KILL_LIMIT: Duration = Duration::from_secs(30);

/// All that is needed to find a guest again. Kept by the agent across its own restarts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QemuRecord {
    /// What the guest is made of, resolved for the QEMU that runs it.
    pub definition: GuestDefinition,
    /// Its runtime folder.
    pub folder: PathBuf,
    /// Process id.
    pub pid: u32,
    /// When the process started.
    pub start_time: StartTime,
    /// The files of its RAM blocks.
    pub ram: Vec<FileIdentity>,
    /// Whether it took its RAM over from another QEMU of this host, as it was: it was never empty, and must not be
    /// emptied before the guest's state is loaded.
    #[serde(default)]
    pub took_ram_over: bool,
    /// QEMU's version; `None` of one that an earlier release has started.
    #[serde(default)]
    pub version: Option<String>,
    /// The user that is this guest's own; `None` if its QEMU has the agent's rights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<UserId>,
}

impl QemuRecord {
    /// Where the process writes what it has to say, as long as its folder is there.
    #[must_use]
    pub fn log_path(&self) -> PathBuf {
        Folder::existing(self.folder.clone()).log()
    }
}

/// How a guest stands, as QEMU tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QemuStatus {
    /// vCPUs run.
    Running,
    /// The guest waits for the state of another one.
    Incoming,
    /// vCPUs stand still, in QEMU's words: `paused`, `finish-migrate`, `postmigrate`, …
    Stopped(String),
}

/// How a QEMU process ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// By itself and orderly: the guest powered off, or it was asked to quit.
    Orderly,
    /// With an error or by a signal; how, and the end of its log.
    Failed(String),
    /// It was started by another agent, so that its exit status is lost; the end of its log.
    Unknown(String),
}

/// Exit status of a child, once known; `None` inside if it could not be had.
type Reaped = Arc<OnceLock<Option<ExitStatus>>>;

#[derive(Debug)]
struct Inner {
    record: QemuRecord,
    folder: Folder,
    process: Process,
    memory: Arc<GuestMemory>,
    reaped: Option<Reaped>,
    control: Mutex<()>,
}

/// A QEMU process with its guest; clones are handles of the same one. Dropping all of them leaves
/// the guest as it is.
#[derive(Clone, Debug)]
pub struct QemuGuest(Arc<Inner>);

impl Inner {
    fn while_lent<T>(
        &self,
        sockets: &[PathBuf],
        make: impl FnOnce() -> Result<T, VmmError>,
    ) -> Result<T, VmmError> {
        match self.record.user {
            None => make(),
            Some(user) => self.folder.while_lent(user, sockets, make),
        }
    }
}

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

    /// Finds a guest that another agent (or this one, earlier) started.
    ///
    /// # Errors
    /// With [`VmmError::Gone`] when its process has ended.
    pub fn reattach(record: QemuRecord) -> Result<Self, VmmError> {
        let folder = Folder::existing(record.folder.clone());
        let gone = |error: std::io::Error| {
            let tail = log::tail(&folder.log());
            // All that is left of it, unless another has it by now.
            if strays::processes_of(&folder).is_ok_and(|others| others.is_empty())
                && let Err(error) = folder.remove()
            {
                tracing::warn!(folder = %folder.path().display(), %error, "cannot be removed");
            }
            VmmError::Gone { detail: format!("process {}: {error}; {tail}", record.pid) }
        };
        let process = Process::reopen(record.pid, record.start_time).map_err(gone)?;
        let find = |identity: &FileIdentity| find_file(&process, *identity);
        let files: std::io::Result<Vec<_>> = record.ram.iter().map(find).collect();
        let files = match files {
            Ok(files) => files,
            // One that is about to end has closed its files before it counts as ended.
            Err(error) => match process.wait_for_end(KILL_LIMIT) {
                Liveness::Ended => return Err(gone(error)),
                Liveness::Alive => return Err(system("finding the guest's RAM")(error)),
            },
        };
        let memory = GuestMemory::open(layout(&record.definition)?, files)?;
        let memory = Arc::new(memory);
        let control = Mutex::new(());
        let inner = Inner { record, folder, process, memory, reaped: None, control };
        Ok(Self(Arc::new(inner)))
    }

    /// The guest is on record: whoever comes after this agent finds it.
    ///
    /// # Errors
    /// When that cannot be noted.
    pub fn on_record(&self) -> Result<(), VmmError> {
        self.0.folder.unmark()
    }

    /// What finds this guest again.
    #[must_use]
    pub fn record(&self) -> &QemuRecord {
        &self.0.record
    }

    /// What the guest is made of, resolved.
    #[must_use]
    pub fn definition(&self) -> &GuestDefinition {
        &self.0.record.definition
    }

    /// Process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.0.record.pid
    }

    /// A descriptor that becomes readable when the process ends.
    ///
    /// # Errors
    /// When this process has no descriptor left.
    pub fn pidfd(&self) -> std::io::Result<OwnedFd> {
        self.0.process.descriptor()
    }

    /// Path of the unix socket that carries the console; it serves one connection at a time.
    #[must_use]
    pub fn console_path(&self) -> PathBuf {
        self.0.folder.console_socket()
    }

    /// Whether the process runs.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.0.process.liveness() == Liveness::Alive
    }

    /// Its RAM, mapped into this process.
    #[must_use]
    pub fn memory(&self) -> Arc<GuestMemory> {
        Arc::clone(&self.0.memory)
    }

    /// Its RAM blocks.
    #[must_use]
    pub fn layout(&self) -> &RamLayout {
        self.0.memory.layout()
    }

    pub(super) fn process(&self) -> &Process {
        &self.0.process
    }

    pub(super) fn folder(&self) -> &Folder {
        &self.0.folder
    }

    /// Where QEMU is told to listen or to connect to for its stream.
    pub(super) fn transfer_uri(&self) -> String {
        let path = self.0.folder.transfer_socket();
        match (self.0.record.user, path.file_name()) {
            // It begins in the folder where that is.
            (Some(_), Some(name)) => format!("unix:{}", name.display()),
            _ => format!("unix:{}", path.display()),
        }
    }

    /// Does something in which QEMU makes these sockets of its folder.
    pub(super) fn while_lent<T>(
        &self,
        sockets: &[PathBuf],
        make: impl FnOnce() -> Result<T, VmmError>,
    ) -> Result<T, VmmError> {
        self.0.while_lent(sockets, make)
    }

    /// Lets QEMU connect to the socket for its stream, on which somebody listens.
    pub(super) fn offer_transfer(&self) -> Result<(), VmmError> {
        let folder = &self.0.folder;
        self.0.record.user.map_or(Ok(()), |user| folder.offer(user, &folder.transfer_socket()))
    }

    /// The error of a QEMU that could not begin, with what may be the reason.
    fn without_rights(&self, error: VmmError) -> VmmError {
        match (error, self.0.record.user) {
            (VmmError::Gone { detail }, Some(user)) if detail.contains("Permission denied") => {
                let why = "which may not open what its own arguments name; see guest-uids";
                VmmError::Gone { detail: format!("{detail}; it runs as user {user}, {why}") }
            }
            (error, _) => error,
        }
    }

    /// How the guest stands.
    ///
    /// # Errors
    /// When QEMU is gone or does not answer.
    pub fn status(&self) -> Result<QemuStatus, VmmError> {
        let status: RunStatus = self.control(|qmp| qmp.query(&query_status {}))?;
        Ok(match status.status.as_str() {
            _ if status.running => QemuStatus::Running,
            "inmigrate" => QemuStatus::Incoming,
            _ => QemuStatus::Stopped(status.status),
        })
    }

    /// Lets a guest run that was started paused. Not for one that is on the move: see
    /// [`crate::Source::resume`].
    ///
    /// # Errors
    /// When QEMU refuses or is gone.
    pub fn run(&self) -> Result<(), VmmError> {
        if self.status()? == QemuStatus::Incoming {
            let detail = "the guest still waits for its state".to_owned();
            return Err(VmmError::Refused { operation: "cont", detail });
        }
        self.control(|qmp| qmp.execute(&cont {}, REPLY_LIMIT))
    }

    /// Stops the vCPUs of a guest that no move has.
    ///
    /// # Errors
    /// When QEMU refuses or is gone.
    pub fn pause(&self) -> Result<(), VmmError> {
        self.control(|qmp| qmp.execute(&stop {}, REPLY_LIMIT))
    }

    /// Presses the guest's reset button.
    ///
    /// # Errors
    /// When QEMU refuses or is gone.
    pub fn reset(&self) -> Result<(), VmmError> {
        self.control(|qmp| qmp.execute(&system_reset {}, REPLY_LIMIT))
    }

    /// Presses the guest's power button. Its system powers off, if it wants to.
    ///
    /// # Errors
    /// When QEMU refuses or is gone.
    pub fn press_power(&self) -> Result<(), VmmError> {
        self.control(|qmp| qmp.execute(&system_powerdown {}, REPLY_LIMIT))
    }

    /// Ends the process, orderly if it can be, and removes its folder. Harmless if it has ended.
    ///
    /// # Errors
    /// When the process cannot be ended.
    pub fn end(&self) -> Result<(), VmmError> {
        if self.is_alive() {
            // An answer to `quit` may get lost as QEMU goes; what counts is that it ends.
            let _ = self.control(|qmp| qmp.execute(&quit {}, QUIT_LIMIT));
            let _ = self.0.process.wait_for_end(QUIT_LIMIT);
        }
        self.kill()
    }

    /// Ends the process at once, without writing back its disks, and removes its folder.
    ///
    /// # Errors
    /// When the process cannot be ended.
    pub fn kill(&self) -> Result<(), VmmError> {
        self.0.process.kill().map_err(system("killing QEMU"))?;
        if self.0.process.wait_for_end(KILL_LIMIT) == Liveness::Alive {
            return Err(VmmError::TimedOut { operation: "ending QEMU", limit: KILL_LIMIT });
        }
        self.0.folder.remove()
    }

    /// How the process ended, or `None` while it runs.
    #[must_use]
    pub fn ending(&self) -> Option<Ending> {
        if self.is_alive() {
            return None;
        }
        let tail = log::tail(&self.0.folder.log());
        // The process has ended, so the thread that waits for it answers at once.
        let status = self.0.reaped.as_ref().and_then(|reaped| *reaped.wait());
        Some(match status {
            Some(status) if status.success() => Ending::Orderly,
            Some(status) => Ending::Failed(format!("{status}; {tail}")),
            None => Ending::Unknown(tail),
        })
    }

    /// The error to tell: that QEMU is gone, if it is, else `error`.
    pub(super) fn explain(&self, error: VmmError) -> VmmError {
        // A closed connection is seen a moment before the end of the process.
        let patience = match error {
            VmmError::Gone { .. } => Duration::from_secs(1),
            _ => Duration::ZERO,
        };
        if self.0.process.wait_for_end(patience) == Liveness::Alive {
            return error;
        }
        let detail = match self.ending() {
            Some(Ending::Failed(detail)) => detail,
            Some(Ending::Unknown(tail)) => format!("exit status unknown; {tail}"),
            Some(Ending::Orderly) | None => "it ended orderly".to_owned(),
        };
        VmmError::Gone { detail }
    }

    /// Uses the control monitor. Connects for each use, as the monitor serves one connection at a
    /// time: whoever kept it would lock out every other handle of this guest.
    fn control<T>(&self, run: impl FnOnce(&mut Qmp) -> Result<T, VmmError>) -> Result<T, VmmError> {
        let _turn = self.0.control.lock().unwrap_or_else(PoisonError::into_inner);
        Qmp::connect(&self.0.folder.control_socket(), REPLY_LIMIT)
            .and_then(|mut qmp| run(&mut qmp))
            .map_err(|error| self.explain(error))
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
fn layout(definition: &GuestDefinition) -> Result<RamLayout, VmmError> {
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
    let (library, there) = folder.preload_library(user);
    put_library(preload::LIBRARY, &library)?;
    let mut libraries = there.into_os_string();
    let mut in_use = None;
    if shares_taps {
        let (library, there) = folder.taps_library(user);
        put_library(preload::TAPS_LIBRARY, &library)?;
        libraries.push(":");
        libraries.push(there);
        in_use = Some((preload::TAPS_IN_USE_VARIABLE, folder.mark_taps_in_use(user)?));
    }
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
        .env(preload::PATH_VARIABLE, libraries)
        .env(preload::ENABLE_VARIABLE, "1")
        .envs(in_use)
        .envs(device.map(|number| (preload::DEVICE_VARIABLE, number)))
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(log_too);
    let unprivileged =
        user.zip(own).map(|(user, folder)| Unprivileged { id: user.number(), folder });
    spawn_detached(command, inherited.into_descriptors(), unprivileged)
        .map_err(system("starting QEMU"))
}

/// Writes a library where QEMU, whoever it runs as, may read it.
fn put_library(library: &[u8], path: &Path) -> Result<(), VmmError> {
    let put = || {
        preload::write_library(library, path)?;
        std::fs::set_permissions(path, Permissions::from_mode(0o644))
    };
    put().map_err(system("writing the library"))
}

/// Waits for the child on a thread of its own, so that it never stays as a zombie.
fn reap(mut child: Child) -> Result<Reaped, VmmError> {
    let reaped = Reaped::default();
    let result = Arc::clone(&reaped);
    std::thread::Builder::new()
        .name("qemu-reaper".into())
        .spawn(move || {
            let _ = result.set(child.wait().ok());
        })
        .map_err(system("starting a thread"))?;
    Ok(reaped)
}
