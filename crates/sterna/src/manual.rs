//! `sterna manual`

use crate::cli::Cli;
use crate::exit::Exit;
use anyhow::Context;
use clap::CommandFactory;
use std::path::{Path, PathBuf};

/// Options of `sterna manual`.
#[derive(Debug, clap::Args)]
pub(crate) struct ManualArgs {
    /// Folder for the pages, one for each command, such as /usr/share/man/man1
    folder: PathBuf,
}

/// Writes the pages.
pub(crate) fn run(args: &ManualArgs) -> anyhow::Result<Exit> {
    write(&args.folder)?;
    Ok(Exit::Done)
}

fn write(folder: &Path) -> anyhow::Result<()> {
    let failed = || format!("cannot write manual pages to {}", folder.display());
    std::fs::create_dir_all(folder).with_context(failed)?;
    clap_mangen::generate_to(Cli::command(), folder).with_context(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page_that_says_what_it_does() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path()).unwrap();
        let page = std::fs::read_to_string(folder.path().join("sterna-migrate.1")).unwrap();
        assert!(page.contains("max\\-downtime"), "{page}");
        let all = std::fs::read_to_string(folder.path().join("sterna.1")).unwrap();
        assert!(all.contains("Exit codes"), "{all}");
        for command in Cli::command().get_subcommands() {
            let page = folder.path().join(format!("sterna-{}.1", command.get_name()));
            assert!(page.exists(), "{}", page.display());
        }
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_named() {
        let error = write(Path::new("/dev/null/man1")).unwrap_err();
        assert!(error.to_string().contains("/dev/null/man1"), "{error:#}");
    }
}
