//! `sterna vm delete`

use crate::cli::{Global, Output};
use crate::exit::Exit;
use crate::output;
use sterna_api::{GuestView, paths};

/// Options of `sterna vm delete`.
#[derive(Debug, clap::Args)]
pub(crate) struct DeleteArgs {
    /// Name of the guest
    name: String,
}

/// Forgets a guest that does not run.
pub(crate) async fn run(args: DeleteArgs, global: &Global) -> anyhow::Result<Exit> {
    let path = paths::with(paths::GUEST, &args.name);
    let view: GuestView = global.connection.client()?.delete(&path).await?;
    match global.output {
        Output::Json => output::json(&view)?,
        Output::Text => println!("{}", words(&view)),
    }
    Ok(Exit::Done)
}

fn words(view: &GuestView) -> String {
    let disks: Vec<String> =
        view.definition.disks.iter().map(|disk| disk.path.display().to_string()).collect();
    match disks[..] {
        [] => format!("{} is deleted.", view.name),
        _ => format!("{} is deleted. Its disks are not: {}", view.name, disks.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_said_to_stay() {
        let text = r#"{"name":"a","id":"00000000-0000-0000-0000-000000000007","state":"stopped","reason":"x",
            "epoch":0,"pid":null,"memory_bytes":1,"current_move":null,
            "definition":{"name":"a","memory_bytes":1,"disks":[{"path":"/x"},{"path":"/y"}]}}"#;
        let mut view: GuestView = serde_json::from_str(text).unwrap();
        assert_eq!(words(&view), "a is deleted. Its disks are not: /x, /y");
        view.definition.disks.clear();
        assert_eq!(words(&view), "a is deleted.");
    }
}
