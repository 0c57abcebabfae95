//! `sterna vm show`

use super::definition::to_toml;
use crate::cli::{Global, Output};
use crate::exit::Exit;
use crate::{output, units};
use sterna_api::{DefinitionView, GuestView, paths};

/// Options of `sterna vm show`.
#[derive(Debug, clap::Args)]
pub(crate) struct ShowArgs {
    /// Name of the guest
    name: String,
    /// Show only the definition that it is started by, as it was written, in TOML
    #[arg(long)]
    definition: bool,
}

/// Shows a guest.
pub(crate) async fn run(args: ShowArgs, global: &Global) -> anyhow::Result<Exit> {
    if args.definition {
        return definition(&args.name, global).await;
    }
    let path = paths::with(paths::GUEST, &args.name);
    let view: GuestView = global.connection.client()?.get(&path).await?;
    if global.output == Output::Json {
        return output::json(&view).map(|()| Exit::Done);
    }
    println!("{}: {}", view.name, super::state(&view));
    println!("  id       {}", view.id);
    println!("  memory   {}", units::size(view.memory_bytes));
    println!("  attempts {}", view.epoch.0);
    if let Some(pid) = view.pid {
        println!("  pid      {pid}");
    }
    if let Some(version) = &view.hypervisor {
        println!("  version  {version}");
    }
    if let Some(id) = view.current_move {
        println!("  move     {id}");
    }
    println!();
    print!("{}", to_toml(&view.definition)?);
    Ok(Exit::Done)
}

async fn definition(name: &str, global: &Global) -> anyhow::Result<Exit> {
    let path = paths::with(paths::DEFINITION, name);
    let view: DefinitionView = global.connection.client()?.get(&path).await?;
    match global.output {
        Output::Json => output::json(&view)?,
        Output::Text => print!("{}", to_toml(&view.definition)?),
    }
    Ok(Exit::Done)
}
