//! `sterna pki user`

use crate::exit::Exit;
use std::path::PathBuf;
use sterna_engine::identity::UserRole;
use sterna_pki::{Authority, Validity};

/// Options of `sterna pki user`.
#[derive(Debug, clap::Args)]
pub(crate) struct UserArgs {
    /// Folder of the authority, as made by `sterna pki init`
    dir: PathBuf,
    /// Name of the user, for the hosts' logs
    name: String,
    /// What the user may do: viewer (look), operator (also move guests) or admin (all)
    #[arg(long)]
    role: UserRole,
    /// Folder for ca.pem, host.pem and host.key
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

/// Makes a user's certificate and key.
pub(crate) fn run(args: &UserArgs) -> anyhow::Result<Exit> {
    let authority = Authority::read(&args.dir)?;
    let user = authority.issue_user(&args.name, args.role, Validity::by_hand())?;
    user.write(&args.out)?;
    let (name, out) = (&args.name, args.out.display());
    println!("made the identity of {name} in {out}; use it with --host HOST --identity {out}");
    Ok(Exit::Done)
}
