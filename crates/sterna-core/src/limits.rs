//! The limits of a move: those an operator sets, and those that end a stage which hangs.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// What a switchover costs with nothing left to copy, before it was ever measured on a host: pausing,
/// device state, two round trips, two durable records.
pub const FIXED_DOWNTIME: Duration = Duration::from_millis(15);

/// What to do when rounds no longer help and the downtime limit is out of reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum WhenStuck {
    /// Give the move up; the guest runs on where it is.
    Abort,
    /// Slow the vCPUs down until rounds help; give up if they do not at the least speed either.
    Throttle,
    /// Hand the guest over at once and let what is left follow.
    PostCopy,
    /// Pause all the same and copy what is left, however long that takes.
    StopAndCopy,
}

/// What the operator wants least of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Prefer {
    /// The least work lost to the guest: pauses, slowing down, waiting for pages.
    #[default]
    Guest,
    /// The shortest downtime.
    Downtime,
    /// The shortest move.
    Time,
    /// The fewest bytes.
    Bytes,
}

impl Prefer {
    const ALL: [Self; 4] = [Self::Guest, Self::Downtime, Self::Time, Self::Bytes];

    /// The name as it is written.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Guest => "guest",
            Self::Downtime => "downtime",
            Self::Time => "time",
            Self::Bytes => "bytes",
        }
    }
}

impl fmt::Display for Prefer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Prefer {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|prefer| prefer.as_str() == text);
        found.ok_or_else(|| format!("{text:?} is not guest, downtime, time or bytes"))
    }
}

/// Limits that an operator sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Limits {
    /// The longest downtime that is accepted.
    #[serde(with = "crate::time::Micros", rename = "downtime_max_us")]
    pub downtime_max: Duration,
    /// To how much that may be widened, in steps, when rounds no longer help; not at all if `None`.
    #[serde(
        default,
        with = "crate::time::MicrosOption",
        rename = "downtime_stretch_us",
        skip_serializing_if = "Option::is_none"
    )]
    pub downtime_stretch: Option<Duration>,
    /// The copying part of the downtime for which rounds are made while they still help.
    #[serde(with = "crate::time::Micros", rename = "downtime_goal_us")]
    pub downtime_goal: Duration,
    /// Rounds of copying at most.
    pub rounds_max: u32,
    /// Time of copying at most.
    #[serde(with = "crate::time::MicrosOption", rename = "copy_time_max_us")]
    pub copy_time_max: Option<Duration>,
    /// Bytes of pages sent while the guest runs at most.
    pub bytes_max: Option<u64>,
    /// What to do when the downtime limit is out of reach. If `None`, `auto` does what costs least, and
    /// the other algorithms give up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub when_stuck: Option<WhenStuck>,
    /// What `auto` is to choose by.
    #[serde(default)]
    pub prefer: Prefer,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            // What QEMU accepts by default, so that nobody is worse off for not asking.
            downtime_max: Duration::from_millis(300),
            downtime_stretch: None,
            // A gap that neither people nor TCP notice.
            downtime_goal: Duration::from_millis(5),
            // Far more than a converging move needs (3 to 8); a bound, not a policy.
            rounds_max: 50,
            copy_time_max: None,
            bytes_max: None,
            when_stuck: None,
            prefer: Prefer::default(),
        }
    }
}

/// Limits of which one makes another meaningless.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Contradiction {
    /// The limit would have to shrink.
    #[error("the downtime cannot be stretched from {downtime_max:?} to {stretch:?}, which is less")]
    StretchBelowLimit {
        /// The longest downtime.
        downtime_max: Duration,
        /// To which it may be widened.
        stretch: Duration,
    },
    /// No move can be so short.
    #[error(
        "a downtime of {downtime_max:?} is less than a switchover costs with nothing left to copy, \
         which is about {FIXED_DOWNTIME:?}"
    )]
    BelowFixedCost {
        /// The longest downtime, stretched as far as it may be.
        downtime_max: Duration,
    },
    /// What is aimed at is more than what is accepted.
    #[error("the goal for the downtime, {goal:?}, is more than its limit, {downtime_max:?}")]
    GoalAboveLimit {
        /// The goal.
        goal: Duration,
        /// The longest downtime.
        downtime_max: Duration,
    },
}

impl Limits {
    /// The longest downtime, stretched as far as it may be.
    #[must_use]
    pub fn downtime_at_most(&self) -> Duration {
        self.downtime_stretch.unwrap_or(self.downtime_max)
    }

    /// Whether the limits can all be meant.
    ///
    /// # Errors
    /// The first two that contradict each other.
    pub fn check(&self) -> Result<(), Contradiction> {
        let Self { downtime_max, downtime_goal: goal, .. } = *self;
        if let Some(stretch) = self.downtime_stretch.filter(|stretch| *stretch < downtime_max) {
            return Err(Contradiction::StretchBelowLimit { downtime_max, stretch });
        }
        let widest = self.downtime_at_most();
        if widest < FIXED_DOWNTIME {
            return Err(Contradiction::BelowFixedCost { downtime_max: widest });
        }
        if goal > downtime_max {
            return Err(Contradiction::GoalAboveLimit { goal, downtime_max });
        }
        Ok(())
    }
}

/// How long each stage may take before the move is given up, or asked about again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StageLimits {
    /// Offer to Accept: the destination starts a hypervisor meanwhile.
    pub negotiation: Duration,
    /// A durable record of the journal.
    pub record: Duration,
    /// Start of dirty tracking, with the wait for I/O in flight.
    pub preparation: Duration,
    /// Copying without a single page getting through.
    pub copy_stall: Duration,
    /// Request to pause until paused.
    pub pause: Duration,
    /// Paused until Ready: the guest stands still all this time.
    pub switchover: Duration,
    /// Ready until Commit, on the destination.
    pub commitment: Duration,
    /// Between two questions whether the destination runs the guest.
    pub ask_again: Duration,
    /// Commit without an answer until the operator is told that the guest is in doubt.
    pub doubt: Duration,
    /// A destination that has not heard of its source.
    pub abandoned: Duration,
}

impl Default for StageLimits {
    fn default() -> Self {
        Self {
            negotiation: Duration::from_secs(60),
            record: Duration::from_secs(30),
            preparation: Duration::from_secs(60),
            copy_stall: Duration::from_secs(30),
            pause: Duration::from_secs(30),
            switchover: Duration::from_secs(120),
            commitment: Duration::from_secs(60),
            ask_again: Duration::from_secs(1),
            doubt: Duration::from_secs(10),
            abandoned: Duration::from_secs(120),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_that_cannot_all_be_meant_are_named_with_their_numbers() {
        let ms = Duration::from_millis;
        let usual = Limits::default();
        let said = |limits: Limits| limits.check().unwrap_err().to_string();
        assert_eq!(usual.check(), Ok(()));
        let short = Limits { downtime_max: ms(4), downtime_goal: ms(1), ..usual };
        assert!(said(short).contains("4ms") && said(short).contains("15ms"), "{}", said(short));
        let stretched = Limits { downtime_stretch: Some(ms(100)), ..short };
        assert_eq!(stretched.check(), Ok(()));
        let shrunk = Limits { downtime_stretch: Some(ms(100)), ..usual };
        assert!(said(shrunk).contains("from 300ms to 100ms"), "{}", said(shrunk));
        let above = Limits { downtime_goal: ms(400), ..usual };
        assert!(said(above).contains("400ms, is more than its limit, 300ms"), "{}", said(above));
    }
}
