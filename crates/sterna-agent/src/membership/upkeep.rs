//! What a host does to remain one of its cluster: it has its certificate renewed in time, and learns which ones are no
//! longer accepted.

use super::{authority_of, has_authority, newest, pki_error, revoked_here, with_authority};
use crate::agent::{Agent, blocking};
use futures_util::future::join_all;
use rcgen::{CertificateParams, KeyPair};
use reqwest::{Method, RequestBuilder, StatusCode};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use std::convert::Infallible;
use std::path::Path;
use std::time::{Duration, SystemTime};
use sterna_api::{ApiError, Certificate, ErrorCode, RenewRequest, address, paths};
use sterna_engine::identity::{AUTHORITY_HOST_FILE, CERTIFICATE_FILE, KEY_FILE, REVOKED_FILE};
use sterna_pki::{Authority, HostCertificate, PkiError, RevokedList, Subject, Validity, replace};

/// How often a host sees to it.
const INTERVAL: Duration = Duration::from_secs(3600);

/// How long another host may take for an answer.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// Bytes of an answer at most.
const ANSWER_BYTES_MAX: usize = 4 << 20;

/// Sees to it at once and each hour, for as long as the agent runs.
pub(crate) async fn keep(agent: &Agent) -> Infallible {
    loop {
        if let Err(error) = renew(agent).await {
            tracing::warn!(%error, "this host's certificate is not renewed; it is tried again within the hour");
        }
        if let Err(error) = learn(agent).await {
            tracing::warn!(%error, "which certificates are revoked is not known anew; it is tried again within the hour");
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Has this host's certificate renewed if it is time. The key stays: so the certificate is all that changes, in one
/// step.
async fn renew(agent: &Agent) -> Result<(), ApiError> {
    let folder = agent.settings.identity.clone();
    let path = folder.join(CERTIFICATE_FILE);
    let held = {
        let path = path.clone();
        blocking(move || HostCertificate::read(&path).map_err(|error| pki_error(&error))).await?
    };
    if !held.validity.is_due(SystemTime::now().into()) {
        return Ok(());
    }
    let request = {
        let path = folder.join(KEY_FILE);
        blocking(move || request(&path).map_err(|error| pki_error(&error))).await?
    };
    let certificate = if has_authority(&folder) {
        let subject = held.subject.clone();
        let signed = move |authority: &Authority| {
            authority.sign_request(&request, &subject, Validity::renewed())
        };
        with_authority(agent, signed).await?
    } else if let Some(host) = authority_host(&folder) {
        let renewed: Certificate = {
            let question = call(agent, Method::POST, &host, paths::CERTIFICATES)?;
            let text = asked(question.json(&RenewRequest { request }), &host).await?;
            serde_json::from_str(&text)
                .map_err(|e| ApiError::from_chain(ErrorCode::Internal, &e))?
        };
        renewed.certificate
    } else {
        let until = held.validity.until;
        tracing::warn!(%until, "this host's certificate was made by hand, and is to be replaced by hand");
        return Ok(());
    };
    blocking(move || {
        let until = replace_certificate(&folder, &held, &certificate)?;
        tracing::info!(%until, "this host's certificate was renewed");
        Ok(())
    })
    .await?;
    reload(agent)
}

fn request(key: &Path) -> Result<String, PkiError> {
    let no_key = || PkiError::Not { what: key.display().to_string(), wanted: "private key" };
    let text = std::fs::read_to_string(key);
    let text = text.map_err(|source| PkiError::Read { path: key.into(), source })?;
    let key = KeyPair::from_pem(&text).map_err(|_| no_key())?;
    let request = CertificateParams::default().serialize_request(&key);
    request.and_then(|request| request.pem()).map_err(|e| PkiError::Make("a request", e))
}

/// Puts a new certificate in place of the one held, if it says the same and is of the same key.
fn replace_certificate(
    folder: &Path,
    held: &HostCertificate,
    pem: &str,
) -> Result<String, ApiError> {
    let wrong = |what: &str| {
        ApiError::new(ErrorCode::Internal, format!("the certificate that was sent is {what}"))
    };
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|_| wrong("none"))?;
    let new = HostCertificate::parse(&der).map_err(|error| pki_error(&error))?;
    let new = new.ok_or_else(|| wrong("no host's"))?;
    if new.subject != held.subject {
        return Err(wrong("another host's"));
    }
    if new.validity.until <= held.validity.until {
        return Err(wrong("valid no longer than the one that is there"));
    }
    let key =
        PrivateKeyDer::from_pem_file(folder.join(KEY_FILE)).map_err(|_| wrong("of no key"))?;
    let provider = rustls::crypto::ring::default_provider();
    CertifiedKey::from_der(vec![der], key, &provider).map_err(|_| wrong("of another key"))?;
    replace(&folder.join(CERTIFICATE_FILE), pem).map_err(|error| pki_error(&error))?;
    Ok(new.validity.until.to_string())
}

/// Learns which certificates are no longer accepted.
pub(crate) async fn learn(agent: &Agent) -> Result<(), ApiError> {
    let folder = &agent.settings.identity;
    let list = if has_authority(folder) {
        return learn_from_authority(agent).await;
    } else if let Some(host) = authority_host(folder) {
        match asked(call(agent, Method::GET, &host, paths::REVOKED)?, &host).await {
            Ok(list) => Some(list),
            Err(error) if error.code == ErrorCode::NotFound => None,
            Err(error) => return Err(error),
        }
    } else {
        None
    };
    match list {
        Some(list) => adopt(agent, list).await.map(drop),
        None => Ok(()),
    }
}

/// The authority may have revoked certificates by hand (`sterna pki revoke`): then all hosts are told.
async fn learn_from_authority(agent: &Agent) -> Result<(), ApiError> {
    let read = |authority: &Authority| Ok((authority.revoked()?, newest(authority.hosts()?)));
    let (Some(list), hosts) = with_authority(agent, read).await? else { return Ok(()) };
    if adopt(agent, list.pem().to_owned()).await? {
        for (host, told) in spread(agent, &hosts, &list).await {
            if let Err(error) = told {
                tracing::warn!(host, %error, "cannot be told what is revoked; it asks within the hour");
            }
        }
    }
    Ok(())
}

/// Takes a list of certificates that are no longer accepted as this host's own, if the authority has signed it and it
/// is newer; whether it was.
pub(crate) async fn adopt(agent: &Agent, pem: String) -> Result<bool, ApiError> {
    let folder = agent.settings.identity.clone();
    let _one_at_a_time = agent.authority.lock().await;
    let is_newer = blocking(move || {
        let adopted = || -> Result<bool, PkiError> {
            let list = RevokedList::verified(&pem, &authority_of(&folder)?)?;
            // One that cannot be read is no reason to refuse one that can.
            let is_newer = list.is_newer_than(revoked_here(&folder).unwrap_or(None).as_ref());
            if is_newer {
                replace(&folder.join(REVOKED_FILE), list.pem())?;
            }
            Ok(is_newer)
        };
        adopted().map_err(|error| pki_error(&error))
    })
    .await?;
    if is_newer {
        reload(agent)?;
        tracing::info!("there are certificates that are no longer accepted");
    }
    Ok(is_newer)
}

/// Tells hosts which certificates are no longer accepted; which could be told, by their names. This one knows.
pub(crate) async fn spread(
    agent: &Agent,
    hosts: &[HostCertificate],
    list: &RevokedList,
) -> Vec<(String, Result<(), ApiError>)> {
    let tell = async |host: &HostCertificate| {
        let Subject { name, addresses } = &host.subject;
        if *name == agent.settings.name {
            return (name.clone(), Ok(()));
        }
        let host = addresses.first().map_or(name.clone(), ToString::to_string);
        // Its port is not known here; hosts of a cluster have the same one.
        let host = address::join(&host, agent.settings.api_port);
        let question = call(agent, Method::PUT, &host, paths::REVOKED);
        let told = match question {
            Ok(question) => asked(question.body(list.pem().to_owned()), &host).await.map(drop),
            Err(error) => Err(error),
        };
        (name.clone(), told)
    };
    join_all(hosts.iter().map(tell)).await
}

fn reload(agent: &Agent) -> Result<(), ApiError> {
    agent.reload_identity().map_err(|error| ApiError::from_chain(ErrorCode::Internal, &error))
}

/// Where the authority is, if this host has joined by a code.
pub(super) fn authority_host(identity: &Path) -> Option<String> {
    let text = std::fs::read_to_string(identity.join(AUTHORITY_HOST_FILE)).ok()?;
    Some(text.trim().to_owned()).filter(|host| !host.is_empty())
}

/// A question for another host of the cluster. Nothing is sent yet.
pub(super) fn call(
    agent: &Agent,
    method: Method,
    host: &str,
    path: &str,
) -> Result<RequestBuilder, ApiError> {
    let tls = (*agent.identity.client()).clone();
    let client = reqwest::Client::builder().tls_backend_preconfigured(tls).no_proxy();
    let client = client.timeout(ANSWER_MAX).build();
    let client = client.map_err(|error| ApiError::from_chain(ErrorCode::Internal, &error))?;
    Ok(client.request(method, format!("{}{path}", paths::https(host))))
}

/// The answer to a question, as text.
pub(super) async fn asked(question: RequestBuilder, host: &str) -> Result<String, ApiError> {
    let failed = |error: &reqwest::Error| {
        let error = ApiError::from_chain(ErrorCode::Internal, error);
        ApiError::new(ErrorCode::Internal, format!("{host} does not answer: {error}"))
    };
    let mut answer = question.send().await.map_err(|error| failed(&error))?;
    let (status, mut bytes) = (answer.status(), Vec::new());
    while let Some(chunk) = answer.chunk().await.map_err(|error| failed(&error))? {
        bytes.extend_from_slice(&chunk);
        if bytes.len() > ANSWER_BYTES_MAX {
            return Err(ApiError::new(ErrorCode::Internal, format!("{host} answers too much")));
        }
    }
    let text = String::from_utf8_lossy(&bytes).into_owned();
    match (status.is_success(), status) {
        (true, _) => Ok(text),
        (false, StatusCode::NOT_FOUND) => Err(ApiError::new(ErrorCode::NotFound, text)),
        (false, status) => {
            let told: Result<ApiError, _> = serde_json::from_str(&text);
            let words = told.map_or_else(|_| status.to_string(), |error| error.to_string());
            Err(ApiError::new(ErrorCode::Internal, format!("{host} refuses: {words}")))
        }
    }
}
