//! `sterna moves …`

mod cancel;
mod list;
mod show;

use crate::cli::Global;
use crate::exit::Exit;

/// Commands on moves.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum MovesCommand {
    /// List moves, running and ended
    List(list::ListArgs),
    /// Show a move, or its receipt once it has ended
    Show(show::ShowArgs),
    /// Ask a move to end; it goes on if it is too late
    Cancel(cancel::CancelArgs),
}

/// Runs one of them.
pub(crate) async fn run(command: MovesCommand, global: &Global) -> anyhow::Result<Exit> {
    match command {
        MovesCommand::List(args) => list::run(args, global).await,
        MovesCommand::Show(args) => show::run(args, global).await,
        MovesCommand::Cancel(args) => cancel::run(args, global).await,
    }
}
