//! A QEMU process with its guest, however it came to be.

use super::cgroup;
use super::folder::Folder;
use super::log;
use super::qmp::{Qmp, REPLY_LIMIT};
use super::replies::RunStatus;
use super::start::layout;
use super::strays;
use super::user::UserId;
use crate::tracking::system;
use crate::{GuestDefinition, VmmError};
use qapi::qmp::{cont, query_status, quit, stop, system_powerdown, system_reset};
use serde::{Deserialize, Serialize};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use sterna_page::RamLayout;
use sterna_sys::memory::GuestMemory;
use sterna_sys::process::{FileIdentity, Liveness, Process, StartTime, find_file};

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
pub(super) type Reaped = Arc<OnceLock<Option<ExitStatus>>>;

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) record: QemuRecord,
    pub(super) folder: Folder,
    pub(super) process: Process,
    pub(super) memory: Arc<GuestMemory>,
    pub(super) reaped: Option<Reaped>,
    pub(super) control: Mutex<()>,
}

/// A QEMU process with its guest; clones are handles of the same one. Dropping all of them leaves
/// the guest as it is.
#[derive(Clone, Debug)]
pub struct QemuGuest(pub(super) Arc<Inner>);

impl Inner {
    pub(super) fn while_lent<T>(
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
        cgroup::adopt(&folder, &process, &record.definition);
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
    pub(super) fn without_rights(&self, error: VmmError) -> VmmError {
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
