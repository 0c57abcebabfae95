//! `sterna cluster …`

mod init;

use crate::cli::Global;
use crate::exit::Exit;

/// Commands on the cluster as a whole.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum ClusterCommand {
    /// Make a new cluster, with this host as its first one
    Init(init::InitArgs),
}

/// Runs one of them.
pub(crate) fn run(command: ClusterCommand, global: &Global) -> anyhow::Result<Exit> {
    match command {
        ClusterCommand::Init(args) => init::run(&args, global),
    }
}
