//! `sterna vm show`

use crate::cli::{Global, Output};
use crate::exit::Exit;
use crate::{output, units};
use sterna_api::{GuestView, paths};

/// Options of `sterna vm show`.
#[derive(Debug, clap::Args)]
pub(crate) struct ShowArgs {
    /// Name of the guest
    name: String,
}

/// Shows a guest.
pub(crate) async fn run(args: ShowArgs, global: &Global) -> anyhow::Result<Exit> {
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
    print!("{}", toml::to_string_pretty(&view.definition)?);
    Ok(Exit::Done)
}
