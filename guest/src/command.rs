//! Commands that come as lines from the console while the recorder runs.

use std::fmt;
use std::str::FromStr;

use crate::quantity::{Bytes, Rate};

/// What the recorder can be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// `rate 50M`: rewrite so many bytes per second from now on.
    Rate(Rate),
    /// `ws 64M`: rewrite so much memory from now on.
    WorkingSet(Bytes),
    /// `check`: check every page once and answer with a line `CHECKED`.
    Check,
    /// `quiet` or `ticks`: no tick lines, or one each millisecond.
    Ticks(TickLines),
    /// `take 64M`: fill so much memory beside all other; it was none of the guest's before. Of less
    /// than 32M the allocator may keep some when it is given back.
    Take(Bytes),
    /// `give`: check what was taken, and give it back to the guest's kernel.
    Give,
}

/// Whether tick lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TickLines {
    /// None.
    Quiet,
    /// One each millisecond.
    Written,
}

/// A line that is no command.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is none of: rate N, ws N, check, quiet, ticks, take N, give")]
pub struct BadCommand(String);

impl FromStr for Command {
    type Err = BadCommand;

    fn from_str(line: &str) -> Result<Self, BadCommand> {
        let bad = || BadCommand(line.trim().to_owned());
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["rate", rate] => rate.parse().map(Self::Rate).map_err(|_| bad()),
            ["ws", size] => size.parse().map(Self::WorkingSet).map_err(|_| bad()),
            ["take", size] => size.parse().map(Self::Take).map_err(|_| bad()),
            ["give"] => Ok(Self::Give),
            ["check"] => Ok(Self::Check),
            ["quiet"] => Ok(Self::Ticks(TickLines::Quiet)),
            ["ticks"] => Ok(Self::Ticks(TickLines::Written)),
            _ => Err(bad()),
        }
    }
}

impl fmt::Display for Command {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rate(rate) => write!(formatter, "rate {rate}"),
            Self::WorkingSet(size) => write!(formatter, "ws {size}"),
            Self::Take(size) => write!(formatter, "take {size}"),
            Self::Give => formatter.write_str("give"),
            Self::Check => formatter.write_str("check"),
            Self::Ticks(TickLines::Quiet) => formatter.write_str("quiet"),
            Self::Ticks(TickLines::Written) => formatter.write_str("ticks"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_that_is_written_is_read_back() {
        for command in [
            Command::Rate(Rate::mebibytes_per_second(200)),
            Command::Rate(Rate(0)),
            Command::WorkingSet(Bytes::mebibytes(64)),
            Command::Take(Bytes::mebibytes(64)),
            Command::Give,
            Command::Check,
            Command::Ticks(TickLines::Quiet),
            Command::Ticks(TickLines::Written),
        ] {
            assert_eq!(command.to_string().parse(), Ok(command));
        }
    }

    #[test]
    fn a_carriage_return_at_the_end_does_no_harm() {
        assert_eq!("rate 0\r\n".parse(), Ok(Command::Rate(Rate(0))));
    }

    #[test]
    fn lines_that_are_no_command_are_refused() {
        for line in ["", "rate", "rate x", "rate 1 2", "ws", "CHECK", "check 1", "halt"] {
            assert!(line.parse::<Command>().is_err(), "{line:?}");
        }
    }
}
