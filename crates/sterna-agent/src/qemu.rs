//! QEMU as the agent's hypervisor.

use crate::hypervisor::{Ended, GuestProcess, Hypervisor, Intervention, Prepared, Running};
use crate::users::{GuestUsers, Lease, Users};
use serde::Deserialize as _;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use sterna_api::{Finding, Verdict};
use sterna_proto::message::{Reason, ReasonCode};
use sterna_sys::memory::GuestMemory;
use sterna_vmm::qemu::probe::{self, Probe};
use sterna_vmm::qemu::{
    Ending, QemuBinary, QemuDestination, QemuGuest, QemuRecord, QemuSource, QemuStatus, StartMode,
    UserId, end_strays,
};
use sterna_vmm::{Accelerator, Destination, GuestDefinition, NativeWay, Source, Tracker, VmmError};

/// The program that is looked for in `PATH`.
const PROGRAM: &str = "qemu-system-x86_64";

/// Folder of guests' sockets and logs, and of the probe, in the runtime folder.
const GUESTS_FOLDER: &str = "guests";
const PROBE_FOLDER: &str = "probe";

/// Examines this host without an agent, which takes some seconds. `qemu` is looked for in `PATH`
/// if it is not given; only `tracker` is tried, if one is.
#[must_use]
pub fn examine(qemu: Option<&Path>, tracker: Option<Tracker>) -> Vec<Finding> {
    match tempfile::tempdir() {
        Ok(scratch) => {
            let Probe { findings, .. } =
                probe::probe(qemu.unwrap_or(Path::new(PROGRAM)), scratch.path(), tracker);
            findings.into_iter().map(finding).collect()
        }
        Err(error) => vec![Finding {
            check: "temporary folder".into(),
            verdict: Verdict::Missing,
            detail: format!("none can be made: {error}"),
            remedy: Some("set TMPDIR to a folder that can be written".into()),
        }],
    }
}

fn finding(found: probe::Finding) -> Finding {
    Finding {
        check: found.name.into(),
        verdict: match found.verdict {
            probe::Verdict::Good => Verdict::Good,
            probe::Verdict::Warning => Verdict::Limited,
            probe::Verdict::Missing => Verdict::Missing,
        },
        detail: found.detail,
        remedy: found.remedy,
    }
}

/// The QEMU of this host.
pub(crate) struct Qemu {
    binary: QemuBinary,
    findings: Vec<Finding>,
    /// How guests' writes are tracked.
    tracker: Tracker,
    guests: PathBuf,
    /// Whose guests' hypervisors are; `None` if all are root's.
    users: Option<Arc<Users>>,
}

impl Qemu {
    /// Finds out what this host's QEMU can do; fails with the findings if there is none.
    pub(crate) fn find(
        program: Option<&Path>,
        runtime: &Path,
        users: Option<&GuestUsers>,
        tracker: Option<Tracker>,
    ) -> Result<Self, Vec<Finding>> {
        let scratch = runtime.join(PROBE_FOLDER);
        let made = std::fs::create_dir_all(&scratch);
        if let Err(error) = made {
            tracing::error!(folder = %scratch.display(), %error, "cannot make a folder");
        }
        let probed = probe::probe(program.unwrap_or(Path::new(PROGRAM)), &scratch, tracker);
        let mut findings: Vec<Finding> = probed.findings.into_iter().map(finding).collect();
        findings.push(finding(probe::cgroups(std::process::id())));
        match probed.binary {
            Some(binary) => Ok(Self {
                binary,
                findings,
                // Where none works this one says why of each guest.
                tracker: probed.tracker.or(tracker).unwrap_or_default(),
                guests: runtime.join(GUESTS_FOLDER),
                users: users.cloned().map(Users::new),
            }),
            None => Err(findings),
        }
    }

    fn folder(&self, definition: &GuestDefinition) -> PathBuf {
        // Names are safe as file names, and distinct on a host.
        self.guests.join(&definition.name)
    }

    /// Where a guest's hypervisor is while another one has its usual folder: no guest has such a name.
    fn second_folder(&self, guest: &QemuGuest) -> PathBuf {
        self.guests.join(format!("{}@", guest.definition().name))
    }

    fn lend_user(&self) -> Result<Option<Lease>, VmmError> {
        self.users.as_ref().map(Users::lend).transpose()
    }

    /// The user of a guest that is on record. An agent that gives guests no users need not know.
    fn lend_again(&self, user: Option<UserId>) -> Option<Lease> {
        Some(self.users.as_ref()?.lend_again(user?))
    }
}

impl Hypervisor for Qemu {
    fn name(&self) -> &'static str {
        "qemu"
    }

    fn findings(&self) -> Vec<Finding> {
        self.findings.clone()
    }

    fn objections(&self, definition: &GuestDefinition) -> Vec<Reason> {
        let mut reasons = Vec::new();
        if definition.accelerator == Accelerator::Kvm && self.binary.accelerator != Accelerator::Kvm
        {
            let detail = "the guest needs KVM, which does not run guests on this host";
            reasons.push(Reason::new(ReasonCode::Incompatible, detail));
        }
        if !self.binary.has_machine(definition) {
            let machine = definition.machine.as_deref().unwrap_or_default();
            let version = &self.binary.version;
            let detail = format!(
                "the guest's machine type {machine} is not one of this host's QEMU {version}"
            );
            reasons.push(Reason::new(ReasonCode::Incompatible, detail));
        }
        reasons
    }

    fn start(&self, definition: &GuestDefinition) -> Result<Arc<dyn GuestProcess>, VmmError> {
        let folder = self.folder(definition);
        let lease = self.lend_user()?;
        let user = lease.as_ref().map(|lease| lease.user);
        let guest = QemuGuest::start_as(&self.binary, definition, folder, StartMode::Run, user)?;
        Ok(Arc::new(Process::new(guest, self.tracker, lease)))
    }

    fn prepare(
        &self,
        definition: &GuestDefinition,
        way: Option<NativeWay>,
    ) -> Result<Prepared, VmmError> {
        let folder = self.folder(definition);
        let lease = self.lend_user()?;
        let user = lease.as_ref().map(|lease| lease.user);
        let destination = QemuDestination::prepare_as(&self.binary, definition, folder, way, user)?;
        let process = Arc::new(Process::new(destination.guest().clone(), self.tracker, lease));
        Ok(Prepared { process, destination: Box::new(destination) })
    }

    fn prepare_beside(&self, record: &serde_json::Value) -> Result<Prepared, VmmError> {
        let old = QemuGuest::reattach(read_record(record)?)?;
        let usual = self.folder(old.definition());
        let folder = if old.record().folder == usual { self.second_folder(&old) } else { usual };
        // Its RAM is that user's.
        let lease = self.lend_again(old.record().user);
        let destination = QemuDestination::prepare_beside(&self.binary, &old, folder)?;
        let process = Arc::new(Process::new(destination.guest().clone(), self.tracker, lease));
        Ok(Prepared { process, destination: Box::new(destination) })
    }

    fn end_strays(&self, on_record: &[serde_json::Value]) -> Result<usize, VmmError> {
        let records = on_record.iter().map(read_record).collect::<Result<Vec<_>, _>>()?;
        if let Some(users) = &self.users {
            records.iter().filter_map(|record| record.user).for_each(|user| users.hold(user));
        }
        let ended = end_strays(&self.guests, &records)?;
        for pid in &ended {
            tracing::warn!(pid, "ended a hypervisor that an agent had not put on record");
        }
        Ok(ended.len())
    }

    fn log(&self, record: &serde_json::Value) -> Option<PathBuf> {
        Some(read_record(record).ok()?.log_path())
    }

    fn reattach(
        &self,
        record: &serde_json::Value,
    ) -> Result<Option<Arc<dyn GuestProcess>>, VmmError> {
        let record = read_record(record)?;
        let user = record.user;
        let lease = self.lend_again(user);
        match QemuGuest::reattach(record) {
            Ok(guest) => Ok(Some(Arc::new(Process::new(guest, self.tracker, lease)))),
            Err(VmmError::Gone { detail }) => {
                tracing::warn!(%detail, "a guest's hypervisor has ended");
                Ok(None)
            }
            // It may run.
            Err(error) => {
                if let (Some(users), Some(user)) = (&self.users, user) {
                    drop(lease);
                    users.hold(user);
                }
                Err(error)
            }
        }
    }
}

fn read_record(record: &serde_json::Value) -> Result<QemuRecord, VmmError> {
    QemuRecord::deserialize(record).map_err(|error| VmmError::Refused {
        operation: "reading the record of a guest",
        detail: error.to_string(),
    })
}

/// A QEMU process.
#[derive(Debug)]
struct Process {
    guest: QemuGuest,
    console: PathBuf,
    tracker: Tracker,
    /// Its user, which is nobody else's as long as this is known.
    _lease: Option<Lease>,
}

impl Process {
    fn new(guest: QemuGuest, tracker: Tracker, lease: Option<Lease>) -> Self {
        Self { console: guest.console_path(), guest, tracker, _lease: lease }
    }
}

impl GuestProcess for Process {
    fn record(&self) -> serde_json::Value {
        serde_json::to_value(self.guest.record()).expect("a record is made of texts and numbers")
    }

    fn on_record(&self) -> Result<(), VmmError> {
        self.guest.on_record()
    }

    fn definition(&self) -> GuestDefinition {
        self.guest.definition().clone()
    }

    fn version(&self) -> Option<String> {
        self.guest.record().version.clone()
    }

    fn pid(&self) -> u32 {
        self.guest.pid()
    }

    fn pidfd(&self) -> std::io::Result<OwnedFd> {
        self.guest.pidfd()
    }

    fn console(&self) -> &Path {
        &self.console
    }

    fn running(&self) -> Result<Running, VmmError> {
        Ok(match self.guest.status()? {
            QemuStatus::Running => Running::Yes,
            QemuStatus::Incoming => Running::No("it waits for its state".into()),
            QemuStatus::Stopped(status) => Running::No(format!("QEMU says {status}")),
        })
    }

    fn run(&self) -> Result<(), VmmError> {
        // As a source that takes back whatever a move may have done.
        QemuSource::new(&self.guest)?.resume()
    }

    fn intervene(&self, how: Intervention) -> Result<(), VmmError> {
        match how {
            Intervention::Pause => self.guest.pause(),
            Intervention::Reset => self.guest.reset(),
            Intervention::Shutdown => self.guest.press_power(),
        }
    }

    fn end(&self) -> Result<(), VmmError> {
        self.guest.end()
    }

    fn post_mortem(&self) -> Ended {
        match self.guest.ending() {
            Some(Ending::Orderly) => Ended::PoweredOff,
            Some(Ending::Failed(how)) => Ended::Crashed(how),
            Some(Ending::Unknown(log)) => Ended::Crashed(format!("exit status unknown; {log}")),
            None => Ended::Crashed("it cannot be watched any longer".into()),
        }
    }

    fn source(&self) -> Result<Box<dyn Source>, VmmError> {
        Ok(Box::new(QemuSource::new(&self.guest)?.tracked_by(self.tracker)))
    }

    fn destination(&self) -> Result<Box<dyn Destination>, VmmError> {
        Ok(Box::new(QemuDestination::attach(&self.guest)?))
    }

    fn memory(&self) -> Arc<GuestMemory> {
        self.guest.memory()
    }

    fn taken_over(&self) -> Box<dyn Destination> {
        Box::new(QemuDestination::take_over(&self.guest))
    }
}
