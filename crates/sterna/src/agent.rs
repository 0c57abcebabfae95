//! `sterna agent`

use crate::exit::Exit;
use crate::units;
use anyhow::Context as _;
use clap::ValueEnum;
use std::io::IsTerminal as _;
use std::net::{IpAddr, Ipv6Addr};
use std::path::PathBuf;
use sterna_agent::{PeerArguments, Settings};
use sterna_api::paths::{API_PORT, MOVE_PORT};
use tracing_subscriber::EnvFilter;

/// Options of `sterna agent`.
#[derive(Debug, clap::Args)]
pub(crate) struct AgentArgs {
    /// Name of this host, as in its certificate; its host name if not given
    #[arg(long)]
    name: Option<String>,
    /// Folder for what must survive a reboot
    #[arg(long, value_name = "DIR", default_value = "/var/lib/sterna")]
    state: PathBuf,
    /// Folder for sockets
    #[arg(long, value_name = "DIR", default_value = "/run/sterna")]
    runtime: PathBuf,
    /// Folder with ca.pem, host.pem and host.key; /etc/sterna if --identity is not given
    #[arg(from_global)]
    identity: Option<PathBuf>,
    /// Address on which other hosts are served
    #[arg(long, value_name = "ADDRESS", default_value_t = IpAddr::V6(Ipv6Addr::UNSPECIFIED))]
    listen: IpAddr,
    /// Port of the HTTPS interface
    #[arg(long, value_name = "PORT", default_value_t = API_PORT)]
    api_port: u16,
    /// Port on which guests arrive
    #[arg(long, value_name = "PORT", default_value_t = MOVE_PORT)]
    move_port: u16,
    /// QEMU program; looked for if not given
    #[arg(long, value_name = "FILE")]
    qemu: Option<PathBuf>,
    /// Take guests with QEMU arguments of their own from other hosts: whoever holds a certificate
    /// of the cluster can then run any program here
    #[arg(long)]
    accept_peer_arguments: bool,
    /// Keep the RAM of guests that have left, sealed, in this much of the state folder at most:
    /// what has not changed when they come back is not sent again
    #[arg(long, value_name = "SIZE", value_parser = units::parse_size, default_value = "0")]
    keep_images: u64,
    /// How log lines are written
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

/// Runs the agent until SIGTERM or SIGINT.
pub(crate) fn run(args: AgentArgs) -> anyhow::Result<Exit> {
    log(args.log_format);
    let settings = Settings {
        name: args.name.map_or_else(host_name, Ok)?,
        state: args.state,
        runtime: args.runtime,
        identity: args.identity.unwrap_or_else(|| "/etc/sterna".into()),
        listen: args.listen,
        api_port: args.api_port,
        move_port: args.move_port,
        qemu: args.qemu,
        peer_arguments: if args.accept_peer_arguments {
            PeerArguments::Accepted
        } else {
            PeerArguments::Refused
        },
        images_bytes_max: args.keep_images,
    };
    sterna_agent::serve(settings)?;
    Ok(Exit::Done)
}

fn host_name() -> anyhow::Result<String> {
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
