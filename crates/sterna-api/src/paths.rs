//! Paths of the interface, for the server's router and for clients.

use crate::address;

/// The host itself.
pub const HOST: &str = "/v1/host";
/// What the host has done and has, for Prometheus.
pub const METRICS: &str = "/metrics";
/// What happens on the host, as it happens.
pub const EVENTS: &str = "/v1/events";
/// All guests.
pub const GUESTS: &str = "/v1/guests";
/// One guest, as a pattern.
pub const GUEST: &str = "/v1/guests/{name}";
/// Guests that are defined and not started.
pub const DEFINITIONS: &str = "/v1/definitions";
/// A guest's definition, as a pattern.
pub const DEFINITION: &str = "/v1/guests/{name}/definition";
/// Starts a guest that is defined, as a pattern.
pub const START: &str = "/v1/guests/{name}/start";
/// Ends a guest and keeps its definition, as a pattern.
pub const STOP: &str = "/v1/guests/{name}/stop";
/// What a guest's hypervisor says, as a pattern.
pub const LOG: &str = "/v1/guests/{name}/log";
/// A guest's console, as a pattern.
pub const CONSOLE: &str = "/v1/guests/{name}/console";
/// Lets a guest run that is paused, as a pattern.
pub const RUN: &str = "/v1/guests/{name}/run";
/// Makes a guest stand still until it is told to run, as a pattern.
pub const PAUSE: &str = "/v1/guests/{name}/pause";
/// Presses a guest's reset button, as a pattern.
pub const RESET: &str = "/v1/guests/{name}/reset";
/// Presses a guest's power button, as a pattern.
pub const SHUTDOWN: &str = "/v1/guests/{name}/shutdown";
/// Gives a running guest a new hypervisor, as a pattern.
pub const UPGRADE: &str = "/v1/guests/{name}/upgrade";
/// Whether and where a guest could move, as a pattern.
pub const CHECK: &str = "/v1/guests/{name}/check";
/// What moving a guest would cost, as a pattern.
pub const PLAN: &str = "/v1/guests/{name}/plan";
/// Moves of a guest, as a pattern.
pub const GUEST_MOVES: &str = "/v1/guests/{name}/moves";
/// What is in doubt about a guest, as a pattern.
pub const DOUBT: &str = "/v1/guests/{name}/doubt";
/// All moves.
pub const MOVES: &str = "/v1/moves";
/// One move, as a pattern.
pub const MOVE: &str = "/v1/moves/{id}";
/// All kept RAM images.
pub const IMAGES: &str = "/v1/images";
/// One guest's image, as a pattern.
pub const IMAGE: &str = "/v1/images/{guest}";
/// Certificates that are no longer accepted.
pub const REVOKED: &str = "/v1/revoked";
/// All hosts of the cluster.
pub const HOSTS: &str = "/v1/hosts";
/// One host of the cluster, as a pattern.
pub const CLUSTER_HOST: &str = "/v1/hosts/{name}";
/// Invitations of new hosts.
pub const INVITATIONS: &str = "/v1/invitations";
/// Certificates that follow others.
pub const CERTIFICATES: &str = "/v1/certificates";

/// Port of the interface over HTTPS.
pub const API_PORT: u16 = 7400;
/// Port on which guests arrive.
pub const MOVE_PORT: u16 = 7401;
/// Port on which hosts join.
pub const JOIN_PORT: u16 = 7402;

/// Bytes of a JSON request at most: a definition with many disks has some ten thousand.
pub const REQUEST_BYTES_MAX: usize = 1 << 20;
/// Bytes of console input in one request at most.
pub const CONSOLE_INPUT_BYTES_MAX: usize = 64 << 10;
/// Milliseconds for which a question about a move may wait for news at most.
pub const WAIT_MS_MAX: u64 = 30_000;

/// The start of every address on a host that is named with or without a port; as it is if it is none.
#[must_use]
pub fn https(host: &str) -> String {
    match address::split(host, API_PORT) {
        Ok((host, port)) => format!("https://{}", address::join(host, port)),
        Err(_) => format!("https://{host}"),
    }
}

/// A pattern with its one parameter put in. Names of guests and ids need no escaping; anything
/// else is escaped so that it stays one segment.
#[must_use]
pub fn with(pattern: &str, value: &str) -> String {
    use std::fmt::Write as _;
    let mut segment = String::new();
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.".contains(&byte) {
            segment.push(char::from(byte));
        } else {
            let _ = write!(segment, "%{byte:02X}");
        }
    }
    match (pattern.find('{'), pattern.find('}')) {
        (Some(from), Some(to)) => format!("{}{segment}{}", &pattern[..from], &pattern[to + 1..]),
        _ => pattern.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_has_a_port_or_gets_one() {
        assert_eq!(https("b"), "https://b:7400");
        assert_eq!(https("b:9"), "https://b:9");
        assert_eq!(https("fd00::2"), "https://[fd00::2]:7400");
        assert_eq!(https("[fd00::2]"), "https://[fd00::2]:7400");
        assert_eq!(https("[fd00::2]:9"), "https://[fd00::2]:9");
    }

    #[test]
    fn a_name_stays_one_segment() {
        assert_eq!(with(CONSOLE, "web-1"), "/v1/guests/web-1/console");
        assert_eq!(with(GUEST, "../host?x"), "/v1/guests/..%2Fhost%3Fx");
    }
}
