//! `sterna pki …`

mod host;
mod init;
mod revoke;
mod user;

use crate::exit::Exit;

/// Commands on certificates.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum PkiCommand {
    /// Make an authority that hosts of a cluster trust
    Init(init::InitArgs),
    /// Make the certificate and key of a host
    Host(host::HostArgs),
    /// Make the certificate and key of a user, who may do on all hosts what the role says
    User(user::UserArgs),
    /// Put a certificate on the list of those that are no longer accepted
    Revoke(revoke::RevokeArgs),
}

/// Runs one of them.
pub(crate) fn run(command: PkiCommand) -> anyhow::Result<Exit> {
    match command {
        PkiCommand::Init(args) => init::run(&args),
        PkiCommand::Host(args) => host::run(&args),
        PkiCommand::User(args) => user::run(&args),
        PkiCommand::Revoke(args) => revoke::run(&args),
    }
}
