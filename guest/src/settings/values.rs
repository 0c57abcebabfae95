//! The values of single settings: their types, and how they are read and written.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use crate::content::Kind;
use crate::quantity::Rate;

/// Which pages the working set holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorkingSetContent {
    /// As the rest of the memory.
    AsMixed,
    /// All of one kind.
    Only(Kind),
}

/// How fast pages are checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckRate {
    /// As fast as the processor can.
    Unlimited,
    /// At most so fast, which leaves the processor idle between.
    Limited(Rate),
}

/// A share between 0 and 1.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct Share(f64);

/// In which order the working set is rewritten.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// At random, as even as the locality allows.
    Uniform,
    /// One page after the other, round and round.
    Sequential,
}

/// How much of a page one write rewrites.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteSize {
    /// All of it.
    Page,
    /// So many 8-byte words in one place of it.
    Words(u16),
}

/// An IPv4 address with the length of its network's prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    /// The address itself.
    pub ip: Ipv4Addr,
    /// Leading bits that name the network, at most 32.
    pub prefix_length: u8,
}

/// Whether and how the disk is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskUse {
    /// Not at all.
    Off,
    /// Through the guest's page cache.
    Read,
    /// With `O_DIRECT`: the device writes into the recorder's own pages.
    Direct,
    /// Through the guest's page cache, once and whole before all else: it may hold anything.
    Cache,
}

impl WriteSize {
    pub(super) const DEFAULT_WORDS: u16 = 1;
}

impl Share {
    /// Nothing at all.
    pub const NONE: Self = Self(0.0);
    /// One of four.
    pub const QUARTER: Self = Self(0.25);

    /// Returns a share, or nothing if it is not from 0 to 1.
    #[must_use]
    pub fn new(share: f64) -> Option<Self> {
        (0.0..=1.0).contains(&share).then_some(Self(share))
    }

    /// Tells whether a draw of 32 random bits falls into the share.
    #[must_use]
    pub fn takes(self, draw: u32) -> bool {
        f64::from(draw) / 4_294_967_296.0 < self.0
    }
}

/// A value that is none of the accepted ones; the reader of settings says which those are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not one of the accepted values")]
pub struct NotAccepted;

impl FromStr for Share {
    type Err = NotAccepted;

    fn from_str(text: &str) -> Result<Self, NotAccepted> {
        text.parse().ok().and_then(Self::new).ok_or(NotAccepted)
    }
}

impl fmt::Display for Share {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

impl FromStr for WorkingSetContent {
    type Err = NotAccepted;

    fn from_str(text: &str) -> Result<Self, NotAccepted> {
        match text {
            "mix" => Ok(Self::AsMixed),
            _ => text.parse().map(Self::Only).map_err(|_| NotAccepted),
        }
    }
}

impl fmt::Display for WorkingSetContent {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AsMixed => formatter.write_str("mix"),
            Self::Only(kind) => kind.fmt(formatter),
        }
    }
}

impl FromStr for CheckRate {
    type Err = NotAccepted;

    fn from_str(text: &str) -> Result<Self, NotAccepted> {
        match text {
            "max" => Ok(Self::Unlimited),
            _ => text.parse().map(Self::Limited).map_err(|_| NotAccepted),
        }
    }
}

impl fmt::Display for CheckRate {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unlimited => formatter.write_str("max"),
            Self::Limited(rate) => rate.fmt(formatter),
        }
    }
}

impl FromStr for Order {
    type Err = NotAccepted;

    fn from_str(text: &str) -> Result<Self, NotAccepted> {
        match text {
            "uniform" => Ok(Self::Uniform),
            "sequential" => Ok(Self::Sequential),
            _ => Err(NotAccepted),
        }
    }
}

impl fmt::Display for Order {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Uniform => "uniform",
            Self::Sequential => "sequential",
        })
    }
}

impl FromStr for WriteSize {
    type Err = NotAccepted;

    fn from_str(text: &str) -> Result<Self, NotAccepted> {
        match text {
            "page" => Ok(Self::Page),
            "word" => Ok(Self::Words(Self::DEFAULT_WORDS)),
            _ => Err(NotAccepted),
        }
    }
}

impl FromStr for Address {
    type Err = NotAccepted;

    fn from_str(text: &str) -> Result<Self, NotAccepted> {
        let (ip, length) = text.split_once('/').ok_or(NotAccepted)?;
        let ip = ip.parse().map_err(|_| NotAccepted)?;
        let prefix_length = length.parse().map_err(|_| NotAccepted)?;
        if prefix_length > 32 { Err(NotAccepted) } else { Ok(Self { ip, prefix_length }) }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.ip, self.prefix_length)
    }
}

impl FromStr for DiskUse {
    type Err = NotAccepted;

    fn from_str(text: &str) -> Result<Self, NotAccepted> {
        match text {
            "off" => Ok(Self::Off),
            "read" => Ok(Self::Read),
            "direct" => Ok(Self::Direct),
            "cache" => Ok(Self::Cache),
            _ => Err(NotAccepted),
        }
    }
}

impl fmt::Display for DiskUse {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Off => "off",
            Self::Read => "read",
            Self::Direct => "direct",
            Self::Cache => "cache",
        })
    }
}
