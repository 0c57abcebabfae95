//! `sterna vm logs`

use crate::cli::{Global, Output};
use crate::exit::Exit;
use futures_util::StreamExt as _;
use std::io::{self, Write};
use sterna_api::paths;

/// Bytes of a line at most; what is longer is shown as several.
const LINE_BYTES_MAX: usize = 16 << 10;

/// Options of `sterna vm logs`.
#[derive(Debug, clap::Args)]
pub(crate) struct LogsArgs {
    /// Name of the guest
    name: String,
    /// Wait for more, until the hypervisor ends
    #[arg(long, short)]
    follow: bool,
}

/// Shows what a guest's hypervisor says, or said last.
pub(crate) async fn run(args: LogsArgs, global: &Global) -> anyhow::Result<Exit> {
    let path = format!("{}?follow={}", paths::with(paths::LOG, &args.name), args.follow);
    let client = global.connection.client()?;
    let mut pieces = client.stream(&path).await?.bytes_stream();
    let mut lines = Lines::default();
    while let Some(piece) = pieces.next().await {
        print(lines.push(&piece?), global.output)?;
    }
    print(lines.rest(), global.output)?;
    Ok(Exit::Done)
}

fn print(lines: Vec<String>, output: Output) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    for line in lines {
        match output {
            // In one line each, as they may come one after the other without an end.
            Output::Json => writeln!(stdout, "{}", serde_json::json!({ "line": line }))?,
            Output::Text => writeln!(stdout, "{line}")?,
        }
    }
    Ok(stdout.flush()?)
}

/// Makes lines that a terminal can be given of bytes that come in pieces.
#[derive(Debug, Default)]
struct Lines(Vec<u8>);

impl Lines {
    /// The lines that end in a piece.
    fn push(&mut self, piece: &[u8]) -> Vec<String> {
        let mut lines = Vec::new();
        for byte in piece {
            if *byte != b'\n' {
                self.0.push(*byte);
            }
            if *byte == b'\n' || self.0.len() == LINE_BYTES_MAX {
                lines.push(harmless(&std::mem::take(&mut self.0)));
            }
        }
        lines
    }

    /// The line that was not ended.
    fn rest(self) -> Vec<String> {
        let Self(bytes) = self;
        if bytes.is_empty() { Vec::new() } else { vec![harmless(&bytes)] }
    }
}

/// Text without anything that a terminal would act on: whoever has taken a hypervisor over may write anything.
fn harmless(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let text = text.strip_suffix('\r').unwrap_or(&text);
    let mut harmless = String::with_capacity(text.len());
    for character in text.chars() {
        if acts(character) {
            harmless.extend(character.escape_default());
        } else {
            harmless.push(character);
        }
    }
    harmless
}

/// Whether a terminal may do something else than to show it, such as reading the line the other way round.
fn acts(character: char) -> bool {
    let turns = ['\u{61c}', '\u{200e}', '\u{200f}', '\u{2028}', '\u{2029}'];
    (character.is_control() && character != '\t')
        || turns.contains(&character)
        || ('\u{202a}'..='\u{202e}').contains(&character)
        || ('\u{2066}'..='\u{2069}').contains(&character)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_a_log_makes_a_terminal_act() {
        let said = "ok\ta \u{1b}]0;title\u{7} \u{9b}2J \u{202e}desrever\rover ü\r\n".as_bytes();
        let lines = Lines::default().push(said);
        let expected = r"ok	a \u{1b}]0;title\u{7} \u{9b}2J \u{202e}desrever\rover ü";
        assert_eq!(lines, [expected]);
        assert_eq!(harmless(&[b'a', 0xff, 0x1b]), "a\u{fffd}\\u{1b}");
    }

    #[test]
    fn lines_are_whole_however_their_bytes_come() {
        let text = "eins\nzwei ü\n\ndrei";
        for size in 1..=text.len() {
            let mut lines = Lines::default();
            let mut all: Vec<String> =
                text.as_bytes().chunks(size).flat_map(|piece| lines.push(piece)).collect();
            all.extend(lines.rest());
            assert_eq!(all, ["eins", "zwei ü", "", "drei"], "pieces of {size}");
        }
        let mut lines = Lines::default();
        let all = lines.push(&vec![b'x'; 3 * LINE_BYTES_MAX]);
        assert_eq!(all.len(), 3, "an endless line is not kept");
    }
}
