//! `sterna vm stop`

use crate::cli::Global;
use crate::exit::Exit;
use sterna_api::{GuestView, paths};

/// Options of `sterna vm stop`.
#[derive(Debug, clap::Args)]
pub(crate) struct StopArgs {
    /// Name of the guest
    name: String,
}

/// Ends a guest.
pub(crate) async fn run(args: StopArgs, global: &Global) -> anyhow::Result<Exit> {
    let path = paths::with(paths::STOP, &args.name);
    let view: GuestView = global.connection.client()?.post(&path, &()).await?;
    super::print(&view, global.output)
}
