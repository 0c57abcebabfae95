//! `sterna vm upgrade`

use crate::cli::{Global, Output};
use crate::exit::Exit;
use crate::output;
use std::time::Duration;
use sterna_api::{UpgradeRequest, UpgradeView, paths};
use sterna_core::receipt::RamCheck;

/// Options of `sterna vm upgrade`.
#[derive(Debug, clap::Args)]
pub(crate) struct UpgradeArgs {
    /// Name of the guest
    name: String,
    /// Compare all of its RAM before and after, while it stands still
    #[arg(long)]
    verify: bool,
}

/// Gives a guest a new hypervisor.
pub(crate) async fn run(args: UpgradeArgs, global: &Global) -> anyhow::Result<Exit> {
    let path = paths::with(paths::UPGRADE, &args.name);
    let request = UpgradeRequest { verify: args.verify };
    let view: UpgradeView = global.connection.client()?.post(&path, &request).await?;
    match global.output {
        Output::Json => output::json(&view)?,
        Output::Text => println!("{}", text(&view)),
    }
    Ok(Exit::Done)
}

fn text(view: &UpgradeView) -> String {
    let version = |version: &Option<String>| version.clone().unwrap_or_else(|| "unknown".into());
    let (from, to) = (version(&view.from), version(&view.to));
    let ram = match view.ram_digest {
        RamCheck::Equal => ", RAM equal",
        RamCheck::Different | RamCheck::NotChecked => "",
    };
    let gap = Duration::from_micros(view.gap_us);
    format!("{}: version {from} -> {to}, stood still for {gap:.1?}{ram}", view.guest.name)
}
