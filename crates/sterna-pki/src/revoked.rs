//! Lists of certificates that are no longer accepted.

use crate::PkiError;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use std::collections::BTreeSet;
use x509_parser::prelude::{FromDer as _, X509Certificate};
use x509_parser::revocation_list::CertificateRevocationList;

/// A list that a cluster's authority has signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RevokedList {
    /// Its number, as bytes of which the first counts most.
    number: Vec<u8>,
    /// Numbers of the certificates.
    pub serials: BTreeSet<Vec<u8>>,
    pem: String,
}

impl RevokedList {
    /// Reads a list, and sees that an authority has signed it.
    ///
    /// # Errors
    /// When it is none, or another one has signed it.
    pub fn verified(pem: &str, authority: &CertificateDer<'_>) -> Result<Self, PkiError> {
        let is_none = || PkiError::not("what was read", "list of revoked certificates");
        let der = CertificateRevocationListDer::from_pem_slice(pem.as_bytes());
        let der = der.map_err(|_| is_none())?;
        let (_, list) = CertificateRevocationList::from_der(&der).map_err(|_| is_none())?;
        let (_, authority) = X509Certificate::from_der(authority)
            .map_err(|_| PkiError::not("the authority", "certificate"))?;
        list.verify_signature(authority.public_key()).map_err(|_| PkiError::Signature)?;
        let number = list.crl_number().ok_or_else(is_none)?.to_bytes_be();
        // As long as any of them, so that they compare as numbers.
        let mut padded = vec![0; NUMBER_BYTES_MAX.saturating_sub(number.len())];
        padded.extend(number);
        let serials = list.iter_revoked_certificates().map(|one| one.raw_serial().to_vec());
        Ok(Self { number: padded, serials: serials.collect(), pem: pem.to_owned() })
    }

    /// The list, as PEM.
    #[must_use]
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// Whether it says more than another one, if there is another one.
    #[must_use]
    pub fn is_newer_than(&self, other: Option<&Self>) -> bool {
        other.is_none_or(|other| self.number > other.number)
    }
}

/// Bytes of a list's number at most (RFC 5280, section 5.2.3).
const NUMBER_BYTES_MAX: usize = 20;
