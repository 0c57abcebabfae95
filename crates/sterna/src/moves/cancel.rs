//! `sterna moves cancel`

use crate::cli::{Global, Output};
use crate::exit::Exit;
use crate::output;
use sterna_api::{MoveView, paths};
use uuid::Uuid;

/// Options of `sterna moves cancel`.
#[derive(Debug, clap::Args)]
pub(crate) struct CancelArgs {
    /// Identity of the move
    id: Uuid,
}

/// Asks a move to end.
pub(crate) async fn run(args: CancelArgs, global: &Global) -> anyhow::Result<Exit> {
    let client = global.connection.client()?;
    let view: MoveView = client.delete(&paths::with(paths::MOVE, &args.id.to_string())).await?;
    match global.output {
        Output::Json => output::json(&view)?,
        Output::Text => println!("asked; `sterna moves show {}` says how it ended", view.id),
    }
    Ok(Exit::Done)
}
