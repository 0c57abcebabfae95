//! Makes authorities and certificates of hosts.

use anyhow::{Context as _, ensure};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;
use sterna_engine::identity::{AUTHORITY_FILE, CERTIFICATE_FILE, KEY_FILE};
use time::{Duration, OffsetDateTime};

/// File of the authority's private key.
const AUTHORITY_KEY_FILE: &str = "ca.key";

/// Days an authority is valid.
const AUTHORITY_DAYS: i64 = 3650;

/// Days a host's certificate is valid.
const HOST_DAYS: i64 = 825;

/// How far a host's clock may be behind that of the authority.
const CLOCK_SKEW: Duration = Duration::hours(1);

/// When a certificate is valid.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Validity {
    pub(crate) from: OffsetDateTime,
    pub(crate) until: OffsetDateTime,
}

impl Validity {
    /// A host's, beginning now.
    pub(crate) fn from_now() -> Self {
        Self::days(HOST_DAYS)
    }

    fn days(days: i64) -> Self {
        let now = OffsetDateTime::now_utc();
        Self { from: now - CLOCK_SKEW, until: now + Duration::days(days) }
    }
}

/// Whose certificate it is.
#[derive(Clone, Debug)]
pub(crate) struct Subject {
    pub(crate) name: String,
    pub(crate) addresses: Vec<IpAddr>,
}

/// An authority with its key.
pub(crate) struct Authority {
    certificate: String,
    key: KeyPair,
}

/// A host's certificate and key, as PEM.
pub(crate) struct HostIdentity {
    certificate: String,
    key: String,
}

fn new_key() -> anyhow::Result<KeyPair> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).context("cannot make a key")
}

fn named(name: &str) -> DistinguishedName {
    let mut names = DistinguishedName::new();
    names.push(DnType::CommonName, name);
    names
}

impl Authority {
    /// A new authority.
    pub(crate) fn create() -> anyhow::Result<Self> {
        let key = new_key()?;
        let mut params = CertificateParams::default();
        let validity = Validity::days(AUTHORITY_DAYS);
        (params.not_before, params.not_after) = (validity.from, validity.until);
        params.distinguished_name = named("sterna cluster authority");
        // It signs hosts, and no further authorities.
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).context("cannot sign the authority")?.pem();
        Ok(Self { certificate, key })
    }

    /// Reads what [`Authority::write`] has written.
    pub(crate) fn read(folder: &Path) -> anyhow::Result<Self> {
        let read = |file: &str| {
            let path = folder.join(file);
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
        };
        let certificate = read(AUTHORITY_FILE)?;
        let key = KeyPair::from_pem(&read(AUTHORITY_KEY_FILE)?)
            .with_context(|| format!("{AUTHORITY_KEY_FILE} holds no key"))?;
        Ok(Self { certificate, key })
    }

    /// Signs a new key for a host, for connections that it makes and that it accepts.
    pub(crate) fn issue(
        &self,
        subject: &Subject,
        validity: Validity,
    ) -> anyhow::Result<HostIdentity> {
        let key = new_key()?;
        let mut params = CertificateParams::new(vec![subject.name.clone()])
            .with_context(|| format!("{:?} is no host name", subject.name))?;
        let addresses = subject.addresses.iter().copied().map(SanType::IpAddress);
        params.subject_alt_names.extend(addresses);
        (params.not_before, params.not_after) = (validity.from, validity.until);
        params.distinguished_name = named(&subject.name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let issuer = Issuer::from_ca_cert_pem(&self.certificate, &self.key)
            .with_context(|| format!("{AUTHORITY_FILE} holds no authority"))?;
        let certificate = params.signed_by(&key, &issuer).context("cannot sign the host")?.pem();
        Ok(HostIdentity { certificate, key: key.serialize_pem() })
    }

    /// Writes the authority's certificate and key; replaces nothing.
    pub(crate) fn write(&self, folder: &Path) -> anyhow::Result<()> {
        let key = self.key.serialize_pem();
        let files =
            [(AUTHORITY_FILE, &self.certificate, PUBLIC), (AUTHORITY_KEY_FILE, &key, SECRET)];
        write_new(folder, &files)
    }

    /// Writes a host's certificate and key, and the authority it trusts; replaces nothing.
    pub(crate) fn write_host(&self, host: &HostIdentity, folder: &Path) -> anyhow::Result<()> {
        let files = [
            (AUTHORITY_FILE, &self.certificate, PUBLIC),
            (CERTIFICATE_FILE, &host.certificate, PUBLIC),
            (KEY_FILE, &host.key, SECRET),
        ];
        write_new(folder, &files)
    }
}

/// File modes.
const PUBLIC: u32 = 0o644;
const SECRET: u32 = 0o600;

fn write_new(folder: &Path, files: &[(&str, &String, u32)]) -> anyhow::Result<()> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.with_context(|| format!("cannot make {}", folder.display()))?;
    for (file, _, _) in files {
        let path = folder.join(file);
        ensure!(!path.exists(), "{} is there already; nothing was written", path.display());
    }
    for (file, text, mode) in files {
        let path = folder.join(file);
        let opened = OpenOptions::new().write(true).create_new(true).mode(*mode).open(&path);
        opened
            .and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}
