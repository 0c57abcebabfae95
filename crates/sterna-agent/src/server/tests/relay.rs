//! Users who reach host a and ask host b, over real connections.

use super::hostile::{LIMIT, NoCertificate, error, read_to_end};
use super::*;
use crate::fake::agent_at;
use crate::membership::adopt;
use crate::server::connections::{self, Limits};
use crate::server::relay::{ALL_MAX, OF_ONE_MAX};
use crate::server::{Caller, TlsListener};
use reqwest::Proxy;
use rustls::ClientConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use std::net::SocketAddr;
use std::path::PathBuf;
use sterna_engine::identity::{AUTHORITY_HOST_FILE, Identity};
use sterna_pki::{Authority, Subject, Validity};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

const A: &str = "127.0.0.1";
const B: &str = "127.0.0.2";
const C: &str = "127.0.0.3";

/// Hosts a, which has the authority, and b, whose interface's port is that of all hosts of the cluster.
struct Cluster {
    folder: tempfile::TempDir,
    a: Served,
    b: Served,
}

/// A host's interface.
struct Served {
    agent: Arc<Agent>,
    fake: Arc<FakeHypervisor>,
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Served {
    async fn new(folder: PathBuf, address: &str, api_port: u16, limits: Limits) -> Self {
        let (agent, fake) = agent_at(&folder, api_port);
        let any = SocketAddr::new(address.parse().unwrap(), 0);
        let listener = TlsListener::bind(any, agent.identity.clone()).await.unwrap();
        let address = axum::serve::Listener::local_addr(&listener).unwrap();
        let router = router(Arc::clone(&agent), Origin::Network);
        let caller = |tls: &_| Some(Caller::of(tls));
        let task = async move { connections::serve(listener, router, limits, caller).await };
        Self { agent, fake, address, task: tokio::spawn(task) }
    }
}

impl Cluster {
    async fn new() -> Self {
        Self::with(Limits::USUAL).await
    }

    /// With other limits of connections to a.
    async fn with(limits: Limits) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let authority = Authority::create(&at("a/id/authority")).unwrap();
        for (name, address) in [("a", A), ("b", B), ("c", C)] {
            issue(&authority, name, address, &at(name).join("id"));
        }
        let b = Served::new(at("b"), B, 0, Limits::USUAL).await;
        let a = Served::new(at("a"), A, b.address.port(), limits).await;
        Self { folder, a, b }
    }

    fn authority(&self) -> Authority {
        Authority::read(&self.folder.path().join("a/id/authority")).unwrap()
    }

    fn port(&self) -> u16 {
        self.b.address.port()
    }

    /// The folder of a user's identity.
    fn user(&self, name: &str, role: UserRole) -> PathBuf {
        let folder = self.folder.path().join(format!("user-{name}"));
        let issued = self.authority().issue_user(name, role, Validity::by_hand()).unwrap();
        issued.write(&folder).unwrap();
        folder
    }

    fn viewer(&self, name: &str) -> Arc<ClientConfig> {
        client(&self.user(name, UserRole::Viewer))
    }

    /// A program that has this host as its proxy.
    fn through(&self, by: SocketAddr, user: &Arc<ClientConfig>) -> reqwest::Client {
        let proxy = Proxy::all(format!("https://{by}")).unwrap();
        let builder = reqwest::Client::builder().tls_backend_preconfigured((**user).clone());
        builder.no_proxy().proxy(proxy).timeout(LIMIT).build().unwrap()
    }

    fn url(&self, host: &str, path: &str) -> String {
        format!("https://{host}:{}{path}", self.port())
    }

    /// Asks to be passed on.
    async fn asks(&self, user: &Arc<ClientConfig>, target: &str) -> TlsStream<TcpStream> {
        let mut stream = handshake(self.a.address, user).await.unwrap();
        let request = format!("CONNECT {target} HTTP/1.1\r\nhost: {target}\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        stream
    }

    /// A connection that is passed on to a host.
    async fn passed_on(&self, user: &Arc<ClientConfig>, host: &str) -> TlsStream<TcpStream> {
        let mut stream = self.asks(user, &format!("{host}:{}", self.port())).await;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(tokio::time::timeout(LIMIT, stream.read_u8()).await.unwrap().unwrap());
        }
        let head = String::from_utf8(head).unwrap();
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        stream
    }

    /// Why a user is not passed on; the connection is ended then.
    async fn refuses(&self, user: &Arc<ClientConfig>, target: &str) -> ApiError {
        let answer = read_to_end(&mut self.asks(user, target).await).await.unwrap();
        let refused = error(&answer);
        assert!(answer.contains("connection: close"), "{answer}");
        assert!(!refused.hints.is_empty(), "{refused:?}");
        refused
    }

    /// What host a answers who asks for itself.
    async fn asks_a_itself(&self, user: &Arc<ClientConfig>) -> String {
        let mut stream = handshake(self.a.address, user).await.unwrap();
        let request = b"GET /v1/host HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
        stream.write_all(request).await.unwrap();
        read_to_end(&mut stream).await.unwrap()
    }

    /// A host of the cluster that takes connections and says nothing.
    async fn mute(&self) -> Mute {
        let at = "127.0.0.4";
        issue(&self.authority(), "mute", at, &self.folder.path().join("mute"));
        let listener = TcpListener::bind((at, self.port())).await.unwrap();
        Mute(tokio::spawn(async move {
            let mut held = Vec::new();
            while let Ok((stream, _)) = listener.accept().await {
                held.push(stream);
            }
        }))
    }
}

struct Mute(JoinHandle<()>);

impl Drop for Mute {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn issue(authority: &Authority, name: &str, address: &str, folder: &std::path::Path) {
    let subject = Subject { name: name.into(), addresses: vec![address.parse().unwrap()] };
    authority.issue(&subject, Validity::renewed()).unwrap().write(folder).unwrap();
}

fn client(folder: &std::path::Path) -> Arc<ClientConfig> {
    Identity::load(folder).unwrap().client()
}

async fn handshake(
    at: SocketAddr,
    with: &Arc<ClientConfig>,
) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(at).await?;
    let name = ServerName::try_from(at.ip().to_string()).unwrap();
    TlsConnector::from(Arc::clone(with)).connect(name, stream).await
}

#[tokio::test]
async fn a_user_asks_another_host_which_decides_by_the_users_own_role() {
    let cluster = Cluster::new().await;
    for (name, role, may_start) in [
        ("vera", UserRole::Viewer, false),
        ("olaf", UserRole::Operator, false),
        ("ada", UserRole::Admin, true),
    ] {
        let http = cluster.through(cluster.a.address, &client(&cluster.user(name, role)));
        let guests = http.get(cluster.url("b", paths::GUESTS)).send().await.unwrap();
        assert!(guests.json::<Vec<GuestView>>().await.unwrap().is_empty());
        let post = http.post(cluster.url("B", paths::GUESTS)).body(start(ID, "web", "[]"));
        let answer = post.header(header::CONTENT_TYPE, "application/json").send().await.unwrap();
        assert_eq!(answer.status() == StatusCode::CREATED, may_start, "{role}");
        if !may_start {
            let error: ApiError = answer.json().await.unwrap();
            assert!(error.message.contains(&format!("{name}, whose role is {role}")), "{error}");
        }
    }
    assert_eq!((cluster.a.fake.started(), cluster.b.fake.started()), (0, 1));
    let counted = metrics::text(&cluster.a.agent).await.unwrap();
    assert!(counted.contains("sterna_relays_total 3\n"), "{counted}");
}

#[tokio::test]
async fn what_has_no_end_comes_through_as_it_happens() {
    let cluster = Cluster::new().await;
    let http = cluster.through(cluster.a.address, &client(&cluster.user("ada", UserRole::Admin)));
    let events = http.get(cluster.url("b", "/v1/events?after=0")).send().await.unwrap();
    let mut lines = events.bytes_stream();
    let body = start(ID, "web", "[]");
    let post = http.post(cluster.url("b", paths::GUESTS)).body(body);
    post.header(header::CONTENT_TYPE, "application/json").send().await.unwrap();
    let mut told = String::new();
    while !told.contains("\"running\"") {
        let piece = tokio::time::timeout(LIMIT, lines.next()).await.unwrap().unwrap().unwrap();
        told.push_str(std::str::from_utf8(&piece).unwrap());
    }
}

#[tokio::test]
async fn hosts_strangers_and_callers_of_the_socket_are_not_passed_on() {
    let cluster = Cluster::new().await;
    let b = format!("b:{}", cluster.port());
    let host = client(&cluster.folder.path().join("c/id"));
    let refused = cluster.refuses(&host, &b).await;
    assert_eq!(refused.code, ErrorCode::Forbidden, "{refused}");
    assert!(refused.message.contains("the host c"), "{refused}");

    let elsewhere = Authority::create(&cluster.folder.path().join("elsewhere")).unwrap();
    let stranger = cluster.folder.path().join("stranger");
    let issued = elsewhere.issue_user("eve", UserRole::Admin, Validity::by_hand()).unwrap();
    issued.write(&stranger).unwrap();
    // Who knows the authority does not hang up by himself.
    let known = cluster.folder.path().join("a/id/ca.pem");
    std::fs::copy(known, stranger.join("ca.pem")).unwrap();
    let mut nobody = (*host).clone();
    nobody.client_auth_cert_resolver = Arc::new(NoCertificate);
    for with in [client(&stranger), Arc::new(nobody)] {
        let mut stream = cluster.asks(&with, &b).await;
        let answer = read_to_end(&mut stream).await;
        assert!(answer.is_err(), "{answer:?}");
    }

    let request = Request::connect(b).body(Body::empty()).unwrap();
    let local = router(Arc::clone(&cluster.a.agent), Origin::Local);
    let answer = local.oneshot(request).await.unwrap();
    assert_eq!(answer.status(), StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn a_revoked_user_is_cut_off_and_not_passed_on_again() {
    let cluster = Cluster::new().await;
    let (folder, other) = (cluster.user("vera", UserRole::Viewer), cluster.viewer("olga"));
    let user = client(&folder);
    let b = format!("b:{}", cluster.port());
    let events = |user: &_| {
        cluster.through(cluster.a.address, user).get(cluster.url("b", "/v1/events")).send()
    };
    let mut hers = events(&user).await.unwrap().bytes_stream();
    let mut others = events(&other).await.unwrap().bytes_stream();
    let mut open = handshake(cluster.a.address, &user).await.unwrap();

    let list = cluster.authority().revoke_file(&folder.join("host.pem")).unwrap();
    let list = std::fs::read_to_string(list).unwrap();
    // B does not know yet.
    assert!(adopt(&cluster.a.agent, list).await.unwrap());

    let ended = tokio::time::timeout(LIMIT, hers.next()).await.expect("she goes on to listen");
    assert!(!matches!(ended, Some(Ok(_))), "{ended:?}");
    let request = format!("CONNECT {b} HTTP/1.1\r\nhost: {b}\r\n\r\n");
    open.write_all(request.as_bytes()).await.unwrap();
    let refused = error(&read_to_end(&mut open).await.unwrap());
    assert_eq!(refused.code, ErrorCode::Forbidden, "{refused}");
    let mut again = cluster.asks(&user, &b).await;
    assert!(read_to_end(&mut again).await.is_err());
    // Nobody else is.
    let http = cluster.through(cluster.a.address, &client(&cluster.user("ada", UserRole::Admin)));
    let body = start(ID, "web", "[]");
    let post = http.post(cluster.url("b", paths::GUESTS)).body(body);
    post.header(header::CONTENT_TYPE, "application/json").send().await.unwrap();
    let heard = tokio::time::timeout(LIMIT, others.next()).await.unwrap();
    assert!(matches!(heard, Some(Ok(_))), "{heard:?}");
}

#[tokio::test]
async fn nobody_is_passed_on_to_what_is_no_hosts_interface() {
    let cluster = Cluster::new().await;
    let (user, port) = (cluster.viewer("vera"), cluster.port());
    let canary = TcpListener::bind((A, 0)).await.unwrap();
    let theirs = canary.local_addr().unwrap().port();
    for (target, code) in [
        (format!("b:{theirs}"), ErrorCode::Forbidden),
        (format!("a:{theirs}"), ErrorCode::Forbidden),
        ("b:22".into(), ErrorCode::Forbidden),
        (format!("{A}:{theirs}"), ErrorCode::Forbidden),
        (format!("localhost:{theirs}"), ErrorCode::Forbidden),
        ("169.254.169.254:80".into(), ErrorCode::Forbidden),
        (format!("{B}:{port}"), ErrorCode::NotFound),
        (format!("[::ffff:{B}]:{port}"), ErrorCode::NotFound),
        (format!("[::1]:{port}"), ErrorCode::NotFound),
        (format!("localhost:{port}"), ErrorCode::NotFound),
        (format!("nobody:{port}"), ErrorCode::NotFound),
        (format!("b.:{port}"), ErrorCode::NotFound),
        (format!("x@b:{port}"), ErrorCode::NotFound),
        (format!("user-vera:{port}"), ErrorCode::NotFound),
        ("b:x".into(), ErrorCode::BadRequest),
    ] {
        let mut stream = cluster.asks(&user, &target).await;
        let answer = read_to_end(&mut stream).await.unwrap();
        // Some are no targets at all for the server.
        if answer.starts_with("HTTP/1.1 400 ") && answer.contains("content-length: 0") {
            continue;
        }
        assert_eq!(error(&answer).code, code, "{target}: {answer}");
    }
    let called = tokio::time::timeout(Duration::from_millis(100), canary.accept()).await;
    assert!(called.is_err(), "somebody was called");
    let counted = metrics::text(&cluster.a.agent).await.unwrap();
    assert!(counted.contains("sterna_relays_total 0\n"), "{counted}");
}

#[tokio::test]
async fn a_path_is_none_to_be_passed_on_to_and_what_is_asked_next_is_answered() {
    let cluster = Cluster::new().await;
    let ada = client(&cluster.user("ada", UserRole::Admin));
    let mut stream = handshake(cluster.a.address, &ada).await.unwrap();
    let mut bytes = vec![0; 4096];
    for (request, status) in [
        ("CONNECT /v1/guests", 405),
        ("CONNECT http://b/v1/guests", 405),
        ("CONNECT /nowhere", 404),
        ("GET /v1/guests", 200),
    ] {
        let said = format!("{request} HTTP/1.1\r\nhost: a\r\n\r\n");
        stream.write_all(said.as_bytes()).await.unwrap();
        let length = tokio::time::timeout(LIMIT, stream.read(&mut bytes)).await.unwrap().unwrap();
        let answer = String::from_utf8_lossy(&bytes[..length]);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request}: {answer}");
    }
}

#[tokio::test]
async fn a_host_that_is_away_is_named_with_what_was_tried() {
    let cluster = Cluster::new().await;
    issue(&cluster.authority(), "gone", "127.0.0.9", &cluster.folder.path().join("gone"));
    let port = cluster.port();
    let refused = cluster.refuses(&cluster.viewer("vera"), &format!("gone:{port}")).await;
    assert_eq!(refused.code, ErrorCode::Unreachable, "{refused}");
    let tried = format!("127.0.0.9:{port}: Connection refused");
    assert!(refused.message.contains(&tried), "{refused}");
    assert!(refused.hints[1].contains("without --via"), "{refused:?}");
}

#[tokio::test]
async fn an_agent_that_is_about_to_end_passes_nobody_on() {
    let cluster = Cluster::new().await;
    cluster.a.agent.end();
    let refused = cluster.refuses(&cluster.viewer("vera"), &format!("b:{}", cluster.port())).await;
    assert_eq!(refused.code, ErrorCode::ShuttingDown, "{refused}");
}

#[tokio::test]
async fn another_host_than_that_of_the_authority_asks_it_and_remembers() {
    let cluster = Cluster::new().await;
    let c = cluster.folder.path().join("c");
    let c = Served::new(c, C, cluster.port(), Limits::USUAL).await;
    let user = cluster.viewer("vera");
    let asks = async || {
        let http = cluster.through(c.address, &user);
        http.get(cluster.url("b", paths::HOST)).send().await
    };
    // It has joined by hand.
    assert!(asks().await.is_err());
    let request = Request::connect(format!("b:{}", cluster.port()));
    let vera = cluster.folder.path().join("user-vera/host.pem");
    let vera = CertificateDer::from_pem_file(vera).unwrap();
    let request = request.extension(ConnectInfo(Caller::holding(vera))).body(Body::empty());
    let network = router(Arc::clone(&c.agent), Origin::Network);
    let answer = network.oneshot(request.unwrap()).await.unwrap();
    assert_eq!(answer.status(), StatusCode::NOT_FOUND);
    let body = to_bytes(answer.into_body(), 1 << 16).await.unwrap();
    let refused: ApiError = serde_json::from_slice(&body).unwrap();
    assert!(refused.message.contains("by hand"), "{refused}");
    assert!(refused.hints[0].contains("without --via"), "{refused:?}");

    let authority = c.agent.settings.identity.join(AUTHORITY_HOST_FILE);
    std::fs::write(authority, cluster.a.address.to_string()).unwrap();
    assert_eq!(asks().await.unwrap().status(), StatusCode::OK);
    cluster.a.task.abort();
    assert_eq!(asks().await.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn one_user_has_a_share_of_relays_and_all_have_no_more_than_there_are() {
    let cluster = Cluster::new().await;
    let _mute = cluster.mute().await;
    let target = format!("mute:{}", cluster.port());
    let mut held = Vec::new();
    for number in 0..ALL_MAX / OF_ONE_MAX {
        let user = cluster.viewer(&format!("u{number}"));
        for _ in 0..OF_ONE_MAX {
            held.push(cluster.passed_on(&user, "mute").await);
        }
        let refused = cluster.refuses(&user, &target).await;
        assert_eq!(refused.code, ErrorCode::TooMany, "{refused}");
        assert!(refused.message.contains("with this certificate"), "{refused}");
    }
    let one_more = cluster.viewer("one-more");
    let refused = cluster.refuses(&one_more, &target).await;
    assert_eq!(refused.code, ErrorCode::TooMany, "{refused}");
    assert!(!refused.message.contains("certificate"), "{refused}");
    // Who asks the host itself is in nobody's way.
    assert!(cluster.asks_a_itself(&one_more).await.starts_with("HTTP/1.1 200 "));

    // One that is gone without a word of TLS gives its place back.
    drop(held.pop());
    let deadline = tokio::time::Instant::now() + LIMIT;
    loop {
        let mut stream = cluster.asks(&one_more, &target).await;
        let mut bytes = [0; 12];
        stream.read_exact(&mut bytes).await.unwrap();
        if bytes == *b"HTTP/1.1 200" {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "a place is not given back");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_relay_counts_as_a_connection_of_its_user() {
    let cluster = Cluster::with(Limits { of_one: 3, ..Limits::USUAL }).await;
    let _mute = cluster.mute().await;
    let user = cluster.viewer("vera");
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(cluster.passed_on(&user, "mute").await);
    }
    let answer = cluster.asks_a_itself(&user).await;
    assert_eq!(error(&answer).code, ErrorCode::TooMany);
    cluster.passed_on(&cluster.viewer("olga"), "mute").await;
}

#[tokio::test]
async fn who_is_passed_on_and_says_nothing_loses_the_connection_as_with_the_host_itself() {
    let cluster = Cluster::new().await;
    let user = cluster.viewer("vera");
    let mut silent = cluster.passed_on(&user, "b").await;
    let heard = read_to_end(&mut silent).await.unwrap_or_default();
    assert!(heard.is_empty(), "{heard}");
    // Neither does what is no TLS get an answer.
    let mut nonsense = cluster.passed_on(&user, "b").await;
    nonsense.write_all(b"GET /v1/host HTTP/1.1\r\nhost: b\r\n\r\n").await.unwrap();
    let heard = read_to_end(&mut nonsense).await.unwrap_or_default();
    assert!(!heard.contains("HTTP/1.1"), "{heard}");
}
