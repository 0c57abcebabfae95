//! The recorder's settings: words `sterna.<name>=<value>` of the kernel's command line.
//!
//! | word | meaning | default |
//! |---|---|---|
//! | `fill=512M` | memory to fill and check | 256M |
//! | `mix=zero:40,text:30,random:20,dup:10` | kinds of pages, percent of the fill | text:100 |
//! | `ws=256M` | working set: the first pages of the fill, which are rewritten | 64M |
//! | `ws_content=text` | kind of its pages: `zero`, `text`, `random`, `dup`, `heap`, `mix` | mix |
//! | `rate=50M` | bytes rewritten per second, counted as whole pages; 0 for none | 0 |
//! | `check=100M` | bytes checked per second, or `max` | max |
//! | `locality=0.9` | share of the writes that go to the first tenth of the working set | 0 |
//! | `order=uniform` | `uniform`, or `sequential`: round and round, without locality | uniform |
//! | `write=page` | what a write rewrites: `page`, or `word`: `stride` bytes of it | page |
//! | `stride=8` | bytes that `write=word` rewrites; a multiple of 8 below 4096 | 8 |
//! | `tick=1` | milliseconds from tick to tick, and from turn to turn of what has a rate, 1 to 255 | 1 |
//! | `seed=1` | another seed, other pages | 1 |
//! | `own=0.25` | share of the pages that have a seed of their own, so that guests differ in them | 0 |
//! | `own_seed=1` | that seed | 0 |
//! | `console=/dev/hvc0` | where lines go to and commands come from | /dev/hvc0 |
//! | `ip=10.78.0.10/24` | the guest's address, set by its init script | 10.78.0.10/24 |
//! | `disk=off` | `read` or `direct` (`O_DIRECT`): read `/dev/vda` and check it; or `cache`: read it once, before all else | off |
//! | `disk_rate=16M` | bytes of the disk read per second | 16M |
//!
//! Words of others are passed over; an unknown word or a bad value of ours is an error.

use std::fmt;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::str::FromStr;

use crate::content::{Kind, Mix, Seed};
use crate::quantity::{Bytes, PAGE_SIZE, Rate};
use crate::schedule::Grid;

pub use values::{
    Address, CheckRate, DiskUse, NotAccepted, Order, Share, WorkingSetContent, WriteSize,
};

mod values;

/// What every word of ours begins with.
const PREFIX: &str = "sterna.";

/// All settings of the recorder.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Memory to fill and check.
    pub fill: Bytes,
    /// The kinds of pages outside the working set.
    pub mix: Mix,
    /// Memory that is rewritten, the first part of the fill.
    pub working_set: Bytes,
    /// The kind of the working set's pages.
    pub working_set_content: WorkingSetContent,
    /// How fast pages are rewritten.
    pub rate: Rate,
    /// How fast pages are checked.
    pub check: CheckRate,
    /// Share of the writes that go to the hot tenth of the working set.
    pub locality: Share,
    /// In which order pages are rewritten.
    pub order: Order,
    /// How much of a page one write rewrites.
    pub write: WriteSize,
    /// When ticks and what has a rate fall due.
    pub tick: Grid,
    /// What makes one guest's pages differ from another's.
    pub seed: Seed,
    /// The share of pages that are of a seed of their own.
    pub own: Share,
    /// That seed.
    pub own_seed: Seed,
    /// The device of lines and commands.
    pub console: PathBuf,
    /// The guest's address.
    pub address: Address,
    /// Whether and how the disk is read.
    pub disk: DiskUse,
    /// How fast the disk is read.
    pub disk_rate: Rate,
}

/// Why settings were refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// There is no such setting.
    #[error("there is no setting {PREFIX}{0}")]
    Unknown(String),
    /// The value of a setting cannot be read.
    #[error("{PREFIX}{name}={value}: expected {expected}")]
    BadValue {
        /// The setting's name without prefix.
        name: String,
        /// The refused value.
        value: String,
        /// What would have been accepted.
        expected: &'static str,
    },
    /// The working set is larger than the memory that it is part of.
    #[error("a working set of {working_set} does not fit into a fill of {fill}")]
    WorkingSetTooLarge {
        /// The refused working set.
        working_set: Bytes,
        /// The fill.
        fill: Bytes,
    },
    /// There is no page to work on.
    #[error("a fill of {0} is less than a page or more than 2^32 of them")]
    BadFill(Bytes),
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            fill: Bytes::mebibytes(256),
            mix: Mix::only(Kind::Text),
            working_set: Bytes::mebibytes(64),
            working_set_content: WorkingSetContent::AsMixed,
            rate: Rate(0),
            check: CheckRate::Unlimited,
            locality: Share::NONE,
            order: Order::Uniform,
            write: WriteSize::Page,
            tick: Grid::MILLISECOND,
            seed: Seed(1),
            own: Share::NONE,
            own_seed: Seed(0),
            console: PathBuf::from("/dev/hvc0"),
            address: Address { ip: Ipv4Addr::new(10, 78, 0, 10), prefix_length: 24 },
            disk: DiskUse::Off,
            disk_rate: Rate::mebibytes_per_second(16),
        }
    }
}

impl Settings {
    /// Reads the words of a kernel command line.
    ///
    /// # Errors
    /// The first word of ours that means nothing, or sizes that contradict each other.
    pub fn parse(command_line: &str) -> Result<Self, SettingsError> {
        let mut settings = Self::default();
        let mut stride = WriteSize::DEFAULT_WORDS;
        let ours = command_line.split_whitespace().filter_map(|word| word.strip_prefix(PREFIX));
        for word in ours {
            let (name, value) = word.split_once('=').unwrap_or((word, ""));
            if name == "stride" {
                let expected = "a multiple of 8 below 4096";
                stride = words_of_stride(value).ok_or_else(|| bad(name, value, expected))?;
            } else {
                settings.set(name, value)?;
            }
        }
        if let WriteSize::Words(words) = &mut settings.write {
            *words = stride;
        }
        settings.checked()
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), SettingsError> {
        const SIZE: &str = "a number of bytes such as 512M";
        const RATE: &str = "bytes per second such as 50M";
        const KINDS: &str = "zero, text, random, dup, heap or mix";
        match name {
            "fill" => self.fill = read(name, value, SIZE)?,
            "mix" => self.mix = read(name, value, "kind:percent,… that add up to 100")?,
            "ws" => self.working_set = read(name, value, SIZE)?,
            "ws_content" => self.working_set_content = read(name, value, KINDS)?,
            "rate" => self.rate = read(name, value, RATE)?,
            "check" => self.check = read(name, value, "max or bytes per second")?,
            "locality" => self.locality = read(name, value, "a number from 0 to 1")?,
            "order" => self.order = read(name, value, "uniform or sequential")?,
            "write" => self.write = read(name, value, "page or word")?,
            "tick" => self.tick = Grid(read(name, value, "milliseconds from 1 to 255")?),
            "seed" => self.seed = Seed(read(name, value, "a number")?),
            "own" => self.own = read(name, value, "a number from 0 to 1")?,
            "own_seed" => self.own_seed = Seed(read(name, value, "a number")?),
            "console" => self.console = absolute(name, value)?,
            "ip" => self.address = read(name, value, "an IPv4 address such as 10.78.0.10/24")?,
            "disk" => self.disk = read(name, value, "off, read, direct or cache")?,
            "disk_rate" => self.disk_rate = read(name, value, RATE)?,
            _ => return Err(SettingsError::Unknown(name.to_owned())),
        }
        Ok(())
    }

    /// Returns these settings if they do not contradict each other.
    ///
    /// # Errors
    /// A fill without a page, or a working set larger than the fill.
    pub fn checked(self) -> Result<Self, SettingsError> {
        if !(1..u32::MAX).contains(&self.fill.pages()) {
            return Err(SettingsError::BadFill(self.fill));
        }
        if self.working_set > self.fill {
            let (working_set, fill) = (self.working_set, self.fill);
            return Err(SettingsError::WorkingSetTooLarge { working_set, fill });
        }
        Ok(self)
    }
}

/// Writes the words of a kernel command line that [`Settings::parse`] reads as these settings.
impl fmt::Display for Settings {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut word = |name: &str, value: &dyn fmt::Display, gap: &str| {
            write!(formatter, "{PREFIX}{name}={value}{gap}")
        };
        word("fill", &self.fill, " ")?;
        word("mix", &self.mix, " ")?;
        word("ws", &self.working_set, " ")?;
        word("ws_content", &self.working_set_content, " ")?;
        word("rate", &self.rate, " ")?;
        word("check", &self.check, " ")?;
        word("locality", &self.locality, " ")?;
        word("order", &self.order, " ")?;
        match self.write {
            WriteSize::Page => word("write", &"page", " ")?,
            WriteSize::Words(words) => {
                word("write", &"word", " ")?;
                word("stride", &(u32::from(words) * 8), " ")?;
            }
        }
        word("tick", &self.tick.0, " ")?;
        word("seed", &self.seed.0, " ")?;
        word("own", &self.own, " ")?;
        word("own_seed", &self.own_seed.0, " ")?;
        word("console", &self.console.display(), " ")?;
        word("ip", &self.address, " ")?;
        word("disk", &self.disk, " ")?;
        word("disk_rate", &self.disk_rate, "")
    }
}

fn bad(name: &str, value: &str, expected: &'static str) -> SettingsError {
    SettingsError::BadValue { name: name.to_owned(), value: value.to_owned(), expected }
}

fn read<T: FromStr>(name: &str, value: &str, expected: &'static str) -> Result<T, SettingsError> {
    value.parse().map_err(|_| bad(name, value, expected))
}

fn absolute(name: &str, value: &str) -> Result<PathBuf, SettingsError> {
    let path = PathBuf::from(value);
    if path.is_absolute() { Ok(path) } else { Err(bad(name, value, "an absolute path")) }
}

fn words_of_stride(value: &str) -> Option<u16> {
    let bytes: u16 = value.parse().ok()?;
    let fits = bytes > 0 && bytes.is_multiple_of(8) && usize::from(bytes) < PAGE_SIZE;
    fits.then_some(bytes / 8)
}

#[cfg(test)]
mod tests;
