//! `sterna vm pause`, `reset` and `shutdown`

use crate::cli::Global;
use crate::exit::Exit;
use sterna_api::{GuestView, paths};

/// Options of these commands.
#[derive(Debug, clap::Args)]
pub(crate) struct InterveneArgs {
    /// Name of the guest
    name: String,
}

/// Does to a guest what `path` stands for.
pub(crate) async fn run(args: InterveneArgs, path: &str, global: &Global) -> anyhow::Result<Exit> {
    let path = paths::with(path, &args.name);
    let view: GuestView = global.connection.client()?.post(&path, &()).await?;
    super::print(&view, global.output)
}
