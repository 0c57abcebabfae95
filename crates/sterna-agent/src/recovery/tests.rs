//! An agent that is killed at any stage of a move to it leaves a guest that runs or is gone.

use super::*;
use crate::fake::{FakeHypervisor, FakeState, agent as fake_agent};
use crate::journal::Journal;
use crate::records::IncomingRecord;
use sterna_proto::message::{Epoch, GuestId};
use uuid::Uuid;

fn attempt() -> AttemptId {
    AttemptId { guest: GuestId(Uuid::from_u128(7)), epoch: Epoch(3) }
}

struct Fixture {
    agent: Arc<Agent>,
    fake: Arc<FakeHypervisor>,
    _folder: tempfile::TempDir,
}

impl Fixture {
    /// An agent whose journal has a guest in this place; its process was prepared for it.
    fn new(place: Place) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (agent, fake) = fake_agent(folder.path());
        let text = r#"{"name":"web-1","memory_bytes":16777216}"#;
        let definition = serde_json::from_str(text).unwrap();
        let process = agent.hypervisor.prepare(&definition, None).unwrap().process;
        let (id, process) = (attempt().guest, Some(process.record()));
        let epoch = Epoch(3);
        let (wishes, upgrade) = (None, None);
        let record = GuestRecord { id, definition, wishes, epoch, process, upgrade, place };
        agent.journal.put_guest(&record).unwrap();
        Self { agent, fake, _folder: folder }
    }

    /// One whose guest was arriving when the journal had these records.
    fn arriving(records: &[DestinationRecord]) -> Self {
        let fixture = Self::new(Place::Arriving { attempt: attempt(), before: None });
        let journal: &Journal = &fixture.agent.journal;
        let guest = journal.guest(attempt().guest).unwrap().unwrap();
        let (id, peer) = (Uuid::from_u128(1), "b".to_owned());
        let incoming =
            IncomingRecord { id, attempt: attempt(), guest: "web-1".into(), peer, record: None };
        journal.begin_incoming(&guest, &incoming).unwrap();
        for record in records {
            journal.record_destination(attempt(), *record).unwrap();
        }
        fixture
    }

    fn recovered(self) -> Self {
        recover(&self.agent).unwrap();
        self
    }

    fn recorded(&self) -> Option<DestinationRecord> {
        self.agent.journal.incoming(attempt()).unwrap().unwrap().record
    }

    fn place(&self) -> Option<Place> {
        self.agent.journal.guest(attempt().guest).unwrap().map(|guest| guest.place)
    }
}

#[tokio::test]
async fn a_guest_that_was_not_committed_is_refused_and_ended() {
    for records in [&[][..], &[DestinationRecord::Receiving], &[DestinationRecord::Refused]] {
        let fixture = Fixture::arriving(records);
        // Written before the guest was to be owned.
        let missing = missing_pages(&fixture.agent.settings, attempt());
        fs::write(missing.with_extension("new"), "").unwrap();
        fs::write(&missing, "").unwrap();
        let fixture = fixture.recovered();
        assert!(!missing.exists() && !missing.with_extension("new").exists());
        assert_eq!(fixture.recorded(), Some(DestinationRecord::Refused));
        assert_eq!(fixture.place(), None);
        assert!(!fixture.fake.newest().lives());
        assert!(fixture.agent.guests.all().is_empty());
    }
}

#[tokio::test]
async fn a_guest_that_was_committed_is_made_to_run() {
    use DestinationRecord::{Active, Owned, Receiving};
    for records in [&[Receiving, Owned][..], &[Receiving, Owned, Active]] {
        let fixture = Fixture::arriving(records).recovered();
        assert_eq!(fixture.recorded(), Some(Active));
        assert_eq!(fixture.place(), Some(Place::Here));
        let guest = fixture.fake.newest();
        assert!(guest.lives() && guest.state() == FakeState::Running);
        assert!(fixture.agent.guests.get("web-1").is_some());
    }
}

#[tokio::test]
async fn a_committed_guest_that_is_gone_stays_owned_on_record() {
    use DestinationRecord::{Owned, Receiving};
    let fixture = Fixture::arriving(&[Receiving, Owned]);
    fixture.fake.kill_all();
    let fixture = fixture.recovered();
    assert_eq!(fixture.recorded(), Some(Owned));
    assert!(matches!(fixture.place(), Some(Place::Crashed { .. })));
}

#[tokio::test]
async fn a_move_whose_end_could_not_be_recorded_is_over_once_its_guest_has_come_back() {
    let fixture = Fixture::new(Place::Here);
    let journal: &Journal = &fixture.agent.journal;
    let here = journal.guest(attempt().guest).unwrap().unwrap();
    let id = Uuid::from_u128(5);
    let request = serde_json::json!({ "id": id, "to": "b" });
    let outgoing = OutgoingRecord {
        attempt: AttemptId { epoch: Epoch(2), ..attempt() },
        request: serde_json::from_value(request).unwrap(),
        offer: crate::host::tests::offer(),
        record: Some(SourceRecord::Moving { journal: JournalId(Uuid::from_u128(6)) }),
        receipt: None,
    };
    journal.begin_outgoing(&GuestRecord { epoch: Epoch(2), ..here.clone() }, &outgoing).unwrap();
    journal.put_guest(&here).unwrap();
    let fixture = fixture.recovered();
    assert!(fixture.agent.moves.get(id).unwrap().has_ended());
    assert_eq!(fixture.place(), Some(Place::Here));
    assert!(fixture.fake.newest().lives());
}

/// The disk was full when its last page came.
#[tokio::test]
async fn a_move_whose_last_page_could_not_be_recorded_is_over_once_its_guest_has_gone_on() {
    use DestinationRecord::{Owing, Receiving};
    let gone = [Place::Here, Place::Elsewhere { host: "b".into() }];
    let arriving = [Place::Arriving { attempt: attempt(), before: None }];
    for (places, over) in [(&gone[..], true), (&arriving, false)] {
        for place in places {
            let fixture = Fixture::arriving(&[Receiving, Owing]);
            let journal: &Journal = &fixture.agent.journal;
            let guest = journal.guest(attempt().guest).unwrap().unwrap();
            journal.put_guest(&GuestRecord { place: place.clone(), ..guest }).unwrap();
            let missing = missing_pages(&fixture.agent.settings, attempt());
            fs::write(&missing, "").unwrap();
            let fixture = fixture.recovered();
            let entry = fixture.agent.moves.get(Uuid::from_u128(1)).unwrap();
            assert_eq!((entry.has_ended(), missing.exists()), (over, !over), "{place:?}");
        }
    }
}

#[tokio::test]
async fn a_guest_whose_process_has_ended_is_marked_crashed() {
    let fixture = Fixture::new(Place::Here);
    fixture.fake.kill_all();
    let fixture = fixture.recovered();
    assert!(matches!(fixture.place(), Some(Place::Crashed { .. })));
    assert!(fixture.agent.guests.get("web-1").is_some());
}

#[tokio::test]
async fn a_guest_of_another_host_is_no_guest_here() {
    let fixture = Fixture::new(Place::Elsewhere { host: "b".into() }).recovered();
    assert!(fixture.agent.guests.all().is_empty());
    assert_eq!(fixture.place(), Some(Place::Elsewhere { host: "b".into() }));
}

#[tokio::test]
async fn a_guest_that_does_not_run_is_there_as_it_was() {
    let stopped = || Place::Stopped { reason: "on request".into() };
    let crashed = || Place::Crashed { reason: "killed".into() };
    for place in [stopped(), crashed()] {
        let fixture = Fixture::new(place.clone());
        // Its agent was killed while it started the guest again.
        let record = fixture.agent.journal.guest(attempt().guest).unwrap().unwrap();
        let stray = fixture.fake.newest();
        let record = GuestRecord { process: None, ..record };
        fixture.agent.journal.put_guest(&record).unwrap();
        let fixture = fixture.recovered();
        assert!(!stray.leaves_something());
        assert_eq!(fixture.place(), Some(place));
        let guest = fixture.agent.guests.get("web-1").unwrap();
        assert_eq!(guest.ask(Request::View).await.unwrap().pid, None);
        assert_eq!(fixture.agent.guests.promised_bytes(GuestId(Uuid::nil())), 0);
    }
}

#[tokio::test]
async fn the_log_of_a_hypervisor_that_ended_meanwhile_is_kept_and_no_others() {
    let fixture = Fixture::new(Place::Here);
    fixture.fake.newest().says("a fault");
    fixture.fake.kill_all();
    let stranger = GuestId(Uuid::from_u128(8));
    fixture.agent.logs.keep(stranger, b"of a guest that is not here");
    let fixture = fixture.recovered();
    assert_eq!(fixture.agent.logs.kept(attempt().guest), b"begins\na fault\n");
    assert_eq!(fixture.agent.logs.kept(stranger), b"");
}

#[tokio::test]
async fn what_was_started_and_never_recorded_is_ended_and_nothing_else() {
    let fixture = Fixture::new(Place::Here);
    let on_record = fixture.fake.newest();
    let definition = on_record.definition();
    // Its agent was killed at once.
    fixture.agent.hypervisor.prepare(&definition, None).unwrap();
    let stray = fixture.fake.newest();
    // Of an agent whose journal was lost since.
    let of_another = fixture.agent.hypervisor.prepare(&definition, None).unwrap().process;
    of_another.on_record().unwrap();
    let fixture = fixture.recovered();
    assert!(on_record.lives() && fixture.fake.newest().lives());
    assert!(!stray.lives());
    assert_eq!(fixture.place(), Some(Place::Here));
}
