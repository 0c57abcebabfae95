//! `sterna cluster init`

use crate::agent::host_name;
use crate::cli::{Global, Output};
use crate::exit::Exit;
use crate::host::BELONGS;
use crate::{output, service};
use anyhow::Context as _;
use serde::Serialize;
use std::net::IpAddr;
use std::path::PathBuf;
use sterna_pki::{AUTHORITY_FOLDER, Authority, SignedIdentity, Subject, Validity};

/// Options of `sterna cluster init`. The identity is written to /etc/sterna if --identity is not given.
#[derive(Debug, clap::Args)]
pub(crate) struct InitArgs {
    /// Name of this host; its host name if not given
    #[arg(long)]
    name: Option<String>,
    /// Address by which other hosts reach this one; may be repeated, and should be given unless they know its name
    #[arg(long = "address", value_name = "IP")]
    addresses: Vec<IpAddr>,
}

#[derive(Serialize)]
struct Made {
    name: String,
    addresses: Vec<IpAddr>,
    identity: PathBuf,
    agent: service::Agent,
}

/// Makes an authority and this host's identity.
pub(crate) fn run(args: &InitArgs, global: &Global) -> anyhow::Result<Exit> {
    let identity = global.connection.identity_folder();
    SignedIdentity::has_room(&identity).context(BELONGS)?;
    let name = args.name.clone().map_or_else(host_name, Ok)?;
    let subject = Subject { name: name.clone(), addresses: args.addresses.clone() };
    subject.check()?;
    let authority = Authority::create(&identity.join(AUTHORITY_FOLDER))?;
    authority.issue(&subject, Validity::renewed())?.write(&identity)?;
    let agent = service::begin(&identity);
    let made = Made { name, addresses: args.addresses.clone(), identity, agent };
    match global.output {
        Output::Json => output::json(&made)?,
        Output::Text => {
            let Made { name, identity, agent, .. } = made;
            println!("made a cluster with {name} as its first host, in {}", identity.display());
            println!("{agent}");
            println!("next, for each further host: sterna host invite NAME");
        }
    }
    Ok(Exit::Done)
}
