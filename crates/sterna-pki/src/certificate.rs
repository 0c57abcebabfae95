//! What certificates of hosts say.

use crate::PkiError;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, DnsName};
use std::net::IpAddr;
use std::path::Path;
use time::{Duration, OffsetDateTime};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

/// Days a host's or user's certificate is valid that is carried by hand.
const BY_HAND_DAYS: i64 = 825;

/// Days a host's certificate is valid that its agent renews.
const RENEWED_DAYS: i64 = 365;

/// How far a host's clock may be behind that of the authority.
pub(crate) const CLOCK_SKEW: Duration = Duration::hours(1);

/// When a certificate is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// Its first moment.
    pub from: OffsetDateTime,
    /// Its last one.
    pub until: OffsetDateTime,
}

impl Validity {
    /// From now on, of a certificate that an operator replaces.
    #[must_use]
    pub fn by_hand() -> Self {
        Self::days(BY_HAND_DAYS)
    }

    /// From now on, of a certificate that an agent renews.
    #[must_use]
    pub fn renewed() -> Self {
        Self::days(RENEWED_DAYS)
    }

    pub(crate) fn days(days: i64) -> Self {
        let now = OffsetDateTime::now_utc();
        Self { from: now - CLOCK_SKEW, until: now + Duration::days(days) }
    }

    /// Whether it is time to have it renewed: when two thirds are over, so that the authority's host may be away for
    /// the last third.
    #[must_use]
    pub fn is_due(&self, now: OffsetDateTime) -> bool {
        now > self.from + (self.until - self.from) * 2 / 3
    }
}

/// Whose certificate it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// Name of the host.
    pub name: String,
    /// Addresses by which it may be reached besides.
    pub addresses: Vec<IpAddr>,
}

impl Subject {
    /// Whether a host can have that name: names are as DNS has them, in small letters, so that two that look different
    /// are.
    ///
    /// # Errors
    /// When it cannot.
    pub fn check(&self) -> Result<(), PkiError> {
        let is_dns = DnsName::try_from(self.name.as_str()).is_ok();
        if is_dns && !self.name.chars().any(|c| c.is_ascii_uppercase()) {
            return Ok(());
        }
        let allowed = "small letters, digits, - and dots between them";
        Err(PkiError::Name { name: self.name.clone(), whose: "host", allowed })
    }
}

/// A host's certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostCertificate {
    /// Whose it is.
    pub subject: Subject,
    /// When it is valid.
    pub validity: Validity,
    /// Its number, which no other certificate of the authority has.
    pub serial: Vec<u8>,
}

impl HostCertificate {
    /// Reads a certificate; `None` if it is a user's.
    ///
    /// # Errors
    /// When it is no certificate.
    pub fn parse(der: &CertificateDer<'_>) -> Result<Option<Self>, PkiError> {
        let is_none = || PkiError::not("what was read", "certificate");
        let (_, parsed) = X509Certificate::from_der(der).map_err(|_| is_none())?;
        let names = parsed.subject_alternative_name().map_err(|_| is_none())?;
        let names = names.map(|names| names.value.general_names.as_slice()).unwrap_or_default();
        let name = names.iter().find_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            _ => None,
        });
        let Some(name) = name else { return Ok(None) };
        let addresses = names.iter().filter_map(|name| match name {
            GeneralName::IPAddress(bytes) => address(bytes),
            _ => None,
        });
        let subject = Subject { name, addresses: addresses.collect() };
        let validity = Validity {
            from: parsed.validity().not_before.to_datetime(),
            until: parsed.validity().not_after.to_datetime(),
        };
        Ok(Some(Self { subject, validity, serial: parsed.raw_serial().to_vec() }))
    }

    /// Reads the first certificate of a file.
    ///
    /// # Errors
    /// When there is none, or it is no host's.
    pub fn read(path: &Path) -> Result<Self, PkiError> {
        let no_host = || PkiError::not_in(path, "certificate of a host");
        let der = CertificateDer::from_pem_file(path).map_err(|_| no_host())?;
        Self::parse(&der)?.ok_or_else(no_host)
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}
