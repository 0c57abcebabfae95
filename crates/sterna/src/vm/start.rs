//! `sterna vm start`

use super::definition::DefinitionArgs;
use crate::cli::Global;
use crate::client::Client;
use crate::exit::Exit;
use sterna_api::{ApiError, ErrorCode, GuestView, StartDefined, StartGuest, paths};

/// Options of `sterna vm start`.
#[derive(Debug, clap::Args)]
#[command(mut_arg("file", |arg| arg.value_name("NAME|FILE").help(
    "Guest that is defined, or file that describes a new one, in TOML; \"-\" for standard input"
)))]
pub(crate) struct StartArgs {
    #[command(flatten)]
    definition: DefinitionArgs,
    /// You have made sure that the guest runs on no other host, where one may run it or have it paused: two running
    /// copies destroy its disks
    #[arg(long)]
    runs_nowhere_else: bool,
}

/// Starts a guest.
pub(crate) async fn run(args: StartArgs, global: &Global) -> anyhow::Result<Exit> {
    let client = global.connection.client()?;
    let request = StartDefined { runs_nowhere_else: args.runs_nowhere_else };
    if let Some(name) = name(&args.definition)
        && let Some(view) = start_defined(&client, name, request).await?
    {
        return super::print(&view, global.output);
    }
    let (id, definition) = args.definition.read()?;
    let request = StartGuest { id, definition };
    let view: GuestView = client.post(paths::GUESTS, &request).await?;
    super::print(&view, global.output)
}

/// What may be the name of a guest, and not only of a file.
fn name(args: &DefinitionArgs) -> Option<&str> {
    let text = args.file.as_ref()?.to_str()?;
    let is_file = text == "-" || text.contains('/') || text.ends_with(".toml");
    (!is_file && args.id.is_none()).then_some(text)
}

/// Starts the guest of this name; `None` if there is none, but a file of that name.
async fn start_defined(
    client: &Client,
    name: &str,
    request: StartDefined,
) -> anyhow::Result<Option<GuestView>> {
    let error = match client.post(&paths::with(paths::START, name), &request).await {
        Ok(view) => return Ok(Some(view)),
        Err(error) => error,
    };
    let is_unknown =
        error.downcast_ref::<ApiError>().is_some_and(|error| error.code == ErrorCode::NotFound);
    match is_unknown && std::path::Path::new(name).is_file() {
        true => Ok(None),
        false => Err(error),
    }
}
