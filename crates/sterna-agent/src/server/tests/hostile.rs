//! Callers over the network who mean no good, or are broken: over real connections.

use super::*;
use crate::server::connections::{self, Limits};
use crate::server::{Caller, TlsListener};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use std::net::SocketAddr;
use std::path::PathBuf;
use sterna_engine::identity::Identity;
use sterna_pki::{Authority, Subject, Validity};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Within this everything happens that must.
pub(super) const LIMIT: Duration = Duration::from_secs(20);

/// A request that is granted to every caller, on a connection that stays.
const ASK: &[u8] = b"GET /v1/host HTTP/1.1\r\nhost: a\r\n\r\n";

/// The interface of host a, as callers of its cluster and others reach it.
struct Served {
    folder: tempfile::TempDir,
    address: SocketAddr,
    _fake: Arc<FakeHypervisor>,
}

impl Served {
    async fn new(limits: Limits) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let identity = folder.path().join("id");
        let authority = Authority::create(&identity.join("authority")).unwrap();
        authority.issue(&subject("a"), Validity::renewed()).unwrap().write(&identity).unwrap();
        let (agent, fake) = agent(folder.path());
        let any = "127.0.0.1:0".parse().unwrap();
        let listener = TlsListener::bind(any, agent.identity.clone()).await.unwrap();
        let address = axum::serve::Listener::local_addr(&listener).unwrap();
        let router = router(agent, Origin::Network);
        let caller = |tls: &_| Some(Caller::of(tls));
        tokio::spawn(async move { connections::serve(listener, router, limits, caller).await });
        Self { folder, address, _fake: fake }
    }

    fn authority(&self) -> Authority {
        Authority::read(&self.folder.path().join("id/authority")).unwrap()
    }

    /// What the holder of a certificate of the cluster connects with.
    fn host(&self, name: &str) -> Arc<ClientConfig> {
        let folder = self.folder.path().join(name);
        self.authority()
            .issue(&subject(name), Validity::renewed())
            .unwrap()
            .write(&folder)
            .unwrap();
        Identity::load(&folder).unwrap().client()
    }

    async fn connect(&self, with: &Arc<ClientConfig>) -> std::io::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(self.address).await?;
        let name = ServerName::try_from("127.0.0.1").unwrap();
        TlsConnector::from(Arc::clone(with)).connect(name, stream).await
    }

    /// What a caller gets who says this and then listens until the end.
    async fn answers(&self, with: &Arc<ClientConfig>, said: &[u8]) -> std::io::Result<String> {
        let mut stream = self.connect(with).await?;
        // Who is cut off in the midst of it hears all the same what was said before.
        let _ = stream.write_all(said).await;
        read_to_end(&mut stream).await
    }

    async fn serves_others(&self) {
        let mut stream = self.connect(&self.host("other")).await.unwrap();
        assert!(asked(&mut stream).await.starts_with("HTTP/1.1 200 "));
    }
}

fn subject(name: &str) -> Subject {
    Subject { name: name.into(), addresses: vec!["127.0.0.1".parse().unwrap()] }
}

pub(super) async fn read_to_end(stream: &mut TlsStream<TcpStream>) -> std::io::Result<String> {
    let mut text = Vec::new();
    let read = tokio::time::timeout(LIMIT, stream.read_to_end(&mut text)).await;
    match read.expect("the connection does not end") {
        // TCP may be cut before TLS is.
        Ok(_) => {}
        Err(error) if text.is_empty() => return Err(error),
        Err(_) => {}
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// Asks something on a connection that stays; returns the head of the answer and what came with it.
async fn asked(stream: &mut TlsStream<TcpStream>) -> String {
    stream.write_all(ASK).await.unwrap();
    let mut bytes = vec![0; 4096];
    let length = tokio::time::timeout(LIMIT, stream.read(&mut bytes)).await.unwrap().unwrap();
    String::from_utf8_lossy(&bytes[..length]).into_owned()
}

fn closing(request: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    let head = "host: a\r\nconnection: close\r\ncontent-type: application/json";
    format!("{request} HTTP/1.1\r\n{head}\r\ncontent-length: {length}\r\n\r\n{body}").into_bytes()
}

/// The error in an answer, which must have the status of its code.
pub(super) fn error(answer: &str) -> ApiError {
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    let error: ApiError = serde_json::from_str(body).expect("an error");
    let status = format!("HTTP/1.1 {} ", error.code.status());
    assert!(head.starts_with(&status), "{answer}");
    error
}

#[tokio::test]
async fn who_has_no_certificate_of_the_cluster_hears_nothing() {
    let served = Served::new(Limits::USUAL).await;
    // All know the authority, so that none of them hangs up by himself.
    let authority = served.folder.path().join("id/ca.pem");
    let known = |folder: &PathBuf| std::fs::copy(&authority, folder.join("ca.pem")).unwrap();
    let elsewhere = Authority::create(&served.folder.path().join("elsewhere")).unwrap();
    let stranger = served.folder.path().join("stranger");
    elsewhere.issue(&subject("b"), Validity::renewed()).unwrap().write(&stranger).unwrap();
    known(&stranger);
    let stranger = Identity::load(&stranger).unwrap().client();
    let mut nobody = (*served.host("b")).clone();
    nobody.client_auth_cert_resolver = Arc::new(NoCertificate);
    for with in [stranger, Arc::new(nobody)] {
        let answer = served.answers(&with, &closing("GET /v1/host", "")).await;
        assert!(answer.as_ref().is_err(), "{answer:?}");
    }
    served.serves_others().await;
}

/// Shows none.
#[derive(Debug)]
pub(super) struct NoCertificate;

impl rustls::client::ResolvesClientCert for NoCertificate {
    fn resolve(
        &self,
        _: &[&[u8]],
        _: &[rustls::SignatureScheme],
    ) -> Option<Arc<rustls::sign::CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

#[tokio::test]
async fn who_does_not_finish_a_head_or_says_nothing_loses_the_connection() {
    let limits = Limits { head: Duration::from_millis(200), ..Limits::USUAL };
    let served = Served::new(limits).await;
    let slow = served.host("b");
    for said in [&b""[..], b"GET /v1/ho", b"GET /v1/host HTTP/1.1\r\nhost: a\r\nx: "] {
        let answer = served.answers(&slow, said).await.unwrap_or_default();
        assert!(!answer.contains(" 200 "), "{answer}");
    }
    // The same between two requests.
    let mut stream = served.connect(&slow).await.unwrap();
    assert!(asked(&mut stream).await.starts_with("HTTP/1.1 200 "));
    let rest = read_to_end(&mut stream).await.unwrap_or_default();
    assert!(!rest.contains("HTTP/1.1 200 "), "{rest}");
    served.serves_others().await;
}

#[tokio::test]
async fn whatever_is_too_large_is_refused_and_read_no_further() {
    let served = Served::new(Limits::USUAL).await;
    let caller = served.host("b");
    let large = "x".repeat(paths::REQUEST_BYTES_MAX + 1);
    let answer = served.answers(&caller, &closing("POST /v1/guests", &large)).await.unwrap();
    assert_eq!(error(&answer).code, ErrorCode::TooLarge);
    // A length that is a lie.
    let lie = b"POST /v1/guests HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n\
        content-length: 99999999999\r\n\r\n{";
    let answer = served.answers(&caller, lie).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    let head = format!("GET /v1/host HTTP/1.1\r\nhost: a\r\nx: {large}\r\n\r\n");
    let answer = served.answers(&caller, head.as_bytes()).await.unwrap_or_default();
    assert!(!answer.contains(" 200 "), "{answer}");
    let many = "x: y\r\n".repeat(10_000);
    let head = format!("GET /v1/host HTTP/1.1\r\nhost: a\r\n{many}\r\n");
    let answer = served.answers(&caller, head.as_bytes()).await.unwrap_or_default();
    assert!(!answer.contains(" 200 "), "{answer}");
    served.serves_others().await;
}

#[tokio::test]
async fn names_that_mean_something_elsewhere_are_names_of_nobody() {
    let served = Served::new(Limits::USUAL).await;
    let caller = served.host("b");
    for name in
        ["..%2F..%2Fetc%2Fpasswd", "a%0Ab", "a%00", "%2e%2e", "-x", "a%20b", "%C3%A4", "%FF"]
    {
        for (method, rest) in [("GET", ""), ("DELETE", ""), ("GET", "/log"), ("POST", "/pause")] {
            let request = closing(&format!("{method} /v1/guests/{name}{rest}"), "");
            let answer = served.answers(&caller, &request).await.unwrap();
            let code = error(&answer).code;
            let fits = matches!(code, ErrorCode::NotFound | ErrorCode::BadRequest);
            assert!(fits, "{method} {name}{rest}: {answer}");
        }
        let body = start(ID, &name.replace("%0A", "\\n").replace("%2F", "/"), "[]");
        let answer = served.answers(&caller, &closing("POST /v1/guests", &body)).await.unwrap();
        assert_eq!(error(&answer).code, ErrorCode::Invalid, "{name}");
    }
    served.serves_others().await;
}

#[tokio::test]
async fn one_certificate_cannot_take_all_connections() {
    let served = Served::new(Limits { all: 5, of_one: 3, ..Limits::USUAL }).await;
    let greedy = served.host("b");
    let mut held = Vec::new();
    for _ in 0..3 {
        let mut stream = served.connect(&greedy).await.unwrap();
        assert!(asked(&mut stream).await.starts_with("HTTP/1.1 200 "));
        held.push(stream);
    }
    let answer = served.answers(&greedy, &closing("GET /v1/host", "")).await.unwrap();
    assert_eq!(error(&answer).code, ErrorCode::TooMany);
    // Nor those of others by more that are refused, or say nothing.
    let mut more = Vec::new();
    for _ in 0..20 {
        more.push(served.connect(&greedy).await.unwrap());
    }
    served.serves_others().await;
    drop(more);
    let deadline = tokio::time::Instant::now() + LIMIT;
    // Until those are noticed to be gone there is none to be told.
    let told = loop {
        match served.answers(&greedy, ASK).await {
            Ok(answer) if !answer.is_empty() => break answer,
            Ok(_) | Err(_) => assert!(tokio::time::Instant::now() < deadline, "nobody is told"),
        }
    };
    // Without having been asked to end.
    assert!(told.starts_with("HTTP/1.1 429 ") && told.contains("connection: close"), "{told}");
    drop(held.pop());
    while !served.answers(&greedy, &closing("GET /v1/host", "")).await.unwrap().contains(" 200 ") {
        assert!(tokio::time::Instant::now() < deadline, "a place is not given back");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
