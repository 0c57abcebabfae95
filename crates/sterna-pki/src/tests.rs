//! Identities that an authority makes: who is let in, and who is not.

use crate::{Authority, HostCertificate, PkiError, RevokedList, SignedIdentity, Subject, Validity};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use sterna_engine::identity::{Identity, Peer, PeerName, UserRole, peer};
use tempfile::TempDir;
use time::{Duration, OffsetDateTime};

struct Cluster {
    authority: Authority,
    folder: TempDir,
}

impl Cluster {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Authority::create(folder.path()).unwrap();
        Self { authority: Authority::read(folder.path()).unwrap(), folder }
    }

    fn host(&self, name: &str) -> Identity {
        self.host_until(name, OffsetDateTime::now_utc() + Duration::days(1))
    }

    fn host_until(&self, name: &str, until: OffsetDateTime) -> Identity {
        let addresses = vec!["10.0.0.2".parse().unwrap()];
        let subject = Subject { name: name.into(), addresses };
        let validity = Validity { from: until - Duration::days(2), until };
        let host = self.authority.issue(&subject, validity).unwrap();
        let folder = self.folder.path().join(name);
        host.write(&folder).unwrap();
        Identity::load(&folder).unwrap()
    }
}

/// Runs a handshake in memory to its end.
fn handshake(
    client: &Arc<ClientConfig>,
    server: &Arc<ServerConfig>,
    name: &str,
) -> Result<(), rustls::Error> {
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut client = ClientConnection::new(Arc::clone(client), name).unwrap();
    let mut server = ServerConnection::new(Arc::clone(server)).unwrap();
    for _ in 0..8 {
        let mut wire = Vec::new();
        client.write_tls(&mut wire).unwrap();
        server.read_tls(&mut wire.as_slice()).unwrap();
        server.process_new_packets()?;
        let mut wire = Vec::new();
        server.write_tls(&mut wire).unwrap();
        client.read_tls(&mut wire.as_slice()).unwrap();
        client.process_new_packets()?;
    }
    assert!(!client.is_handshaking() && !server.is_handshaking());
    Ok(())
}

#[test]
fn hosts_of_one_cluster_let_each_other_in_by_name_and_by_address() {
    let cluster = Cluster::new();
    let (a, b) = (cluster.host("a"), cluster.host("b.example.org"));
    handshake(&a.client(), &b.server(), "b.example.org").unwrap();
    handshake(&a.client(), &b.server(), "10.0.0.2").unwrap();
}

#[test]
fn a_host_that_is_another_than_was_called_is_refused() {
    let cluster = Cluster::new();
    let (a, b) = (cluster.host("a"), cluster.host("b"));
    handshake(&a.client(), &b.server(), "c").unwrap_err();
    handshake(&a.client(), &b.server(), "10.0.0.3").unwrap_err();
}

#[test]
fn hosts_of_another_cluster_are_refused() {
    let (ours, theirs) = (Cluster::new(), Cluster::new());
    let (a, b) = (ours.host("a"), theirs.host("b"));
    handshake(&a.client(), &b.server(), "b").unwrap_err();
}

#[test]
fn a_caller_with_a_certificate_of_another_authority_is_refused_by_the_server() {
    let (ours, theirs) = (Cluster::new(), Cluster::new());
    let server = ours.host("b").server();
    let stranger = theirs.host("a");
    // The stranger trusts our authority, so that only our server's check is left.
    let subject = Subject { name: "a".into(), addresses: vec![] };
    let foreign = theirs.authority.issue(&subject, Validity::by_hand()).unwrap();
    let folder = ours.folder.path().join("mixed");
    SignedIdentity { authority: ours.authority.certificate().into(), ..foreign }
        .write(&folder)
        .unwrap();
    let mixed = Identity::load(&folder).unwrap();
    let error = handshake(&mixed.client(), &server, "b").unwrap_err();
    assert!(matches!(error, rustls::Error::InvalidCertificate(_)), "{error:?}");
    handshake(&stranger.client(), &server, "b").unwrap_err();
}

#[test]
fn an_expired_certificate_is_refused_on_either_side() {
    let cluster = Cluster::new();
    let valid = cluster.host("a");
    let expired = cluster.host_until("b", OffsetDateTime::now_utc() - Duration::days(1));
    handshake(&valid.client(), &expired.server(), "b").unwrap_err();
    handshake(&expired.client(), &valid.server(), "a").unwrap_err();
}

#[test]
fn a_caller_without_a_certificate_is_refused() {
    let cluster = Cluster::new();
    let host = cluster.host("a");
    let authority = std::fs::read(cluster.folder.path().join("ca.pem")).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    use rustls::pki_types::pem::PemObject as _;
    roots.add(rustls::pki_types::CertificateDer::from_pem_slice(&authority).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let error = handshake(&Arc::new(client), &host.server(), "a").unwrap_err();
    assert_eq!(error, rustls::Error::NoCertificatesPresented);
}

#[test]
fn a_user_is_let_in_with_a_role_and_serves_nobody() {
    let cluster = Cluster::new();
    let host = cluster.host("a");
    for role in [UserRole::Viewer, UserRole::Operator, UserRole::Admin] {
        let user = cluster.authority.issue_user("alice", role, Validity::by_hand()).unwrap();
        let folder = cluster.folder.path().join(role.to_string());
        user.write(&folder).unwrap();
        let chain: Result<Vec<_>, _> =
            CertificateDer::pem_file_iter(folder.join("host.pem")).unwrap().collect();
        let expected = Peer::User { name: "alice".into(), role };
        assert_eq!(peer(&chain.unwrap()), Some(expected));
        let user = Identity::load(&folder).unwrap();
        handshake(&user.client(), &host.server(), "a").unwrap();
        handshake(&host.client(), &user.server(), "alice").unwrap_err();
    }
    let chain: Result<Vec<_>, _> =
        CertificateDer::pem_file_iter(cluster.folder.path().join("a/host.pem")).unwrap().collect();
    assert_eq!(peer(&chain.unwrap()), Some(Peer::Host(PeerName("a".into()))));
    for name in ["", "al ice", "alice/../root", "älice"] {
        let issued = cluster.authority.issue_user(name, UserRole::Viewer, Validity::by_hand());
        assert!(issued.is_err(), "{name:?}");
    }
}

#[test]
fn a_revoked_certificate_is_refused_on_either_side_once_the_list_is_read() {
    let cluster = Cluster::new();
    let (a, b, c) = (cluster.host("a"), cluster.host("b"), cluster.host("c"));
    let certificate = |name: &str| cluster.folder.path().join(name).join("host.pem");
    let der = |name: &str| CertificateDer::from_pem_file(certificate(name)).unwrap();
    for name in ["b", "c"] {
        let list = cluster.authority.revoke_file(&certificate(name)).unwrap();
        std::fs::copy(list, cluster.folder.path().join("a/crl.pem")).unwrap();
        handshake(&a.client(), &c.server(), "c").unwrap();
        handshake(&c.client(), &a.server(), "a").unwrap();
        a.reload().unwrap();
        handshake(&a.client(), &b.server(), "b").unwrap_err();
        handshake(&b.client(), &a.server(), "a").unwrap_err();
        // Who is not on the list is let in as before.
        let is_listed = name == "c";
        assert_eq!(a.is_revoked(&der("c")), is_listed);
        assert_eq!(handshake(&c.client(), &a.server(), "a").is_err(), is_listed);
        if is_listed {
            break;
        }
    }
    assert!(a.is_revoked(&der("b")) && !a.is_revoked(&der("a")));
    // A list that cannot be read changes nothing.
    std::fs::write(cluster.folder.path().join("a/crl.pem"), "nothing").unwrap();
    a.reload().unwrap_err();
    handshake(&b.client(), &a.server(), "a").unwrap_err();
    let own = cluster.authority.revoke_file(&cluster.folder.path().join("ca.pem"));
    assert!(own.is_err(), "the authority cannot be revoked by itself");
}

#[test]
fn keys_are_their_owners_alone_and_nothing_is_replaced() {
    let cluster = Cluster::new();
    cluster.host("a");
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&cluster.folder.path().join("ca.key")), 0o600);
    assert_eq!(mode(&cluster.folder.path().join("a/host.key")), 0o600);
    let before = std::fs::read(cluster.folder.path().join("ca.key")).unwrap();
    assert!(matches!(Authority::create(cluster.folder.path()), Err(PkiError::Exists(_))));
    assert_eq!(std::fs::read(cluster.folder.path().join("ca.key")).unwrap(), before);
}

fn subject(name: &str) -> Subject {
    Subject { name: name.into(), addresses: vec!["10.0.0.2".parse().unwrap()] }
}

#[test]
fn the_authority_knows_the_hosts_that_it_has_signed_until_they_are_revoked() {
    let cluster = Cluster::new();
    let names = || {
        let hosts = cluster.authority.hosts().unwrap();
        hosts.into_iter().map(|host| host.subject.name).collect::<Vec<_>>()
    };
    assert_eq!(names(), Vec::<String>::new());
    cluster.host("b");
    cluster.host("a");
    cluster.host_until("over", OffsetDateTime::now_utc() - Duration::days(1));
    cluster.authority.issue_user("alice", UserRole::Admin, Validity::by_hand()).unwrap();
    assert_eq!(names(), ["a", "b"]);
    let certificate = cluster.folder.path().join("a/host.pem");
    let read = HostCertificate::read(&certificate).unwrap();
    assert_eq!(read.subject, subject("a"));
    assert_eq!(cluster.authority.hosts().unwrap()[0], read);
    cluster.authority.revoke_file(&certificate).unwrap();
    assert_eq!(names(), ["b"]);
}

#[test]
fn of_a_request_only_the_key_counts() {
    let cluster = Cluster::new();
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["a".to_owned()]).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let request = params.serialize_request(&key).unwrap().pem().unwrap();
    let signed = cluster.authority.sign_request(&request, &subject("b"), Validity::renewed());
    let identity = SignedIdentity {
        authority: cluster.authority.certificate().into(),
        certificate: signed.unwrap(),
        key: key.serialize_pem(),
    };
    let folder = cluster.folder.path().join("b");
    identity.write(&folder).unwrap();
    assert_eq!(HostCertificate::read(&folder.join("host.pem")).unwrap().subject, subject("b"));
    let b = Identity::load(&folder).unwrap();
    handshake(&cluster.host("a").client(), &b.server(), "b").unwrap();
    handshake(&cluster.host("c").client(), &b.server(), "a").unwrap_err();
    // The same request with another one's key in it is signed by nobody.
    let der = CertificateDer::from_pem_file(folder.join("host.pem")).unwrap();
    let (_, parsed) = <x509_parser::prelude::X509Certificate as x509_parser::prelude::FromDer<
        x509_parser::error::X509Error,
    >>::from_der(&der)
    .unwrap();
    assert!(!parsed.is_ca());
    for wrong in
        ["", "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"]
    {
        let signed = cluster.authority.sign_request(wrong, &subject("b"), Validity::renewed());
        assert!(matches!(signed, Err(PkiError::Not { .. })));
    }
}

#[test]
fn a_host_has_a_name_as_dns_has_them() {
    let cluster = Cluster::new();
    for name in ["a", "a-1.example.org", "1a"] {
        cluster.authority.issue(&subject(name), Validity::by_hand()).unwrap();
    }
    for name in ["", "A", "a b", "a/b", "..", "-a", "ä", "a\n"] {
        let issued = cluster.authority.issue(&subject(name), Validity::by_hand());
        assert!(matches!(issued, Err(PkiError::Name { .. })), "{name:?}");
    }
}

#[test]
fn a_list_counts_if_the_authority_has_signed_it_and_if_it_is_newer() {
    let (ours, theirs) = (Cluster::new(), Cluster::new());
    let authority = ours.authority.certificate_der().unwrap();
    let first = ours.authority.revoke([vec![1]]).unwrap();
    let second = ours.authority.revoke([vec![2]]).unwrap();
    assert!(first.is_newer_than(None) && second.is_newer_than(Some(&first)));
    assert!(!first.is_newer_than(Some(&second)) && !second.is_newer_than(Some(&second)));
    assert_eq!(second.serials, [vec![1], vec![2]].into());
    assert_eq!(RevokedList::verified(second.pem(), &authority).unwrap(), second);
    let foreign = theirs.authority.revoke([vec![3]]).unwrap();
    let read = RevokedList::verified(foreign.pem(), &authority);
    assert!(matches!(read, Err(PkiError::Signature)), "{read:?}");
    for wrong in ["", first.pem().trim_end_matches("-----\n"), ours.authority.certificate()] {
        assert!(RevokedList::verified(wrong, &authority).is_err(), "{wrong}");
    }
}

#[test]
fn a_certificate_is_due_when_two_thirds_are_over() {
    let from = OffsetDateTime::UNIX_EPOCH;
    let validity = Validity { from, until: from + Duration::days(30) };
    assert!(!validity.is_due(from + Duration::days(19)));
    assert!(validity.is_due(from + Duration::days(21)));
    assert!(!Validity::renewed().is_due(OffsetDateTime::now_utc()));
}

mod joining {
    use super::{Cluster, subject};
    use crate::join::{Granted, JoinError, Joined, answer, join};
    use crate::{HostCertificate, JoinCode, Secret, Validity};
    use std::cell::Cell;
    use std::rc::Rc;
    use sterna_engine::identity::{Identity, REVOKED_FILE};
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;

    /// What a host that joins and the one that answers come to; whether the secret was heard.
    async fn meet(
        cluster: &Cluster,
        server: &Identity,
        secret: Secret,
        code: impl FnOnce(String) -> JoinCode,
    ) -> (Result<Joined, JoinError>, bool) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap().to_string();
        let heard = Rc::new(Cell::new(false));
        let answering = async {
            let (stream, _) = listener.accept().await.unwrap();
            let tls = TlsAcceptor::from(server.joining());
            let mut stream = tls.accept(stream).await?;
            answer(&mut stream, async |said: Secret, request: String| {
                heard.set(true);
                if said.hash() != secret.hash() {
                    return Err("no such invitation".to_owned());
                }
                let validity = Validity::renewed();
                let signed = cluster.authority.sign_request(&request, &subject("b"), validity);
                Ok(Granted {
                    authority: cluster.authority.certificate().into(),
                    certificate: signed.map_err(|error| error.to_string())?,
                    revoked: cluster.authority.revoked().unwrap().map(|list| list.pem().into()),
                    api_port: 7400,
                })
            })
            .await
        };
        let code = code(at);
        let (answered, joined) = tokio::join!(answering, join(&code));
        assert_eq!(answered.is_ok(), heard.get(), "{answered:?}");
        (joined, heard.get())
    }

    fn host(cluster: &Cluster) -> Identity {
        let folder = cluster.folder.path().join("authority-host");
        let addresses = vec!["127.0.0.1".parse().unwrap()];
        let subject = crate::Subject { name: "a".into(), addresses };
        cluster.authority.issue(&subject, Validity::by_hand()).unwrap().write(&folder).unwrap();
        Identity::load(&folder).unwrap()
    }

    #[tokio::test]
    async fn a_host_that_has_the_code_becomes_one_of_the_cluster() {
        let cluster = Cluster::new();
        let (server, secret) = (host(&cluster), Secret::draw());
        cluster.authority.revoke([vec![1]]).unwrap();
        let authority = cluster.authority.certificate_der().unwrap();
        let code = |at| JoinCode::new(at, &authority, secret);
        let (joined, _) = meet(&cluster, &server, secret, code).await;
        let folder = cluster.folder.path().join("joined");
        let joined = joined.unwrap();
        joined.write(&folder).unwrap();
        let b = Identity::load(&folder).unwrap();
        super::handshake(&b.client(), &server.server(), "a").unwrap();
        super::handshake(&server.client(), &b.server(), "b").unwrap();
        let certificate = HostCertificate::read(&folder.join("host.pem")).unwrap();
        assert_eq!(certificate.subject, subject("b"));
        assert!(folder.join(REVOKED_FILE).exists());
        let authority_host = std::fs::read_to_string(folder.join("authority.host")).unwrap();
        assert_eq!(authority_host, "127.0.0.1:7400\n");
        joined.write(&folder).unwrap_err();
    }

    #[tokio::test]
    async fn a_wrong_secret_is_refused_in_words() {
        let cluster = Cluster::new();
        let authority = cluster.authority.certificate_der().unwrap();
        let code = |at| JoinCode::new(at, &authority, Secret::draw());
        let (joined, heard) = meet(&cluster, &host(&cluster), Secret::draw(), code).await;
        let error = joined.err().unwrap();
        assert!(heard && error.to_string() == "no such invitation", "{error}");
    }

    #[tokio::test]
    async fn a_secret_is_not_said_to_the_host_of_another_authority() {
        let (ours, theirs) = (Cluster::new(), Cluster::new());
        let authority = ours.authority.certificate_der().unwrap();
        let secret = Secret::draw();
        let code = |at| JoinCode::new(at, &authority, secret);
        let (joined, heard) = meet(&theirs, &host(&theirs), secret, code).await;
        assert!(matches!(joined, Err(JoinError::Link { .. })) && !heard);
        // Nor to one that shows our authority's certificate, but was signed by another.
        let folder = theirs.folder.path().join("mixed");
        let signed = theirs.authority.issue(&subject("a"), Validity::by_hand()).unwrap();
        let authority_pem = ours.authority.certificate().to_owned();
        crate::SignedIdentity { authority: authority_pem, ..signed }.write(&folder).unwrap();
        let mixed = Identity::load(&folder).unwrap();
        let code = |at| JoinCode::new(at, &authority, secret);
        let (joined, heard) = meet(&theirs, &mixed, secret, code).await;
        assert!(matches!(joined, Err(JoinError::Link { .. })) && !heard);
    }

    #[tokio::test]
    async fn what_is_no_question_is_not_answered() {
        for bytes in [&b"{}\n"[..], b"{\"secret\":\"x\"", &[b'x'; 20 << 10], b"\xff\n"] {
            let (mut near, mut far) = tokio::io::duplex(64 << 10);
            tokio::io::AsyncWriteExt::write_all(&mut near, bytes).await.unwrap();
            drop(near);
            let answered =
                answer(&mut far, async |_, _| unreachable!("it was taken for one")).await;
            answered.unwrap_err();
        }
    }
}
