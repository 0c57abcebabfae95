//! `sterna host join`

use crate::cli::{Global, Output};
use crate::exit::Exit;
use crate::{output, service};
use anyhow::Context as _;
use serde::Serialize;
use std::net::IpAddr;
use std::path::PathBuf;
use sterna_engine::identity::CERTIFICATE_FILE;
use sterna_pki::{HostCertificate, JoinCode, SignedIdentity, Subject, join};

/// Why a host with an identity gets no other.
pub(crate) const BELONGS: &str = "this host belongs to a cluster";

/// Options of `sterna host join`. The identity is written to /etc/sterna if --identity is not given.
#[derive(Debug, clap::Args)]
pub(crate) struct JoinArgs {
    /// The code, as `sterna host invite` has shown it
    code: JoinCode,
}

#[derive(Serialize)]
struct Joined {
    name: String,
    addresses: Vec<IpAddr>,
    identity: PathBuf,
    agent: service::Agent,
}

/// Joins, and writes this host's identity.
pub(super) async fn run(args: &JoinArgs, global: &Global) -> anyhow::Result<Exit> {
    let identity = global.connection.identity_folder();
    // Said before the code is used up.
    SignedIdentity::has_room(&identity).context(BELONGS)?;
    join::join(&args.code).await?.write(&identity)?;
    let certificate = HostCertificate::read(&identity.join(CERTIFICATE_FILE))?;
    let Subject { name, addresses } = certificate.subject;
    let joined = Joined { name, addresses, agent: service::begin(&identity), identity };
    match global.output {
        Output::Json => output::json(&joined)?,
        Output::Text => {
            let Joined { name, identity, agent, .. } = joined;
            println!("this host is {name} of the cluster, by {}", identity.display());
            println!("{agent}");
        }
    }
    Ok(Exit::Done)
}
