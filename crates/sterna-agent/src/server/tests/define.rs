//! Guests that are defined, started, ended, edited, deleted; and what their hypervisors said.

use super::*;
use crate::host::AgentHost;
use crate::hypervisor::GuestProcess as _;
use crate::records::{Elsewhere, GuestRecord, IncomingRecord, Place};
use crate::recovery::recover;
use sterna_api::DefinitionView;
use sterna_core::journal::DestinationRecord;
use sterna_engine::Host as _;
use sterna_proto::message::{AttemptId, Epoch, ReasonCode};

const OTHER: &str = "00000000-0000-0000-0000-000000000008";

fn id() -> GuestId {
    GuestId(ID.parse().unwrap())
}

/// A definition with more fields than a name and memory.
fn with(name: &str, more: &str) -> String {
    format!(r#"{{"name":"{name}","memory_bytes":16777216{more}}}"#)
}

fn define(id: &str, name: &str) -> String {
    format!(r#"{{"id":"{id}","definition":{}}}"#, with(name, ""))
}

impl Client {
    /// Sends something that is granted.
    async fn done<T: DeserializeOwned>(&self, method: Method, path: &str, body: &str) -> T {
        let (status, answer) = self.send(method.clone(), path, body.to_owned()).await;
        let text = String::from_utf8_lossy(&answer);
        assert!(status.is_success(), "{method} {path}: {status} {text}");
        serde_json::from_slice(&answer).unwrap()
    }

    /// Sends something that is refused with this code.
    async fn refused(&self, method: Method, path: &str, body: &str, code: ErrorCode) -> ApiError {
        let (status, error) = self.error(method.clone(), path, body).await;
        assert_eq!((error.code, status), (code, code.status()), "{method} {path}: {error}");
        error
    }

    async fn post(&self, path: &str) -> GuestView {
        self.done(Method::POST, path, "{}").await
    }

    async fn defined(&self) -> GuestView {
        self.done(Method::POST, paths::DEFINITIONS, &define(ID, "a")).await
    }

    async fn delete(&self) -> GuestView {
        self.done(Method::DELETE, "/v1/guests/a", "").await
    }

    /// Edits what is there now.
    async fn edit(&self, more: &str) -> DefinitionView {
        let now: DefinitionView = self.get("/v1/guests/a/definition").await;
        let edit = edit(&now.version, &with("a", more));
        self.done(Method::PUT, "/v1/guests/a/definition", &edit).await
    }

    async fn until(&self, is_it: impl Fn(&GuestState) -> bool) -> GuestView {
        let looks = async {
            loop {
                let view: GuestView = self.get("/v1/guests/a").await;
                if is_it(&view.state) {
                    return view;
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), looks).await.expect("it becomes so in time")
    }

    async fn crash(&self) -> GuestView {
        self.fake.kill_all();
        self.until(|state| matches!(state, GuestState::Crashed { .. })).await
    }

    async fn log(&self, question: &str) -> String {
        let path = format!("/v1/guests/a/log{question}");
        let (status, body) = self.send(Method::GET, &path, String::new()).await;
        assert_eq!(status, StatusCode::OK);
        String::from_utf8(body).unwrap()
    }

    fn record(&self) -> GuestRecord {
        self.agent.journal.guest(id()).unwrap().unwrap()
    }

    /// A guest that an earlier agent has left in this place, without a hypervisor.
    fn left_in(place: Place, epoch: u64) -> Self {
        let caller = Self::new(Origin::Local);
        let definition = serde_json::from_str(&with("a", "")).unwrap();
        let epoch = Epoch(epoch);
        let record = GuestRecord {
            id: id(),
            definition,
            wishes: None,
            epoch,
            process: None,
            upgrade: None,
            place,
        };
        caller.agent.journal.put_guest(&record).unwrap();
        caller
    }

    /// One that came by an attempt of which this is on record, and whose hypervisor has ended.
    fn came_and_crashed(records: &[DestinationRecord]) -> Self {
        let caller = Self::left_in(Place::Crashed { reason: "killed".into() }, 3);
        let attempt = AttemptId { guest: id(), epoch: Epoch(3) };
        let (id, peer) = (Uuid::from_u128(1), "b".to_owned());
        let incoming = IncomingRecord { id, attempt, guest: "a".into(), peer, record: None };
        caller.agent.journal.begin_incoming(&caller.record(), &incoming).unwrap();
        for record in records {
            caller.agent.journal.record_destination(attempt, *record).unwrap();
        }
        recover(&caller.agent).unwrap();
        caller
    }
}

fn edit(version: &str, definition: &str) -> String {
    format!(r#"{{"version":"{version}","definition":{definition}}}"#)
}

#[tokio::test]
async fn a_guest_is_defined_started_ended_edited_started_again_and_deleted() {
    let caller = Client::new(Origin::Local);
    let view = caller.defined().await;
    assert!(
        matches!(&view.state, GuestState::Stopped { reason } if reason.contains("not been started"))
    );
    // On record, and nothing more: no process, no memory.
    assert_eq!(caller.record().process, None);
    assert_eq!(caller.fake.started(), 0);
    assert_eq!(caller.agent.guests.promised_bytes(GuestId(Uuid::nil())), 0);

    assert_eq!(caller.post("/v1/guests/a/start").await.state, GuestState::Running);
    // Asked twice, it is started once.
    assert_eq!(caller.post("/v1/guests/a/start").await.state, GuestState::Running);
    assert_eq!(caller.fake.started(), 1);
    assert!(caller.fake.newest().is_on_record());
    assert_eq!(caller.record().place, Place::Here);

    let view = caller.post("/v1/guests/a/stop").await;
    assert_eq!(view.state, GuestState::Stopped { reason: "on request".into() });
    assert_eq!(view.pid, None);
    assert!(!caller.fake.newest().leaves_something());
    assert_eq!(caller.post("/v1/guests/a/stop").await, view);
    assert!(matches!(caller.record().place, Place::Stopped { .. }));

    caller.edit(r#","vcpus":3"#).await;
    let view = caller.post("/v1/guests/a/start").await;
    assert_eq!((view.definition.vcpus, view.state), (3, GuestState::Running));
    assert_eq!(caller.fake.newest().definition().vcpus, 3);
    assert_eq!(caller.fake.started(), 2);

    let error = caller.refused(Method::DELETE, "/v1/guests/a", "", ErrorCode::WrongState).await;
    assert!(error.hints[0].contains("sterna vm stop a"), "{error:?}");
    assert!(caller.fake.newest().lives());
    caller.post("/v1/guests/a/stop").await;
    caller.delete().await;
    assert_eq!(caller.agent.journal.guests().unwrap(), []);
    caller.refused(Method::GET, "/v1/guests/a", "", ErrorCode::NotFound).await;
    assert_eq!(caller.start(OTHER, "a").await, StatusCode::CREATED);
}

#[tokio::test]
async fn a_guest_is_defined_once_and_its_name_is_its_own() {
    let caller = Client::new(Origin::Local);
    caller.defined().await;
    let (status, _) = caller.send(Method::POST, paths::DEFINITIONS, define(ID, "a")).await;
    assert_eq!(status, StatusCode::OK);
    // Asked to be started as a new one, it is there already.
    assert_eq!(caller.start(ID, "a").await, StatusCode::OK);
    assert_eq!(caller.fake.started(), 0);
    for (path, body) in
        [(paths::DEFINITIONS, define(OTHER, "a")), (paths::GUESTS, start(OTHER, "a", "[]"))]
    {
        let error = caller.refused(Method::POST, path, &body, ErrorCode::AlreadyExists).await;
        assert!(error.hints[0].contains("sterna vm start a"), "{error:?}");
        assert!(error.hints[0].contains("sterna vm delete a"), "{error:?}");
    }
    caller
        .refused(Method::POST, paths::DEFINITIONS, &define(ID, "b"), ErrorCode::AlreadyExists)
        .await;
    assert_eq!(caller.agent.journal.guests().unwrap().len(), 1);
}

#[tokio::test]
async fn each_start_chooses_anew_what_the_operator_left_open() {
    let caller = Client::new(Origin::Local);
    caller.defined().await;
    let runs = caller.post("/v1/guests/a/start").await;
    assert_eq!(runs.definition.machine.as_deref(), Some("fake-1"));
    // What was written is not what runs.
    let written: DefinitionView = caller.get("/v1/guests/a/definition").await;
    assert_eq!(written.definition.machine, None);
    caller.fake.upgrade("fake-2");
    caller.post("/v1/guests/a/stop").await;
    let runs = caller.post("/v1/guests/a/start").await;
    assert_eq!(runs.definition.machine.as_deref(), Some("fake-2"));
    // Also after it crashed.
    caller.fake.upgrade("fake-3");
    assert_eq!(caller.crash().await.definition.machine.as_deref(), Some("fake-2"));
    let runs = caller.post("/v1/guests/a/start").await;
    assert_eq!(runs.definition.machine.as_deref(), Some("fake-3"));
    caller.post("/v1/guests/a/stop").await;
    caller.edit(r#","machine":"fake-1""#).await;
    let runs = caller.post("/v1/guests/a/start").await;
    assert_eq!(runs.definition.machine.as_deref(), Some("fake-1"));
}

#[tokio::test]
async fn an_edit_is_refused_with_its_reason_and_changes_nothing() {
    let mut caller = Client::new(Origin::Local);
    caller.defined().await;
    let path = "/v1/guests/a/definition";
    let first: DefinitionView = caller.get(path).await;
    let more = with("a", r#","vcpus":2"#);
    let edited: DefinitionView = caller.done(Method::PUT, path, &edit(&first.version, &more)).await;
    assert_ne!(edited.version, first.version);
    // Asked again it is done already; whoever edited what was there before has to look again.
    let again: DefinitionView = caller.done(Method::PUT, path, &edit(&first.version, &more)).await;
    assert_eq!(again, edited);
    let late = edit(&first.version, &with("a", r#","vcpus":4"#));
    let error = caller.refused(Method::PUT, path, &late, ErrorCode::Changed).await;
    assert_eq!(error.code.status(), 409);
    assert!(error.hints[0].contains("--definition"), "{error:?}");

    let now = |definition: &str| edit(&edited.version, definition);
    use ErrorCode::{BadRequest, Forbidden, Invalid, WrongState};
    let renamed = caller.refused(Method::PUT, path, &now(&with("b", "")), Invalid).await;
    assert!(!renamed.hints.is_empty());
    caller.refused(Method::PUT, path, &now(&with("a", r#","vcpus":0"#)), Invalid).await;
    caller.refused(Method::PUT, path, &now(&with("a", r#","memroy":1"#)), BadRequest).await;
    caller.refused(Method::PUT, path, "{}", BadRequest).await;
    caller.origin = Origin::Network;
    caller.refused(Method::PUT, path, &now(&with("a", r#","qemu_args":["-s"]"#)), Forbidden).await;
    let body =
        format!(r#"{{"id":"{OTHER}","definition":{}}}"#, with("b", r#","qemu_args":["-s"]"#));
    caller.refused(Method::POST, paths::DEFINITIONS, &body, Forbidden).await;
    caller.origin = Origin::Local;

    caller.post("/v1/guests/a/start").await;
    let error = caller.refused(Method::PUT, path, &now(&with("a", "")), WrongState).await;
    assert!(error.hints[0].contains("sterna vm stop a"), "{error:?}");
    assert_eq!(caller.get::<DefinitionView>(path).await, edited);
    assert_eq!(caller.record().written().vcpus, 2);
}

#[tokio::test]
async fn why_a_guest_crashed_is_told_until_it_is_started_again() {
    let caller = Client::new(Origin::Local);
    caller.start(ID, "a").await;
    let crashed = caller.crash().await;
    assert_eq!(crashed.state.reason(), Some("it was killed"));
    assert_eq!(caller.post("/v1/guests/a/stop").await.state, crashed.state);
    // Much more than any host has.
    let memory = caller.edit("").await.definition;
    let huge = sterna_vmm::GuestDefinition { memory_bytes: 1 << 60, ..memory };
    let now: DefinitionView = caller.get("/v1/guests/a/definition").await;
    let huge = edit(&now.version, &serde_json::to_string(&huge).unwrap());
    let _: DefinitionView = caller.done(Method::PUT, "/v1/guests/a/definition", &huge).await;
    let start = "/v1/guests/a/start";
    let error = caller.refused(Method::POST, start, "{}", ErrorCode::Unable).await;
    assert_eq!(error.reasons[0].code, ReasonCode::NoRoom);
    assert_eq!(caller.get::<GuestView>("/v1/guests/a").await.state, crashed.state);
    assert_eq!(caller.agent.guests.promised_bytes(GuestId(Uuid::nil())), 0);
    let place = caller.record().place;
    assert!(matches!(&place, Place::Crashed { reason } if reason == "it was killed"), "{place:?}");
    assert_eq!(caller.fake.started(), 1);
    caller.edit("").await;
    assert_eq!(caller.post(start).await.state, GuestState::Running);
    assert_eq!(caller.record().place, Place::Here);
}

#[tokio::test]
async fn a_guest_that_powered_off_is_started_again() {
    let caller = Client::new(Origin::Local);
    caller.start(ID, "a").await;
    caller.post("/v1/guests/a/shutdown").await;
    let off = caller.until(|state| matches!(state, GuestState::Stopped { .. })).await;
    assert_eq!(off.state.reason(), Some("its system powered off"));
    // As it would be started, not as it was.
    assert_eq!(off.definition.machine, None);
    assert!(!caller.fake.newest().leaves_something());
    assert_eq!(caller.post("/v1/guests/a/start").await.state, GuestState::Running);
}

#[tokio::test]
async fn a_guest_that_has_left_is_neither_started_nor_edited_nor_made_again_here() {
    let caller = Client::left_in(Place::Elsewhere { host: "b".into() }, 3);
    recover(&caller.agent).unwrap();
    let edit = edit("x", &with("a", ""));
    for (method, path, body) in [
        (Method::POST, "/v1/guests/a/start", "{}"),
        (Method::POST, "/v1/guests/a/stop", ""),
        (Method::PUT, "/v1/guests/a/definition", edit.as_str()),
        (Method::GET, "/v1/guests/a/definition", ""),
        (Method::DELETE, "/v1/guests/a", ""),
        (Method::POST, paths::DEFINITIONS, &define(ID, "a")),
        (Method::POST, paths::DEFINITIONS, &define(ID, "c")),
        (Method::POST, paths::GUESTS, &start(ID, "a", "[]")),
    ] {
        let error = caller.refused(method, path, body, ErrorCode::MovedAway).await;
        assert!(error.message.ends_with("moved to b") && !error.hints.is_empty(), "{error:?}");
    }
    assert_eq!(caller.fake.started(), 0);
    assert_eq!(caller.record().place, Place::Elsewhere { host: "b".into() });
    assert!(caller.agent.guests.all().is_empty());
}

#[tokio::test]
async fn a_guest_that_did_not_come_is_not_made_here() {
    let caller = Client::new(Origin::Local);
    let attempt = AttemptId { guest: id(), epoch: Epoch(3) };
    for record in [DestinationRecord::Receiving, DestinationRecord::Refused] {
        caller.agent.journal.record_destination(attempt, record).unwrap();
        for (path, body) in
            [(paths::DEFINITIONS, define(ID, "a")), (paths::GUESTS, start(ID, "a", "[]"))]
        {
            let error = caller.refused(Method::POST, path, &body, ErrorCode::AlreadyExists).await;
            assert!(error.hints[0].contains("draw another"), "{error:?}");
        }
    }
    assert_eq!((caller.fake.started(), caller.agent.guests.all().len()), (0, 0));
    assert_eq!(caller.agent.journal.guests().unwrap(), []);
}

#[tokio::test]
async fn a_guest_in_doubt_is_only_started_on_an_operators_word() {
    let in_doubt = Place::Paused { reason: "no answer".into(), elsewhere: Elsewhere::MayHaveRun };
    let caller = Client::left_in(in_doubt, 3);
    let definition = caller.record().definition;
    let process = caller.agent.hypervisor.prepare(&definition, None).unwrap().process;
    let record = GuestRecord { process: Some(process.record()), ..caller.record() };
    caller.agent.journal.put_guest(&record).unwrap();
    recover(&caller.agent).unwrap();
    let version: DefinitionView = caller.get("/v1/guests/a/definition").await;
    let edit = edit(&version.version, &with("a", r#","vcpus":2"#));
    let requests = [
        (Method::POST, "/v1/guests/a/start", "{}"),
        (Method::PUT, "/v1/guests/a/definition", edit.as_str()),
        (Method::DELETE, "/v1/guests/a", ""),
    ];
    let word = r#"{"runs_nowhere_else":true}"#;
    // While its hypervisor is there it can be told to run on, and is not started anew.
    for (method, path, body) in requests.iter().cloned().chain([
        (Method::POST, "/v1/guests/a/stop", ""),
        (Method::POST, "/v1/guests/a/start", word),
    ]) {
        let error = caller.refused(method, path, body, ErrorCode::WrongState).await;
        assert!(error.hints[0].contains("sterna migrate resolve a"), "{error:?}");
    }
    assert!(process_lives(&caller));
    // What was left of it here ends: where it runs is as unknown as before, also to the next agent.
    caller.fake.kill_all();
    caller.until(|state| state.reason().is_some_and(|reason| reason.contains("has ended"))).await;
    let place = caller.record().place;
    let unknown =
        |place: &Place| matches!(place, Place::Paused { elsewhere: Elsewhere::MayHaveRun, .. });
    assert!(unknown(&place), "{place:?}");
    for (method, path, body) in requests {
        caller.refused(method, path, body, ErrorCode::WrongState).await;
    }
    assert_eq!(caller.fake.started(), 1);
    let started: GuestView = caller.done(Method::POST, "/v1/guests/a/start", word).await;
    assert_eq!((started.state, started.epoch), (GuestState::Running, Epoch(4)));
    assert_eq!(caller.record().epoch, Epoch(4));
}

fn process_lives(caller: &Client) -> bool {
    caller.fake.newest().lives()
}

#[tokio::test]
async fn a_guest_that_came_and_may_still_be_where_it_came_from_is_only_started_on_a_word() {
    use DestinationRecord::{Active, Lost, Owing, Owned, Receiving};
    for (records, in_doubt) in [
        (&[Receiving, Owned][..], true),
        (&[Receiving, Owing], true),
        (&[Receiving, Owing, Lost], true),
        (&[Receiving, Owned, Active], false),
    ] {
        let caller = Client::came_and_crashed(records);
        let attempt = AttemptId { guest: id(), epoch: Epoch(3) };
        let recorded = || caller.agent.journal.incoming(attempt).unwrap().unwrap().record;
        let path = "/v1/guests/a/start";
        if in_doubt {
            let error = caller.refused(Method::POST, path, "{}", ErrorCode::WrongState).await;
            assert!(error.hints[0].contains("--runs-nowhere-else"), "{error:?}");
            let now: DefinitionView = caller.get("/v1/guests/a/definition").await;
            let edit = edit(&now.version, &with("a", r#","vcpus":2"#));
            caller
                .refused(Method::PUT, "/v1/guests/a/definition", &edit, ErrorCode::WrongState)
                .await;
            assert_eq!(caller.fake.started(), 0);
        }
        let word = format!(r#"{{"runs_nowhere_else":{in_doubt}}}"#);
        let started: GuestView = caller.done(Method::POST, path, &word).await;
        assert_eq!(started.epoch, Epoch(if in_doubt { 4 } else { 3 }), "{records:?}");
        // The word holds from then on.
        caller.post("/v1/guests/a/stop").await;
        assert_eq!(caller.post(path).await.state, GuestState::Running);
        // Whoever asks about the attempt is told what is on record of it, and gets nothing of the guest.
        let host = Arc::new(AgentHost(Arc::clone(&caller.agent)));
        let asked = Arc::clone(&host);
        let found = tokio::task::spawn_blocking(move || asked.find(attempt, &PeerName("b".into())));
        let found = found.await.unwrap().unwrap();
        assert!(found.guest.is_none());
        assert_eq!((found.record, recorded()), (records.last().copied(), records.last().copied()));
        assert!(caller.fake.newest().lives());
    }
    // It can be forgotten, as its source goes on asking what is on record of the move.
    let caller = Client::came_and_crashed(&[Receiving, Owned]);
    caller.delete().await;
    caller
        .refused(Method::POST, paths::GUESTS, &start(ID, "a", "[]"), ErrorCode::AlreadyExists)
        .await;
    let attempt = AttemptId { guest: id(), epoch: Epoch(3) };
    assert_eq!(caller.agent.journal.incoming(attempt).unwrap().unwrap().record, Some(Owned));
}

#[tokio::test]
async fn attempts_are_counted_on_when_a_guest_is_deleted_and_made_again() {
    let caller = Client::left_in(Place::Stopped { reason: "on request".into() }, 7);
    recover(&caller.agent).unwrap();
    assert_eq!(caller.post("/v1/guests/a/start").await.epoch, Epoch(7));
    caller.post("/v1/guests/a/stop").await;
    assert_eq!(caller.edit(r#","vcpus":2"#).await.definition.vcpus, 2);
    assert_eq!(caller.record().epoch, Epoch(7));
    caller.delete().await;
    assert_eq!(caller.defined().await.epoch, Epoch(7));
    caller.delete().await;
    caller.start(ID, "a").await;
    assert_eq!(caller.record().epoch, Epoch(7));
    assert_eq!(caller.get::<GuestView>("/v1/guests/a").await.epoch, Epoch(7));
}

#[tokio::test]
async fn what_becomes_of_a_definition_is_told_and_counted() {
    let caller = Client::new(Origin::Local);
    let mut events = caller.agent.events.reader(None);
    caller.defined().await;
    let first: DefinitionView = caller.get("/v1/guests/a/definition").await;
    let second = caller.edit(r#","vcpus":2"#).await;
    caller.post("/v1/guests/a/start").await;
    caller.post("/v1/guests/a/stop").await;
    let (_, body) = caller.send(Method::GET, paths::METRICS, String::new()).await;
    let text = String::from_utf8(body).unwrap();
    assert!(text.contains("sterna_guests{state=\"stopped\"} 1\n"), "{text}");
    caller.delete().await;
    let mut told = Vec::new();
    while !matches!(told.last(), Some(Happened::GuestGone { .. })) {
        told.extend(events.next().await.into_iter().map(|event| event.what));
    }
    let name = || "a".to_owned();
    let defined = |view: DefinitionView| Happened::GuestDefined {
        name: name(),
        id: id(),
        version: view.version,
    };
    let state = |state| Happened::Guest { name: name(), id: id(), state };
    let stopped = |reason: &str| state(GuestState::Stopped { reason: reason.into() });
    let expected = [
        defined(first),
        stopped(crate::guest::define::NEVER_STARTED),
        defined(second),
        state(GuestState::Running),
        stopped("on request"),
        Happened::GuestGone { name: name(), id: id() },
    ];
    assert_eq!(told, expected);
}

#[tokio::test]
async fn what_a_hypervisor_said_is_read_while_it_runs_and_after_it_has_ended() {
    let caller = Client::new(Origin::Local);
    caller.defined().await;
    assert_eq!(caller.log("").await, "");
    caller.post("/v1/guests/a/start").await;
    caller.fake.newest().says("one");
    assert_eq!(caller.log("").await, "begins\none\n");
    caller.post("/v1/guests/a/stop").await;
    // With what it said as it ended.
    assert_eq!(caller.log("").await, "begins\none\nends\n");
    assert_eq!(caller.log("?follow=true").await, "begins\none\nends\n");
    caller.post("/v1/guests/a/start").await;
    caller.fake.newest().says("a fault\u{1b}[2J");
    caller.crash().await;
    assert_eq!(caller.log("").await, "begins\na fault\u{1b}[2J\n");
    assert!(!caller.fake.newest().leaves_something());
    caller.delete().await;
    assert_eq!(caller.agent.logs.kept(id()), b"");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_is_followed_until_its_hypervisor_ends() {
    let caller = Client::new(Origin::Local);
    caller.start(ID, "a").await;
    let request =
        Request::builder().uri("/v1/guests/a/log?follow=true").body(Body::empty()).unwrap();
    let answer = router(Arc::clone(&caller.agent), Origin::Local).oneshot(request).await.unwrap();
    let mut pieces = answer.into_body().into_data_stream();
    assert_eq!(pieces.next().await.unwrap().unwrap(), "begins\n");
    caller.fake.newest().says("more");
    assert_eq!(pieces.next().await.unwrap().unwrap(), "more\n");
    caller.post("/v1/guests/a/stop").await;
    assert_eq!(pieces.next().await.unwrap().unwrap(), "ends\n");
    assert!(pieces.next().await.is_none());
}
