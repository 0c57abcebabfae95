//! The agent's configuration file.

use super::{LogFormat, TrackerName};
use crate::units::{parse_rate, parse_size};
use anyhow::Context as _;
use serde::Deserialize;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use sterna_agent::{GuestUsers, GuestUsersError, MoveLimits};

/// Where the file is if nobody says so.
pub(crate) const USUAL: &str = "/etc/sterna/agent.toml";

/// What the file says; all of it may be left out. Options of the command line are stronger.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct File {
    pub(super) name: Option<String>,
    pub(super) state: Option<PathBuf>,
    pub(super) runtime: Option<PathBuf>,
    pub(super) identity: Option<PathBuf>,
    pub(super) listen: Option<IpAddr>,
    pub(super) move_listen: Option<IpAddr>,
    pub(super) api_port: Option<u16>,
    pub(super) move_port: Option<u16>,
    pub(super) join_port: Option<u16>,
    pub(super) qemu: Option<PathBuf>,
    pub(super) guest_uids: Option<Users>,
    pub(super) tracker: Option<TrackerName>,
    pub(super) accept_peer_arguments: bool,
    pub(super) keep_images: Option<Size>,
    pub(super) log_format: Option<LogFormat>,
    moves: Moves,
}

/// What may be changed while the agent runs.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
struct Moves {
    from_here: Option<NonZeroU32>,
    to_one_host: Option<NonZeroU32>,
    to_here: Option<NonZeroU32>,
    bandwidth: Option<Rate>,
}

/// Bytes, as people write them.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Size(pub(super) u64);

/// Ids of users, as people write them.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Users(pub(super) GuestUsers);

/// Bytes a second, as people write them.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(try_from = "String")]
struct Rate(u64);

impl TryFrom<String> for Size {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        parse_size(&text).map(Self)
    }
}

impl TryFrom<String> for Users {
    type Error = GuestUsersError;

    fn try_from(text: String) -> Result<Self, GuestUsersError> {
        text.parse().map(Self)
    }
}

impl TryFrom<String> for Rate {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match parse_rate(&text)? {
            0 => Err("nothing could be moved at this rate; leave it out for no limit".into()),
            rate => Ok(Self(rate)),
        }
    }
}

impl File {
    /// Reads the file of this name, or the usual one if none is given and it is there.
    pub(crate) fn find(given: Option<&Path>) -> anyhow::Result<Self> {
        match given {
            Some(path) => Self::read(path),
            None if Path::new(USUAL).exists() => Self::read(Path::new(USUAL)),
            None => Ok(Self::default()),
        }
    }

    fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path);
        let text = text.with_context(|| format!("cannot read {}", path.display()))?;
        // The error shows line, column and the line itself.
        toml::from_str(&text).with_context(|| format!("{} cannot be used", path.display()))
    }

    /// Users that guests' hypervisors run as, if the file says so.
    pub(crate) fn guest_users(&self) -> Option<&GuestUsers> {
        self.guest_uids.as_ref().map(|users| &users.0)
    }

    /// How writes are tracked, if the file says so.
    pub(crate) fn tracker(&self) -> Option<TrackerName> {
        self.tracker
    }

    /// The QEMU program, if the file says so.
    pub(crate) fn qemu(&self) -> Option<&Path> {
        self.qemu.as_deref()
    }

    /// How many moves there may be.
    pub(super) fn limits(&self) -> MoveLimits {
        let usual = MoveLimits::default();
        let Moves { from_here, to_one_host, to_here, bandwidth } = self.moves;
        MoveLimits {
            from_here: from_here.unwrap_or(usual.from_here),
            to_one_host: to_one_host.unwrap_or(usual.to_one_host),
            to_here: to_here.unwrap_or(usual.to_here),
            bandwidth_bytes_per_second: bandwidth.map(|rate| rate.0),
        }
    }

    /// Whether another file differs from this one in what holds only from the agent's next start on.
    pub(super) fn needs_restart_for(&self, new: &Self) -> bool {
        Self { moves: self.moves.clone(), ..new.clone() } != *self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sterna_agent::GUEST_USERS_SUGGESTED;

    const EXAMPLE: &str = include_str!("../../../../packaging/agent.toml");

    fn read(text: &str) -> anyhow::Result<File> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("agent.toml");
        std::fs::write(&path, text)?;
        File::find(Some(&path))
    }

    #[test]
    fn the_file_that_is_installed_changes_nothing_and_shows_every_setting() {
        assert_eq!(read(EXAMPLE).unwrap(), File::default());
        let uncommented = EXAMPLE.lines().map(|line| match line.strip_prefix('#') {
            Some(setting) if setting.contains(" = ") && !setting.starts_with(' ') => setting,
            _ => line,
        });
        let all = read(&uncommented.collect::<Vec<_>>().join("\n")).unwrap();
        let File { name, state, runtime, identity, listen, api_port, move_port, join_port, .. } =
            all.clone();
        assert!(name.is_some() && state.is_some() && runtime.is_some() && identity.is_some());
        assert!(listen.is_some() && api_port.is_some() && move_port.is_some());
        assert!(join_port.is_some() && all.move_listen.is_some());
        assert_eq!(all.guest_uids, Some(Users(GUEST_USERS_SUGGESTED.parse().unwrap())));
        assert_eq!(all.tracker, Some(TrackerName::PagemapScan));
        assert!(all.qemu.is_some() && all.keep_images.is_some() && all.log_format.is_some());
        let Moves { from_here, to_one_host, to_here, bandwidth } = all.moves.clone();
        assert!(from_here.is_some() && to_one_host.is_some() && to_here.is_some());
        assert_eq!(bandwidth, Some(Rate(500_000_000)));
        // What the comments call usual is.
        let usual =
            MoveLimits { bandwidth_bytes_per_second: Some(500_000_000), ..MoveLimits::default() };
        assert_eq!(all.limits(), usual);
    }

    #[test]
    fn an_error_names_file_line_and_column() {
        for (text, place, what) in [
            ("name = \"a\"\nlisten = \"b\"", "line 2, column 10", "IP address"),
            ("[moves]\nfrom-here = 0", "line 2, column 13", "nonzero"),
            ("[moves]\n\nfrom-hear = 1", "line 3, column 1", "unknown field `from-hear`"),
            ("[moves]\nbandwidth = \"fast\"", "line 2, column 13", "fast"),
            ("[moves]\nbandwidth = \"0\"", "line 2, column 13", "no limit"),
            ("guest-uids = \"0-9\"", "line 1, column 14", "0 cannot be a guest's"),
            ("keep-images = 5", "line 1, column 15", "string"),
            ("name = ", "line 1, column 8", ""),
        ] {
            let error = format!("{:#}", read(text).unwrap_err());
            assert!(error.contains("agent.toml cannot be used"), "{error}");
            assert!(error.contains(place) && error.contains(what), "{text:?}: {error}");
        }
        let error = File::find(Some(Path::new("/nowhere/agent.toml"))).unwrap_err();
        assert!(format!("{error:#}").contains("cannot read /nowhere/agent.toml"), "{error:#}");
    }

    #[test]
    fn only_limits_of_moves_change_without_a_restart() {
        let before = read("name = \"a\"").unwrap();
        let limits = read("name = \"a\"\n[moves]\nfrom-here = 5").unwrap();
        assert!(!before.needs_restart_for(&limits));
        assert_eq!(limits.limits().from_here.get(), 5);
        assert!(before.needs_restart_for(&read("name = \"b\"").unwrap()));
    }
}
