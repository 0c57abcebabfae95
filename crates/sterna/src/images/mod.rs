//! `sterna images …`

mod drop;
mod list;

use crate::cli::Global;
use crate::exit::Exit;

/// Commands on kept RAM images.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum ImagesCommand {
    /// List the guests that have left and whose RAM is kept here
    List,
    /// Remove what is kept of a guest
    Drop(drop::DropArgs),
}

/// Runs one of them.
pub(crate) async fn run(command: ImagesCommand, global: &Global) -> anyhow::Result<Exit> {
    match command {
        ImagesCommand::List => list::run(global).await,
        ImagesCommand::Drop(args) => drop::run(args, global).await,
    }
}
