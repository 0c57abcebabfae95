//! README's commands from the package to the first move.

use std::fs;

use anyhow::{Context, Result, ensure};

use crate::paths;

const HEADING: &str = "## From the package to the first move";

/// As many as a newcomer may have to type.
const TYPED_MAX: usize = 8;

/// One of two machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    A,
    B,
}

/// A command, and where it is to be typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Typed {
    pub(super) places: Vec<Place>,
    pub(super) command: String,
}

/// All commands in their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Commands(pub(super) Vec<Typed>);

impl Commands {
    /// How many are to be typed, on both machines together.
    pub(super) fn typed(&self) -> usize {
        self.0.iter().map(|typed| typed.places.len()).sum()
    }
}

/// Reads README.
///
/// # Errors
/// If it has no such commands, or too many.
pub(super) fn commands() -> Result<Commands> {
    let text = fs::read_to_string(paths::workspace().join("README.md"))?;
    let commands = parse(&text)?;
    let typed = commands.typed();
    ensure!(typed <= TYPED_MAX, "README has {typed} commands to the first move, not {TYPED_MAX}");
    Ok(commands)
}

fn parse(text: &str) -> Result<Commands> {
    let (_, section) = text.split_once(HEADING).with_context(|| format!("no {HEADING:?}"))?;
    let section = section.split("\n## ").next().unwrap_or_default();
    let commands = section.lines().filter_map(|line| line.strip_prefix("    ")).map(typed);
    let commands = commands.collect::<Result<Vec<_>>>()?;
    ensure!(!commands.is_empty(), "no commands below {HEADING:?}");
    Ok(Commands(commands))
}

/// A command with the comment that says where it is typed: `# on a`, `# on a, and on b`.
fn typed(line: &str) -> Result<Typed> {
    let no_place = || format!("README does not say where to type: {line}");
    let (command, comment) = line.rsplit_once("  # ").with_context(no_place)?;
    let on = |name: &str| comment.split([',', ':', ';']).any(|part| part.trim().ends_with(name));
    let places = [(Place::A, "on a"), (Place::B, "on b")];
    let places: Vec<_> = places.iter().filter(|(_, name)| on(name)).map(|(at, _)| *at).collect();
    ensure!(!places.is_empty(), no_place());
    Ok(Typed { places, command: command.trim().into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_read_with_where_they_are_typed() {
        let text = format!(
            "before\n{HEADING}\n\nSome words:\n\n    apt install ./x.deb     # on a, and on b\n    \
             sterna host invite b   # on a: says the next\n    sterna vm console web  # on b; leave it\n\n## Next\n\n    \
             not this"
        );
        let typed = |places: &[Place], command: &str| Typed {
            places: places.to_vec(),
            command: command.into(),
        };
        let expected = [
            typed(&[Place::A, Place::B], "apt install ./x.deb"),
            typed(&[Place::A], "sterna host invite b"),
            typed(&[Place::B], "sterna vm console web"),
        ];
        assert_eq!(parse(&text).unwrap().0, expected);
        assert!(parse("nothing").is_err());
        assert!(parse(&format!("{HEADING}\n\n    sterna vm list\n")).is_err());
    }

    #[test]
    fn readme_has_them() {
        let commands = commands().unwrap();
        assert!(commands.typed() > 4, "{commands:?}");
    }
}
