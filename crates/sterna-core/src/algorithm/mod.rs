//! The pool: each algorithm is a pure policy that says what a move does next, and why.

mod auto;
mod hybrid;
mod native;
mod post_copy;
mod pre_copy;
mod residues;
mod stop_and_copy;
mod throttle;

pub use auto::Auto;
pub use hybrid::Hybrid;
pub use native::Native;
pub use post_copy::PostCopy;
pub use pre_copy::PreCopy;
pub use stop_and_copy::StopAndCopy;

use crate::limits::Limits;
use crate::prediction::{Choice, Surroundings, WorkingSetCurve};
use crate::receipt::{PagesByCoding, Round, StopReason};
use crate::speed::VcpuSpeed;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;
use sterna_page::known::DISK_BLOCK_BYTES;
use sterna_page::sent::CONTENT_HASH_BYTES;
use sterna_page::{PAGE_SIZE, PageCount};

/// Names of the algorithms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum AlgorithmName {
    /// Whichever of the others is foreseen to cost least.
    #[default]
    Auto,
    /// Pause, copy all, hand over.
    StopAndCopy,
    /// Rounds of dirty pages while the guest runs, the rest after the pause.
    PreCopy,
    /// Hand over at once; all pages follow.
    PostCopy,
    /// Rounds while they pay, then hand over; what is left follows.
    Hybrid,
    /// The hypervisor copies by itself, in a way of its own.
    Native,
}

/// Every algorithm of this release.
pub const ALGORITHMS: [AlgorithmName; 6] = [
    AlgorithmName::Auto,
    AlgorithmName::PreCopy,
    AlgorithmName::Hybrid,
    AlgorithmName::PostCopy,
    AlgorithmName::StopAndCopy,
    AlgorithmName::Native,
];

/// A name that is no algorithm's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "unknown algorithm {0:?}; known are auto, pre-copy, hybrid, post-copy, stop-and-copy, native"
)]
pub struct UnknownAlgorithm(pub String);

impl AlgorithmName {
    /// The algorithm of this name, at the start of a move.
    #[must_use]
    pub fn start(self) -> Box<dyn Algorithm> {
        match self {
            Self::Auto => Box::new(Auto::default()),
            Self::StopAndCopy => Box::new(StopAndCopy),
            Self::PreCopy => Box::new(PreCopy::default()),
            Self::PostCopy => Box::new(PostCopy),
            Self::Hybrid => Box::new(Hybrid),
            Self::Native => Box::new(Native::default()),
        }
    }

    /// The name as it is written.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::StopAndCopy => "stop-and-copy",
            Self::PreCopy => "pre-copy",
            Self::PostCopy => "post-copy",
            Self::Hybrid => "hybrid",
            Self::Native => "native",
        }
    }
}

impl fmt::Display for AlgorithmName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for AlgorithmName {
    type Err = UnknownAlgorithm;
    fn from_str(text: &str) -> Result<Self, UnknownAlgorithm> {
        ALGORITHMS
            .into_iter()
            .find(|name| name.as_str() == text)
            .ok_or_else(|| UnknownAlgorithm(text.into()))
    }
}

/// What an algorithm sees of the move at the end of a round.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// The rounds so far.
    pub rounds: &'a [Round],
    /// Pages written since they were last sent.
    pub residue: PageCount,
    /// Since the first page was sent.
    pub elapsed: Duration,
    /// What a switchover costs even with nothing left to copy, as far as known.
    pub fixed_downtime: Duration,
    /// The operator's limits.
    pub limits: &'a Limits,
    /// Request until the first page.
    pub setup: Duration,
    /// What the guest was seen to write of late.
    pub curve: &'a WorkingSetCurve,
    /// What is known besides.
    pub surroundings: &'a Surroundings,
}

/// What a move does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Copy another round while the guest runs.
    Copy {
        /// At which speed it runs meanwhile.
        vcpus: VcpuSpeed,
        /// The round ends after this long, with what was not sent by then left for later.
        at_most: Option<Duration>,
    },
    /// Pause the guest, copy the rest and hand over.
    Pause(StopReason),
    /// Pause the guest and hand it over at once; the rest follows.
    HandOver(StopReason),
    /// End the move; the guest runs on where it is.
    GiveUp(StopReason),
    /// Let the hypervisor copy by itself until what is left fits the longest downtime, or let it go
    /// on with that.
    Delegate,
}

impl Decision {
    /// Another round at full speed.
    pub(crate) const COPY: Self = Self::Copy { vcpus: VcpuSpeed::FULL, at_most: None };
}

/// A policy: from what happened to what is done next.
pub trait Algorithm: fmt::Debug + Send {
    /// Its name.
    fn name(&self) -> AlgorithmName;

    /// Whether pages must be tracked before the guest is paused.
    fn tracking(&self) -> Tracking;

    /// Whether it may hand the guest over before all of its pages are at the destination.
    fn may_owe(&self, limits: &Limits) -> bool;

    /// The longest downtime that it accepts by now: the operator's limit, or that limit widened as
    /// far as the operator allows.
    fn downtime_limit(&self, limits: &Limits) -> Duration {
        limits.downtime_max
    }

    /// Whether the hypervisor copies by itself.
    fn delegates(&self) -> bool {
        false
    }

    /// Whether the next round may leave out pages that are likely to be written again.
    fn may_hold_back(&self) -> bool {
        true
    }

    /// Whether it cannot do without that.
    fn must_owe(&self, limits: &Limits) -> bool {
        self.may_owe(limits)
    }

    /// Takes note that the destination cannot be owed pages.
    fn cannot_owe(&mut self) {}

    /// What it has chosen so far, if it chooses among others.
    fn choices(&self) -> &[Choice] {
        &[]
    }

    /// Decides at the start (no rounds yet) and at the end of each round.
    fn next(&mut self, view: &View<'_>) -> Decision;
}

/// Whether an algorithm needs dirty tracking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tracking {
    /// Pages are sent while the guest runs.
    Needed,
    /// Pages are sent only while it is paused.
    NotNeeded,
}

/// Bytes of a round from which on its speed tells the link's, not the round trip's.
const RATE_SAMPLE_BYTES_MIN: u64 = 1 << 20;

/// Bytes a second that a move got through, from the newest round that is large enough to tell; `None`
/// before there is one.
#[must_use]
pub fn link_bytes_per_second(rounds: &[Round]) -> Option<f64> {
    let round = telling(rounds)?;
    #[expect(clippy::cast_precision_loss, reason = "an estimate")]
    let bytes = round.bytes.max(1) as f64;
    Some(bytes / round.took.as_secs_f64())
}

/// Bytes on the wire of a page that is not zero, in the same round: no more than a page has, and fewer
/// where pages are coded, are like others, or had not changed. What the destination got by itself says
/// nothing of pages that are written from now on.
fn page_bytes(rounds: &[Round]) -> f64 {
    const MOST: f64 = PAGE_SIZE as f64;
    let Some(round) = telling(rounds) else { return MOST };
    let PagesByCoding { same, known, on_disk, unchanged, .. } = round.pages;
    let pages = round.pages.sent_with_content() + same + unchanged;
    let hashes = (known + on_disk).0 * CONTENT_HASH_BYTES as u64;
    let blocks = on_disk.0 * DISK_BLOCK_BYTES as u64;
    let bytes = round.bytes.saturating_sub(hashes + blocks);
    #[expect(clippy::cast_precision_loss, reason = "an estimate")]
    let mean = bytes as f64 / pages.0 as f64;
    if mean.is_finite() { mean.clamp(1.0, MOST) } else { MOST }
}

/// The newest round that is large enough to tell how fast pages travel, or the newest at all; rather not one
/// in which the destination got most pages by itself, as the link then idled.
fn telling(rounds: &[Round]) -> Option<&Round> {
    let large = |r: &&Round| r.bytes >= RATE_SAMPLE_BYTES_MIN && !r.took.is_zero();
    let busy = |r: &&Round| large(r) && r.pages.got_there().0 <= r.pages.sent_with_content().0;
    let newest = rounds.iter().rev();
    let newest_of_all = || rounds.iter().rfind(|r| !r.took.is_zero());
    newest.clone().find(busy).or_else(|| newest.clone().find(large)).or_else(newest_of_all)
}

impl View<'_> {
    /// Bytes a second that the move gets through; see [`link_bytes_per_second`].
    #[must_use]
    pub fn link_bytes_per_second(&self) -> Option<f64> {
        link_bytes_per_second(self.rounds)
    }

    /// Bytes on the wire of a page that is not zero.
    #[must_use]
    pub fn page_bytes(&self) -> f64 {
        page_bytes(self.rounds)
    }

    /// Pages a second, none of them zero, that the move gets through.
    #[must_use]
    pub fn pages_per_second(&self) -> Option<f64> {
        Some(self.link_bytes_per_second()? / self.page_bytes())
    }

    /// Pages a second that the guest wrote during the last round; `None` before there is one.
    #[must_use]
    pub fn dirty_pages_per_second(&self) -> Option<f64> {
        let round = self.rounds.last().filter(|round| !round.took.is_zero())?;
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let pages = round.dirtied.0 as f64;
        Some(pages / round.took.as_secs_f64())
    }

    /// How long the residue takes to copy at the link's speed.
    #[must_use]
    pub fn residue_time(&self) -> Duration {
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let pages = self.residue.0 as f64;
        match self.pages_per_second() {
            Some(rate) => Duration::try_from_secs_f64(pages / rate).unwrap_or(Duration::MAX),
            None if self.residue == PageCount::ZERO => Duration::ZERO,
            None => Duration::MAX,
        }
    }

    /// The limit on rounds, bytes or time that has been reached, if one has.
    #[must_use]
    pub fn limit_reached(&self) -> Option<StopReason> {
        let limits = self.limits;
        let sent = self.rounds.iter().fold(0u64, |sent, round| sent.saturating_add(round.bytes));
        let rounds = u32::try_from(self.rounds.len()).unwrap_or(u32::MAX);
        if rounds >= limits.rounds_max {
            Some(StopReason::RoundLimit)
        } else if limits.bytes_max.is_some_and(|max| sent >= max) {
            Some(StopReason::ByteLimit)
        } else if limits.copy_time_max.is_some_and(|max| self.elapsed >= max) {
            Some(StopReason::TimeLimit)
        } else {
            None
        }
    }

    /// The downtime if the guest were paused now.
    #[must_use]
    pub fn downtime(&self) -> Duration {
        self.fixed_downtime.saturating_add(self.residue_time())
    }
}

#[cfg(test)]
impl<'a> View<'a> {
    /// The view after these rounds, of which only the last may have left anything out.
    pub(crate) fn after(rounds: &'a [Round], residue: PageCount, limits: &'a Limits) -> Self {
        Self {
            rounds,
            residue,
            elapsed: rounds.iter().map(|round| round.took).sum(),
            fixed_downtime: Duration::from_millis(15),
            limits,
            setup: Duration::ZERO,
            // Some bytes a test.
            curve: Box::leak(Box::default()),
            surroundings: Box::leak(Box::default()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::receipt::PagesByCoding;

    fn view_after(pages: PagesByCoding, bytes: u64, limits: &Limits) -> View<'static> {
        let round = Round { pages, bytes, took: Duration::from_secs(1), ..Round::default() };
        let limits = Box::leak(Box::new(*limits));
        View::after(Box::leak(Box::new([round])), PageCount(1000), limits)
    }

    #[test]
    fn coded_pages_count_by_their_bytes() {
        let half = PageCount(5000);
        let zero = PageCount(9999);
        let pages = PagesByCoding { raw: half, coded: half, zero, ..PagesByCoding::default() };
        let view = view_after(pages, 5000 * (4096 + 1024), &Limits::default());
        assert_eq!(view.page_bytes(), 2560.0);
        assert_eq!(view.pages_per_second(), Some(10_000.0));
        assert_eq!(view.residue_time(), Duration::from_millis(100));
    }

    #[test]
    fn pages_of_which_only_a_part_is_sent_count_by_that() {
        let changed = PageCount(10_000);
        let pages = PagesByCoding { changed, ..PagesByCoding::default() };
        let view = view_after(pages, 10_000 * 160, &Limits::default());
        assert_eq!(view.page_bytes(), 160.0);
        assert_eq!(view.pages_per_second(), Some(10_000.0));
    }

    #[test]
    fn no_page_takes_more_than_it_has() {
        // Frames of zero pages have headers, and a round may send nothing else.
        for raw in [0, 10] {
            let pages = PagesByCoding {
                raw: PageCount(raw),
                zero: PageCount(100_000),
                ..PagesByCoding::default()
            };
            let view = view_after(pages, 1_000_000, &Limits::default());
            assert_eq!(view.page_bytes(), 4096.0);
        }
    }
}
