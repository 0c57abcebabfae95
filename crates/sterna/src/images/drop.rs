//! `sterna images drop`

use crate::cli::{Global, Output};
use crate::exit::Exit;
use crate::{output, units};
use sterna_api::{ImageView, paths};

/// Options of `sterna images drop`.
#[derive(Debug, clap::Args)]
pub(crate) struct DropArgs {
    /// Name or id of the guest
    guest: String,
}

/// Removes an image.
pub(super) async fn run(args: DropArgs, global: &Global) -> anyhow::Result<Exit> {
    let client = global.connection.client()?;
    let image: ImageView = client.delete(&paths::with(paths::IMAGE, &args.guest)).await?;
    match global.output {
        Output::Json => output::json(&image)?,
        Output::Text => println!("{} freed", units::size(image.bytes)),
    }
    Ok(Exit::Done)
}
