//! How a host joins: one question and one answer, each a line of JSON, over TLS 1.3.
//!
//! Whoever answers has a certificate, whoever asks has none. The one who asks ends the connection unless the other's
//! authority is the one in the code, and only then says the secret. The one who answers takes little and waits little.

use crate::code::{Fingerprint, JoinCode, Secret};
use crate::{PkiError, RevokedList, SignedIdentity, replace};
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use sterna_api::{address, paths};
use sterna_engine::identity::{AUTHORITY_HOST_FILE, REVOKED_FILE};
use tokio::io::{
    AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader,
};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// How long all of it may take, on either side.
pub const TIME_MAX: Duration = Duration::from_secs(15);

/// Bytes of a question at most.
const ASK_BYTES_MAX: u64 = 16 << 10;
/// Bytes of an answer at most: a list of 10,000 revoked certificates has some 700 KiB.
const ANSWER_BYTES_MAX: u64 = 4 << 20;

#[derive(Deserialize, Serialize)]
struct Ask {
    secret: String,
    request: String,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Answer {
    Granted(Granted),
    Refused(String),
}

/// What a host is given that joins.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Granted {
    /// The authority's certificate, as PEM.
    pub authority: String,
    /// Its certificate, as PEM.
    pub certificate: String,
    /// The certificates that are no longer accepted, as PEM, if there is such a list.
    pub revoked: Option<String>,
    /// Port of the interface of the host that has the authority.
    pub api_port: u16,
}

/// A host that has been let in, and has written nothing yet.
pub struct Joined {
    identity: SignedIdentity,
    revoked: Option<RevokedList>,
    authority_host: String,
}

/// Why a host did not join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The code names no host.
    #[error("the code names no host: {0}")]
    Address(String),
    /// The host cannot be reached, or breaks off.
    #[error(
        "cannot talk to {at}; see that its agent runs, that this host reaches it, and that the invitation is not over"
    )]
    Link {
        /// The host.
        at: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It took too long.
    #[error("{0} does not answer in time")]
    Time(String),
    /// The host refuses.
    #[error("{0}")]
    Refused(String),
    /// Its answer makes no sense.
    #[error("the answer cannot be used")]
    Answer(#[source] PkiError),
    /// Keys cannot be made.
    #[error(transparent)]
    Pki(#[from] PkiError),
}

/// Makes a key and has it signed. The code's secret is said to nobody but a host of the code's authority.
///
/// # Errors
/// When the host cannot be reached, is another one's, or refuses.
pub async fn join(code: &JoinCode) -> Result<Joined, JoinError> {
    let asked = tokio::time::timeout(TIME_MAX, ask(code)).await;
    asked.unwrap_or_else(|_| Err(JoinError::Time(code.at.clone())))
}

async fn ask(code: &JoinCode) -> Result<Joined, JoinError> {
    let (host, port) = address::split(&code.at, paths::JOIN_PORT).map_err(JoinError::Address)?;
    let name = ServerName::try_from(host.to_owned())
        .map_err(|_| JoinError::Address(format!("{host:?} is neither a name nor an address")))?;
    let make = |e| PkiError::Make("a key", e);
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(make)?;
    let request = CertificateParams::default().serialize_request(&key).map_err(make)?;
    let request = request.pem().map_err(make)?;

    let link = |source| JoinError::Link { at: code.at.clone(), source };
    let stream = TcpStream::connect((host, port)).await.map_err(link)?;
    let connector = TlsConnector::from(Arc::new(settings(code.authority)?));
    let mut stream = connector.connect(name, stream).await.map_err(link)?;
    say(&mut stream, &Ask { secret: code.secret.text(), request }).await.map_err(link)?;
    let granted = match hear(&mut stream, ANSWER_BYTES_MAX).await.map_err(link)? {
        Answer::Granted(granted) => granted,
        Answer::Refused(why) => return Err(JoinError::Refused(why)),
    };
    let Granted { authority, certificate, revoked, api_port } = granted;
    let is_none =
        || JoinError::Answer(PkiError::not("what was sent", "certificate of the authority"));
    let der = CertificateDer::from_pem_slice(authority.as_bytes()).map_err(|_| is_none())?;
    if Fingerprint::of(&der) != code.authority {
        return Err(is_none());
    }
    let revoked = revoked.map(|pem| RevokedList::verified(&pem, &der)).transpose();
    Ok(Joined {
        identity: SignedIdentity { authority, certificate, key: key.serialize_pem() },
        revoked: revoked.map_err(JoinError::Answer)?,
        authority_host: address::join(host, api_port),
    })
}

impl Joined {
    /// Writes what makes this host one of the cluster into its identity's folder; replaces nothing.
    ///
    /// # Errors
    /// When it has an identity, or it cannot be written.
    pub fn write(&self, folder: &Path) -> Result<(), PkiError> {
        // A list alone, or a word where the authority is, is not yet an identity; that comes last.
        crate::files::make_folder(folder)?;
        if let Some(list) = &self.revoked {
            replace(&folder.join(REVOKED_FILE), list.pem())?;
        }
        replace(&folder.join(AUTHORITY_HOST_FILE), &format!("{}\n", self.authority_host))?;
        self.identity.write(folder)
    }
}

/// Answers one host that asks to join: `grant` decides by the secret that it says and signs its request.
///
/// # Errors
/// When the connection breaks, or nothing that makes sense is said.
pub async fn answer<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    grant: impl AsyncFnOnce(Secret, String) -> Result<Granted, String>,
) -> io::Result<()> {
    let Ask { secret, request } = hear(stream, ASK_BYTES_MAX).await?;
    let answer = match Secret::from_text(&secret) {
        Some(secret) => grant(secret, request).await,
        None => Err("what was sent is no secret".into()),
    };
    say(stream, &answer.map_or_else(Answer::Refused, Answer::Granted)).await
}

async fn say<S: AsyncWrite + Unpin>(stream: &mut S, words: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(words)?;
    line.push(b'\n');
    stream.write_all(&line).await?;
    stream.flush().await
}

async fn hear<S: AsyncRead + Unpin, T: DeserializeOwned>(
    stream: &mut S,
    max: u64,
) -> io::Result<T> {
    let mut line = Vec::new();
    BufReader::new((&mut *stream).take(max)).read_until(b'\n', &mut line).await?;
    if line.last() != Some(&b'\n') {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_slice(&line)?)
}

impl Fingerprint {
    /// The certificate that has this fingerprint.
    fn find<'a>(&self, chain: &'a [CertificateDer<'a>]) -> Option<&'a CertificateDer<'a>> {
        chain.iter().find(|certificate| Self::of(certificate) == *self)
    }
}

fn settings(authority: Fingerprint) -> Result<ClientConfig, JoinError> {
    let provider = Arc::new(ring::default_provider());
    let verifier = Arc::new(ByFingerprint { authority, provider: Arc::clone(&provider) });
    let tls = |source| JoinError::Link { at: "TLS".into(), source: io::Error::other(source) };
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(tls)?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    Ok(config)
}

/// Trusts whom the authority of this fingerprint has signed, and the authority is what the other side says it is: it
/// has nothing else yet.
#[derive(Debug)]
struct ByFingerprint {
    authority: Fingerprint,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for ByFingerprint {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let unknown = || rustls::Error::from(rustls::CertificateError::UnknownIssuer);
        let authority = self.authority.find(intermediates).ok_or_else(unknown)?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&self.provider))
            .build()
            .map_err(|_| unknown())?
            .verify_server_cert(end_entity, &[], server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("only TLS 1.3 is spoken".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
