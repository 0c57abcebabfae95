//! The agent as a service of systemd, where the package has been installed.

use serde::Serialize;
use std::fmt;
use std::path::Path;
use std::process::{Command, Stdio};

/// The folder that the unit's agent has its identity in.
const UNIT_IDENTITY: &str = "/etc/sterna";

/// What there is while systemd runs (sd_booted(3)).
const SYSTEMD: &str = "/run/systemd/system";

/// The unit, where the package puts it.
const UNIT: &str = "/usr/lib/systemd/system/sterna.service";

/// What has become of the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", content = "detail", rename_all = "kebab-case")]
pub(crate) enum Agent {
    /// It was started, and is with each boot.
    Started,
    /// It could not be, with the reason.
    Failed(String),
    /// It is for the operator to start.
    Yours,
}

impl fmt::Display for Agent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Started => f.write_str("the agent runs, and will after each boot"),
            Self::Failed(why) => {
                write!(f, "the agent could not be started: {why}; see `systemctl status sterna`")
            }
            Self::Yours => f.write_str("next: start the agent, `sterna agent`"),
        }
    }
}

/// Starts the agent, now and with each boot, if this host has its unit and the identity is the one that it uses.
pub(crate) fn begin(identity: &Path) -> Agent {
    let is_the_units = identity == Path::new(UNIT_IDENTITY)
        && Path::new(SYSTEMD).exists()
        && Path::new(UNIT).exists();
    if !is_the_units {
        return Agent::Yours;
    }
    let mut enable = Command::new("systemctl");
    enable.args(["enable", "--now", "sterna.service"]).stdin(Stdio::null());
    match enable.output() {
        Ok(output) if output.status.success() => Agent::Started,
        Ok(output) => Agent::Failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(error) => Agent::Failed(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_that_is_not_the_units_starts_no_service() {
        assert_eq!(begin(Path::new("/nowhere")), Agent::Yours);
    }
}
