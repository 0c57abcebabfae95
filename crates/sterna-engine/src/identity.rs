//! Who this host is, and whom it trusts: certificates and the TLS settings made of them.
//!
//! Every connection is TLS 1.3 with both sides authenticated by certificates of the cluster's own
//! authority. There is no other mode.

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use thiserror::Error;

/// File of the authority's certificate in an identity's folder.
pub const AUTHORITY_FILE: &str = "ca.pem";
/// File of a host's certificate in its identity's folder.
pub const CERTIFICATE_FILE: &str = "host.pem";
/// File of a host's private key in its identity's folder; readable by its owner alone.
pub const KEY_FILE: &str = "host.key";

/// Name of an authenticated peer, as its certificate says.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PeerName(pub String);

impl fmt::Display for PeerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
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

/// TLS settings of a host.
#[derive(Clone, Debug)]
pub struct Identity {
    /// For connections this host makes.
    pub client: Arc<rustls::ClientConfig>,
    /// For connections this host accepts.
    pub server: Arc<rustls::ServerConfig>,
}

impl Identity {
    /// Reads the authority's certificate, the host's certificate and its key from a folder.
    ///
    /// # Errors
    /// When one of them is missing, unreadable, or does not fit the others.
    pub fn load(folder: &Path) -> Result<Self, IdentityError> {
        let tls = |source| IdentityError::Tls { folder: folder.into(), source };
        let mut roots = RootCertStore::empty();
        for authority in certificates(&folder.join(AUTHORITY_FILE))? {
            roots.add(authority).map_err(tls)?;
        }
        let roots = Arc::new(roots);
        let chain = certificates(&folder.join(CERTIFICATE_FILE))?;
        let key_path = folder.join(KEY_FILE);
        let key = PrivateKeyDer::from_pem_file(&key_path)
            .map_err(|source| IdentityError::Pem { path: key_path, source })?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());

        let mut client = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(tls)?
            .with_root_certificates(Arc::clone(&roots))
            .with_client_auth_cert(chain.clone(), key.clone_key())
            .map_err(tls)?;
        // A resumed session would skip nothing that takes long, and keeps secrets around.
        client.resumption = rustls::client::Resumption::disabled();
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider))
            .build()
            .map_err(|source| IdentityError::Authority { folder: folder.into(), source })?;
        let server = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(tls)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)
            .map_err(tls)?;
        Ok(Self { client: Arc::new(client), server: Arc::new(server) })
    }
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
