//! How another host looks from here: its ports, its clock, its version.

use std::time::{Duration, SystemTime};
use sterna_api::{Finding, HostInfo, Verdict, address, paths};
use sterna_engine::identity::Identity;
use tokio::net::TcpStream;

/// How long the other host may take for an answer.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// By how much clocks may differ: certificates of an authority begin an hour early, but receipts and events are compared
/// by people.
const CLOCKS_DIFFER_MAX: Duration = Duration::from_secs(5);

/// Examines another host.
pub(super) async fn examine(host: &str, identity: &Identity) -> Vec<Finding> {
    let mut findings = Vec::new();
    match ask(host, identity).await {
        Ok((info, their_time)) => {
            findings.push(good(host, "interface", "it answers, and knows this host"));
            findings.push(clock(host, their_time, SystemTime::now()));
            findings.push(version(host, &info.version));
            findings.push(move_port(host, info.move_port).await);
        }
        Err(why) => {
            let remedy = format!(
                "see that its agent runs (`systemctl status sterna`), that nothing between the hosts closes port {}, and that \
                 both are of one cluster (`sterna host list`)",
                paths::API_PORT
            );
            findings.push(bad(host, "interface", Verdict::Missing, why, remedy));
        }
    }
    findings
}

async fn ask(host: &str, identity: &Identity) -> Result<(HostInfo, Option<SystemTime>), String> {
    let tls = (*identity.client()).clone();
    let client = reqwest::Client::builder().tls_backend_preconfigured(tls).no_proxy();
    let client = client.timeout(ANSWER_MAX).build().map_err(|error| words(&error))?;
    let address = format!("{}{}", paths::https(host), paths::HOST);
    let answer = client.get(address).send().await.map_err(|error| words(&error))?;
    let answer = answer.error_for_status().map_err(|error| words(&error))?;
    let date = answer.headers().get(reqwest::header::DATE);
    let date = date.and_then(|date| httpdate::parse_http_date(date.to_str().ok()?).ok());
    Ok((answer.json().await.map_err(|error| words(&error))?, date))
}

fn words(error: &reqwest::Error) -> String {
    sterna_api::ApiError::from_chain(sterna_api::ErrorCode::Internal, error).message
}

fn clock(host: &str, theirs: Option<SystemTime>, ours: SystemTime) -> Finding {
    let Some(theirs) = theirs else {
        let remedy = "compare the clocks by hand";
        return bad(host, "clock", Verdict::Limited, "it does not tell its time", remedy);
    };
    let differ = theirs.duration_since(ours).unwrap_or_else(|error| error.duration());
    // It tells whole seconds.
    let detail = format!("differs by about {} s", differ.as_secs());
    match differ <= CLOCKS_DIFFER_MAX {
        true => good(host, "clock", detail),
        false => bad(
            host,
            "clock",
            Verdict::Limited,
            detail,
            "set both by the network: apt install systemd-timesyncd",
        ),
    }
}

fn version(host: &str, theirs: &str) -> Finding {
    let ours = env!("CARGO_PKG_VERSION");
    match theirs == ours {
        true => good(host, "version", theirs),
        false => {
            let detail = format!("{theirs} there, {ours} here");
            let remedy = "upgrade the older one: guests run on";
            bad(host, "version", Verdict::Limited, detail, remedy)
        }
    }
}

/// Guests arrive on a port of its own.
async fn move_port(host: &str, port: u16) -> Finding {
    let (name, _) = address::split(host, port).unwrap_or((host, port));
    let connected = tokio::time::timeout(ANSWER_MAX, TcpStream::connect((name, port))).await;
    let why = match connected {
        Ok(Ok(_)) => return good(host, "moves", format!("port {port} is open")),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "nobody answers".into(),
    };
    let detail = format!("port {port} is not: {why}");
    let remedy = format!("let port {port} through between the hosts");
    bad(host, "moves", Verdict::Missing, detail, remedy)
}

fn good(host: &str, what: &str, detail: impl Into<String>) -> Finding {
    let check = format!("{host} {what}");
    Finding { check, verdict: Verdict::Good, detail: detail.into(), remedy: None }
}

fn bad(
    host: &str,
    what: &str,
    verdict: Verdict,
    detail: impl Into<String>,
    remedy: impl Into<String>,
) -> Finding {
    let check = format!("{host} {what}");
    Finding { check, verdict, detail: detail.into(), remedy: Some(remedy.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_may_differ_by_seconds_either_way() {
        let ours = SystemTime::now();
        for (seconds, verdict) in [(0, Verdict::Good), (4, Verdict::Good), (60, Verdict::Limited)] {
            let by = Duration::from_secs(seconds);
            assert_eq!(clock("b", Some(ours + by), ours).verdict, verdict);
            assert_eq!(clock("b", Some(ours - by), ours).verdict, verdict);
        }
        assert_eq!(clock("b", None, ours).verdict, Verdict::Limited);
    }

    #[test]
    fn hosts_should_have_one_version() {
        assert_eq!(version("b", env!("CARGO_PKG_VERSION")).verdict, Verdict::Good);
        let older = version("b", "0.0.1");
        assert_eq!(older.verdict, Verdict::Limited);
        assert!(older.detail.contains("0.0.1 there"));
    }
}
