//! `sterna host invite`

use crate::cli::{Global, Output};
use crate::exit::Exit;
use crate::output;
use std::net::IpAddr;
use std::time::{Duration, UNIX_EPOCH};
use sterna_api::{InvitationView, InviteRequest, paths};

/// Options of `sterna host invite`.
#[derive(Debug, clap::Args)]
pub(crate) struct InviteArgs {
    /// Name that the new host is to have: by it the others know it, and may reach it
    name: String,
    /// Address by which the new host may be reached too; may be repeated; the one from which it joins if not given
    #[arg(long = "address", value_name = "IP")]
    addresses: Vec<IpAddr>,
    /// Where the new host reaches this one, if not at the first address in its certificate
    #[arg(long, value_name = "HOST[:PORT]")]
    at: Option<String>,
}

/// Makes a code.
pub(super) async fn run(args: InviteArgs, global: &Global) -> anyhow::Result<Exit> {
    let InviteArgs { name, addresses, at } = args;
    let request = InviteRequest { name, addresses, at };
    let client = global.connection.client()?;
    let invitation: InvitationView = client.post(paths::INVITATIONS, &request).await?;
    match global.output {
        Output::Json => output::json(&invitation)?,
        Output::Text => {
            let InvitationView { name, code, until_unix_ms } = invitation;
            let until = UNIX_EPOCH.checked_add(Duration::from_millis(until_unix_ms));
            let until = humantime::format_rfc3339_seconds(until.unwrap_or(UNIX_EPOCH));
            println!("sterna host join {code}");
            eprintln!(
                "say this on {name}, once, until {until}; whoever has the code can become {name}"
            );
        }
    }
    Ok(Exit::Done)
}
