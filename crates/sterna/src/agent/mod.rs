//! `sterna agent`
//!
//! What an option does not say the configuration file does, and what that does not say is as usual.

pub(crate) mod file;

use crate::client::IDENTITY;
use crate::exit::Exit;
use crate::units;
use anyhow::Context as _;
use clap::ValueEnum;
use file::File;
use serde::Deserialize;
use std::io::IsTerminal as _;
use std::net::{IpAddr, Ipv6Addr};
use std::path::{Path, PathBuf};
use sterna_agent::{GuestUsers, MoveLimits, PeerArguments, Settings};
use sterna_api::paths::{API_PORT, JOIN_PORT, MOVE_PORT};
use sterna_engine::identity::CERTIFICATE_FILE;
use sterna_pki::HostCertificate;
use sterna_vmm::Tracker;
use tracing_subscriber::EnvFilter;

/// Options of `sterna agent`.
#[derive(Debug, clap::Args)]
pub(crate) struct AgentArgs {
    /// Configuration file; /etc/sterna/agent.toml if there is one. Options are stronger than the file; SIGHUP has its
    /// limits of moves read again
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Only say whether options and configuration file can be used
    #[arg(long)]
    check: bool,
    /// Name of this host; the one in its certificate if not given
    #[arg(long)]
    name: Option<String>,
    /// Folder for what must survive a reboot; /var/lib/sterna if not given
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Folder for sockets; /run/sterna if not given
    #[arg(long, value_name = "DIR")]
    runtime: Option<PathBuf>,
    /// Folder with ca.pem, host.pem and host.key; /etc/sterna if --identity is not given
    #[arg(from_global)]
    identity: Option<PathBuf>,
    /// Address on which other hosts are served; all if not given
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<IpAddr>,
    /// Address on which guests arrive, if moves have a network of their own: the other hosts name it in --to; the one
    /// of --listen if not given
    #[arg(long, value_name = "ADDRESS")]
    move_listen: Option<IpAddr>,
    /// Port of the HTTPS interface; 7400 if not given
    #[arg(long, value_name = "PORT")]
    api_port: Option<u16>,
    /// Port on which guests arrive; 7401 if not given
    #[arg(long, value_name = "PORT")]
    move_port: Option<u16>,
    /// Port on which hosts join, where the cluster was made; 7402 if not given
    #[arg(long, value_name = "PORT")]
    join_port: Option<u16>,
    /// QEMU program; looked for if not given
    #[arg(long, value_name = "FILE")]
    qemu: Option<PathBuf>,
    /// Run each guest's QEMU as a user of its own, of these ids, and not as root: one that its guest has taken over reaches
    /// nothing of other guests; for example 1900000000-1900004095
    #[arg(long, value_name = "FIRST-LAST")]
    guest_uids: Option<GuestUsers>,
    /// How the writes of guests that leave are tracked; the best that the kernel can if not given
    #[arg(long, value_enum)]
    tracker: Option<TrackerName>,
    /// Take guests with QEMU arguments of their own from other hosts: whoever holds a certificate
    /// of the cluster can then run any program here
    #[arg(long)]
    accept_peer_arguments: bool,
    /// Keep the RAM of guests that have left, sealed, in this much of the state folder at most:
    /// what has not changed when they come back is not sent again; none if not given
    #[arg(long, value_name = "SIZE", value_parser = units::parse_size)]
    keep_images: Option<u64>,
    /// How log lines are written; as text if not given
    #[arg(long, value_enum)]
    log_format: Option<LogFormat>,
}

/// Ways of tracking writes.
#[derive(Clone, Copy, Debug, PartialEq, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum TrackerName {
    /// Linux 6.7 or later; never stops a guest
    PagemapScan,
    /// Older kernels; each round of a move stops the guest for a moment, and none of huge pages can leave
    SoftDirty,
}

impl TrackerName {
    /// The tracker that is named, as the configuration file has it.
    pub(crate) fn name(self) -> &'static str {
        Tracker::from(self).name()
    }
}

impl From<TrackerName> for Tracker {
    fn from(name: TrackerName) -> Self {
        match name {
            TrackerName::PagemapScan => Self::PagemapScan,
            TrackerName::SoftDirty => Self::SoftDirty,
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum LogFormat {
    #[default]
    Text,
    Json,
}

/// Runs the agent until SIGTERM or SIGINT.
pub(crate) fn run(args: AgentArgs) -> anyhow::Result<Exit> {
    let config = args.config.clone();
    let file = File::find(config.as_deref())?;
    let (log_format, check) = (args.log_format.or(file.log_format).unwrap_or_default(), args.check);
    let settings = settings(args, file.clone())?;
    if check {
        settings.guest_users.as_ref().map(GuestUsers::check).transpose()?;
        println!("the configuration can be used");
        return Ok(Exit::Done);
    }
    log(log_format);
    sterna_agent::serve(settings, Box::new(move || limits_again(config.as_deref(), &file)))?;
    Ok(Exit::Done)
}

/// Options first, then the file, then what is usual.
fn settings(args: AgentArgs, file: File) -> anyhow::Result<Settings> {
    let moves = file.limits();
    let accepts_arguments = args.accept_peer_arguments || file.accept_peer_arguments;
    let images_bytes_max = args.keep_images.or(file.keep_images.map(|size| size.0));
    let identity = args.identity.or(file.identity).unwrap_or_else(|| IDENTITY.into());
    let all_addresses = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    let listen = args.listen.or(file.listen).unwrap_or(all_addresses);
    Ok(Settings {
        name: args.name.or(file.name).map_or_else(|| certified_name(&identity), Ok)?,
        state: args.state.or(file.state).unwrap_or_else(|| "/var/lib/sterna".into()),
        runtime: args.runtime.or(file.runtime).unwrap_or_else(|| "/run/sterna".into()),
        identity,
        listen,
        move_listen: args.move_listen.or(file.move_listen).unwrap_or(listen),
        api_port: args.api_port.or(file.api_port).unwrap_or(API_PORT),
        move_port: args.move_port.or(file.move_port).unwrap_or(MOVE_PORT),
        join_port: args.join_port.or(file.join_port).unwrap_or(JOIN_PORT),
        qemu: args.qemu.or(file.qemu),
        guest_users: args.guest_uids.or(file.guest_uids.map(|users| users.0)),
        tracker: args.tracker.or(file.tracker).map(Tracker::from),
        peer_arguments: match accepts_arguments {
            true => PeerArguments::Accepted,
            false => PeerArguments::Refused,
        },
        images_bytes_max: images_bytes_max.unwrap_or(0),
        moves,
    })
}

/// What the file says of moves now; `first` is what it said when the agent began.
fn limits_again(config: Option<&Path>, first: &File) -> Result<MoveLimits, String> {
    let file = File::find(config).map_err(|error| format!("{error:#}"))?;
    if first.needs_restart_for(&file) {
        tracing::warn!(
            "the configuration has changed in more than its limits of moves: that holds from the next start"
        );
    }
    Ok(file.limits())
}

/// The name in this host's certificate; without one the host's own, as the agent says by itself what is missing.
fn certified_name(identity: &Path) -> anyhow::Result<String> {
    match HostCertificate::read(&identity.join(CERTIFICATE_FILE)) {
        Ok(certificate) => Ok(certificate.subject.name),
        Err(_) => host_name(),
    }
}

/// This host's name, as the system has it.
pub(crate) fn host_name() -> anyhow::Result<String> {
    let name = rustix::system::uname().nodename().to_str().map(ToOwned::to_owned);
    name.context("this host's name is not text; give one with --name")
}

/// Logs to stderr; `RUST_LOG` says how much.
fn log(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    match format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
}
