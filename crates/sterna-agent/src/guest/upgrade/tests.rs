//! Whatever fails, the guest runs in one process, and that one is on record.

use super::*;
use crate::fake::{FakeGuest, FakeHypervisor, FakeState, HandOvers, agent as fake_agent};
use crate::guest::{Activity, Guest, Request};
use crate::recovery::recover;
use sterna_api::GuestState;
use sterna_proto::message::{Epoch, GuestId};
use uuid::Uuid;

const ID: GuestId = GuestId(Uuid::from_u128(7));

/// An agent with one guest that runs.
struct Fixture {
    agent: Arc<Agent>,
    fake: Arc<FakeHypervisor>,
    old: Arc<FakeGuest>,
    guest: Guest,
    _folder: tempfile::TempDir,
}

impl Fixture {
    fn new(hand_overs: HandOvers) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (agent, fake) = fake_agent(folder.path());
        fake.hand_overs(hand_overs);
        let definition =
            serde_json::from_str(r#"{"name":"web-1","memory_bytes":16777216}"#).unwrap();
        let process = agent.hypervisor.start(&definition).unwrap();
        process.on_record().unwrap();
        let record = GuestRecord {
            id: ID,
            definition,
            wishes: None,
            epoch: Epoch(3),
            process: Some(process.record()),
            upgrade: None,
            place: Place::Here,
        };
        agent.journal.put_guest(&record).unwrap();
        let guest = Task::start(&agent, record, Some(process), Activity::Idle);
        let old = fake.newest();
        Self { agent, fake, old, guest, _folder: folder }
    }

    async fn upgrade(&self) -> Result<UpgradeView, ApiError> {
        let request = UpgradeRequest { verify: true };
        self.guest.ask(|reply| Request::Upgrade(request, reply)).await.unwrap()
    }

    fn recorded(&self) -> GuestRecord {
        self.agent.journal.guest(ID).unwrap().unwrap()
    }

    fn note(&self) -> Note {
        Note::of(&self.agent.settings.runtime, ID)
    }

    /// It runs in the process that it had, alone, and so it is on record.
    async fn runs_where_it_was(&self) {
        assert!(self.old.lives() && self.old.state() == FakeState::Running);
        let view = self.guest.ask(Request::View).await.unwrap();
        assert_eq!((view.state, view.pid), (GuestState::Running, Some(self.old.pid())));
        let record = self.recorded();
        assert_eq!((record.process, record.upgrade), (Some(self.old.record()), None));
        let newest = self.fake.newest();
        assert!(newest.pid() == self.old.pid() || !newest.lives());
    }

    async fn is_seen_to_have_crashed(&self) {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let view = self.guest.ask(Request::View).await.unwrap();
            if let GuestState::Crashed { .. } = view.state {
                return;
            }
            assert!(Instant::now() < deadline, "{:?}", view.state);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// An agent that comes after this one was killed.
    fn recovered(&self, upgrade: Upgrade, process: &FakeGuest) {
        let process = Some(process.record());
        let record = GuestRecord { process, upgrade: Some(upgrade), ..self.recorded() };
        self.agent.journal.put_guest(&record).unwrap();
        recover(&self.agent).unwrap();
        assert_eq!(self.recorded().upgrade, None);
    }
}

#[tokio::test]
async fn a_guest_runs_on_in_its_new_process_and_the_old_one_is_gone() {
    let fixture = Fixture::new(HandOvers::Work);
    let view = fixture.upgrade().await.unwrap();
    let new = fixture.fake.newest();
    assert_eq!((view.guest.state, view.guest.pid), (GuestState::Running, Some(new.pid())));
    assert_eq!(view.ram_digest, RamCheck::Equal);
    assert!(!fixture.old.lives() && new.lives() && new.is_on_record());
    let record = fixture.recorded();
    assert_eq!((record.process, record.upgrade), (Some(new.record()), None));
    assert!(!fixture.note().names(&new.record()).unwrap());
    // It is watched like any other.
    new.end().unwrap();
    fixture.is_seen_to_have_crashed().await;
}

/// Whether it ran for a moment nobody knows.
#[tokio::test]
async fn a_guest_whose_new_process_dies_as_it_is_to_run_is_not_let_run_in_the_old_one() {
    let fixture = Fixture::new(HandOvers::Die);
    let error = fixture.upgrade().await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Hypervisor, "{error}");
    fixture.is_seen_to_have_crashed().await;
    assert!(!fixture.old.lives() && !fixture.fake.newest().lives());
    let record = fixture.recorded();
    assert!(matches!(record.place, Place::Crashed { .. }), "{record:?}");
    assert_eq!((record.process, record.upgrade), (None, None));
}

#[tokio::test]
async fn whatever_is_refused_the_guest_runs_on_where_it_was() {
    for step in ["prepare", "pause", "save", "load", "activate"] {
        let fixture = Fixture::new(HandOvers::FailAt(step));
        let error = fixture.upgrade().await.unwrap_err();
        assert_eq!(error.code, ErrorCode::Hypervisor, "{step}: {error}");
        fixture.runs_where_it_was().await;
        fixture.fake.hand_overs(HandOvers::Work);
        fixture.upgrade().await.unwrap();
        assert!(!fixture.old.lives());
    }
}

#[tokio::test]
async fn a_guest_that_stands_still_is_left_alone() {
    let fixture = Fixture::new(HandOvers::Work);
    fixture.old.intervene(crate::hypervisor::Intervention::Pause).unwrap();
    let error = fixture.upgrade().await.unwrap_err();
    assert_eq!(error.code, ErrorCode::WrongState);
    assert!(fixture.old.lives() && fixture.old.state() == FakeState::Paused);
    assert_eq!(fixture.fake.started(), 1);
}

#[tokio::test]
async fn an_agent_that_was_killed_before_the_hand_over_leaves_the_guest_where_it_was() {
    let fixture = Fixture::new(HandOvers::Work);
    let prepared = fixture.agent.hypervisor.prepare_beside(&fixture.old.record()).unwrap();
    let new = fixture.fake.newest();
    fixture.old.intervene(crate::hypervisor::Intervention::Pause).unwrap();
    fixture.recovered(Upgrade::UnderWay { new: new.record() }, &fixture.old);
    assert!(fixture.old.lives() && fixture.old.state() == FakeState::Running);
    assert!(!new.lives());
    drop(prepared);
}

#[tokio::test]
async fn a_hand_over_that_was_only_noted_counts() {
    for ran in [FakeState::Paused, FakeState::Running] {
        let fixture = Fixture::new(HandOvers::Work);
        let _prepared = fixture.agent.hypervisor.prepare_beside(&fixture.old.record()).unwrap();
        let new = fixture.fake.newest();
        fixture.old.intervene(crate::hypervisor::Intervention::Pause).unwrap();
        fixture.note().write(&new.record()).unwrap();
        if ran == FakeState::Running {
            new.run().unwrap();
        }
        fixture.recovered(Upgrade::UnderWay { new: new.record() }, &fixture.old);
        assert!(new.lives() && new.state() == FakeState::Running);
        assert!(!fixture.old.lives());
        assert_eq!(fixture.recorded().process, Some(new.record()));
        assert!(!fixture.note().names(&new.record()).unwrap());
    }
}

/// It may be of an upgrade long ago.
#[tokio::test]
async fn a_note_of_another_process_does_not_count() {
    let fixture = Fixture::new(HandOvers::Work);
    let _prepared = fixture.agent.hypervisor.prepare_beside(&fixture.old.record()).unwrap();
    let new = fixture.fake.newest();
    fixture.old.intervene(crate::hypervisor::Intervention::Pause).unwrap();
    fixture.note().write(&fixture.old.record()).unwrap();
    fixture.recovered(Upgrade::UnderWay { new: new.record() }, &fixture.old);
    assert!(fixture.old.lives() && fixture.old.state() == FakeState::Running);
    assert!(!new.lives());
}

#[tokio::test]
async fn an_agent_that_cannot_read_which_process_has_a_guest_does_not_guess() {
    let fixture = Fixture::new(HandOvers::Work);
    let _prepared = fixture.agent.hypervisor.prepare_beside(&fixture.old.record()).unwrap();
    let new = fixture.fake.newest();
    // A folder is no note.
    let runtime = &fixture.agent.settings.runtime;
    std::fs::create_dir_all(runtime.join("handed-over").join(ID.0.to_string())).unwrap();
    let upgrade = Some(Upgrade::UnderWay { new: new.record() });
    let record = GuestRecord { upgrade, ..fixture.recorded() };
    fixture.agent.journal.put_guest(&record).unwrap();
    let error = recover(&fixture.agent).unwrap_err();
    assert!(error.to_string().contains("which hypervisor has guest"), "{error}");
    assert!(fixture.old.lives() && new.lives());
    // Nor is a guest handed over by an agent that could not note it.
    fixture.agent.journal.put_guest(&GuestRecord { upgrade: None, ..record }).unwrap();
    let error = fixture.upgrade().await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Internal, "{error}");
    assert!(fixture.old.lives());
}

#[tokio::test]
async fn an_agent_that_was_killed_after_the_hand_over_leaves_the_guest_to_the_new_process() {
    for ran in [FakeState::Paused, FakeState::Running] {
        let fixture = Fixture::new(HandOvers::Work);
        let _prepared = fixture.agent.hypervisor.prepare_beside(&fixture.old.record()).unwrap();
        let new = fixture.fake.newest();
        if ran == FakeState::Running {
            new.run().unwrap();
        }
        let old = fixture.old.record();
        fixture.recovered(Upgrade::HandedOver { old }, &new);
        assert!(new.lives() && new.state() == FakeState::Running);
        assert!(!fixture.old.lives());
        assert_eq!(fixture.recorded().place, Place::Here);
    }
}

#[tokio::test]
async fn a_guest_whose_new_process_is_gone_never_runs_again_in_the_old_one() {
    let fixture = Fixture::new(HandOvers::Work);
    let _prepared = fixture.agent.hypervisor.prepare_beside(&fixture.old.record()).unwrap();
    let new = fixture.fake.newest();
    fixture.old.intervene(crate::hypervisor::Intervention::Pause).unwrap();
    new.end().unwrap();
    let old = fixture.old.record();
    fixture.recovered(Upgrade::HandedOver { old }, &new);
    assert!(!fixture.old.lives());
    assert!(matches!(fixture.recorded().place, Place::Crashed { .. }));
}
