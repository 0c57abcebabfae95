//! Makes authorities, and certificates of hosts and users.

use anyhow::{Context as _, ensure};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, RevokedCertParams, SanType, SerialNumber,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use sterna_engine::identity::{
    AUTHORITY_FILE, CERTIFICATE_FILE, KEY_FILE, REVOKED_FILE, ROLE_URI, USER_URI, UserRole,
};
use time::{Duration, OffsetDateTime};
use x509_parser::prelude::{FromDer as _, X509Certificate};
use x509_parser::revocation_list::CertificateRevocationList;

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

/// A host's or user's certificate and key, as PEM.
pub(crate) struct SignedIdentity {
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
    ) -> anyhow::Result<SignedIdentity> {
        let mut params = CertificateParams::new(vec![subject.name.clone()])
            .with_context(|| format!("{:?} is no host name", subject.name))?;
        let addresses = subject.addresses.iter().copied().map(SanType::IpAddress);
        params.subject_alt_names.extend(addresses);
        params.distinguished_name = named(&subject.name);
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(params, validity)
    }

    /// Signs a new key for a user, for connections that the user makes.
    pub(crate) fn issue_user(
        &self,
        name: &str,
        role: UserRole,
        validity: Validity,
    ) -> anyhow::Result<SignedIdentity> {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.@".contains(c);
        ensure!(
            !name.is_empty() && name.chars().all(is_plain),
            "{name:?} is no name of a user: letters, digits and - _ . @"
        );
        let uri = |text: String| -> anyhow::Result<SanType> { Ok(SanType::URI(text.try_into()?)) };
        let mut params = CertificateParams::default();
        params.subject_alt_names =
            vec![uri(format!("{USER_URI}{name}"))?, uri(format!("{ROLE_URI}{role}"))?];
        params.distinguished_name = named(name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(params, validity)
    }

    fn sign(
        &self,
        mut params: CertificateParams,
        validity: Validity,
    ) -> anyhow::Result<SignedIdentity> {
        let key = new_key()?;
        (params.not_before, params.not_after) = (validity.from, validity.until);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &self.issuer()?).context("cannot sign it")?.pem();
        Ok(SignedIdentity { certificate, key: key.serialize_pem() })
    }

    /// Puts the certificate in a file on the authority's list of those that are no longer accepted, and says where the
    /// list is.
    pub(crate) fn revoke(&self, folder: &Path, certificate: &Path) -> anyhow::Result<PathBuf> {
        let shown = certificate.display();
        let der = CertificateDer::from_pem_file(certificate)
            .with_context(|| format!("cannot read {shown}"))?;
        let (_, parsed) = X509Certificate::from_der(&der)
            .with_context(|| format!("{shown} holds no certificate"))?;
        ensure!(!parsed.is_ca(), "{shown} is an authority's certificate, not a host's or user's");
        let path = folder.join(REVOKED_FILE);
        let mut serials = listed(&path)?;
        serials.insert(parsed.raw_serial().to_vec());
        let now = OffsetDateTime::now_utc();
        let revoked = |serial: &Vec<u8>| RevokedCertParams {
            serial_number: SerialNumber::from_slice(serial),
            revocation_time: now,
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: now - CLOCK_SKEW,
            next_update: now + Duration::days(AUTHORITY_DAYS),
            crl_number: SerialNumber::from(u64::try_from(now.unix_timestamp())?),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = list.signed_by(&self.issuer()?).context("cannot sign the list")?;
        // Whoever reads it meanwhile finds the old one or the new one.
        let unfinished = path.with_extension("new");
        fs::write(&unfinished, list.pem()?)?;
        fs::rename(&unfinished, &path)?;
        Ok(path)
    }

    fn issuer(&self) -> anyhow::Result<Issuer<'_, &KeyPair>> {
        Issuer::from_ca_cert_pem(&self.certificate, &self.key)
            .with_context(|| format!("{AUTHORITY_FILE} holds no authority"))
    }

    /// Writes the authority's certificate and key; replaces nothing.
    pub(crate) fn write(&self, folder: &Path) -> anyhow::Result<()> {
        let key = self.key.serialize_pem();
        let files =
            [(AUTHORITY_FILE, &self.certificate, PUBLIC), (AUTHORITY_KEY_FILE, &key, SECRET)];
        write_new(folder, &files)
    }

    /// Writes a certificate and its key, and the authority they are of; replaces nothing.
    pub(crate) fn write_identity(
        &self,
        identity: &SignedIdentity,
        folder: &Path,
    ) -> anyhow::Result<()> {
        let files = [
            (AUTHORITY_FILE, &self.certificate, PUBLIC),
            (CERTIFICATE_FILE, &identity.certificate, PUBLIC),
            (KEY_FILE, &identity.key, SECRET),
        ];
        write_new(folder, &files)
    }
}

/// Serial numbers on a list; none if there is no list yet.
fn listed(path: &Path) -> anyhow::Result<BTreeSet<Vec<u8>>> {
    if !path.exists() {
        return Ok(BTreeSet::new());
    }
    let shown = path.display();
    let der = CertificateRevocationListDer::from_pem_file(path)
        .with_context(|| format!("cannot read {shown}"))?;
    let (_, list) = CertificateRevocationList::from_der(&der)
        .with_context(|| format!("{shown} is no list of revoked certificates"))?;
    Ok(list.iter_revoked_certificates().map(|one| one.raw_serial().to_vec()).collect())
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
