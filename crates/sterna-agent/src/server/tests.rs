//! The interface as callers see it, over an agent whose hypervisor is a fake.

mod define;
mod hostile;
mod relay;
mod served;

use super::*;
use crate::fake::{FakeHypervisor, FakeState, agent};
use axum::body::{Body, to_bytes};
use axum::extract::connect_info::ConnectInfo;
use axum::http::{Method, Request, StatusCode, header};
use futures_util::StreamExt as _;
use serde::de::DeserializeOwned;
use std::time::Duration;
use sterna_api::{
    Event, GuestState, GuestView, Happened, Hosts, ImageView, MoveView, OPERATIONS, Role, operation,
};
use sterna_core::limits::Limits;
use sterna_engine::identity::{Peer, PeerName, UserRole};
use sterna_page::{PAGE_SIZE, PageNumber, PageSet, RamBlock, RamLayout};
use sterna_proto::message::GuestId;
use sterna_sys::memory::{GuestMemory, HugePages, create_shared};
use tower::ServiceExt as _;
use uuid::Uuid;

const ID: &str = "00000000-0000-0000-0000-000000000007";

struct Client {
    agent: Arc<Agent>,
    fake: Arc<FakeHypervisor>,
    origin: Origin,
    peer: Option<Peer>,
    _folder: tempfile::TempDir,
}

impl Client {
    fn new(origin: Origin) -> Self {
        Self::within(tempfile::tempdir().unwrap(), origin)
    }

    fn within(folder: tempfile::TempDir, origin: Origin) -> Self {
        let (agent, fake) = agent(folder.path());
        let peer = Some(Peer::Host(PeerName("b".into())));
        Self { agent, fake, origin, peer, _folder: folder }
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: impl Into<Body>,
    ) -> (StatusCode, Vec<u8>) {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::CONTENT_TYPE, "application/json")
            .extension(ConnectInfo(Caller::with(self.peer.clone())))
            .body(body.into())
            .unwrap();
        let answer = router(Arc::clone(&self.agent), self.origin).oneshot(request).await.unwrap();
        let status = answer.status();
        (status, to_bytes(answer.into_body(), 1 << 22).await.unwrap().to_vec())
    }

    /// With what status a request without a body is answered; what is answered is not waited for.
    async fn status(&self, method: &str, pattern: &str) -> StatusCode {
        let request = Request::builder()
            .method(method)
            .uri(paths::with(pattern, "x"))
            .extension(ConnectInfo(Caller::with(self.peer.clone())))
            .body(Body::empty())
            .unwrap();
        router(Arc::clone(&self.agent), self.origin).oneshot(request).await.unwrap().status()
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> T {
        let (status, body) = self.send(Method::GET, path, String::new()).await;
        assert_eq!(status, StatusCode::OK, "{}", String::from_utf8_lossy(&body));
        serde_json::from_slice(&body).unwrap()
    }

    async fn error(&self, method: Method, path: &str, body: &str) -> (u16, ApiError) {
        let (status, body) = self.send(method, path, body.to_owned()).await;
        (status.as_u16(), serde_json::from_slice(&body).unwrap())
    }

    async fn start(&self, id: &str, name: &str) -> StatusCode {
        self.send(Method::POST, paths::GUESTS, start(id, name, "[]")).await.0
    }
}

fn start(id: &str, name: &str, qemu_args: &str) -> String {
    format!(
        r#"{{"id":"{id}","definition":{{"name":"{name}","memory_bytes":16777216,
        "qemu_args":{qemu_args}}}}}"#
    )
}

#[tokio::test]
async fn every_error_has_its_code_and_status() {
    let caller = Client::new(Origin::Local);
    caller.start(ID, "a").await;
    let large = "x".repeat(paths::REQUEST_BYTES_MAX + 1);
    let nowhere = format!(r#"{{"id":"{ID}","to":"b:x"}}"#);
    let contradictory =
        Limits { downtime_stretch: Some(Duration::from_millis(1)), ..Limits::default() };
    let contradictory = serde_json::to_string(&contradictory).unwrap();
    let contradictory = format!(r#"{{"id":"{ID}","to":"b","limits":{contradictory}}}"#);
    let wrong_name = start(ID, "../a", "[]");
    let same_name = start("00000000-0000-0000-0000-000000000008", "a", "[]");
    let no_move = format!("/v1/moves/{ID}");
    use ErrorCode::*;
    for (method, path, body, status, code) in [
        (Method::GET, "/v2/host", "", 404, NotFound),
        (Method::PUT, "/v1/guests", "", 405, MethodNotAllowed),
        (Method::POST, "/v1/guests", "{", 400, BadRequest),
        (Method::POST, "/v1/guests", large.as_str(), 413, TooLarge),
        (Method::POST, "/v1/guests", wrong_name.as_str(), 422, Invalid),
        (Method::POST, "/v1/guests", same_name.as_str(), 409, AlreadyExists),
        (Method::GET, "/v1/guests/b", "", 404, NotFound),
        (Method::GET, "/v1/guests/b/console", "", 404, NotFound),
        (Method::POST, "/v1/guests/a/moves", nowhere.as_str(), 422, Invalid),
        (Method::POST, "/v1/guests/a/moves", contradictory.as_str(), 422, Invalid),
        (Method::POST, "/v1/guests/a/plan", r#"{"to":"b:x"}"#, 422, Invalid),
        (Method::POST, "/v1/guests/a/plan", r#"{"to":"b","streams":0}"#, 422, Invalid),
        (Method::POST, "/v1/guests/a/plan", r#"{"to":"b","observe_ms":0}"#, 422, Invalid),
        (Method::POST, "/v1/guests/b/plan", r#"{"to":"b"}"#, 404, NotFound),
        (Method::GET, no_move.as_str(), "", 404, NotFound),
        (Method::DELETE, "/v1/images/b", "", 404, NotFound),
        (Method::DELETE, "/v1/moves/x", "", 400, BadRequest),
        (Method::GET, "/v1/events?after=x", "", 400, BadRequest),
        (Method::GET, "/v1/guests/a/console?follow=x", "", 400, BadRequest),
        (Method::POST, "/v1/guests/a/console", large.as_str(), 413, TooLarge),
        (Method::PUT, "/v1/revoked", large.as_str(), 413, TooLarge),
    ] {
        let (got, error) = caller.error(method.clone(), path, body).await;
        assert_eq!((got, error.code), (status, code), "{method} {path}: {error}");
        assert_eq!(error.code.status(), status);
    }
    let (status, body) = caller.send(Method::PUT, paths::REVOKED, vec![0xff]).await;
    let error: ApiError = serde_json::from_slice(&body).unwrap();
    assert_eq!((status.as_u16(), error.code), (400, BadRequest));
}

#[tokio::test]
async fn a_plan_to_a_host_that_is_not_there_leaves_the_guest_free() {
    let caller = Client::new(Origin::Local);
    caller.start(ID, "a").await;
    // Nobody listens on the port for discarding.
    let plan = r#"{"to":"127.0.0.1:9"}"#;
    for _ in 0..2 {
        let (_, error) = caller.error(Method::POST, "/v1/guests/a/plan", plan).await;
        assert_eq!(error.code, ErrorCode::Unable, "{error}");
        assert!(error.reasons[0].detail.contains("the link could not be tried"), "{error:?}");
    }
    let guest: GuestView = caller.get("/v1/guests/a").await;
    assert_eq!(guest.state, GuestState::Running);
}

#[tokio::test]
async fn asking_twice_starts_one_guest() {
    let caller = Client::new(Origin::Local);
    assert_eq!(caller.start(ID, "a").await, StatusCode::CREATED);
    assert_eq!(caller.start(ID, "a").await, StatusCode::OK);
    assert_eq!(caller.fake.started(), 1);
    let guests: Vec<GuestView> = caller.get(paths::GUESTS).await;
    assert_eq!(guests.len(), 1);
    assert_eq!(guests[0].state, GuestState::Running);
    let moves: Vec<MoveView> = caller.get(paths::MOVES).await;
    assert_eq!(moves, []);
}

#[tokio::test]
async fn guests_are_counted_by_what_they_do() {
    let caller = Client::new(Origin::Network);
    caller.start(ID, "a").await;
    let (status, body) = caller.send(Method::GET, paths::METRICS, String::new()).await;
    let text = String::from_utf8(body).unwrap();
    assert_eq!(status, StatusCode::OK, "{text}");
    assert!(text.contains("sterna_guests{state=\"running\"} 1\n"), "{text}");
}

#[tokio::test]
async fn a_user_may_do_what_the_role_says() {
    let mut caller = Client::new(Origin::Network);
    let plan = r#"{"to":"127.0.0.1:9"}"#;
    let guest = start(ID, "a", "[]");
    for (role, may_plan, may_start) in [
        (UserRole::Viewer, false, false),
        (UserRole::Operator, true, false),
        (UserRole::Admin, true, true),
    ] {
        caller.peer = Some(Peer::User { name: "alice".into(), role });
        caller.get::<Vec<GuestView>>(paths::GUESTS).await;
        let (_, error) = caller.error(Method::POST, "/v1/guests/a/plan", plan).await;
        assert_eq!(error.code != ErrorCode::Forbidden, may_plan, "{role}: {error}");
        let (status, _) = caller.send(Method::POST, paths::GUESTS, guest.clone()).await;
        assert_eq!(status == StatusCode::CREATED, may_start, "{role}: {status}");
    }
    // Who has no role may not even look, and learns of no path whether it is there.
    caller.peer = None;
    let (status, error) = caller.error(Method::GET, "/v1/guests/a", "").await;
    assert_eq!((status, error.code), (403, ErrorCode::Forbidden));
}

#[tokio::test]
async fn each_operation_is_served_for_whom_the_table_names_and_nothing_else_is() {
    let mut caller = Client::new(Origin::Network);
    let user = |role| Some(Peer::User { name: "alice".into(), role });
    for one in OPERATIONS {
        for (peer, role) in [
            (None, None),
            (user(UserRole::Viewer), Some(Role::Viewer)),
            (user(UserRole::Operator), Some(Role::Operator)),
            (user(UserRole::Admin), Some(Role::Admin)),
            (Some(Peer::Host(PeerName("b".into()))), None),
        ] {
            let is_host = matches!(peer, Some(Peer::Host(_)));
            let allowed = role.is_some_and(|role| role >= one.role)
                || (is_host && one.hosts == Hosts::Allowed);
            caller.peer = peer;
            let status = caller.status(one.method.as_str(), one.path).await;
            assert_eq!(status != StatusCode::FORBIDDEN, allowed, "{role:?}: {}", one.name);
            assert_ne!(status, StatusCode::METHOD_NOT_ALLOWED, "{}", one.name);
        }
        for other in sterna_api::Method::ALL.map(sterna_api::Method::as_str) {
            let status = caller.status(other, one.path).await;
            let is_served = operation(other, one.path).is_some();
            assert_eq!(status != StatusCode::METHOD_NOT_ALLOWED, is_served, "{other} {}", one.path);
        }
    }
}

#[tokio::test]
async fn a_guest_is_paused_and_runs_again_and_can_be_shut_down() {
    let caller = Client::new(Origin::Local);
    caller.start(ID, "a").await;
    let post = async |path: &str, body: &str| {
        let (status, body) = caller.send(Method::POST, path, body.to_owned()).await;
        assert_eq!(status, StatusCode::OK, "{path}: {}", String::from_utf8_lossy(&body));
        serde_json::from_slice::<GuestView>(&body).unwrap().state
    };
    // Asked twice, it is done once.
    for _ in 0..2 {
        let state = post("/v1/guests/a/pause", "").await;
        assert!(matches!(state, GuestState::Paused { .. }), "{state:?}");
    }
    assert_eq!(caller.fake.newest().state(), FakeState::Paused);
    // The destination would let it run.
    let to = format!(r#"{{"id":"{ID}","to":"127.0.0.1:9"}}"#);
    let (_, error) = caller.error(Method::POST, "/v1/guests/a/moves", &to).await;
    assert_eq!(error.code, ErrorCode::WrongState, "{error}");
    assert_eq!(post("/v1/guests/a/run", "{}").await, GuestState::Running);
    assert_eq!(post("/v1/guests/a/reset", "").await, GuestState::Running);
    post("/v1/guests/a/shutdown", "").await;
    assert!(!caller.fake.newest().lives());
    let (_, error) = caller.error(Method::POST, "/v1/guests/b/pause", "").await;
    assert_eq!(error.code, ErrorCode::NotFound);
}

#[tokio::test]
async fn what_happens_to_a_guest_is_told_in_lines() {
    let caller = Client::new(Origin::Local);
    let request = Request::builder().uri("/v1/events?after=0").body(Body::empty()).unwrap();
    let answer = router(Arc::clone(&caller.agent), Origin::Local).oneshot(request).await.unwrap();
    let mut lines = answer.into_body().into_data_stream();
    caller.start(ID, "a").await;
    caller.send(Method::POST, "/v1/guests/a/stop", String::new()).await;
    caller.send(Method::DELETE, "/v1/guests/a", String::new()).await;
    let mut told = Vec::new();
    while told.len() < 5 {
        let piece = lines.next().await.unwrap().unwrap();
        for line in piece.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            told.push(serde_json::from_slice::<Event>(line).unwrap().what);
        }
    }
    let (name, id) = ("a".to_owned(), ID.parse().map(GuestId).unwrap());
    let guest = |state| Happened::Guest { name: name.clone(), id, state };
    let stopped = GuestState::Stopped { reason: "on request".into() };
    let gone = Happened::GuestGone { name: name.clone(), id };
    // Of what came before the agent began nothing is remembered.
    assert!(matches!(told.remove(1), Happened::GuestDefined { .. }));
    assert_eq!(told, [Happened::Missed, guest(GuestState::Running), guest(stopped), gone]);
}

#[tokio::test]
async fn hypervisor_arguments_are_this_hosts_operators_alone() {
    let body = start(ID, "a", r#"["-s"]"#);
    let network = Client::new(Origin::Network);
    let (status, error) = network.error(Method::POST, paths::GUESTS, &body).await;
    assert_eq!((status, error.code), (403, ErrorCode::Forbidden));
    assert_eq!(network.fake.started(), 0);
    let local = Client::new(Origin::Local);
    let (status, _) = local.send(Method::POST, paths::GUESTS, body).await;
    assert_eq!(status, StatusCode::CREATED);
}

#[tokio::test]
async fn a_guest_whose_hypervisor_ends_is_shown_as_crashed() {
    let caller = Client::new(Origin::Local);
    caller.start(ID, "a").await;
    caller.fake.kill_all();
    // The end is noticed by an event; asking makes no difference to when.
    let crashed = loop {
        let view: GuestView = caller.get("/v1/guests/a").await;
        if let GuestState::Crashed { .. } = view.state {
            break view;
        }
        tokio::task::yield_now().await;
    };
    assert_eq!(crashed.pid, None);
    let recorded = caller.agent.journal.guests().unwrap();
    assert!(matches!(recorded[0].place, crate::records::Place::Crashed { .. }), "{recorded:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_kept_of_a_guest_is_listed_and_dropped() {
    let caller = Client::new(Origin::Local);
    assert!(caller.get::<Vec<ImageView>>(paths::IMAGES).await.is_empty());
    caller.start(ID, "a").await;
    let store = caller.agent.images.clone().unwrap();
    let unknown = Uuid::new_v4();
    for guest in [ID.parse().unwrap(), unknown] {
        let memory = small_memory();
        store.keep(guest, &memory, &PageSet::empty(memory.pages())).unwrap();
    }
    let images: Vec<ImageView> = caller.get(paths::IMAGES).await;
    let names: Vec<_> = images.iter().map(|image| (image.guest.0, image.name.clone())).collect();
    assert_eq!(names, [(ID.parse().unwrap(), Some("a".into())), (unknown, None)]);
    assert!(images.iter().all(|image| image.pages == 1 && image.kept_unix_ms > 0));
    for guest in ["a".to_owned(), unknown.to_string()] {
        let path = paths::with(paths::IMAGE, &guest);
        let (status, _) = caller.send(Method::DELETE, &path, String::new()).await;
        assert_eq!(status, StatusCode::OK);
        assert_eq!(caller.error(Method::DELETE, &path, "").await.0, 404);
    }
    assert!(caller.get::<Vec<ImageView>>(paths::IMAGES).await.is_empty());
}

/// RAM with one page that is not zero.
fn small_memory() -> GuestMemory {
    let size_bytes = 1 << 20;
    let block = RamBlock { name: "ram".into(), size_bytes, host_page_bytes: 4096 };
    let file = create_shared("ram", size_bytes, HugePages::No).unwrap();
    let memory = GuestMemory::open(RamLayout::new(vec![block]).unwrap(), vec![file]).unwrap();
    memory.write(PageNumber(3), &[1; PAGE_SIZE]).unwrap();
    memory
}

#[tokio::test]
async fn a_list_is_not_taken_for_an_object_of_its_values() {
    let caller = Client::new(Origin::Local);
    caller.start(ID, "a").await;
    for path in ["/v1/guests/a/start", "/v1/guests/a/run", "/v1/guests/a/upgrade", paths::GUESTS] {
        for body in ["[]", "[false]", "null", "7"] {
            let (_, error) = caller.error(Method::POST, path, body).await;
            assert_eq!(error.code, ErrorCode::BadRequest, "{path} {body}: {error}");
        }
    }
}
