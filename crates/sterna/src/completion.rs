//! `sterna completion`

use crate::cli::Cli;
use crate::exit::Exit;
use clap::CommandFactory;
use clap_complete::Shell;
use std::io::{self, Write};

/// Options of `sterna completion`.
#[derive(Debug, clap::Args)]
#[command(after_help = "For bash, for all users:\n  \
    sterna completion bash > /usr/share/bash-completion/completions/sterna")]
pub(crate) struct CompletionArgs {
    /// For this shell
    shell: Shell,
}

/// Prints the script of a shell.
pub(crate) fn run(args: &CompletionArgs) -> anyhow::Result<Exit> {
    io::stdout().write_all(&script(args.shell))?;
    Ok(Exit::Done)
}

fn script(shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "sterna", &mut script);
    script
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::ValueEnum;

    #[test]
    fn every_shell_knows_every_command() {
        let command = Cli::command();
        for shell in Shell::value_variants() {
            let script = String::from_utf8(script(*shell)).unwrap();
            let missing = command.get_subcommands().find(|sub| !script.contains(sub.get_name()));
            assert!(missing.is_none(), "{shell}: {missing:?}");
        }
    }
}
