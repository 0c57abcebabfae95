//! What the agent needs of a hypervisor, apart from moving guests.
//!
//! One implementation drives QEMU; the tests have another one. All calls block and may be made
//! from any thread that may block.

use std::fmt;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use sterna_api::Finding;
use sterna_proto::message::Reason;
use sterna_sys::memory::GuestMemory;
use sterna_vmm::{Destination, GuestDefinition, NativeWay, Source, VmmError};

/// How a hypervisor says that its guest stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Running {
    /// vCPUs run.
    Yes,
    /// vCPUs stand still, in the hypervisor's words.
    No(String),
}

/// What an operator does to a guest from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Intervention {
    /// Its vCPUs stand still until it is told to run.
    Pause,
    /// As by its reset button.
    Reset,
    /// As by its power button: its system is asked to power off.
    Shutdown,
}

/// A hypervisor's process with one guest. Dropping it does not end the guest.
pub(crate) trait GuestProcess: fmt::Debug + Send + Sync {
    /// Data by which [`Hypervisor::reattach`] finds the process again.
    fn record(&self) -> serde_json::Value;

    /// That data is on record. Until then the process is one that [`Hypervisor::end_strays`] ends.
    fn on_record(&self) -> Result<(), VmmError>;

    /// What the guest is made of, with all that was chosen when it first started.
    fn definition(&self) -> GuestDefinition;

    /// The hypervisor's version, if that was noted when it was started.
    fn version(&self) -> Option<String>;

    /// Process id.
    fn pid(&self) -> u32;

    /// Becomes readable when the process ends.
    fn pidfd(&self) -> std::io::Result<OwnedFd>;

    /// Path of the unix socket that carries the console.
    fn console(&self) -> &Path;

    /// The guest's RAM, which lives on as long as anybody has it.
    fn memory(&self) -> Arc<GuestMemory>;

    /// Whether the guest runs.
    fn running(&self) -> Result<Running, VmmError>;

    /// Lets a paused guest run.
    fn run(&self) -> Result<(), VmmError>;

    /// Does something to a guest that no move has.
    fn intervene(&self, how: Intervention) -> Result<(), VmmError>;

    /// Ends the process and frees all that it had. Harmless if it has ended.
    fn end(&self) -> Result<(), VmmError>;

    /// How the process ended, with the end of its log, once it has.
    fn post_mortem(&self) -> Ended;

    /// The guest as one that leaves.
    fn source(&self) -> Result<Box<dyn Source>, VmmError>;

    /// The guest as one that arrives.
    fn destination(&self) -> Result<Box<dyn Destination>, VmmError>;

    /// It as one that has arrived and whose pages follow, served by an earlier agent. It is asked
    /// nothing: it may not answer before it gets a page.
    fn taken_over(&self) -> Box<dyn Destination>;
}

/// Says that a process is on record. If that cannot be noted, the next agent finds it in its journal all the same.
pub(crate) fn on_record(process: &dyn GuestProcess) {
    if let Err(error) = process.on_record() {
        tracing::error!(pid = process.pid(), %error, "cannot note that it is on record");
    }
}

/// A guest that waits for its state.
pub(crate) struct Prepared {
    /// Its process.
    pub(crate) process: Arc<dyn GuestProcess>,
    /// What the engine fills.
    pub(crate) destination: Box<dyn Destination>,
}

/// How a hypervisor's process ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// On the guest's own request.
    PoweredOff,
    /// In any other way.
    Crashed(String),
}

/// A hypervisor that this host has.
pub(crate) trait Hypervisor: Send + Sync {
    /// Its name in an offer.
    fn name(&self) -> &'static str;

    /// What the host has and lacks, found out when the agent started.
    fn findings(&self) -> Vec<Finding>;

    /// Every reason why this hypervisor cannot run such a guest.
    fn objections(&self, definition: &GuestDefinition) -> Vec<Reason>;

    /// Starts a guest; it runs.
    fn start(&self, definition: &GuestDefinition) -> Result<Arc<dyn GuestProcess>, VmmError>;

    /// Starts an empty guest that waits for its state, or, if a `way` is given, for another
    /// hypervisor that copies it by itself.
    fn prepare(
        &self,
        definition: &GuestDefinition,
        way: Option<NativeWay>,
    ) -> Result<Prepared, VmmError>;

    /// Starts a second process for the guest that runs in the one of `record`, in the same RAM; it waits for the guest's
    /// state.
    fn prepare_beside(&self, record: &serde_json::Value) -> Result<Prepared, VmmError>;

    /// Ends all processes that were started for this agent's guests and are not on record, as an agent was killed in
    /// between; `on_record` are the data of those that are. Returns how many there were.
    fn end_strays(&self, on_record: &[serde_json::Value]) -> Result<usize, VmmError>;

    /// Where a process writes what it has to say, by its data. The file goes with the process, and whoever has taken
    /// that over may put anything in its place.
    fn log(&self, record: &serde_json::Value) -> Option<PathBuf>;

    /// Finds a process again; `None` if it has ended.
    fn reattach(
        &self,
        record: &serde_json::Value,
    ) -> Result<Option<Arc<dyn GuestProcess>>, VmmError>;
}
