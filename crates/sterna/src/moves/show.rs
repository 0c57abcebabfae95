//! `sterna moves show`

use crate::cli::{Global, Output};
use crate::exit::Exit;
use crate::{output, progress, watch};
use sterna_api::{MoveState, MoveView, paths};
use uuid::Uuid;

/// Options of `sterna moves show`.
#[derive(Debug, clap::Args)]
pub(crate) struct ShowArgs {
    /// Identity of the move
    id: Uuid,
    /// Watch it until it has ended; Ctrl-C cancels the move
    #[arg(long)]
    watch: bool,
}

/// Shows a move.
pub(crate) async fn run(args: ShowArgs, global: &Global) -> anyhow::Result<Exit> {
    let client = global.connection.client()?;
    let view: MoveView = client.get(&paths::with(paths::MOVE, &args.id.to_string())).await?;
    match (&view.state, global.output) {
        (MoveState::Moving | MoveState::InDoubt { .. }, _) if args.watch => {
            watch::until_ended(&client, view, global.output).await
        }
        (_, Output::Json) => output::json(&view).map(|()| Exit::Done),
        (MoveState::Ended { .. }, Output::Text) => {
            watch::print(&view, global.output).map(|_| Exit::Done)
        }
        (MoveState::Moving | MoveState::InDoubt { .. }, Output::Text) => {
            println!("{}: {}", view.guest, progress::line(&view));
            Ok(Exit::Done)
        }
    }
}
