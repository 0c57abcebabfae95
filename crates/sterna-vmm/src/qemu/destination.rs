//! A QEMU guest that arrives.

use super::beside;
use super::binary::QemuBinary;
use super::command_line::StartMode;
use super::instance::QemuGuest;
use super::native;
use super::qmp::{Qmp, REPLY_LIMIT};
use super::replies::{Migration, RunStatus};
use super::source::hand_over_capabilities;
use super::stream::STATE_BYTES_MAX;
use super::user::UserId;
use crate::faults::{self, refused};
use crate::tracking::{MappedPages, find_mapped, system};
use crate::{
    Begin, Destination, DeviceState, DeviceStateKind, Faults, GuestDefinition, NativeWay, VmmError,
};
use qapi::qmp::{
    AnnounceParameters, announce_self, cont, migrate_incoming, query_migrate, query_status,
};
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use sterna_page::{PageSet, RamLayout};
use sterna_sys::memory::GuestMemory;
use sterna_sys::uffd::{FaultsSeen, UffdError, Userfaultfd};

/// How long QEMU may take to load its device state.
const LOAD_LIMIT: Duration = Duration::from_secs(30);

/// How long QEMU may take to take over its disks and to start the vCPUs.
const ACTIVATE_LIMIT: Duration = Duration::from_secs(30);

/// QEMU's own defaults: five packets within half a second, times in ms. It announces the guest by
/// itself when its state is loaded, which may be long before it runs.
const ANNOUNCEMENTS: AnnounceParameters =
    AnnounceParameters { initial: 50, max: 550, rounds: 5, step: 100, id: None, interfaces: None };

/// A QEMU guest that arrives.
#[derive(Debug)]
pub struct QemuDestination {
    guest: QemuGuest,
    /// The mover's monitor, once it is needed: a QEMU that waits for a page may not answer on it, and
    /// gets no page before its faults are served.
    monitor: Option<Qmp>,
    /// How another QEMU copies the guest to it, if it does.
    way: Option<NativeWay>,
}

impl QemuDestination {
    /// Starts a QEMU that waits for its state, with RAM that is all holes.
    ///
    /// `definition` must be the resolved one of the source.
    ///
    /// # Errors
    /// When QEMU does not start or refuses; nothing is left of it then.
    pub fn prepare(
        binary: &QemuBinary,
        definition: &GuestDefinition,
        folder: PathBuf,
    ) -> Result<Self, VmmError> {
        Self::prepare_as(binary, definition, folder, None, None)
    }

    /// As [`QemuDestination::prepare`], for a guest that its QEMU copies by itself in this `way`.
    ///
    /// # Errors
    /// When QEMU does not start or refuses; nothing is left of it then.
    pub fn prepare_native(
        binary: &QemuBinary,
        definition: &GuestDefinition,
        folder: PathBuf,
        way: NativeWay,
    ) -> Result<Self, VmmError> {
        Self::prepare_as(binary, definition, folder, Some(way), None)
    }

    /// As either, with the rights of `user`, if one is given: see [`QemuGuest::start_as`].
    ///
    /// # Errors
    /// When QEMU does not start or refuses; nothing is left of it then.
    pub fn prepare_as(
        binary: &QemuBinary,
        definition: &GuestDefinition,
        folder: PathBuf,
        way: Option<NativeWay>,
        user: Option<UserId>,
    ) -> Result<Self, VmmError> {
        let guest = QemuGuest::start_as(binary, definition, folder, StartMode::Incoming, user)?;
        Self::attach_to_new(&guest, way)
    }

    /// Starts a QEMU that waits for the state of `old`'s guest, which runs on meanwhile, with the same RAM: nothing
    /// of it is to be copied.
    ///
    /// # Errors
    /// When QEMU does not start, refuses, or would change RAM by starting; nothing is left of it then.
    pub fn prepare_beside(
        binary: &QemuBinary,
        old: &QemuGuest,
        folder: PathBuf,
    ) -> Result<Self, VmmError> {
        Self::attach_to_new(&beside::start(binary, old, folder)?, None)
    }

    fn attach_to_new(guest: &QemuGuest, way: Option<NativeWay>) -> Result<Self, VmmError> {
        Self::attach_for(guest, way).inspect_err(|_| {
            // Why it cannot be used is the error to tell.
            let _ = guest.kill();
        })
    }

    /// Takes the mover's monitor of a guest that was started as [`StartMode::Incoming`]. One that
    /// nobody has prepared yet is prepared, and its RAM emptied unless it is that of another QEMU.
    ///
    /// # Errors
    /// When QEMU refuses or is gone.
    pub fn attach(guest: &QemuGuest) -> Result<Self, VmmError> {
        Self::attach_for(guest, None)
    }

    fn attach_for(guest: &QemuGuest, way: Option<NativeWay>) -> Result<Self, VmmError> {
        let mut this = Self { way, ..Self::take_over(guest) };
        this.await_state().map_err(|error| guest.explain(error))?;
        Ok(this)
    }

    /// A guest that an earlier agent has served. It is asked nothing.
    #[must_use]
    pub fn take_over(guest: &QemuGuest) -> Self {
        Self { guest: guest.clone(), monitor: None, way: None }
    }

    fn qmp(&mut self) -> Result<&mut Qmp, VmmError> {
        let monitor = match self.monitor.take() {
            Some(monitor) => monitor,
            None => Qmp::connect(&self.guest.folder().mover_socket(), REPLY_LIMIT)?,
        };
        Ok(self.monitor.insert(monitor))
    }

    fn await_state(&mut self) -> Result<(), VmmError> {
        let migration: Migration = self.qmp()?.query(&query_migrate {})?;
        if migration.status.is_some_and(|status| status != "none") {
            return Ok(());
        }
        match self.way {
            Some(way) => native::expect(self.qmp()?, way)?,
            None => self.qmp()?.execute(&hand_over_capabilities(true), REPLY_LIMIT)?,
        }
        let guest = self.guest.clone();
        let uri = Some(guest.transfer_uri());
        let command = migrate_incoming { channels: None, exit_on_error: None, uri };
        guest.while_lent(&[guest.folder().transfer_socket()], || {
            self.qmp()?.execute(&command, REPLY_LIMIT)
        })?;
        // Starting up, QEMU may have put firmware into RAM; from here on it leaves RAM alone.
        match self.guest.record().took_ram_over {
            true => Ok(()),
            false => Ok(self.guest.memory().punch_all()?),
        }
    }

    /// The guest's process.
    #[must_use]
    pub fn guest(&self) -> &QemuGuest {
        &self.guest
    }

    fn mapped(&self) -> Result<Vec<MappedPages>, VmmError> {
        find_mapped(self.guest.pid(), self.guest.layout(), &self.guest.record().ram)
    }

    /// The guest's userfaultfd, if faults can be served with it.
    fn serving_userfaultfd(&self) -> Result<Userfaultfd, VmmError> {
        faults::check_pages(&self.guest.memory())?;
        let uffd = Userfaultfd::take(self.guest.process())?;
        // QEMU reads disks into guest RAM, and KVM runs guests in it, inside the kernel.
        if uffd.faults_seen() != FaultsSeen::All {
            let detail = "the hypervisor's userfaultfd does not see faults inside the kernel: it \
                          was started without the privilege to, or by an earlier version";
            return Err(refused(detail.into()));
        }
        Ok(uffd)
    }

    fn begin_faults(&self, missing: &PageSet, guest: Begin) -> Result<Faults, VmmError> {
        let uffd = self.serving_userfaultfd()?;
        Faults::begin(uffd, self.mapped()?, &self.guest.memory(), missing, guest)
    }

    fn finish_faults(&self) -> Result<(), VmmError> {
        // Also of a guest whose faults another agent has served: QEMU knows, nobody else need to.
        match Userfaultfd::take(self.guest.process()) {
            Ok(uffd) => faults::end(&uffd, &self.mapped()?),
            Err(UffdError::None { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn load(&mut self, state: &DeviceState) -> Result<(), VmmError> {
        let DeviceStateKind::QemuVmstate = state.kind else {
            return Err(VmmError::WrongKind(state.kind));
        };
        if state.bytes.len() as u64 > STATE_BYTES_MAX {
            let detail = format!("{} bytes of device state", state.bytes.len());
            return Err(VmmError::Refused { operation: "load_device_state", detail });
        }
        self.guest.folder().unmark_taps(self.guest.record().user)?;
        self.qmp()?.forget_events();
        let mut socket = UnixStream::connect(self.guest.folder().transfer_socket())
            .map_err(system("connecting to QEMU"))?;
        socket.set_write_timeout(Some(LOAD_LIMIT)).map_err(system("connecting to QEMU"))?;
        let written = socket.write_all(&state.bytes);
        drop(socket);
        // A QEMU that dislikes the state stops reading; its own words say more than our write.
        let loaded =
            self.qmp()?.wait_event("loading device state", LOAD_LIMIT, |event| {
                match event.migration_status()? {
                    "completed" => Some(true),
                    "failed" | "cancelled" => Some(false),
                    _ => None,
                }
            })?;
        if !loaded {
            let migration: Migration = self.qmp()?.query(&query_migrate {})?;
            let detail = migration.error_desc.unwrap_or_else(|| "migration failed".into());
            return Err(VmmError::Refused { operation: "load_device_state", detail });
        }
        written.map_err(system("writing device state to QEMU"))
    }

    fn run(&mut self) -> Result<(), VmmError> {
        let status: RunStatus = self.qmp()?.query(&query_status {})?;
        if status.running {
            return Ok(());
        }
        self.qmp()?.forget_events();
        self.qmp()?.execute(&cont {}, ACTIVATE_LIMIT)?;
        let resumed = |event: &super::qmp::QmpEvent| (event.name == "RESUME").then_some(());
        self.qmp()?.wait_event("activating", ACTIVATE_LIMIT, resumed)
    }

    fn announce_and_forget(&mut self) -> Result<(), VmmError> {
        if !self.guest.definition().networks.is_empty() {
            self.qmp()?.execute(&announce_self(ANNOUNCEMENTS), REPLY_LIMIT)?;
        }
        self.qmp()?.execute(&hand_over_capabilities(false), REPLY_LIMIT)
    }
}

impl Destination for QemuDestination {
    fn layout(&self) -> &RamLayout {
        self.guest.layout()
    }

    fn memory(&self) -> Arc<GuestMemory> {
        self.guest.memory()
    }

    fn is_alive(&mut self) -> bool {
        self.guest.is_alive()
    }

    fn serve_faults(&mut self, missing: &PageSet, guest: Begin) -> Result<Arc<Faults>, VmmError> {
        let begun = self.begin_faults(missing, guest);
        begun.map(Arc::new).map_err(|error| self.guest.explain(error))
    }

    fn can_serve_faults(&self) -> Result<(), VmmError> {
        self.serving_userfaultfd().map(drop).map_err(|error| self.guest.explain(error))
    }

    fn end_faults(&mut self) -> Result<(), VmmError> {
        self.finish_faults().map_err(|error| self.guest.explain(error))
    }

    fn halt(&mut self) -> Result<(), VmmError> {
        // By a signal: the monitor's thread may itself wait for a page, and `stop` for vCPUs that do.
        // A thread that waits inside the kernel (a disk is read into RAM, KVM reads it) does not stop
        // but asks again and again, which takes a processor; should its page come it stops then.
        self.guest.process().stop().map_err(system("stopping QEMU"))
    }

    fn load_device_state(&mut self, state: &DeviceState) -> Result<(), VmmError> {
        self.load(state).map_err(|error| self.guest.explain(error))
    }

    fn native_socket(&self) -> Option<PathBuf> {
        self.way.map(|_| self.guest.folder().transfer_socket())
    }

    fn await_native(&mut self, limit: Duration) -> Result<(), VmmError> {
        let arrived = self.qmp().and_then(|qmp| native::arrived(qmp, limit));
        arrived.map_err(|error| self.guest.explain(error))
    }

    fn activate(&mut self) -> Result<(), VmmError> {
        self.run().map_err(|error| self.guest.explain(error))
    }

    fn settle(&mut self) -> Result<(), VmmError> {
        self.announce_and_forget().map_err(|error| self.guest.explain(error))
    }

    fn discard(&mut self) -> Result<(), VmmError> {
        self.guest.kill()
    }
}
