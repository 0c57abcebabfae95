//! `sterna vm run`

use crate::cli::Global;
use crate::exit::Exit;
use sterna_api::{GuestView, RunGuest, paths};

/// Options of `sterna vm run`.
#[derive(Debug, clap::Args)]
pub(crate) struct RunArgs {
    /// Name of the guest
    name: String,
    /// You have made sure that the guest runs on no other host: two running copies destroy its
    /// disks
    #[arg(long)]
    runs_nowhere_else: bool,
}

/// Lets a paused guest run.
pub(crate) async fn run(args: RunArgs, global: &Global) -> anyhow::Result<Exit> {
    let path = paths::with(paths::RUN, &args.name);
    let request = RunGuest { runs_nowhere_else: args.runs_nowhere_else };
    let view: GuestView = global.connection.client()?.post(&path, &request).await?;
    super::print(&view, global.output)
}
