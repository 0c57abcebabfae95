//! Who this host is, and whom it trusts: certificates and the TLS settings made of them.
//!
//! Every connection is TLS 1.3 with both sides authenticated by certificates of the cluster's own
//! authority. There is no other mode.

use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use std::collections::HashSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use thiserror::Error;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};
use x509_parser::revocation_list::CertificateRevocationList;

/// File of the authority's certificate in an identity's folder.
pub const AUTHORITY_FILE: &str = "ca.pem";
/// File of a host's certificate in its identity's folder.
pub const CERTIFICATE_FILE: &str = "host.pem";
/// File of a host's private key in its identity's folder; readable by its owner alone.
pub const KEY_FILE: &str = "host.key";

/// File of the list of certificates that are no longer accepted, in an identity's folder; there need be none.
pub const REVOKED_FILE: &str = "crl.pem";

/// File of the address of the host that has the authority, in an identity's folder; there need be none.
pub const AUTHORITY_HOST_FILE: &str = "authority.host";

/// Name of an authenticated peer, as its certificate says.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PeerName(pub String);

impl fmt::Display for PeerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a user may do on the hosts of a cluster; each may do what those before it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum UserRole {
    /// Look.
    Viewer,
    /// Also move guests.
    Operator,
    /// Everything.
    Admin,
}

impl fmt::Display for UserRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        })
    }
}

impl FromStr for UserRole {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = [Self::Viewer, Self::Operator, Self::Admin];
        let found = all.into_iter().find(|role| role.to_string() == text);
        found.ok_or_else(|| format!("{text:?} is not viewer, operator or admin"))
    }
}

/// What the names of users and roles begin with in a certificate, where they stand as URIs. A host has none of them, but
/// a DNS name.
pub const USER_URI: &str = "sterna:user/";
/// See [`USER_URI`].
pub const ROLE_URI: &str = "sterna:role/";

/// Who has a certificate of the cluster's authority.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// A host.
    Host(PeerName),
    /// A person or a program, who can neither hand guests over nor take them.
    User {
        /// The user's name.
        name: String,
        /// What the user may do.
        role: UserRole,
    },
}

/// Who a chain of certificates belongs to, which a handshake has verified; nobody if it does not say, or names a role
/// that is not known here.
#[must_use]
pub fn peer(certificates: &[CertificateDer<'_>]) -> Option<Peer> {
    let (_, parsed) = X509Certificate::from_der(certificates.first()?).ok()?;
    let names = &parsed.subject_alternative_name().ok()??.value.general_names;
    let uri = |prefix: &str| {
        names.iter().find_map(|name| match name {
            GeneralName::URI(uri) => uri.strip_prefix(prefix),
            _ => None,
        })
    };
    // Whoever has a role is a user, whatever else the certificate says.
    if let Some(role) = uri(ROLE_URI) {
        let name = uri(USER_URI)?.to_owned();
        return Some(Peer::User { name, role: role.parse().ok()? });
    }
    names.iter().find_map(|name| match name {
        GeneralName::DNSName(dns) => Some(Peer::Host(PeerName((*dns).to_owned()))),
        _ => None,
    })
}

/// Why there is no identity.
#[derive(Debug, Error)]
pub enum IdentityError {
    /// A file is missing or holds no certificate or key.
    #[error("cannot read {path}; make identities with `sterna pki`")]
    Pem {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    /// The parts do not fit each other.
    #[error("the certificates in {folder} cannot be used")]
    Tls {
        /// The identity's folder.
        folder: PathBuf,
        /// Why.
        #[source]
        source: rustls::Error,
    },
    /// The list of certificates that are no longer accepted is none.
    #[error("{path} is no list of revoked certificates; make it anew with `sterna pki revoke`")]
    Revoked {
        /// The file.
        path: PathBuf,
    },
    /// The authority cannot verify anyone.
    #[error("the authority in {folder} cannot be used")]
    Authority {
        /// The identity's folder.
        folder: PathBuf,
        /// Why.
        #[source]
        source: rustls::server::VerifierBuilderError,
    },
}

/// Who this host is, and whom it trusts. Clones are the same one.
#[derive(Clone, Debug)]
pub struct Identity {
    folder: PathBuf,
    settings: Arc<RwLock<Settings>>,
}

/// What was read from an identity's folder.
#[derive(Debug)]
struct Settings {
    client: Arc<rustls::ClientConfig>,
    server: Arc<rustls::ServerConfig>,
    joining: Arc<rustls::ServerConfig>,
    /// Serial numbers of certificates that are no longer accepted.
    revoked: HashSet<Vec<u8>>,
}

impl Identity {
    /// Reads the authority's certificate, the host's certificate and its key from a folder, and the list of
    /// certificates that are no longer accepted, if there is one.
    ///
    /// # Errors
    /// When one of them is missing, unreadable, or does not fit the others.
    pub fn load(folder: &Path) -> Result<Self, IdentityError> {
        let settings = Arc::new(RwLock::new(Settings::read(folder)?));
        Ok(Self { folder: folder.into(), settings })
    }

    /// Reads the folder again, for connections that are made from now on.
    ///
    /// # Errors
    /// As [`Identity::load`]; what held before goes on.
    pub fn reload(&self) -> Result<(), IdentityError> {
        let new = Settings::read(&self.folder)?;
        *self.settings.write().unwrap_or_else(PoisonError::into_inner) = new;
        Ok(())
    }

    /// For a connection this host makes.
    #[must_use]
    pub fn client(&self) -> Arc<rustls::ClientConfig> {
        Arc::clone(&self.read().client)
    }

    /// For a connection this host accepts.
    #[must_use]
    pub fn server(&self) -> Arc<rustls::ServerConfig> {
        Arc::clone(&self.read().server)
    }

    /// For a connection that this host accepts of a host that joins, and so has no certificate: it is shown the
    /// authority's too.
    #[must_use]
    pub fn joining(&self) -> Arc<rustls::ServerConfig> {
        Arc::clone(&self.read().joining)
    }

    /// Whether a certificate is no longer accepted, or is none.
    #[must_use]
    pub fn is_revoked(&self, certificate: &CertificateDer<'_>) -> bool {
        let parsed = X509Certificate::from_der(certificate);
        parsed.map_or(true, |(_, parsed)| self.read().revoked.contains(parsed.raw_serial()))
    }

    fn read(&self) -> RwLockReadGuard<'_, Settings> {
        self.settings.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Settings {
    fn read(folder: &Path) -> Result<Self, IdentityError> {
        let tls = |source| IdentityError::Tls { folder: folder.into(), source };
        let mut roots = RootCertStore::empty();
        let authorities = certificates(&folder.join(AUTHORITY_FILE))?;
        for authority in &authorities {
            roots.add(authority.clone()).map_err(tls)?;
        }
        let roots = Arc::new(roots);
        let (lists, revoked) = revoked(&folder.join(REVOKED_FILE))?;
        let chain = certificates(&folder.join(CERTIFICATE_FILE))?;
        let key_path = folder.join(KEY_FILE);
        let key = PrivateKeyDer::from_pem_file(&key_path)
            .map_err(|source| IdentityError::Pem { path: key_path, source })?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());

        let authority = |source| IdentityError::Authority { folder: folder.into(), source };
        let server_verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
                .with_crls(lists.clone())
                .allow_unknown_revocation_status()
                .build()
                .map_err(authority)?;
        let mut client = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(tls)?
            .with_webpki_verifier(server_verifier)
            .with_client_auth_cert(chain.clone(), key.clone_key())
            .map_err(tls)?;
        // A resumed session would skip nothing that takes long, and keeps secrets around.
        client.resumption = rustls::client::Resumption::disabled();
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider))
            .with_crls(lists)
            // Of certificates of an authority that has no list nothing is known.
            .allow_unknown_revocation_status()
            .build()
            .map_err(authority)?;
        let server = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(tls)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain.clone(), key.clone_key())
            .map_err(tls)?;
        let joining = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(tls)?
            .with_no_client_auth()
            .with_single_cert([chain, authorities].concat(), key)
            .map_err(tls)?;
        let (client, server, joining) = (Arc::new(client), Arc::new(server), Arc::new(joining));
        Ok(Self { client, server, joining, revoked })
    }
}

/// The lists of certificates that are no longer accepted, and the serial numbers on them; none if there is no such
/// file.
fn revoked(
    path: &Path,
) -> Result<(Vec<CertificateRevocationListDer<'static>>, HashSet<Vec<u8>>), IdentityError> {
    if !path.exists() {
        return Ok((Vec::new(), HashSet::new()));
    }
    let pem = |source| IdentityError::Pem { path: path.into(), source };
    let read: Result<Vec<_>, _> =
        CertificateRevocationListDer::pem_file_iter(path).map_err(pem)?.collect();
    let lists = read.map_err(pem)?;
    if lists.is_empty() {
        return Err(pem(rustls::pki_types::pem::Error::NoItemsFound));
    }
    let mut serials = HashSet::new();
    for list in &lists {
        let (_, parsed) = CertificateRevocationList::from_der(list)
            .map_err(|_| IdentityError::Revoked { path: path.into() })?;
        let revoked = parsed.iter_revoked_certificates();
        serials.extend(revoked.map(|certificate| certificate.raw_serial().to_vec()));
    }
    Ok((lists, serials))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let pem = |source| IdentityError::Pem { path: path.into(), source };
    let read: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).map_err(pem)?.collect();
    let certificates = read.map_err(pem)?;
    if certificates.is_empty() {
        return Err(pem(rustls::pki_types::pem::Error::NoItemsFound));
    }
    Ok(certificates)
}
