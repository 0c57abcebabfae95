//! `sterna pki host`

use crate::exit::Exit;
use std::net::IpAddr;
use std::path::PathBuf;
use sterna_pki::{Authority, Subject, Validity};

/// Options of `sterna pki host`.
#[derive(Debug, clap::Args)]
pub(crate) struct HostArgs {
    /// Folder of the authority, as made by `sterna pki init`
    dir: PathBuf,
    /// Name of the host: by it other hosts reach and know it
    name: String,
    /// Address by which the host may be reached too; may be repeated
    #[arg(long = "address", value_name = "IP")]
    addresses: Vec<IpAddr>,
    /// Folder for ca.pem, host.pem and host.key
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

/// Makes a host's certificate and key.
pub(crate) fn run(args: &HostArgs) -> anyhow::Result<Exit> {
    let authority = Authority::read(&args.dir)?;
    let subject = Subject { name: args.name.clone(), addresses: args.addresses.clone() };
    let host = authority.issue(&subject, Validity::by_hand())?;
    host.write(&args.out)?;
    println!("made the identity of {} in {}", args.name, args.out.display());
    Ok(Exit::Done)
}
