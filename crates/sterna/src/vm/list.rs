//! `sterna vm list`

use crate::cli::{Global, Output};
use crate::exit::Exit;
use crate::{output, units};
use sterna_api::{GuestView, paths};

/// Options of `sterna vm list`.
#[derive(Debug, clap::Args)]
pub(crate) struct ListArgs {}

/// Lists guests.
pub(crate) async fn run(ListArgs {}: ListArgs, global: &Global) -> anyhow::Result<Exit> {
    let guests: Vec<GuestView> = global.connection.client()?.get(paths::GUESTS).await?;
    match global.output {
        Output::Json => output::json(&guests)?,
        Output::Text => {
            let rows: Vec<Vec<String>> = guests.iter().map(row).collect();
            output::table(&["NAME", "MEMORY", "VCPUS", "PID", "STATE"], &rows);
        }
    }
    Ok(Exit::Done)
}

fn row(view: &GuestView) -> Vec<String> {
    let pid = view.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string());
    let vcpus = view.definition.vcpus.to_string();
    vec![view.name.clone(), units::size(view.memory_bytes), vcpus, pid, super::state(view)]
}
