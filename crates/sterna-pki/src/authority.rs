//! An authority: its key, what it has signed, and what of that is no longer accepted.

use crate::certificate::{CLOCK_SKEW, HostCertificate, Subject, Validity};
use crate::files::{PUBLIC, SECRET, make_folder, read, replace, write_new};
use crate::{PkiError, RevokedList};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams,
    CertificateSigningRequestParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData,
    RevokedCertParams, SanType, SerialNumber,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use sterna_engine::identity::{
    AUTHORITY_FILE, CERTIFICATE_FILE, KEY_FILE, REVOKED_FILE, ROLE_URI, USER_URI, UserRole,
};
use time::{Duration, OffsetDateTime};
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// Folder of the authority in the identity's folder of the host that has it.
pub const AUTHORITY_FOLDER: &str = "authority";

/// File of the authority's private key in its folder.
pub const AUTHORITY_KEY_FILE: &str = "ca.key";

/// Folder of all that it has signed.
const ISSUED_FOLDER: &str = "issued";

/// Days an authority is valid.
const AUTHORITY_DAYS: i64 = 3650;

/// An authority with its key, in a folder.
pub struct Authority {
    folder: PathBuf,
    certificate: String,
    key: KeyPair,
}

/// A host's or user's certificate and key, as PEM.
pub struct SignedIdentity {
    pub(crate) authority: String,
    pub(crate) certificate: String,
    pub(crate) key: String,
}

fn new_key() -> Result<KeyPair, PkiError> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|e| PkiError::Make("a key", e))
}

fn named(name: &str) -> DistinguishedName {
    let mut names = DistinguishedName::new();
    names.push(DnType::CommonName, name);
    names
}

impl Authority {
    /// Makes an authority in a folder; replaces nothing.
    ///
    /// # Errors
    /// When there is one, or it cannot be written.
    pub fn create(folder: &Path) -> Result<Self, PkiError> {
        let key = new_key()?;
        let mut params = CertificateParams::default();
        let validity = Validity::days(AUTHORITY_DAYS);
        (params.not_before, params.not_after) = (validity.from, validity.until);
        params.distinguished_name = named("sterna cluster authority");
        // It signs hosts, and no further authorities.
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let signed = params.self_signed(&key).map_err(|e| PkiError::Make("an authority", e))?;
        let certificate = signed.pem();
        let secret = key.serialize_pem();
        write_new(
            folder,
            &[(AUTHORITY_FILE, &certificate, PUBLIC), (AUTHORITY_KEY_FILE, &secret, SECRET)],
        )?;
        Ok(Self { folder: folder.into(), certificate, key })
    }

    /// Reads what [`Authority::create`] has written.
    ///
    /// # Errors
    /// When it is not there, or is no authority.
    pub fn read(folder: &Path) -> Result<Self, PkiError> {
        let certificate = read(&folder.join(AUTHORITY_FILE))?;
        let path = folder.join(AUTHORITY_KEY_FILE);
        let key =
            KeyPair::from_pem(&read(&path)?).map_err(|_| PkiError::not_in(&path, "private key"))?;
        Ok(Self { folder: folder.into(), certificate, key })
    }

    /// The authority's certificate, as PEM.
    #[must_use]
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// The same, as bytes.
    ///
    /// # Errors
    /// When it is none.
    pub fn certificate_der(&self) -> Result<CertificateDer<'static>, PkiError> {
        CertificateDer::from_pem_slice(self.certificate.as_bytes())
            .map_err(|_| PkiError::not_in(&self.folder.join(AUTHORITY_FILE), "certificate"))
    }

    /// Makes a key for a host and signs it, for connections that it makes and that it accepts.
    ///
    /// # Errors
    /// When the host cannot have that name, or what was signed cannot be recorded.
    pub fn issue(&self, subject: &Subject, validity: Validity) -> Result<SignedIdentity, PkiError> {
        let key = new_key()?;
        self.identity(self.sign(host(subject)?, &key, validity)?, &key)
    }

    /// Signs a key that a host has made, by its request (PKCS #10, as PEM). Nothing in the request counts but the key.
    ///
    /// # Errors
    /// As [`Authority::issue`], or when the request is none or not signed by its key.
    pub fn sign_request(
        &self,
        request: &str,
        subject: &Subject,
        validity: Validity,
    ) -> Result<String, PkiError> {
        let request = CertificateSigningRequestParams::from_pem(request)
            .map_err(|_| PkiError::not("what was sent", "request for a certificate"))?;
        self.sign(host(subject)?, &request.public_key, validity)
    }

    /// Makes a key for a user and signs it, for connections that the user makes.
    ///
    /// # Errors
    /// When no user can have that name, or what was signed cannot be recorded.
    pub fn issue_user(
        &self,
        name: &str,
        role: UserRole,
        validity: Validity,
    ) -> Result<SignedIdentity, PkiError> {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.@".contains(c);
        if name.is_empty() || !name.chars().all(is_plain) {
            let allowed = "letters, digits and - _ . @";
            return Err(PkiError::Name { name: name.into(), whose: "user", allowed });
        }
        let uri = |text: String| {
            let text = text.try_into().map_err(|e| PkiError::Make("a certificate", e))?;
            Ok::<_, PkiError>(SanType::URI(text))
        };
        let mut params = CertificateParams::default();
        params.subject_alt_names =
            vec![uri(format!("{USER_URI}{name}"))?, uri(format!("{ROLE_URI}{role}"))?];
        params.distinguished_name = named(name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let key = new_key()?;
        self.identity(self.sign(params, &key, validity)?, &key)
    }

    fn identity(&self, certificate: String, key: &KeyPair) -> Result<SignedIdentity, PkiError> {
        let authority = self.certificate.clone();
        Ok(SignedIdentity { authority, certificate, key: key.serialize_pem() })
    }

    /// Signs, and records what was signed before anybody has it, so that it can be revoked.
    fn sign(
        &self,
        mut params: CertificateParams,
        key: &impl PublicKeyData,
        validity: Validity,
    ) -> Result<String, PkiError> {
        (params.not_before, params.not_after) = (validity.from, validity.until);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        let signed = params.signed_by(key, &self.issuer()?);
        let signed = signed.map_err(|e| PkiError::Make("a certificate", e))?;
        let (_, parsed) = X509Certificate::from_der(signed.der())
            .map_err(|_| PkiError::not("what was signed", "certificate"))?;
        let issued = self.folder.join(ISSUED_FOLDER);
        make_folder(&issued)?;
        let serial = data_encoding::HEXLOWER.encode(parsed.raw_serial());
        replace(&issued.join(format!("{serial}.pem")), &signed.pem())?;
        Ok(signed.pem())
    }

    /// Certificates of hosts that were signed and are accepted: neither revoked nor over.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn hosts(&self) -> Result<Vec<HostCertificate>, PkiError> {
        let (revoked, now) = (self.revoked()?, OffsetDateTime::now_utc());
        let is_accepted = |host: &HostCertificate| {
            host.validity.until > now
                && revoked.as_ref().is_none_or(|list| !list.serials.contains(&host.serial))
        };
        let mut hosts = Vec::new();
        for (path, der) in self.issued()? {
            let parsed = HostCertificate::parse(&der);
            match parsed.map_err(|_| PkiError::not_in(&path, "certificate"))? {
                Some(host) if is_accepted(&host) => hosts.push(host),
                Some(_) | None => {}
            }
        }
        hosts.sort_by(|one, other| {
            (&one.subject.name, one.validity.until)
                .cmp(&(&other.subject.name, other.validity.until))
        });
        Ok(hosts)
    }

    fn issued(&self) -> Result<Vec<(PathBuf, CertificateDer<'static>)>, PkiError> {
        let folder = self.folder.join(ISSUED_FOLDER);
        if !folder.exists() {
            return Ok(Vec::new());
        }
        let failed = |source| PkiError::Read { path: folder.clone(), source };
        let mut found = Vec::new();
        for entry in fs::read_dir(&folder).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if path.extension().is_some_and(|extension| extension == "pem") {
                let der = CertificateDer::from_pem_file(&path)
                    .map_err(|_| PkiError::not_in(&path, "certificate"))?;
                found.push((path, der));
            }
        }
        Ok(found)
    }

    /// The list of certificates that are no longer accepted, if there is one.
    ///
    /// # Errors
    /// When it is none of this authority.
    pub fn revoked(&self) -> Result<Option<RevokedList>, PkiError> {
        let path = self.folder.join(REVOKED_FILE);
        match path.exists() {
            true => RevokedList::verified(&read(&path)?, &self.certificate_der()?).map(Some),
            false => Ok(None),
        }
    }

    /// Puts the certificate in a file on the list of those that are no longer accepted, and says where the list is.
    ///
    /// # Errors
    /// When it is no host's or user's, or the list cannot be written.
    pub fn revoke_file(&self, certificate: &Path) -> Result<PathBuf, PkiError> {
        let wanted = "certificate of a host or user";
        let der = CertificateDer::from_pem_file(certificate)
            .map_err(|_| PkiError::not_in(certificate, wanted))?;
        let parsed = X509Certificate::from_der(&der);
        let (_, parsed) = parsed.map_err(|_| PkiError::not_in(certificate, wanted))?;
        if parsed.is_ca() {
            return Err(PkiError::not_in(certificate, wanted));
        }
        self.revoke([parsed.raw_serial().to_vec()])?;
        Ok(self.folder.join(REVOKED_FILE))
    }

    /// Puts certificates on the list of those that are no longer accepted, by their numbers.
    ///
    /// # Errors
    /// When the list cannot be written.
    pub fn revoke(
        &self,
        serials: impl IntoIterator<Item = Vec<u8>>,
    ) -> Result<RevokedList, PkiError> {
        let mut all: BTreeSet<_> = self.revoked()?.map(|list| list.serials).unwrap_or_default();
        all.extend(serials);
        let now = OffsetDateTime::now_utc();
        let revoked = |serial: &Vec<u8>| RevokedCertParams {
            serial_number: SerialNumber::from_slice(serial),
            revocation_time: now,
            reason_code: None,
            invalidity_date: None,
        };
        // No two lists have one number, unless the clock is set back.
        let number = u64::try_from(now.unix_timestamp_nanos()).unwrap_or_default();
        let list = CertificateRevocationListParams {
            this_update: now - CLOCK_SKEW,
            next_update: now + Duration::days(AUTHORITY_DAYS),
            crl_number: SerialNumber::from(number),
            issuing_distribution_point: None,
            revoked_certs: all.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = list.signed_by(&self.issuer()?).and_then(|list| list.pem());
        let pem = list.map_err(|e| PkiError::Make("a list of revoked certificates", e))?;
        let list = RevokedList::verified(&pem, &self.certificate_der()?)?;
        if !list.is_newer_than(self.revoked()?.as_ref()) {
            return Err(PkiError::ClockSetBack);
        }
        replace(&self.folder.join(REVOKED_FILE), &pem)?;
        Ok(list)
    }

    fn issuer(&self) -> Result<Issuer<'_, &KeyPair>, PkiError> {
        Issuer::from_ca_cert_pem(&self.certificate, &self.key)
            .map_err(|_| PkiError::not_in(&self.folder.join(AUTHORITY_FILE), "authority"))
    }
}

impl SignedIdentity {
    /// Whether an identity could be written into a folder: there is none, nor a part of one.
    ///
    /// # Errors
    /// With the file that is there.
    pub fn has_room(folder: &Path) -> Result<(), PkiError> {
        let files = [AUTHORITY_FILE, KEY_FILE, CERTIFICATE_FILE].map(|file| folder.join(file));
        files.into_iter().find(|file| file.exists()).map_or(Ok(()), |it| Err(PkiError::Exists(it)))
    }

    /// Writes the certificate and its key, and the authority they are of; replaces nothing. The certificate is last, as
    /// whoever waits for an identity waits for that.
    ///
    /// # Errors
    /// When one of them is there, or cannot be written.
    pub fn write(&self, folder: &Path) -> Result<(), PkiError> {
        Self::has_room(folder)?;
        let files = [
            (AUTHORITY_FILE, self.authority.as_str(), PUBLIC),
            (KEY_FILE, &self.key, SECRET),
            (CERTIFICATE_FILE, &self.certificate, PUBLIC),
        ];
        write_new(folder, &files)
    }
}

/// What a host's certificate says.
fn host(subject: &Subject) -> Result<CertificateParams, PkiError> {
    subject.check()?;
    let name = &subject.name;
    let made = CertificateParams::new(vec![name.clone()]);
    let mut params = made.map_err(|e| PkiError::Make("a certificate", e))?;
    params.subject_alt_names.extend(subject.addresses.iter().copied().map(SanType::IpAddress));
    params.distinguished_name = named(name);
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    Ok(params)
}
