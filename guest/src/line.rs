//! The lines that the recorder writes, as data: written by it, read by whoever watches it.

use std::fmt;
use std::str::FromStr;

use crate::quantity::Bytes;

/// A line of the console.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line {
    /// `READY fill=<size> ws=<size>`: all memory is filled, work begins.
    Ready {
        /// Memory that is filled and checked.
        fill: Bytes,
        /// Memory that is rewritten.
        working_set: Bytes,
    },
    /// `t <tick> <pages checked> <pages written>`.
    Tick(Tick),
    /// `CHECKED pages=<n> wrong=<n>`: the answer to the command `check`.
    Checked {
        /// Pages compared, all there are.
        pages: u32,
        /// Pages that were wrong.
        wrong: u32,
    },
    /// `TAKEN size=<size>`: the answer to the command `take`.
    Taken {
        /// Memory that was taken and filled.
        size: Bytes,
    },
    /// `GIVEN size=<size> wrong=<n>`: the answer to the command `give`.
    Given {
        /// Memory that was checked and given back.
        size: Bytes,
        /// Pages that were wrong.
        wrong: u32,
    },
    /// `DISK pass=<n> blocks=<n> wrong=<n>`: the whole disk has been read once more.
    Disk {
        /// The number of the pass, from 1.
        pass: u64,
        /// Blocks compared.
        blocks: u64,
        /// Blocks that were wrong.
        wrong: u64,
    },
    /// `WRONG …`: memory or disk does not hold what it must.
    Wrong(String),
    /// `ERROR …`: the recorder could not do something; mostly it then ends.
    Error(String),
    /// What somebody else wrote: the kernel, the init script.
    Other(String),
}

/// What the recorder has done so far; all counts are since its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tick {
    /// Milliseconds of the guest's own time.
    pub number: u64,
    /// Pages compared.
    pub checked: u64,
    /// Pages rewritten.
    pub written: u64,
}

impl fmt::Display for Line {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready { fill, working_set } => {
                write!(formatter, "READY fill={fill} ws={working_set}")
            }
            Self::Tick(Tick { number, checked, written }) => {
                write!(formatter, "t {number} {checked} {written}")
            }
            Self::Checked { pages, wrong } => {
                write!(formatter, "CHECKED pages={pages} wrong={wrong}")
            }
            Self::Taken { size } => write!(formatter, "TAKEN size={size}"),
            Self::Given { size, wrong } => write!(formatter, "GIVEN size={size} wrong={wrong}"),
            Self::Disk { pass, blocks, wrong } => {
                write!(formatter, "DISK pass={pass} blocks={blocks} wrong={wrong}")
            }
            Self::Wrong(what) => write!(formatter, "WRONG {what}"),
            Self::Error(what) => write!(formatter, "ERROR {what}"),
            Self::Other(text) => formatter.write_str(text),
        }
    }
}

impl Line {
    /// Reads a line; what is none of the recorder's, or was cut off, is [`Line::Other`].
    #[must_use]
    pub fn read(text: &str) -> Self {
        let text = text.trim_end();
        let known = match text.split_once(' ') {
            Some(("t", rest)) => tick(rest),
            Some(("READY", rest)) => ready(rest),
            Some(("CHECKED", rest)) => checked(rest),
            Some(("TAKEN", rest)) => taken(rest),
            Some(("GIVEN", rest)) => given(rest),
            Some(("DISK", rest)) => disk(rest),
            Some(("WRONG", rest)) => Some(Self::Wrong(rest.to_owned())),
            Some(("ERROR", rest)) => Some(Self::Error(rest.to_owned())),
            _ => None,
        };
        known.unwrap_or_else(|| Self::Other(text.to_owned()))
    }
}

fn tick(text: &str) -> Option<Line> {
    let mut numbers = text.split(' ').map(|word| word.parse().ok());
    let (number, checked, written) = (numbers.next()??, numbers.next()??, numbers.next()??);
    numbers.next().is_none().then_some(Line::Tick(Tick { number, checked, written }))
}

fn ready(text: &str) -> Option<Line> {
    let [fill, working_set] = values(text, ["fill", "ws"])?;
    Some(Line::Ready { fill, working_set })
}

fn checked(text: &str) -> Option<Line> {
    let [pages, wrong] = values(text, ["pages", "wrong"])?;
    Some(Line::Checked { pages, wrong })
}

fn taken(text: &str) -> Option<Line> {
    let [size] = values(text, ["size"])?;
    Some(Line::Taken { size })
}

fn given(text: &str) -> Option<Line> {
    let (size, wrong) = text.split_once(' ')?;
    let ([size], [wrong]) = (values(size, ["size"])?, values(wrong, ["wrong"])?);
    Some(Line::Given { size, wrong })
}

fn disk(text: &str) -> Option<Line> {
    let [pass, blocks, wrong] = values(text, ["pass", "blocks", "wrong"])?;
    Some(Line::Disk { pass, blocks, wrong })
}

/// Reads exactly the values `name=value` of these names, in this order.
fn values<T: FromStr, const N: usize>(text: &str, names: [&str; N]) -> Option<[T; N]> {
    let words: Vec<&str> = text.split(' ').collect();
    let mut read = Vec::with_capacity(N);
    for (name, word) in names.into_iter().zip(&words) {
        read.push(word.strip_prefix(name)?.strip_prefix('=')?.parse().ok()?);
    }
    if words.len() == N { read.try_into().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_that_is_written_is_read_back() {
        for line in [
            Line::Ready { fill: Bytes::mebibytes(512), working_set: Bytes(0) },
            Line::Tick(Tick { number: 17, checked: 123_456, written: 0 }),
            Line::Checked { pages: 65_536, wrong: 1 },
            Line::Taken { size: Bytes::mebibytes(96) },
            Line::Given { size: Bytes::mebibytes(96), wrong: 2 },
            Line::Disk { pass: 2, blocks: 32_768, wrong: 0 },
            Line::Wrong("page=1 offset=2".to_owned()),
            Line::Error("bad settings".to_owned()),
            Line::Other("random: crng init done".to_owned()),
        ] {
            assert_eq!(Line::read(&line.to_string()), line);
            assert_eq!(Line::read(&format!("{line}\r\n")), line);
        }
    }

    #[test]
    fn a_line_that_was_cut_off_or_grew_is_not_taken_for_a_whole_one() {
        for text in [
            "t",
            "t 1",
            "t 1 2",
            "t 1 2 ",
            "t 1 2 3 4",
            "t 1 2 -3",
            "t 1 2 99999999999999999999",
            "GIVEN size=1M",
            "GIVEN size=1M wrong=0 more=1",
            "CHECKED pages=1",
            "CHECKED wrong=0 pages=1",
            "CHECKED pages=1 wrong=0 more=1",
            "READY fill= ws=1M",
            "",
        ] {
            assert_eq!(Line::read(text), Line::Other(text.trim_end().to_owned()), "{text:?}");
        }
    }
}
