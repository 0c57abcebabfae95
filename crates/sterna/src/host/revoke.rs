//! `sterna host revoke`

use crate::cli::{Global, Output};
use crate::exit::Exit;
use crate::output;
use sterna_api::{HostRevoked, paths};

/// Options of `sterna host revoke`.
#[derive(Debug, clap::Args)]
pub(crate) struct RevokeArgs {
    /// Name of the host; empty it first, as its guests cannot leave it afterwards
    name: String,
}

/// Revokes a host.
pub(super) async fn run(args: &RevokeArgs, global: &Global) -> anyhow::Result<Exit> {
    let client = global.connection.client()?;
    let path = paths::with(paths::CLUSTER_HOST, &args.name);
    let revoked: HostRevoked = client.delete(&path).await?;
    match global.output {
        Output::Json => output::json(&revoked)?,
        Output::Text => {
            let HostRevoked { name, told, not_told, .. } = revoked;
            println!("{name} is let in no longer by {}", told.join(", "));
            for one in &not_told {
                println!("{} does not know yet: {}; it asks within the hour", one.host, one.why);
            }
        }
    }
    Ok(Exit::Done)
}
