//! Guests arrive, are refused, and are asked about.

use super::*;
use crate::fake::{FakeHypervisor, agent};
use crate::guests::Guests;
use sterna_page::{PAGE_SIZE_BYTES, RamBlock, RamLayout};
use sterna_proto::message::{Coding, Epoch, Verify};

const MEMORY: u64 = 16 << 20;

fn attempt(epoch: u64) -> AttemptId {
    AttemptId { guest: GuestId(Uuid::from_u128(7)), epoch: Epoch(epoch) }
}

pub(crate) fn offer() -> Offer {
    let block =
        RamBlock { name: "ram0".into(), size_bytes: MEMORY, host_page_bytes: PAGE_SIZE_BYTES };
    Offer {
        name: "web-1".into(),
        layout: RamLayout::new(vec![block]).unwrap(),
        hypervisor: "fake".into(),
        definition: serde_json::json!({ "name": "web-1", "memory_bytes": MEMORY }),
        wishes: None,
        algorithm: "pre-copy".into(),
        codings: vec![Coding::Raw],
        streams: 1,
        verify: Verify::No,
        host_cpu: None,
        native: None,
    }
}

/// Runs what blocks as the engine does: in a thread that is none of the runtime's.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

struct Fixture {
    host: Arc<AgentHost>,
    fake: Arc<FakeHypervisor>,
    _folder: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (agent, fake) = agent(folder.path());
        Self { host: Arc::new(AgentHost(agent)), fake, _folder: folder }
    }

    fn guests(&self) -> &Guests {
        &self.host.0.guests
    }

    async fn reserve(&self, epoch: u64, offer: Offer) -> Result<(), Vec<ReasonCode>> {
        let host = Arc::clone(&self.host);
        let reserved =
            blocking(move || host.reserve(attempt(epoch), &offer, &PeerName("b".into()))).await;
        let codes = |reasons: Vec<Reason>| reasons.iter().map(|reason| reason.code).collect();
        reserved.map(drop).map_err(codes)
    }

    async fn inspect(&self, epoch: u64, offer: Offer) -> Vec<ReasonCode> {
        let host = Arc::clone(&self.host);
        let reasons =
            blocking(move || host.inspect(attempt(epoch), &offer, &PeerName("b".into()))).await;
        reasons.iter().map(|reason| reason.code).collect()
    }

    async fn ended(&self, epoch: u64, ending: Ending) {
        let host = Arc::clone(&self.host);
        blocking(move || host.ended(attempt(epoch), &ending)).await;
    }

    async fn find(&self, epoch: u64) -> FoundMove {
        self.found_by("b", epoch).await.unwrap()
    }

    async fn found_by(&self, peer: &str, epoch: u64) -> Option<FoundMove> {
        let (host, peer) = (Arc::clone(&self.host), PeerName(peer.into()));
        blocking(move || host.find(attempt(epoch), &peer)).await
    }

    async fn until(&self, what: impl Fn(&Self) -> bool) {
        while !what(self) {
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_discarded_guest_leaves_nothing_and_may_come_again() {
    let fixture = Fixture::new();
    fixture.reserve(1, offer()).await.unwrap();
    assert!(fixture.guests().get("web-1").is_some());
    let reason = Reason::new(ReasonCode::LinkLost, "x");
    fixture.host.record(attempt(1), DestinationRecord::Refused).unwrap();
    fixture.ended(1, Ending::Discarded(reason)).await;
    fixture.until(|f| f.guests().get("web-1").is_none()).await;
    assert_eq!(fixture.host.0.journal.guests().unwrap(), []);
    assert!(!fixture.fake.newest().lives());
    fixture.reserve(2, offer()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_is_made_once() {
    let fixture = Fixture::new();
    fixture.host.record(attempt(1), DestinationRecord::Refused).unwrap();
    assert_eq!(fixture.reserve(1, offer()).await, Err(vec![ReasonCode::Agent]));
    assert!(!fixture.fake.newest().lives());
    assert!(fixture.guests().get("web-1").is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_is_here_is_refused_with_every_reason() {
    let fixture = Fixture::new();
    fixture.reserve(3, offer()).await.unwrap();
    let mut wrong = offer();
    wrong.definition["disks"] = serde_json::json!([{ "path": "/nowhere/disk" }]);
    wrong.definition["qemu_args"] = serde_json::json!(["-s"]);
    use ReasonCode::{AlreadyHere, Forbidden, Missing, StaleEpoch};
    let expected = vec![Missing, Forbidden, StaleEpoch, AlreadyHere];
    assert_eq!(fixture.reserve(2, wrong).await, Err(expected));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_only_asks_gets_the_same_answer_and_leaves_nothing() {
    let fixture = Fixture::new();
    let mut wrong = offer();
    wrong.definition["disks"] = serde_json::json!([{ "path": "/nowhere/disk" }]);
    wrong.definition["qemu_args"] = serde_json::json!(["-s"]);
    use ReasonCode::{Forbidden, Incompatible, Missing};
    assert_eq!(fixture.inspect(1, wrong).await, [Missing, Forbidden]);
    assert_eq!(fixture.inspect(1, offer()).await, []);
    // As it would have been started.
    assert!(!fixture.fake.newest().lives());
    let mut smaller = offer();
    let block = RamBlock { size_bytes: MEMORY / 2, ..smaller.layout.blocks()[0].clone() };
    smaller.layout = RamLayout::new(vec![block]).unwrap();
    assert_eq!(fixture.inspect(1, smaller).await, [Incompatible]);
    assert!(!fixture.fake.newest().lives());
    assert!(fixture.guests().get("web-1").is_none());
    assert_eq!(fixture.host.0.journal.guests().unwrap(), []);
    assert_eq!(fixture.reserve(1, offer()).await, Ok(()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_has_seen_another_processor_is_refused() {
    let fixture = Fixture::new();
    let mut theirs = cpu::here().unwrap();
    let same = Offer { host_cpu: Some(theirs.clone()), ..offer() };
    theirs.flags.insert("a_feature_of_tomorrow".into());
    let other = Offer { host_cpu: Some(theirs), ..offer() };
    assert_eq!(fixture.reserve(1, other).await, Err(vec![ReasonCode::Incompatible]));
    assert_eq!(fixture.reserve(1, same).await, Ok(()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_offer_that_is_no_definition_is_refused() {
    let fixture = Fixture::new();
    let mut other_name = offer();
    other_name.definition["name"] = "web-2".into();
    let mut no_name = offer();
    no_name.definition["name"] = "../x".into();
    let mut unknown = offer();
    unknown.definition["run_this"] = "x".into();
    for wrong in [other_name, no_name, unknown] {
        assert_eq!(fixture.reserve(1, wrong).await, Err(vec![ReasonCode::Protocol]));
    }
    let foreign = Offer { hypervisor: "qemu".into(), ..offer() };
    assert_eq!(fixture.reserve(1, foreign).await, Err(vec![ReasonCode::Incompatible]));
    assert_eq!(fixture.fake.started(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_runs_here_is_not_given_to_whoever_asks() {
    let fixture = Fixture::new();
    fixture.reserve(1, offer()).await.unwrap();
    let found = fixture.find(1).await;
    assert!(found.guest.is_some() && found.found == Found::Paused);
    assert!(fixture.found_by("c", 1).await.is_none(), "it is not c's move");
    for record in
        [DestinationRecord::Receiving, DestinationRecord::Owned, DestinationRecord::Active]
    {
        fixture.host.record(attempt(1), record).unwrap();
    }
    fixture.ended(1, Ending::Active).await;
    // What would be handed out would be discarded by the machine of an unknown attempt.
    for epoch in [0, 1, 2] {
        assert!(fixture.find(epoch).await.guest.is_none(), "attempt {epoch}");
    }
    let reason = Reason::new(ReasonCode::Agent, "x");
    fixture.ended(2, Ending::Discarded(reason.clone())).await;
    fixture.ended(1, Ending::Discarded(reason)).await;
    assert!(fixture.find(1).await.record == Some(DestinationRecord::Active));
    assert!(fixture.fake.newest().lives());
    assert!(fixture.guests().get("web-1").is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_operator_wrote_comes_with_the_guest() {
    let fixture = Fixture::new();
    let mut came = offer();
    came.definition["machine"] = "fake-7".into();
    came.definition["balloon"] = true.into();
    came.wishes = Some(serde_json::json!({ "balloon": false, "of_a_newer_release": 1 }));
    let mut wrong = came.clone();
    wrong.wishes = Some(serde_json::json!({ "machine": "q35,kernel=/x" }));
    assert_eq!(fixture.reserve(1, wrong.clone()).await, Err(vec![ReasonCode::Protocol]));
    wrong.wishes = Some("x".into());
    assert_eq!(fixture.reserve(1, wrong).await, Err(vec![ReasonCode::Protocol]));
    fixture.reserve(1, came).await.unwrap();
    let record = fixture.host.0.journal.guest(attempt(1).guest).unwrap().unwrap();
    assert_eq!(record.definition.machine.as_deref(), Some("fake-7"));
    let written = record.written();
    assert_eq!((written.machine, written.balloon), (None, Some(false)));
    // An earlier release does not tell: all stays as it was chosen.
    let fixture = Fixture::new();
    fixture.reserve(1, offer()).await.unwrap();
    let record = fixture.host.0.journal.guest(attempt(1).guest).unwrap().unwrap();
    assert_eq!((record.wishes.clone(), record.written()), (None, record.definition));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_in_whose_way_a_stopped_one_is_is_told_so() {
    let fixture = Fixture::new();
    let mut record = GuestRecord {
        id: GuestId(Uuid::from_u128(8)),
        definition: serde_json::from_value(offer().definition).unwrap(),
        wishes: None,
        epoch: Epoch(0),
        process: None,
        upgrade: None,
        place: Place::Stopped { reason: "on request".into() },
    };
    for id in [8, 7] {
        record.id = GuestId(Uuid::from_u128(id));
        fixture.host.0.journal.put_guest(&record).unwrap();
        let guest = Task::start(&fixture.host.0, record.clone(), None, Activity::Idle);
        fixture.guests().remove("web-1", GuestId(Uuid::from_u128(8)));
        fixture.host.0.guests.claim("web-1", record.id, 0).unwrap().fulfil(guest, 0);
        let host = Arc::clone(&fixture.host);
        let reasons = blocking(move || {
            host.reserve(attempt(1), &offer(), &PeerName("b".into())).map(drop).unwrap_err()
        })
        .await;
        assert_eq!(reasons[0].code, ReasonCode::AlreadyHere);
        let words = &reasons[0].detail;
        assert!(words.contains("is stopped there"), "{words}");
        assert!(words.contains("sterna vm delete web-1"), "{words}");
    }
    assert_eq!(fixture.fake.started(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_of_before_a_guest_was_deleted_is_stale() {
    let fixture = Fixture::new();
    let record = GuestRecord {
        id: attempt(0).guest,
        definition: serde_json::from_value(offer().definition).unwrap(),
        wishes: None,
        epoch: Epoch(5),
        process: None,
        upgrade: None,
        place: Place::Stopped { reason: "on request".into() },
    };
    fixture.host.0.journal.put_guest(&record).unwrap();
    fixture.host.0.journal.delete_guest(record.id).unwrap();
    assert_eq!(fixture.reserve(5, offer()).await, Err(vec![ReasonCode::StaleEpoch]));
    fixture.reserve(6, offer()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn only_guests_of_its_group_spare_a_guest_pages() {
    let fixture = Fixture::new();
    let comes = |id: u128, group: Option<&str>| {
        let name = format!("web-{id}");
        let mut offer = Offer { name: name.clone(), ..offer() };
        offer.definition["name"] = name.into();
        offer.definition["group"] = serde_json::json!(group);
        let attempt = AttemptId { guest: GuestId(Uuid::from_u128(id)), epoch: Epoch(1) };
        let host = Arc::clone(&fixture.host);
        blocking(move || {
            host.reserve(attempt, &offer, &PeerName("b".into())).map(drop).unwrap();
            let known = host.known_pages(attempt).map(|known| known.summary().len());
            host.ended(attempt, &Ending::Active);
            known
        })
    };
    assert_eq!(comes(1, Some("a")).await, None);
    assert_eq!(comes(2, None).await, None);
    assert_eq!(comes(3, None).await, None);
    assert_eq!(comes(4, Some("b")).await, None);
    // Every fake guest has the same page.
    assert_eq!(comes(5, Some("a")).await, Some(1));
}
