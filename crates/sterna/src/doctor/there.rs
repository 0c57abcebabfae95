//! How another host looks from here: its ports, its clock, its version, and the packets that reach it.

use super::mtu::{self, PathMtu};
use std::io;
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
            findings.push(packets(host, info.move_port).await);
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

/// Packets of full size get there.
async fn packets(host: &str, port: u16) -> Finding {
    let (name, _) = address::split(host, port).unwrap_or((host, port));
    let found = async {
        let mut addresses = tokio::net::lookup_host((name, port)).await?;
        let none = || io::Error::new(io::ErrorKind::NotFound, "it has no address");
        mtu::find(addresses.next().ok_or_else(none)?).await
    };
    match found.await {
        Ok(found) => mtu_of(host, found),
        Err(error) => {
            let detail = format!("no datagram can be sent there: {error}");
            bad(host, "MTU", Verdict::Limited, detail, format!("ip route get {name}"))
        }
    }
}

fn mtu_of(host: &str, found: PathMtu) -> Finding {
    match found {
        PathMtu::Through(size) => good(host, "MTU", format!("packets of {size} bytes get there")),
        PathMtu::Unknown(size) => {
            let detail = format!(
                "packets of {size} bytes leave here; it does not say whether they get there"
            );
            // `ping` counts without the headers of IP and ICMP.
            let (name, size) = (address::split(host, 0).map_or(host, |(name, _)| name), size - 28);
            let remedy =
                format!("ping -c 3 -M do -s {size} {name}; if that is answered all is well");
            bad(host, "MTU", Verdict::Limited, detail, remedy)
        }
        PathMtu::Vanish(size, through) => {
            let detail = match through {
                Some(through) => {
                    format!("packets of {size} bytes vanish on the way, of {through} get there")
                }
                None => format!("packets of {size} bytes vanish on the way, and smaller ones too"),
            };
            let remedy = match through {
                Some(through) => format!(
                    "ip link set DEVICE mtu {through} on both hosts, or let what is between them pass {size}: a move would \
                     stand still with its first page"
                ),
                None => {
                    "see what is between the hosts: a move would stand still with its first page"
                        .into()
                }
            };
            bad(host, "MTU", Verdict::Missing, detail, remedy)
        }
    }
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
    fn packets_that_vanish_forbid_moves_and_the_remedy_says_what_gets_through() {
        assert_eq!(mtu_of("b", PathMtu::Through(9000)).verdict, Verdict::Good);
        let unknown = mtu_of("b:7077", PathMtu::Unknown(1500));
        assert_eq!(unknown.verdict, Verdict::Limited);
        assert!(unknown.remedy.unwrap().starts_with("ping -c 3 -M do -s 1472 b;"));
        let vanish = mtu_of("b", PathMtu::Vanish(9000, Some(1500)));
        assert_eq!(vanish.verdict, Verdict::Missing);
        assert!(vanish.remedy.unwrap().starts_with("ip link set DEVICE mtu 1500 "));
        assert_eq!(mtu_of("b", PathMtu::Vanish(9000, None)).verdict, Verdict::Missing);
    }

    #[test]
    fn hosts_should_have_one_version() {
        assert_eq!(version("b", env!("CARGO_PKG_VERSION")).verdict, Verdict::Good);
        let older = version("b", "0.0.1");
        assert_eq!(older.verdict, Verdict::Limited);
        assert!(older.detail.contains("0.0.1 there"));
    }
}
