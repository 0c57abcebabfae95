//! `sterna pki init`

use crate::exit::Exit;
use std::path::PathBuf;
use sterna_pki::Authority;

/// Options of `sterna pki init`.
#[derive(Debug, clap::Args)]
pub(crate) struct InitArgs {
    /// Folder for ca.pem and ca.key; keep ca.key off the hosts
    dir: PathBuf,
}

/// Makes an authority.
pub(crate) fn run(args: &InitArgs) -> anyhow::Result<Exit> {
    Authority::create(&args.dir)?;
    println!("made an authority in {}; next: sterna pki host", args.dir.display());
    Ok(Exit::Done)
}
