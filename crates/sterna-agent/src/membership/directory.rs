//! Where the hosts of the cluster are.
//!
//! The authority's host has what it has signed. Any other asks it, and remembers the answer for as long as it cannot
//! be asked: names and addresses of hosts seldom change.

use super::upkeep::{asked, authority_host, call};
use super::{has_authority, newest, with_authority};
use crate::agent::Agent;
use reqwest::Method;
use std::time::{Duration, Instant};
use sterna_api::{ApiError, ClusterHost, ErrorCode, paths};
use sterna_pki::Subject;

/// How long an answer is as good as a new one. A host that was revoked is known for so long.
const FRESH: Duration = Duration::from_secs(60);

/// The same where a host is not in it, as it may have joined just now.
const FRESH_WITHOUT: Duration = Duration::from_secs(5);

/// What the authority's host has said of the hosts of the cluster.
#[derive(Debug, Default)]
pub(crate) struct Directory(tokio::sync::Mutex<Heard>);

/// What was heard.
#[derive(Debug, Default)]
struct Heard {
    /// All hosts, as they were told last.
    hosts: Vec<Subject>,
    /// When it was asked last.
    asked: Option<Instant>,
    /// Why it did not answer then.
    failure: Option<ApiError>,
}

impl Heard {
    fn host(&self, name: &str) -> Option<&Subject> {
        self.hosts.iter().find(|host| host.name == name)
    }

    /// Whether it is time to ask for a host.
    fn is_due(&self, name: &str, now: Instant) -> bool {
        let fresh = if self.host(name).is_some() { FRESH } else { FRESH_WITHOUT };
        self.asked.is_none_or(|asked| now.saturating_duration_since(asked) >= fresh)
    }

    fn hear(&mut self, answer: Result<Vec<Subject>, ApiError>, now: Instant) {
        self.asked = Some(now);
        match answer {
            Ok(hosts) => (self.hosts, self.failure) = (hosts, None),
            Err(error) => self.failure = Some(error),
        }
    }

    /// The host of a name, if there is one as far as is known.
    fn found(&self, name: &str) -> Result<Subject, ApiError> {
        if let Some(host) = self.host(name) {
            return Ok(host.clone());
        }
        match &self.failure {
            None => Err(unknown(name)),
            Some(error) => {
                let message = format!("whether a host is named {name} cannot be asked: {error}");
                let hint = "see that the agent runs where `sterna cluster init` was called";
                Err(ApiError::new(ErrorCode::Unreachable, message).hint(hint))
            }
        }
    }
}

/// Finds a host of the cluster by its name.
pub(crate) async fn find(agent: &Agent, name: &str) -> Result<Subject, ApiError> {
    let identity = &agent.settings.identity;
    if has_authority(identity) {
        let hosts = newest(with_authority(agent, |authority| authority.hosts()).await?);
        let found = hosts.into_iter().find(|host| host.subject.name == name);
        return found.map(|host| host.subject).ok_or_else(|| unknown(name));
    }
    let Some(authority) = authority_host(identity) else {
        let message = "this host does not know the others: its certificate was made by hand";
        return Err(ApiError::new(ErrorCode::NotFound, message).hint(directly(name)));
    };
    // Whoever comes meanwhile waits for the same answer.
    let mut heard = agent.directory.0.lock().await;
    if heard.is_due(name, Instant::now()) {
        let answer = ask(agent, &authority).await;
        if let Err(error) = &answer {
            tracing::warn!(%error, "where the hosts of the cluster are is not known anew");
        }
        heard.hear(answer, Instant::now());
    }
    heard.found(name)
}

async fn ask(agent: &Agent, authority: &str) -> Result<Vec<Subject>, ApiError> {
    let text = asked(call(agent, Method::GET, authority, paths::HOSTS)?, authority).await?;
    let hosts: Vec<ClusterHost> = serde_json::from_str(&text)
        .map_err(|error| ApiError::from_chain(ErrorCode::Internal, &error))?;
    let subject = |ClusterHost { name, addresses, .. }| Subject { name, addresses };
    Ok(hosts.into_iter().map(subject).collect())
}

fn unknown(name: &str) -> ApiError {
    let message = format!("no host of the cluster is named {name}");
    ApiError::new(ErrorCode::NotFound, message)
        .hint("name it as `sterna host list` does where the cluster was made; not by its address")
}

/// What to do without this host.
pub(crate) fn directly(name: &str) -> String {
    format!("ask {name} itself: the same command without --via, where {name} can be reached")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_remembered_for_a_while_and_longer_if_there_is_no_other() {
        let (mut heard, start) = (Heard::default(), Instant::now());
        let hosts = |names: &[&str]| -> Vec<Subject> {
            let host = |name: &&str| Subject { name: (*name).into(), addresses: vec![] };
            names.iter().map(host).collect()
        };
        let away = || ApiError::new(ErrorCode::Internal, "a does not answer");
        assert!(heard.is_due("b", start));
        heard.hear(Err(away()), start);
        assert_eq!(heard.found("b").unwrap_err().code, ErrorCode::Unreachable);
        assert!(!heard.is_due("b", start), "each caller asks");

        heard.hear(Ok(hosts(&["a", "b"])), start);
        assert_eq!(heard.found("b").unwrap().name, "b");
        assert!(!heard.is_due("b", start + FRESH / 2));
        assert!(heard.is_due("b", start + FRESH));
        // One that has joined since.
        assert_eq!(heard.found("c").unwrap_err().code, ErrorCode::NotFound);
        assert!(!heard.is_due("c", start + FRESH_WITHOUT / 2));
        assert!(heard.is_due("c", start + FRESH_WITHOUT));

        let later = start + FRESH;
        heard.hear(Err(away()), later);
        assert_eq!(heard.found("b").unwrap().name, "b");
        assert_eq!(heard.found("c").unwrap_err().code, ErrorCode::Unreachable);
        assert!(!heard.is_due("b", later));
        // What is told at last holds.
        heard.hear(Ok(hosts(&["a", "c"])), later);
        assert_eq!(heard.found("b").unwrap_err().code, ErrorCode::NotFound);
    }
}
