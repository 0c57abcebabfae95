//! The authority's host, as hosts that join, hosts of the cluster and users find it.

use super::{Door, adopt, revoked_here};
use crate::agent::Agent;
use crate::fake::{FakeHypervisor, agent};
use crate::server::{Caller, Origin, router};
use axum::body::{Body, to_bytes};
use axum::extract::connect_info::ConnectInfo;
use axum::http::{Method, Request, StatusCode, header};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use sterna_api::{ApiError, ErrorCode, HostRevoked, InvitationView, paths};
use sterna_engine::identity::{Identity, UserRole};
use sterna_pki::join::{JoinError, join};
use sterna_pki::{Authority, HostCertificate, JoinCode, Subject, Validity};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tower::ServiceExt as _;

/// A host that has the authority, and its door.
struct First {
    agent: Arc<Agent>,
    _fake: Arc<FakeHypervisor>,
    folder: tempfile::TempDir,
    door: SocketAddr,
}

fn subject(name: &str) -> Subject {
    Subject { name: name.into(), addresses: vec!["127.0.0.1".parse().unwrap()] }
}

impl First {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let identity = folder.path().join("id");
        let authority = Authority::create(&identity.join("authority")).unwrap();
        authority.issue(&subject("a"), Validity::renewed()).unwrap().write(&identity).unwrap();
        let (agent, fake) = agent(folder.path());
        let door = Door::bind("127.0.0.1:0".parse().unwrap(), &agent).await.unwrap();
        let address = door.address().unwrap();
        let served = Arc::clone(&agent);
        tokio::spawn(async move { door.serve(&served).await });
        Self { agent, _fake: fake, folder, door: address }
    }

    fn authority(&self) -> Authority {
        Authority::read(&self.folder.path().join("id/authority")).unwrap()
    }

    /// Says something to the agent, as whoever holds a certificate or as the operator.
    async fn say(
        &self,
        method: Method,
        path: &str,
        body: &str,
        certificate: Option<&Path>,
    ) -> (StatusCode, Vec<u8>) {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::CONTENT_TYPE, "application/json");
        let mut origin = Origin::Local;
        if let Some(certificate) = certificate {
            origin = Origin::Network;
            let der = CertificateDer::from_pem_file(certificate).unwrap();
            request = request.extension(ConnectInfo(Caller::holding(der)));
        }
        let request = request.body(Body::from(body.to_owned())).unwrap();
        let answer = router(Arc::clone(&self.agent), origin).oneshot(request).await.unwrap();
        let status = answer.status();
        (status, to_bytes(answer.into_body(), 1 << 20).await.unwrap().to_vec())
    }

    async fn refused(
        &self,
        method: Method,
        path: &str,
        body: &str,
        certificate: Option<&Path>,
    ) -> ErrorCode {
        let (status, body) = self.say(method, path, body, certificate).await;
        assert!(!status.is_success(), "{path} was done");
        let error: ApiError = serde_json::from_slice(&body).unwrap();
        assert_eq!(error.code.status(), status.as_u16());
        error.code
    }

    /// A code for a host, and the file of the certificate of a user or host.
    async fn invite(&self, name: &str) -> JoinCode {
        let body = format!(r#"{{"name":"{name}","at":"{}"}}"#, self.door);
        let (status, body) = self.say(Method::POST, paths::INVITATIONS, &body, None).await;
        assert_eq!(status, StatusCode::CREATED, "{}", String::from_utf8_lossy(&body));
        let view: InvitationView = serde_json::from_slice(&body).unwrap();
        view.code.parse().unwrap()
    }

    fn host(&self, name: &str) -> PathBuf {
        let folder = self.folder.path().join(name);
        let issued = self.authority().issue(&subject(name), Validity::renewed()).unwrap();
        issued.write(&folder).unwrap();
        folder.join("host.pem")
    }

    fn user(&self, role: UserRole) -> PathBuf {
        let folder = self.folder.path().join(role.to_string());
        let issued = self.authority().issue_user("alice", role, Validity::by_hand()).unwrap();
        issued.write(&folder).unwrap();
        folder.join("host.pem")
    }
}

#[tokio::test]
async fn a_host_joins_by_a_code_once_and_by_no_other() {
    let first = First::new().await;
    let code = first.invite("b").await;
    let altered = {
        let text = code.to_string();
        let (kept, last) = text.split_at(text.len() - 1);
        // Those up to P and those from Q on differ in more than what is filled up.
        let other = if ("A"..="P").contains(&last) { 'Q' } else { 'A' };
        format!("{kept}{other}")
    };
    let refused = join(&altered.parse().unwrap()).await.err().unwrap();
    assert!(matches!(&refused, JoinError::Refused(why) if why.contains("not valid")), "{refused}");
    let folder = first.folder.path().join("joined");
    join(&code).await.unwrap().write(&folder).unwrap();
    let certificate = HostCertificate::read(&folder.join("host.pem")).unwrap();
    assert_eq!(certificate.subject, subject("b"));
    Identity::load(&folder).unwrap();
    // Nobody is invited any more: it hangs up unread.
    let closed = join(&code).await.err().unwrap();
    assert!(matches!(closed, JoinError::Link { .. }), "{closed}");
    let known = first.authority().hosts().unwrap();
    assert_eq!(known.iter().map(|one| one.subject.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    let again = format!(r#"{{"name":"b","at":"{}"}}"#, first.door);
    let code = first.refused(Method::POST, paths::INVITATIONS, &again, None).await;
    assert_eq!(code, ErrorCode::AlreadyExists);
}

#[tokio::test]
async fn whoever_knocks_uninvited_or_says_nonsense_is_turned_away() {
    let first = First::new().await;
    let knock = async |bytes: &[u8]| {
        let mut stream = TcpStream::connect(first.door).await.unwrap();
        // It may have hung up already.
        let _sent = stream.write_all(bytes).await;
        let mut heard = Vec::new();
        let _ended = stream.read_to_end(&mut heard).await;
        heard
    };
    assert!(knock(b"").await.is_empty());
    let code = first.invite("b").await;
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 100_000], b"{\"secret\":\"x\"}\n"] {
        knock(bytes).await;
    }
    // It is still there for the one who is invited.
    join(&code).await.unwrap();
}

#[tokio::test]
async fn only_people_say_who_is_a_host_and_only_hosts_are_renewed() {
    let first = First::new().await;
    let (host, admin, operator) =
        (first.host("b"), first.user(UserRole::Admin), first.user(UserRole::Operator));
    let invite = r#"{"name":"c"}"#;
    let invitations = paths::INVITATIONS;
    for certificate in [&host, &operator] {
        let code = first.refused(Method::POST, invitations, invite, Some(certificate)).await;
        assert_eq!(code, ErrorCode::Forbidden);
        let code = first.refused(Method::DELETE, "/v1/hosts/b", "", Some(certificate)).await;
        assert_eq!(code, ErrorCode::Forbidden);
    }
    let (status, _) = first.say(Method::POST, invitations, invite, Some(&admin)).await;
    assert_eq!(status, StatusCode::CREATED);
    for wrong in [r#"{"name":"C"}"#, r#"{"name":"../c"}"#, r#"{"name":"d","at":"a:x"}"#] {
        let code = first.refused(Method::POST, invitations, wrong, None).await;
        assert_eq!(code, ErrorCode::Invalid, "{wrong}");
    }

    let key = rcgen::KeyPair::generate().unwrap();
    let request = rcgen::CertificateParams::default().serialize_request(&key).unwrap();
    let body = serde_json::json!({ "request": request.pem().unwrap() }).to_string();
    for certificate in [Some(admin.as_path()), None] {
        let code = first.refused(Method::POST, paths::CERTIFICATES, &body, certificate).await;
        assert_eq!(code, ErrorCode::Forbidden);
    }
    let (status, answer) = first.say(Method::POST, paths::CERTIFICATES, &body, Some(&host)).await;
    assert_eq!(status, StatusCode::OK);
    let answer: sterna_api::Certificate = serde_json::from_slice(&answer).unwrap();
    let der = CertificateDer::from_pem_slice(answer.certificate.as_bytes()).unwrap();
    assert_eq!(HostCertificate::parse(&der).unwrap().unwrap().subject, subject("b"));
    let nonsense = r#"{"request":"x"}"#;
    let code = first.refused(Method::POST, paths::CERTIFICATES, nonsense, Some(&host)).await;
    assert_eq!(code, ErrorCode::Invalid);
}

#[tokio::test]
async fn a_revoked_host_is_refused_at_once_and_lists_only_become_newer() {
    let first = First::new().await;
    let host = first.host("b");
    let (status, _) = first.say(Method::GET, paths::GUESTS, "", Some(&host)).await;
    assert_eq!(status, StatusCode::OK);
    let code = first.refused(Method::GET, paths::REVOKED, "", Some(&host)).await;
    assert_eq!(code, ErrorCode::NotFound);
    let early = first.authority().revoke([vec![9]]).unwrap();

    let (status, answer) = first.say(Method::DELETE, "/v1/hosts/b", "", None).await;
    assert_eq!(status, StatusCode::OK, "{}", String::from_utf8_lossy(&answer));
    let revoked: HostRevoked = serde_json::from_slice(&answer).unwrap();
    assert_eq!((revoked.certificates, revoked.told), (1, vec!["a".to_owned()]));
    let code = first.refused(Method::GET, paths::GUESTS, "", Some(&host)).await;
    assert_eq!(code, ErrorCode::Forbidden);
    let code = first.refused(Method::DELETE, "/v1/hosts/b", "", None).await;
    assert_eq!(code, ErrorCode::NotFound);
    let code = first.refused(Method::DELETE, "/v1/hosts/a", "", None).await;
    assert_eq!(code, ErrorCode::WrongState);

    // An older list brings nobody back, and another authority's is none.
    let identity = first.folder.path().join("id");
    assert!(!adopt(&first.agent, early.pem().to_owned()).await.unwrap());
    let foreign = Authority::create(&first.folder.path().join("foreign")).unwrap();
    let foreign = foreign.revoke([vec![1]]).unwrap();
    let code = first.refused(Method::PUT, paths::REVOKED, foreign.pem(), None).await;
    assert_eq!(code, ErrorCode::Invalid);
    assert_eq!(revoked_here(&identity).unwrap().unwrap().serials.len(), 2);
    let newer = first.authority().revoke([vec![8]]).unwrap();
    let (status, _) = first.say(Method::PUT, paths::REVOKED, newer.pem(), None).await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    assert_eq!(revoked_here(&identity).unwrap().unwrap(), newer);
}
