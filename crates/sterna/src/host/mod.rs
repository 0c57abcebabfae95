//! `sterna host …`

mod invite;
mod join;
mod list;
mod revoke;

pub(crate) use join::BELONGS;

use crate::cli::Global;
use crate::exit::Exit;

/// Commands on the hosts of a cluster. All but `join` are for the host on which the cluster was made.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum HostCommand {
    /// Make a code by which a new host can join, once and within ten minutes
    Invite(invite::InviteArgs),
    /// Make this host one of a cluster, by a code of `sterna host invite`
    Join(join::JoinArgs),
    /// List the hosts of the cluster
    List,
    /// Let a host in no longer, from now on, on all hosts that can be reached
    Revoke(revoke::RevokeArgs),
}

/// Runs one of them.
pub(crate) async fn run(command: HostCommand, global: &Global) -> anyhow::Result<Exit> {
    match command {
        HostCommand::Invite(args) => invite::run(args, global).await,
        HostCommand::Join(args) => join::run(&args, global).await,
        HostCommand::List => list::run(global).await,
        HostCommand::Revoke(args) => revoke::run(&args, global).await,
    }
}
