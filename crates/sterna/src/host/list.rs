//! `sterna host list`

use crate::cli::{Global, Output};
use crate::exit::Exit;
use crate::output;
use std::time::{Duration, UNIX_EPOCH};
use sterna_api::{ClusterHost, paths};

/// Lists the hosts of the cluster.
pub(super) async fn run(global: &Global) -> anyhow::Result<Exit> {
    let hosts: Vec<ClusterHost> = global.connection.client()?.get(paths::HOSTS).await?;
    match global.output {
        Output::Json => output::json(&hosts)?,
        Output::Text => {
            let rows: Vec<_> = hosts.iter().map(row).collect();
            output::table(&["HOST", "ADDRESSES", "CERTIFICATE UNTIL"], &rows);
        }
    }
    Ok(Exit::Done)
}

fn row(host: &ClusterHost) -> Vec<String> {
    let addresses: Vec<_> = host.addresses.iter().map(ToString::to_string).collect();
    let until = UNIX_EPOCH.checked_add(Duration::from_millis(host.until_unix_ms));
    let until = humantime::format_rfc3339_seconds(until.unwrap_or(UNIX_EPOCH));
    vec![host.name.clone(), addresses.join(" "), until.to_string()]
}
