//! Identities that `sterna pki` makes: who is let in, and who is not.

use super::issue::{Authority, Subject, Validity};
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
        Authority::create().unwrap().write(folder.path()).unwrap();
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
        self.authority.write_identity(&host, &folder).unwrap();
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
    let foreign = theirs.authority.issue(&subject, Validity::from_now()).unwrap();
    let folder = ours.folder.path().join("mixed");
    ours.authority.write_identity(&foreign, &folder).unwrap();
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
        let user = cluster.authority.issue_user("alice", role, Validity::from_now()).unwrap();
        let folder = cluster.folder.path().join(role.to_string());
        cluster.authority.write_identity(&user, &folder).unwrap();
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
        let issued = cluster.authority.issue_user(name, UserRole::Viewer, Validity::from_now());
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
        let list = cluster.authority.revoke(cluster.folder.path(), &certificate(name)).unwrap();
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
    let own =
        cluster.authority.revoke(cluster.folder.path(), &cluster.folder.path().join("ca.pem"));
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
    Authority::create().unwrap().write(cluster.folder.path()).unwrap_err();
    assert_eq!(std::fs::read(cluster.folder.path().join("ca.key")).unwrap(), before);
}
