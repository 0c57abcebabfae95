//! `sterna pki …`

mod host;
mod init;
mod issue;
#[cfg(test)]
mod tests;

use crate::exit::Exit;

/// Commands on certificates.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum PkiCommand {
    /// Make an authority that hosts of a cluster trust
    Init(init::InitArgs),
    /// Make the certificate and key of a host
    Host(host::HostArgs),
}

/// Runs one of them.
pub(crate) fn run(command: PkiCommand) -> anyhow::Result<Exit> {
    match command {
        PkiCommand::Init(args) => init::run(&args),
        PkiCommand::Host(args) => host::run(&args),
    }
}
