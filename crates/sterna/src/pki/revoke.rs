//! `sterna pki revoke`

use crate::exit::Exit;
use std::path::PathBuf;
use sterna_pki::Authority;

/// Options of `sterna pki revoke`.
#[derive(Debug, clap::Args)]
pub(crate) struct RevokeArgs {
    /// Folder of the authority, as made by `sterna pki init`
    dir: PathBuf,
    /// The certificate that shall no longer be accepted: the host.pem of a host or user
    certificate: PathBuf,
}

/// Adds a certificate to those that are no longer accepted.
pub(crate) fn run(args: &RevokeArgs) -> anyhow::Result<Exit> {
    let list = Authority::read(&args.dir)?.revoke_file(&args.certificate)?;
    println!("it is on the list {}", list.display());
    println!(
        "next: copy the list into the identity's folder of each host (usually /etc/sterna), and have its agent read it"
    );
    println!("with `systemctl reload sterna`: from then on it is refused there");
    Ok(Exit::Done)
}
