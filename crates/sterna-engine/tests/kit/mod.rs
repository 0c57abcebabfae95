//! Two hosts in one process: journals in memory, synthetic guests, real sockets and certificates.

#![allow(dead_code, clippy::unwrap_used, reason = "each test file uses its part; a kit of tests")]

pub(crate) mod cutting;
pub(crate) mod identities;
pub(crate) mod proxy;

use identities::Cluster;
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::time::{Duration, Instant};
use sterna_core::algorithm::AlgorithmName;
use sterna_core::balloon::Balloon;
use sterna_core::destination::Ending as DestinationEnding;
use sterna_core::journal::{DestinationRecord, SourceRecord};
use sterna_core::limits::{Limits, StageLimits};
use sterna_core::prediction::Surroundings;
use sterna_core::push::PushOrder;
use sterna_core::receipt::{Ending, Receipt};
use sterna_core::source::Found;
use sterna_core::working_set::HoldBack;
use sterna_engine::destination::Listener;
use sterna_engine::identity::{Identity, PeerName};
use sterna_engine::source::{Move, migrate};
use sterna_engine::{FoundMove, Host, SourceJournal, Watch};
use sterna_page::PageCount;
use sterna_page::known::KnownPages;
use sterna_proto::message::{
    AttemptId, Coding, Epoch, GuestId, JournalId, Offer, Reason, ReasonCode, Verify,
};
use sterna_vmm::synthetic::{
    Content, Step, SyntheticConfig, SyntheticDestination, SyntheticGuest, WriteRate,
};
use sterna_vmm::{Begin, Destination, DeviceState, Faults, Source, VmmError};
use uuid::Uuid;

/// A destination that a test can look into while the engine has it.
#[derive(Clone)]
struct SharedDestination(Arc<Mutex<SyntheticDestination>>, sterna_page::RamLayout);

impl Destination for SharedDestination {
    fn layout(&self) -> &sterna_page::RamLayout {
        &self.1
    }
    fn memory(&self) -> Arc<sterna_sys::memory::GuestMemory> {
        self.0.lock().unwrap().memory()
    }
    fn is_alive(&mut self) -> bool {
        self.0.lock().unwrap().is_alive()
    }
    fn serve_faults(
        &mut self,
        missing: &sterna_page::PageSet,
        guest: Begin,
    ) -> Result<Arc<Faults>, VmmError> {
        self.0.lock().unwrap().serve_faults(missing, guest)
    }
    fn can_serve_faults(&self) -> Result<(), VmmError> {
        self.0.lock().unwrap().can_serve_faults()
    }
    fn end_faults(&mut self) -> Result<(), VmmError> {
        self.0.lock().unwrap().end_faults()
    }
    fn halt(&mut self) -> Result<(), VmmError> {
        self.0.lock().unwrap().halt()
    }
    fn load_device_state(&mut self, state: &DeviceState) -> Result<(), VmmError> {
        self.0.lock().unwrap().load_device_state(state)
    }
    fn native_socket(&self) -> Option<PathBuf> {
        self.0.lock().unwrap().native_socket()
    }
    fn await_native(&mut self, limit: Duration) -> Result<(), VmmError> {
        self.0.lock().unwrap().await_native(limit)
    }
    fn activate(&mut self) -> Result<(), VmmError> {
        self.0.lock().unwrap().activate()
    }
    fn settle(&mut self) -> Result<(), VmmError> {
        self.0.lock().unwrap().settle()
    }
    fn discard(&mut self) -> Result<(), VmmError> {
        self.0.lock().unwrap().discard()
    }
}

/// A host that takes synthetic guests in.
#[derive(Default)]
pub(crate) struct TestHost {
    state: Mutex<HostState>,
    ended: Condvar,
    id: Mutex<Option<JournalId>>,
    folder: OnceLock<tempfile::TempDir>,
}

#[derive(Default)]
struct HostState {
    source: HashMap<AttemptId, SourceRecord>,
    destination: HashMap<AttemptId, DestinationRecord>,
    arriving: HashMap<AttemptId, SharedDestination>,
    endings: HashMap<AttemptId, DestinationEnding>,
    fail_at: Vec<Step>,
    fail_record: Option<DestinationRecord>,
    refuse: Vec<Reason>,
    known: Option<Arc<dyn KnownPages>>,
    at_records: Option<AtRecords>,
}

/// A record that a side of a move is about to write.
#[derive(Clone, Debug)]
pub(crate) enum Record {
    Source(SourceRecord),
    Destination(DestinationRecord),
}

type AtRecords = Arc<dyn Fn(&Record) + Send + Sync>;

impl TestHost {
    pub(crate) fn fail_at(&self, step: Step) {
        self.state.lock().unwrap().fail_at.push(step);
    }

    pub(crate) fn fail_record(&self, record: DestinationRecord) {
        self.state.lock().unwrap().fail_record = Some(record);
    }

    /// Calls `look` with each record before it is written.
    pub(crate) fn at_records(&self, look: impl Fn(&Record) + Send + Sync + 'static) {
        self.state.lock().unwrap().at_records = Some(Arc::new(look));
    }

    fn about_to_write(&self, record: &Record) {
        let look = self.state.lock().unwrap().at_records.clone();
        if let Some(look) = look {
            look(record);
        }
    }

    /// From now on this host has these pages.
    pub(crate) fn know(&self, pages: Arc<dyn KnownPages>) {
        self.state.lock().unwrap().known = Some(pages);
    }

    pub(crate) fn refuse(&self, reasons: Vec<Reason>) {
        self.state.lock().unwrap().refuse = reasons;
    }

    pub(crate) fn record_of(&self, attempt: AttemptId) -> Option<DestinationRecord> {
        self.state.lock().unwrap().destination.get(&attempt).copied()
    }

    pub(crate) fn source_record_of(&self, attempt: AttemptId) -> Option<SourceRecord> {
        self.state.lock().unwrap().source.get(&attempt).cloned()
    }

    /// The guest that arrived by this attempt.
    pub(crate) fn arrived(&self, attempt: AttemptId) -> Option<SyntheticGuest> {
        let destination = self.state.lock().unwrap().arriving.get(&attempt).cloned();
        destination.and_then(|d| d.0.lock().unwrap().guest())
    }

    /// Waits until the destination's side of the move has ended.
    pub(crate) fn wait_ended(&self, attempt: AttemptId) -> Option<DestinationEnding> {
        let state = self.state.lock().unwrap();
        let limit = Duration::from_secs(20);
        let missing = |s: &mut HostState| !s.endings.contains_key(&attempt);
        let (state, _) = self.ended.wait_timeout_while(state, limit, missing).unwrap();
        state.endings.get(&attempt).cloned()
    }
}

impl SourceJournal for TestHost {
    fn record(&self, attempt: AttemptId, record: &SourceRecord) -> io::Result<()> {
        self.about_to_write(&Record::Source(record.clone()));
        self.state.lock().unwrap().source.insert(attempt, record.clone());
        Ok(())
    }
}

impl Host for TestHost {
    fn journal(&self) -> JournalId {
        *self.id.lock().unwrap().get_or_insert_with(|| JournalId(Uuid::new_v4()))
    }

    fn inspect(&self, _attempt: AttemptId, _offer: &Offer, _peer: &PeerName) -> Vec<Reason> {
        self.state.lock().unwrap().refuse.clone()
    }

    fn reserve(
        &self,
        attempt: AttemptId,
        offer: &Offer,
        _peer: &PeerName,
    ) -> Result<Box<dyn Destination>, Vec<Reason>> {
        let mut state = self.state.lock().unwrap();
        if !state.refuse.is_empty() {
            return Err(state.refuse.clone());
        }
        let prepare = match offer.native {
            Some(_) => SyntheticDestination::prepare_native,
            None => SyntheticDestination::prepare,
        };
        let guest = prepare(offer.layout.clone())
            .map_err(|e| vec![Reason::new(ReasonCode::NoRoom, e.to_string())])?;
        for step in state.fail_at.drain(..) {
            guest.fail_at(step);
        }
        let shared = SharedDestination(Arc::new(Mutex::new(guest)), offer.layout.clone());
        state.arriving.insert(attempt, shared.clone());
        Ok(Box::new(shared))
    }

    fn known_pages(&self, _attempt: AttemptId) -> Option<Arc<dyn KnownPages>> {
        self.state.lock().unwrap().known.clone()
    }

    fn record(&self, attempt: AttemptId, record: DestinationRecord) -> io::Result<()> {
        self.about_to_write(&Record::Destination(record));
        let mut state = self.state.lock().unwrap();
        if state.fail_record == Some(record) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        state.destination.insert(attempt, record);
        Ok(())
    }

    fn missing_pages(&self, attempt: AttemptId) -> PathBuf {
        let folder = self.folder.get_or_init(|| tempfile::tempdir().unwrap());
        folder.path().join(format!("{}.missing", attempt.epoch.0))
    }

    fn find(&self, attempt: AttemptId, _peer: &PeerName) -> Option<FoundMove> {
        let state = self.state.lock().unwrap();
        let guest = state.arriving.get(&attempt).cloned();
        let alive = guest.clone().is_some_and(|mut g| g.is_alive());
        Some(FoundMove {
            record: state.destination.get(&attempt).copied(),
            found: if alive { Found::Paused } else { Found::Gone },
            guest: guest.map(|g| Box::new(g) as Box<dyn Destination>),
        })
    }

    fn is_cancelled(&self, _attempt: AttemptId) -> bool {
        false
    }

    fn ended(&self, attempt: AttemptId, ending: &DestinationEnding) {
        self.state.lock().unwrap().endings.insert(attempt, ending.clone());
        self.ended.notify_all();
    }
}

/// A host with its listener.
pub(crate) struct Site {
    pub(crate) host: Arc<TestHost>,
    pub(crate) identity: Identity,
    pub(crate) listener: Listener,
}

impl Site {
    pub(crate) fn new(cluster: &Cluster, name: &str) -> Self {
        let identity = cluster.identity(name);
        let host = Arc::new(TestHost::default());
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let listener =
            Listener::bind(any, &identity, Arc::clone(&host) as Arc<dyn Host>, stages()).unwrap();
        Self { host, identity, listener }
    }
}

/// Two hosts of one cluster, called a and b.
pub(crate) fn sites() -> (Site, Site) {
    let cluster = Cluster::new();
    (Site::new(&cluster, "a"), Site::new(&cluster, "b"))
}

/// Limits short enough for tests.
pub(crate) fn stages() -> StageLimits {
    StageLimits { ask_again: Duration::from_millis(100), ..StageLimits::default() }
}

pub(crate) fn attempt(epoch: u64) -> AttemptId {
    AttemptId { guest: GuestId(Uuid::from_u128(42)), epoch: Epoch(epoch) }
}

/// A move of `guest` to `to`, by pre-copy over two streams, verified.
pub(crate) fn request(from: &Site, to: SocketAddr, guest: &SyntheticGuest, epoch: u64) -> Move {
    let layout = Source::layout(&guest.source()).clone();
    Move {
        attempt: attempt(epoch),
        offer: Offer {
            name: "synthetic".into(),
            layout,
            hypervisor: "synthetic".into(),
            definition: serde_json::Value::Null,
            wishes: None,
            algorithm: "pre-copy".into(),
            codings: vec![Coding::Absent, Coding::Zero, Coding::Raw, Coding::Owed],
            streams: 2,
            verify: Verify::RamDigest,
            host_cpu: None,
            native: None,
        },
        algorithm: AlgorithmName::PreCopy,
        limits: Limits::default(),
        surroundings: Surroundings::default(),
        planned: None,
        hold_back: HoldBack::None,
        balloon: Balloon::Leave,
        stages: stages(),
        bandwidth_bytes_per_second: None,
        host_bandwidth: Arc::default(),
        push: PushOrder::default(),
        keeper: None,
        disks: None,
        to,
        to_name: "b".try_into().unwrap(),
        identity: from.identity.clone(),
        source_name: "a".into(),
        destination_name: "b".into(),
    }
}

/// A guest that rewrites an eighth of its pages many times while it is moved by [`rewritten`].
pub(crate) fn rewriting() -> SyntheticConfig {
    SyntheticConfig {
        pages: PageCount(8192),
        populated: PageCount(8192),
        working_set: PageCount(1024),
        rate: WriteRate::BytesPerSecond(20_000_000),
        ..busy()
    }
}

/// A move at a speed at which its first round has time for some looks at the guest, and all that is
/// rewritten may be held back.
pub(crate) fn rewritten(request: Move) -> Move {
    let downtime_max = Duration::from_secs(2);
    let limits = Limits { downtime_max, ..Limits::default() };
    Move { limits, bandwidth_bytes_per_second: Some(20_000_000), ..request }
}

pub(crate) fn run(from: &Site, request: &Move, guest: &SyntheticGuest) -> Receipt {
    run_watched(from, request, guest, &Arc::default())
}

pub(crate) fn run_watched(
    from: &Site,
    request: &Move,
    guest: &SyntheticGuest,
    watch: &Arc<Watch>,
) -> Receipt {
    let journal = Arc::clone(&from.host) as Arc<dyn SourceJournal>;
    migrate(request, Box::new(guest.source()), &journal, watch)
}

pub(crate) fn busy() -> SyntheticConfig {
    SyntheticConfig::default()
}

/// A guest of 32 MiB, all of it in use and of this content, of which it rewrites little.
pub(crate) fn full_of(content: Content) -> SyntheticConfig {
    SyntheticConfig {
        pages: PageCount(8192),
        populated: PageCount(8192),
        working_set: PageCount(256),
        rate: WriteRate::BytesPerSecond(1 << 20),
        content,
        ..busy()
    }
}

/// A small guest: its moves carry about the same number of bytes.
pub(crate) fn small() -> SyntheticGuest {
    let config = SyntheticConfig {
        pages: PageCount(256),
        populated: PageCount(64),
        working_set: PageCount(16),
        rate: WriteRate::BytesPerSecond(400_000),
        ..busy()
    };
    SyntheticGuest::start(config).unwrap()
}

/// After a move of `guest` to `to`, the one guest that runs: here or there, as the receipt says.
pub(crate) fn the_one_that_runs(
    receipt: &Receipt,
    to: &Site,
    guest: &SyntheticGuest,
    what: &str,
) -> SyntheticGuest {
    let arrived = to.host.arrived(receipt.attempt);
    let there = arrived.as_ref().is_some_and(SyntheticGuest::is_running);
    match receipt.ending {
        Ending::Moved => assert!(there && !guest.is_running(), "{what}: {receipt:#?}"),
        Ending::Undone { .. } => assert!(!there && guest.is_running(), "{what}: {receipt:#?}"),
        _ => panic!("{what}: {receipt:#?}"),
    }
    if there { arrived.unwrap() } else { guest.clone() }
}

/// The guest goes on writing, and every page of it is as it should be.
pub(crate) fn goes_on_whole(guest: &SyntheticGuest) {
    let writes = guest.writes();
    let deadline = Instant::now() + Duration::from_secs(10);
    while guest.writes() == writes {
        assert!(Instant::now() < deadline, "the guest makes no progress");
        std::thread::sleep(Duration::from_millis(1));
    }
    let report = guest.check().unwrap();
    assert!(report.is_sound(), "{:?}", report.faults);
}
