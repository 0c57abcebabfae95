//! `sterna vm edit`

use super::definition::{from_file, from_toml, to_toml};
use crate::cli::{Global, Output};
use crate::client::Client;
use crate::exit::Exit;
use crate::output;
use anyhow::{Context as _, bail, ensure};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use sterna_api::{DefinitionView, EditGuest, paths};
use sterna_vmm::GuestDefinition;
use tempfile::NamedTempFile;

/// Options of `sterna vm edit`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Without --file the editor is the one that VISUAL or EDITOR names. What holds from the next \
    start on is what it leaves; comments are not kept."
)]
pub(crate) struct EditArgs {
    /// Name of the guest
    name: String,
    /// File with the definition that takes the place of the present one, in TOML; "-" for standard input
    #[arg(long)]
    file: Option<PathBuf>,
}

/// Edits the definition of a guest that does not run.
pub(crate) async fn run(args: EditArgs, global: &Global) -> anyhow::Result<Exit> {
    let client = global.connection.client()?;
    let path = paths::with(paths::DEFINITION, &args.name);
    let now: DefinitionView = client.get(&path).await?;
    let view = match &args.file {
        Some(file) => replace(&client, &path, &now, from_file(file)?).await?,
        None => {
            let editor = Editor::find()?;
            let mut file = written(&now)?;
            editor.open(file.path())?;
            // Some editors put another file in its place.
            let edited = read(file.path());
            match edited {
                Ok(definition) if definition == now.definition => now,
                Ok(definition) => match replace(&client, &path, &now, definition).await {
                    Ok(view) => view,
                    Err(error) => return Err(kept(&args.name, &mut file, error)),
                },
                Err(error) => return Err(kept(&args.name, &mut file, error)),
            }
        }
    };
    match global.output {
        Output::Json => output::json(&view)?,
        Output::Text => println!("{}: holds from its next start on", view.guest),
    }
    Ok(Exit::Done)
}

async fn replace(
    client: &Client,
    path: &str,
    now: &DefinitionView,
    definition: GuestDefinition,
) -> anyhow::Result<DefinitionView> {
    let request = EditGuest { version: now.version.clone(), definition };
    client.put(path, &request).await
}

/// A file with the definition, that only this user reads.
fn written(now: &DefinitionView) -> anyhow::Result<NamedTempFile> {
    let prefix = format!("sterna-{}-", now.guest);
    let made = tempfile::Builder::new().prefix(&prefix).suffix(".toml").tempfile();
    let mut file = made.context("cannot make a file to edit")?;
    file.write_all(to_toml(&now.definition)?.as_bytes())
        .context("cannot write the file to edit")?;
    Ok(file)
}

fn read(path: &Path) -> anyhow::Result<GuestDefinition> {
    from_toml(&std::fs::read_to_string(path).context("cannot read what was edited")?)
}

/// The error, with where what was typed is from now on.
fn kept(name: &str, file: &mut NamedTempFile, error: anyhow::Error) -> anyhow::Error {
    file.disable_cleanup(true);
    let path = file.path().display();
    error.context(format!(
        "nothing was changed; what was typed is in {path}: mend it, then give it with \
         `sterna vm edit {name} --file {path}`"
    ))
}

/// A command that edits a file.
struct Editor(String);

impl Editor {
    fn find() -> anyhow::Result<Self> {
        let set = |name| std::env::var(name).ok().filter(|text| !text.trim().is_empty());
        match set("VISUAL").or_else(|| set("EDITOR")) {
            Some(command) => Ok(Self(command)),
            None => bail!(
                "no editor is known: set VISUAL or EDITOR, or give the definition with --file"
            ),
        }
    }

    /// Returns once the editor has ended.
    fn open(&self, path: &Path) -> anyhow::Result<()> {
        let Self(command) = self;
        // It may have options, as for git.
        let mut shell = Command::new("sh");
        shell.arg("-c").arg(format!("{command} \"$1\"")).arg("sh").arg(path);
        let status = shell.status().context("cannot run a shell for the editor")?;
        ensure!(
            status.success(),
            "nothing was changed: the editor {command:?} ended with {status}"
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> DefinitionView {
        serde_json::from_str(
            r#"{"guest":"a","id":"00000000-0000-0000-0000-000000000007","version":"x",
            "definition":{"name":"a","memory_bytes":2147483648}}"#,
        )
        .unwrap()
    }

    #[test]
    fn an_editor_may_have_options_and_changes_the_file() {
        let file = written(&now()).unwrap();
        Editor("sed -i s/2GiB/3GiB/".into()).open(file.path()).unwrap();
        assert_eq!(read(file.path()).unwrap().memory_bytes, 3 << 30);
        let error = Editor("false".into()).open(file.path()).unwrap_err();
        assert!(error.to_string().starts_with("nothing was changed"), "{error}");
    }

    #[test]
    fn what_was_typed_is_not_lost_when_it_is_refused() {
        let mut file = written(&now()).unwrap();
        Editor("sed -i s/2GiB/3GiBB/".into()).open(file.path()).unwrap();
        let refused = read(file.path()).unwrap_err();
        let error = kept("a", &mut file, refused);
        let (words, path) = (format!("{error:#}"), file.path().to_owned());
        assert!(words.contains("line 3, column 10"), "{words}");
        assert!(words.contains(&format!("sterna vm edit a --file {}", path.display())), "{words}");
        drop(file);
        assert!(std::fs::read_to_string(&path).unwrap().contains("3GiBB"));
        std::fs::remove_file(path).unwrap();
    }
}
