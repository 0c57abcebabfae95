//! The two halves of a guest on the move.

use crate::native::unable;
use crate::{Begin, Compared, Faults, NativeListener, NativePlan, NativeSent, NativeStep, Tracked};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use sterna_page::{PageSet, RamLayout};
use sterna_sys::memory::GuestMemory;

/// What the bytes of a [`DeviceState`] are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceStateKind {
    /// A QEMU migration stream without shared RAM.
    QemuVmstate,
    /// The registers of a synthetic guest.
    Synthetic,
}

/// State of the vCPUs and devices of a paused guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceState {
    /// Who can load it.
    pub kind: DeviceStateKind,
    /// The state itself, opaque to everyone but the hypervisor.
    pub bytes: Vec<u8>,
}

/// How long after its submission a device may still write into guest RAM unseen by the tracker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum InFlightIo {
    /// All writes go through page tables when they happen; a scan sees each of them.
    Tracked,
    /// The kernel pins pages when an I/O is submitted (O_DIRECT): a write may land up to this long
    /// after the scan that reported its page.
    Untracked(Duration),
}

/// Whether the guest can give RAM back while it runs, so that pages which existed cease to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Discarding {
    /// It has no device by which it could: a page that exists goes on existing.
    Never,
    /// It has a balloon or the like.
    Possible,
}

/// What a guest says of its memory. It may say anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryUse {
    /// Bytes that its kernel has to give away.
    pub total_bytes: u64,
    /// Bytes of them that a new program could have: those that are free, and caches.
    pub available_bytes: u64,
}

/// What a pause took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pause {
    /// From the request until the vCPUs were known to stand still and block I/O to be drained.
    pub took: Duration,
    /// From the request until the vCPUs stood still, as far as the hypervisor tells; the guest
    /// still ran during this time.
    pub lead: Duration,
}

/// One reason why a guest cannot be moved by copying its RAM from outside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(tag = "reason", rename_all = "kebab-case")]
pub enum Immovable {
    /// RAM that no other process can map.
    #[error("RAM block {block} is private to the hypervisor (needs share=on)")]
    PrivateRam {
        /// The block's name.
        block: String,
    },
    /// RAM that is not a named file, so that the hypervisor would send it itself.
    #[error("RAM block {block} is not a named shared file (use memory-backend-file)")]
    UnnamedRam {
        /// The block's name.
        block: String,
    },
    /// Another process writes guest RAM through its own page tables.
    #[error("device {device} is served by vhost-user, whose writes to guest RAM cannot be tracked")]
    VhostUser {
        /// The device or its character device.
        device: String,
    },
    /// Hardware writes guest RAM past the page tables.
    #[error("device {device} is passed through ({driver}), whose DMA cannot be tracked")]
    PassThrough {
        /// The device's id or path.
        device: String,
        /// Its driver, such as `vfio-pci`.
        driver: String,
    },
    /// The process was started without what the tracker needs.
    #[error("the hypervisor process holds no userfaultfd; it was not started by this agent")]
    NoUserfaultfd,
    /// This host's way of tracking does not go with this guest.
    #[error("writes to its RAM cannot be tracked: {why}")]
    Untracked {
        /// Why.
        why: String,
    },
    /// The hypervisor lacks a capability the hand-over needs.
    #[error("the hypervisor lacks {capability}")]
    MissingCapability {
        /// The capability's name.
        capability: String,
    },
    /// RAM is to be compared, and would differ although nothing is wrong.
    #[error("all RAM cannot be compared where the hypervisor copies it: {why}")]
    Incomparable {
        /// Why.
        why: String,
    },
    /// The hypervisor itself says that the guest cannot be moved.
    #[error("the hypervisor blocks migration: {blocker}")]
    Blocked {
        /// Its words.
        blocker: String,
    },
}

/// Why an operation on a guest failed.
#[derive(Debug, thiserror::Error)]
pub enum VmmError {
    /// The guest's process or threads are gone.
    #[error("the guest's hypervisor has ended: {detail}")]
    Gone {
        /// How it ended, as far as known, with the end of its log.
        detail: String,
    },
    /// The hypervisor did not do it in time.
    #[error("{operation} took longer than {limit:?}")]
    TimedOut {
        /// What was asked.
        operation: &'static str,
        /// The limit that was set for it.
        limit: Duration,
    },
    /// The hypervisor refused or failed.
    #[error("{operation} failed: {detail}")]
    Refused {
        /// What was asked.
        operation: &'static str,
        /// The hypervisor's words.
        detail: String,
    },
    /// A system call on the guest's memory or process failed.
    #[error("{operation} failed")]
    System {
        /// What was tried.
        operation: &'static str,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
    /// The device state is of another kind of hypervisor.
    #[error("this guest cannot load a device state of kind {0:?}")]
    WrongKind(DeviceStateKind),
}

/// A running guest that may leave.
///
/// All calls block. The engine makes them from one thread at a time; [`Source::memory`] is read
/// from many.
pub trait Source: Send {
    /// The guest's RAM blocks.
    fn layout(&self) -> &RamLayout;

    /// The guest's RAM, mapped into this process.
    fn memory(&self) -> Arc<GuestMemory>;

    /// Every reason why this guest cannot leave this way; empty if it can.
    ///
    /// # Errors
    /// When the hypervisor cannot be asked.
    fn immovable(&mut self) -> Result<Vec<Immovable>, VmmError>;

    /// Whether writes may land after the scan that should have seen them.
    fn in_flight_io(&self) -> InFlightIo;

    /// Whether pages may cease to exist during the move. Asking which pages exist takes time that
    /// grows with RAM (12 ms for each GiB), so it is not asked at the pause where they cannot.
    ///
    /// # Errors
    /// When the hypervisor cannot be asked.
    fn discarding(&mut self) -> Result<Discarding, VmmError>;

    /// What the guest says of its memory, `None` until it has answered. The first call asks it;
    /// none waits for the answer.
    ///
    /// # Errors
    /// When it has no balloon by which it could answer, or the hypervisor cannot be asked.
    fn memory_use(&mut self) -> Result<Option<MemoryUse>, VmmError>;

    /// Asks the guest to have `bytes` of its RAM in its balloon: it then does without them, and
    /// they cease to exist. Does not wait until it has; [`Source::in_balloon`] tells how far it is.
    ///
    /// # Errors
    /// When it has no balloon, or the hypervisor refuses or is gone.
    fn ask_for(&mut self, bytes: u64) -> Result<(), VmmError>;

    /// How many bytes of its RAM the guest has in its balloon.
    ///
    /// # Errors
    /// When it has no balloon, or the hypervisor cannot be asked.
    fn in_balloon(&mut self) -> Result<u64, VmmError>;

    /// Starts dirty tracking: every page written after this returns is reported by a later scan.
    ///
    /// # Errors
    /// When the kernel refuses; the guest runs on untracked.
    fn start_tracking(&mut self) -> Result<(), VmmError>;

    /// Ends dirty tracking and its cost. Harmless when it was never started.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn stop_tracking(&mut self) -> Result<(), VmmError>;

    /// Adds to `dirty` every page written since the last scan (or since tracking began), and
    /// forgets them. Pages that the guest discarded are not reported: compare
    /// [`Source::populated`] for those.
    ///
    /// # Errors
    /// When the kernel refuses; `dirty` then holds what was read so far, and those pages will not
    /// be reported again, so the move must be given up.
    fn scan(&mut self, dirty: &mut PageSet) -> Result<(), VmmError>;

    /// Adds to `dirty` every page written since the last scan, and forgets none of them: the next
    /// scan reports them all the same.
    ///
    /// # Errors
    /// When the kernel refuses; nothing is lost by it.
    fn peek(&mut self, dirty: &mut PageSet) -> Result<(), VmmError>;

    /// How its writes are tracked, and for how long scans have stopped it since it was first tracked.
    fn tracked(&self) -> Tracked {
        Tracked::default()
    }

    /// The pages that exist; all others read as zeroes and must not be touched.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn populated(&self) -> Result<PageSet, VmmError>;

    /// Lets the vCPUs run at `percent` (1 to 100) of their speed, until told otherwise or resumed.
    ///
    /// # Errors
    /// When this host cannot slow them down; they then run at full speed.
    fn set_vcpu_speed(&mut self, percent: u8) -> Result<(), VmmError>;

    /// For how long vCPUs were held back by [`Source::set_vcpu_speed`] while they had something to
    /// do, all together, since they were first slowed down.
    ///
    /// # Errors
    /// When this cannot be told.
    fn held_back(&self) -> Result<Duration, VmmError>;

    /// Stops the vCPUs and drains block I/O, ready for [`Source::save_device_state`].
    ///
    /// # Errors
    /// When the hypervisor refuses or is gone. The caller then calls [`Source::resume`].
    fn pause(&mut self) -> Result<Pause, VmmError>;

    /// Reads the state of vCPUs and devices of the paused guest. Must not write guest RAM.
    ///
    /// # Errors
    /// When the hypervisor refuses or is gone.
    fn save_device_state(&mut self) -> Result<DeviceState, VmmError>;

    /// Every reason why its hypervisor cannot move this guest by itself; empty if it can.
    ///
    /// # Errors
    /// When the hypervisor cannot be asked, or never copies guests by itself.
    fn immovable_natively(&mut self, _ram: Compared) -> Result<Vec<Immovable>, VmmError> {
        Err(unable("immovable_natively"))
    }

    /// Has the hypervisor begin to copy the guest by itself, into the connections that it makes to
    /// what is returned. Nothing of [`Source::start_tracking`] to [`Source::save_device_state`] is
    /// called then.
    ///
    /// # Errors
    /// When the hypervisor refuses or is gone. The caller then calls [`Source::resume`].
    fn begin_native(&mut self, _plan: &NativePlan) -> Result<NativeListener, VmmError> {
        Err(unable("begin_native"))
    }

    /// Waits for news of that, `wait` at most.
    ///
    /// # Errors
    /// When the hypervisor has given up, or is gone. The caller then calls [`Source::resume`].
    fn native_step(&mut self, _wait: Duration) -> Result<NativeStep, VmmError> {
        Err(unable("native_step"))
    }

    /// Has the hypervisor pause the guest whatever is left.
    ///
    /// # Errors
    /// When the hypervisor refuses or is gone.
    fn hurry_native(&mut self) -> Result<(), VmmError> {
        Err(unable("hurry_native"))
    }

    /// With the guest paused: has the hypervisor send what is left, and the state of vCPUs and
    /// devices. Once this has returned the guest runs nowhere but by [`Source::resume`].
    ///
    /// # Errors
    /// When the hypervisor has given up, or is gone; the guest may run again then.
    fn finish_native(&mut self) -> Result<NativeSent, VmmError> {
        Err(unable("finish_native"))
    }

    /// Takes back whatever the steps before have done, whoever did them: the guest runs as before,
    /// untracked, at full speed, and is asked for nothing of its memory any more. Works after any of
    /// them and may be called twice.
    ///
    /// # Errors
    /// When the guest cannot be made to run; it then stays paused.
    fn resume(&mut self) -> Result<(), VmmError>;

    /// Ends the guest here, after it was taken over elsewhere.
    ///
    /// # Errors
    /// When it cannot be ended.
    fn release(&mut self) -> Result<(), VmmError>;
}

/// A guest that is to arrive: prepared like the one that leaves, never run, its RAM all zero.
pub trait Destination: Send {
    /// The guest's RAM blocks.
    fn layout(&self) -> &RamLayout;

    /// The guest's RAM, mapped into this process; no page of it exists yet.
    fn memory(&self) -> Arc<GuestMemory>;

    /// Whether the guest's hypervisor still exists. Asked right before [`Destination::activate`],
    /// to tell a guest that never ran from one that may have.
    fn is_alive(&mut self) -> bool;

    /// Makes every thread of the guest that touches a missing page wait until it is placed, from
    /// before the device state is loaded until [`Destination::end_faults`]. All pages that do not
    /// exist are missing then, owed or not. Devices read guest RAM while they load, and the guest's
    /// disks are read into it: each step from here on may wait for pages, so faults are served by
    /// other threads.
    ///
    /// [`Begin::Fresh`] first frees the pages of `missing`, so that nothing old is seen of them.
    /// [`Begin::TakenOver`] frees nothing, and has every thread that waits reported anew.
    ///
    /// # Errors
    /// When the guest has huge pages, its hypervisor cannot be made to wait everywhere, or is gone.
    fn serve_faults(&mut self, missing: &PageSet, guest: Begin) -> Result<Arc<Faults>, VmmError>;

    /// Whether faults can be served for this guest, before anything depends on it.
    ///
    /// # Errors
    /// With the reason why not, as [`Destination::serve_faults`] would have it.
    fn can_serve_faults(&self) -> Result<(), VmmError>;

    /// All pages are here: nothing is missing any more, holes read as zeroes, and whoever waits goes
    /// on. Harmless when faults were never served.
    ///
    /// # Errors
    /// When the kernel refuses or the hypervisor is gone.
    fn end_faults(&mut self) -> Result<(), VmmError>;

    /// Stops every thread of the guest for good, as its missing pages are lost. Nothing more is
    /// asked of the guest or its hypervisor but [`Destination::discard`]; what there is of it stays
    /// to be looked at.
    ///
    /// # Errors
    /// When it cannot be stopped.
    fn halt(&mut self) -> Result<(), VmmError>;

    /// Loads the state of vCPUs and devices, after all RAM has arrived or its faults are served:
    /// devices read guest RAM while they load. The guest stays paused.
    ///
    /// # Errors
    /// When the hypervisor refuses the state or is gone.
    fn load_device_state(&mut self, state: &DeviceState) -> Result<(), VmmError>;

    /// Where the hypervisor listens for one that copies the guest to it, if it was prepared for that.
    fn native_socket(&self) -> Option<PathBuf> {
        None
    }

    /// Waits until the hypervisor has all of a guest that another copies to it. The guest stays
    /// paused.
    ///
    /// # Errors
    /// When what came was no guest, not all has come within `limit`, or the hypervisor is gone.
    fn await_native(&mut self, _limit: Duration) -> Result<(), VmmError> {
        Err(unable("await_native"))
    }

    /// Lets the guest run.
    ///
    /// # Errors
    /// When it cannot; it may have run for a moment.
    fn activate(&mut self) -> Result<(), VmmError>;

    /// Tells the network where the guest is now, and makes the hypervisor forget the move. Called
    /// right after [`Destination::activate`]; the guest runs whatever becomes of this.
    ///
    /// # Errors
    /// When the hypervisor refuses or is gone.
    fn settle(&mut self) -> Result<(), VmmError>;

    /// Ends the guest here and frees all it had, whatever its threads wait for. It must never have
    /// been activated, or have been halted.
    ///
    /// # Errors
    /// When it cannot be ended.
    fn discard(&mut self) -> Result<(), VmmError>;
}
