//! Who belongs to the cluster, as this host has to do with it.
//!
//! One host has the cluster's authority: a folder beside its identity. It invites hosts, lets them in
//! ([`door`]), renews their certificates and revokes them. Every other host that has joined knows its address, asks
//! it for a new certificate in time, and each hour for the list of those that are no longer accepted ([`upkeep`]), and
//! where another host is when a user wants to be passed on to it ([`directory`]). Hosts whose certificates are carried
//! by hand do none of it.

mod directory;
mod door;
mod invitations;
#[cfg(test)]
mod tests;
mod upkeep;

pub(crate) use directory::{Directory, directly, find};
pub(crate) use door::Door;
pub(crate) use invitations::{INVITED_MAX, Invitations, VALID};
pub(crate) use upkeep::{adopt, keep, learn, spread};

use crate::agent::{Agent, blocking};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use std::path::Path;
use sterna_api::{ApiError, ErrorCode};
use sterna_engine::identity::{AUTHORITY_FILE, REVOKED_FILE};
use sterna_pki::{
    AUTHORITY_FOLDER, AUTHORITY_KEY_FILE, Authority, HostCertificate, PkiError, RevokedList,
};

/// An error with certificates as callers see it.
pub(crate) fn pki_error(error: &PkiError) -> ApiError {
    let code = match error {
        PkiError::Name { .. } | PkiError::Not { .. } | PkiError::Signature => ErrorCode::Invalid,
        _ => ErrorCode::Internal,
    };
    ApiError::from_chain(code, error)
}

/// Whether this host has the cluster's authority.
pub(crate) fn has_authority(identity: &Path) -> bool {
    identity.join(AUTHORITY_FOLDER).join(AUTHORITY_KEY_FILE).exists()
}

/// Uses the authority, one at a time.
pub(crate) async fn with_authority<T: Send + 'static>(
    agent: &Agent,
    work: impl FnOnce(&Authority) -> Result<T, PkiError> + Send + 'static,
) -> Result<T, ApiError> {
    let folder = agent.settings.identity.clone();
    if !has_authority(&folder) {
        let message = "this host has not the authority of its cluster";
        return Err(ApiError::new(ErrorCode::NotFound, message)
            .hint("say it to the host on which `sterna cluster init` was called"));
    }
    let _one_at_a_time = agent.authority.lock().await;
    blocking(move || {
        let authority = Authority::read(&folder.join(AUTHORITY_FOLDER));
        authority.and_then(|authority| work(&authority)).map_err(|error| pki_error(&error))
    })
    .await
}

/// Of each host the certificate that is valid longest, of certificates sorted by name and end.
pub(crate) fn newest(mut hosts: Vec<HostCertificate>) -> Vec<HostCertificate> {
    hosts.reverse();
    hosts.dedup_by(|one, other| one.subject.name == other.subject.name);
    hosts.reverse();
    hosts
}

/// The list of certificates that are no longer accepted here, if there is one.
pub(crate) fn revoked_here(identity: &Path) -> Result<Option<RevokedList>, PkiError> {
    let path = identity.join(REVOKED_FILE);
    if !path.exists() {
        return Ok(None);
    }
    let pem = std::fs::read_to_string(&path).map_err(|source| PkiError::Read { path, source })?;
    RevokedList::verified(&pem, &authority_of(identity)?).map(Some)
}

/// The certificate of the authority whose hosts are let in here.
fn authority_of(identity: &Path) -> Result<CertificateDer<'static>, PkiError> {
    let path = identity.join(AUTHORITY_FILE);
    let wanted = "certificate of an authority";
    CertificateDer::from_pem_file(&path)
        .map_err(|_| PkiError::Not { what: path.display().to_string(), wanted })
}
