//! `sterna vm …`

mod check;
mod console;
mod create;
mod definition;
mod delete;
mod edit;
mod intervene;
mod list;
mod logs;
mod run;
mod show;
mod start;
mod stop;
mod upgrade;

use crate::cli::{Global, Output};
use crate::exit::Exit;
use crate::output;
use sterna_api::{GuestView, paths};

/// Commands on guests.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum VmCommand {
    /// Define a guest from a file or from options, without starting it
    Create(Box<create::CreateArgs>),
    /// Start a guest that is defined, or a new one from a file or from options
    Start(Box<start::StartArgs>),
    /// List the guests of a host
    List(list::ListArgs),
    /// Show a guest
    Show(show::ShowArgs),
    /// Say whether and where a guest could move, and why not
    Check(check::CheckArgs),
    /// End a guest at once, like a power cut; its definition stays, so that it can be started again
    Stop(stop::StopArgs),
    /// Edit the definition of a guest that does not run, in an editor or from a file
    Edit(edit::EditArgs),
    /// Forget a guest that does not run; its disks stay
    Delete(delete::DeleteArgs),
    /// Show what a guest's hypervisor says, or said last
    Logs(logs::LogsArgs),
    /// Press a guest's power button: its system powers off, if it wants to
    Shutdown(intervene::InterveneArgs),
    /// Press a guest's reset button
    Reset(intervene::InterveneArgs),
    /// Make a guest stand still until `sterna vm run`
    Pause(intervene::InterveneArgs),
    /// Let a guest run that is paused, or stayed so after a move
    Run(run::RunArgs),
    /// Give a running guest a new hypervisor on its host, as after an update of QEMU; nothing is copied
    Upgrade(upgrade::UpgradeArgs),
    /// Read and type on a guest's console; Ctrl-] leaves it
    Console(console::ConsoleArgs),
}

/// Runs one of them.
pub(crate) async fn run(command: VmCommand, global: &Global) -> anyhow::Result<Exit> {
    match command {
        VmCommand::Create(args) => create::run(*args, global).await,
        VmCommand::Start(args) => start::run(*args, global).await,
        VmCommand::List(args) => list::run(args, global).await,
        VmCommand::Show(args) => show::run(args, global).await,
        VmCommand::Check(args) => check::run(args, global).await,
        VmCommand::Stop(args) => stop::run(args, global).await,
        VmCommand::Edit(args) => edit::run(args, global).await,
        VmCommand::Delete(args) => delete::run(args, global).await,
        VmCommand::Logs(args) => logs::run(args, global).await,
        VmCommand::Shutdown(args) => intervene::run(args, paths::SHUTDOWN, global).await,
        VmCommand::Reset(args) => intervene::run(args, paths::RESET, global).await,
        VmCommand::Pause(args) => intervene::run(args, paths::PAUSE, global).await,
        VmCommand::Run(args) => run::run(args, global).await,
        VmCommand::Upgrade(args) => upgrade::run(args, global).await,
        VmCommand::Console(args) => console::run(args, global).await,
    }
}

/// Prints one guest after something was done with it.
pub(crate) fn print(view: &GuestView, output: Output) -> anyhow::Result<Exit> {
    match output {
        Output::Json => output::json(view)?,
        Output::Text => println!("{}: {}", view.name, state(view)),
    }
    Ok(Exit::Done)
}

/// A guest's state with its reason.
fn state(view: &GuestView) -> String {
    match view.state.reason() {
        Some(reason) => format!("{} ({reason})", view.state.word()),
        None => view.state.word().into(),
    }
}
