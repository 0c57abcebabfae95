//! `sterna completion`

use crate::cli::Cli;
use crate::exit::Exit;
use clap::{Command, CommandFactory};
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
    if shell == Shell::Bash {
        script.extend(names_in_bash(&Cli::command()).into_bytes());
    }
    script
}

/// What completes names of guests on top of the words that are known beforehand. Who completes is whoever asks the
/// agent; without one there are no names.
fn names_in_bash(command: &Command) -> String {
    let patterns: Vec<String> =
        of_a_guest(command, "").iter().map(|words| format!("'{words}'")).collect();
    format!(
        r#"
_sterna_with_guests() {{
    _sterna "$@"
    local current="${{COMP_WORDS[COMP_CWORD]}}" words=() word
    [[ $current == -* ]] && return
    for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
        [[ $word == -* ]] || words+=("$word")
    done
    case "${{words[*]}}" in
    {})
        COMPREPLY=($(compgen -W "$(sterna vm list 2>/dev/null | tail -n +2 | cut -d' ' -f1)" -- "$current"))
        ;;
    esac
}}

complete -F _sterna_with_guests -o nosort -o bashdefault -o default sterna
"#,
        patterns.join(" | ")
    )
}

/// The commands, in words, whose next word is the name of a guest.
fn of_a_guest(command: &Command, words: &str) -> Vec<String> {
    let mut all = Vec::new();
    for sub in command.get_subcommands() {
        let words = [words, sub.get_name()].join(" ").trim_start().to_owned();
        let first = sub.get_positionals().next().map(|argument| argument.get_id().as_str());
        let is_one = match first {
            Some("guest") => true,
            Some("name") => words.starts_with("vm "),
            _ => words == "vm start",
        };
        all.extend(of_a_guest(sub, &words));
        all.extend(is_one.then_some(words));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::ValueEnum;

    /// What bash makes of a line, of which the last word is to be completed.
    fn completed(line: &[&str]) -> String {
        let script = String::from_utf8(script(Shell::Bash)).unwrap();
        let list = r#"sterna() { [[ $* == "vm list" ]] && printf 'NAME   STATE\nweb-1  stopped\nweb-2  running\ndb  -\n'; }"#;
        let (count, last) = (line.len() - 1, line[line.len() - 1]);
        let words = line.iter().map(|word| format!("'{word}'")).collect::<Vec<_>>().join(" ");
        let call = format!(
            "{script}\n{list}\nCOMP_WORDS=({words}); COMP_CWORD={count}\n\
             _sterna_with_guests sterna '{last}' ''; echo \"${{COMPREPLY[*]}}\""
        );
        let output = std::process::Command::new("bash").arg("-c").arg(call).output().unwrap();
        assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    }

    #[test]
    fn bash_completes_names_of_guests_where_one_is_meant() {
        for line in [
            &["sterna", "vm", "stop", "w"][..],
            &["sterna", "vm", "start", "w"],
            &["sterna", "vm", "edit", "w"],
            &["sterna", "migrate", "w"],
            &["sterna", "migrate", "resolve", "w"],
            &["sterna", "plan", "w"],
            &["sterna", "vm", "logs", "--follow", "w"],
        ] {
            assert_eq!(completed(line), "web-1 web-2", "{line:?}");
        }
        assert_eq!(completed(&["sterna", "vm", "delete", ""]), "web-1 web-2 db");
        // Elsewhere the words that are known beforehand, and no name.
        assert_eq!(completed(&["sterna", "vm", "sto"]), "stop");
        assert!(completed(&["sterna", "vm", "stop", "--out"]).contains("--output"));
        for line in [&["sterna", "vm", "create", "w"][..], &["sterna", "host", "revoke", "w"]] {
            assert_eq!(completed(line), "", "{line:?}");
        }
    }

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
