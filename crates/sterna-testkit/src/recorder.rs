//! What the flight recorder is to do, and what it says.
//!
//! [`Workload`] builds the guest's kernel command line from typed values; [`Line`] and [`Command`]
//! are the recorder's own types for its output and input.

use std::num::NonZeroU8;
use std::time::Duration;

use sterna_guest::schedule::Grid;

pub use sterna_guest::command::{Command, TickLines};
pub use sterna_guest::content::{Kind, Mix, Seed};
pub use sterna_guest::line::{Line, Tick};
pub use sterna_guest::quantity::{Bytes, Rate};
pub use sterna_guest::settings::{
    CheckRate, DiskUse, Order, Settings, SettingsError, Share, WorkingSetContent, WriteSize,
};

/// What the guest's kernel needs to be told: its console, few words, no time spent on
/// mitigations, and to end instead of hanging when it panics.
const KERNEL_WORDS: &str = "console=hvc0 quiet mitigations=off panic=-1";

/// What a guest does: a builder of its kernel command line.
#[derive(Debug, Clone, PartialEq)]
pub struct Workload {
    settings: Settings,
}

impl Workload {
    /// Starts with a guest that fills and checks so much memory and rewrites none of it.
    #[must_use]
    pub fn new(fill: Bytes) -> Self {
        let working_set = Bytes(0);
        Self { settings: Settings { fill, working_set, ..Settings::default() } }
    }

    /// Fills memory with these kinds of pages.
    #[must_use]
    pub fn mix(mut self, mix: Mix) -> Self {
        self.settings.mix = mix;
        self
    }

    /// Rewrites the first `size` of the memory at a rate.
    #[must_use]
    pub fn rewrite(mut self, size: Bytes, rate: Rate) -> Self {
        self.settings.working_set = size;
        self.settings.rate = rate;
        self
    }

    /// Makes all pages of the working set of one kind.
    #[must_use]
    pub fn working_set_kind(mut self, kind: Kind) -> Self {
        self.settings.working_set_content = WorkingSetContent::Only(kind);
        self
    }

    /// Sends this share of the writes to the first tenth of the working set.
    #[must_use]
    pub fn locality(mut self, share: Share) -> Self {
        self.settings.locality = share;
        self
    }

    /// Rewrites pages in this order.
    #[must_use]
    pub fn order(mut self, order: Order) -> Self {
        self.settings.order = order;
        self
    }

    /// Rewrites so much of a page at a time.
    #[must_use]
    pub fn write_size(mut self, write: WriteSize) -> Self {
        self.settings.write = write;
        self
    }

    /// Checks memory at most this fast, which leaves the guest's processor idle between.
    #[must_use]
    pub fn check_at_most(mut self, rate: Rate) -> Self {
        self.settings.check = CheckRate::Limited(rate);
        self
    }

    /// Ticks, and does what has a rate, each so many milliseconds: an emulated guest that does so each
    /// millisecond takes most of a processor.
    #[must_use]
    pub fn tick_each(mut self, milliseconds: NonZeroU8) -> Self {
        self.settings.tick = Grid(milliseconds);
        self
    }

    /// How long it is from tick to tick.
    #[must_use]
    pub fn tick(&self) -> Duration {
        Duration::from_millis(self.settings.tick.0.get().into())
    }

    /// Makes other pages than another guest's.
    #[must_use]
    pub fn seed(mut self, seed: Seed) -> Self {
        self.settings.seed = seed;
        self
    }

    /// Gives this share of the pages a seed of its own: other guests of the same seed differ in them.
    #[must_use]
    pub fn own(mut self, share: Share, seed: Seed) -> Self {
        self.settings.own = share;
        self.settings.own_seed = seed;
        self
    }

    /// Reads and checks the first virtio disk, made by [`crate::disk::fill`].
    #[must_use]
    pub fn disk(mut self, how: DiskUse, rate: Rate) -> Self {
        self.settings.disk = how;
        self.settings.disk_rate = rate;
        self
    }

    /// The memory that is rewritten.
    #[must_use]
    pub fn working_set(&self) -> Bytes {
        self.settings.working_set
    }

    /// Returns the kernel command line, for QEMU's `-append`.
    ///
    /// # Errors
    /// If the recorder would refuse it.
    pub fn command_line(&self) -> Result<String, SettingsError> {
        let settings = self.settings.clone().checked()?;
        Ok(format!("{KERNEL_WORDS} {settings}"))
    }
}

impl From<Settings> for Workload {
    fn from(settings: Settings) -> Self {
        Self { settings }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_recorder_reads_what_the_builder_says() {
        let workload = Workload::new(Bytes::mebibytes(512))
            .mix("zero:40,text:60".parse().unwrap())
            .rewrite(Bytes::mebibytes(256), Rate::mebibytes_per_second(50))
            .working_set_kind(Kind::Random)
            .locality(Share::new(0.9).unwrap())
            .order(Order::Sequential)
            .write_size(WriteSize::Words(4))
            .check_at_most(Rate::mebibytes_per_second(20))
            .seed(Seed(3))
            .disk(DiskUse::Direct, Rate::mebibytes_per_second(8));
        let line = workload.command_line().unwrap();
        assert!(line.starts_with("console=hvc0 "), "{line}");
        let expected = Settings {
            fill: Bytes::mebibytes(512),
            mix: "zero:40,text:60".parse().unwrap(),
            working_set: Bytes::mebibytes(256),
            working_set_content: WorkingSetContent::Only(Kind::Random),
            rate: Rate::mebibytes_per_second(50),
            check: CheckRate::Limited(Rate::mebibytes_per_second(20)),
            locality: Share::new(0.9).unwrap(),
            order: Order::Sequential,
            write: WriteSize::Words(4),
            seed: Seed(3),
            disk: DiskUse::Direct,
            disk_rate: Rate::mebibytes_per_second(8),
            ..Settings::default()
        };
        assert_eq!(Settings::parse(&line), Ok(expected));
    }

    #[test]
    fn a_workload_that_the_recorder_would_refuse_is_refused_here() {
        let workload = Workload::new(Bytes::mebibytes(1)).rewrite(Bytes::mebibytes(2), Rate(1));
        assert!(matches!(workload.command_line(), Err(SettingsError::WorkingSetTooLarge { .. })));
    }
}
