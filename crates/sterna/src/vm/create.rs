//! `sterna vm create`

use super::definition::DefinitionArgs;
use crate::cli::Global;
use crate::exit::Exit;
use sterna_api::{DefineGuest, GuestView, paths};

/// Options of `sterna vm create`.
#[derive(Debug, clap::Args)]
pub(crate) struct CreateArgs {
    #[command(flatten)]
    definition: DefinitionArgs,
}

/// Defines a guest.
pub(crate) async fn run(args: CreateArgs, global: &Global) -> anyhow::Result<Exit> {
    let (id, definition) = args.definition.read()?;
    let request = DefineGuest { id, definition };
    let view: GuestView = global.connection.client()?.post(paths::DEFINITIONS, &request).await?;
    super::print(&view, global.output)
}
