//! What a move will cost, told before it is made: the policies of the pool, run against a model.
//!
//! The model is one guest (its working-set curve, the pages that are to be sent, their size on the
//! wire), one link (its rate) and what past moves took apart from copying ([`Experience`]). A forecast
//! runs the very policy that would decide the move, round by round: a round of *R* pages takes
//! *R / B*, and leaves as many pages as the curve has at that time (the recursion of Akoush et al.,
//! MASCOTS 2010, with the curve in place of a constant rate). Each figure has a band: the same with a
//! link and a guest that are somewhat better and somewhat worse than seen.

mod behaviour;
mod choice;
mod curve;
mod experience;
mod model;

pub(crate) use behaviour::Behaviour;
pub use choice::{Basis, Choice, choose};
pub use curve::{Look, WorkingSetCurve};
pub use experience::Experience;
pub use model::{Model, Seen, Surroundings};

use crate::algorithm::AlgorithmName;
use crate::limits::{Limits, WhenStuck};
use crate::receipt::StopReason;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::Duration;

/// A way to move a guest: an algorithm, and what it does when rounds no longer help.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Method {
    /// The algorithm.
    pub algorithm: AlgorithmName,
    /// What it does when stuck, where that matters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub when_stuck: Option<WhenStuck>,
}

impl Method {
    /// All that are forecast, the safest for the guest first: while pages are owed, the loss of the
    /// source's host is the loss of the guest.
    pub const ALL: [Self; 5] = [
        Self { algorithm: AlgorithmName::PreCopy, when_stuck: None },
        Self { algorithm: AlgorithmName::PreCopy, when_stuck: Some(WhenStuck::Throttle) },
        Self { algorithm: AlgorithmName::StopAndCopy, when_stuck: None },
        Self { algorithm: AlgorithmName::Hybrid, when_stuck: None },
        Self { algorithm: AlgorithmName::PostCopy, when_stuck: None },
    ];

    /// The method that an operator asks for by naming an algorithm; none if it is to be chosen, or if
    /// nothing is foreseen of it.
    #[must_use]
    pub fn asked_for(algorithm: AlgorithmName, limits: &Limits) -> Option<Self> {
        let throttles = limits.when_stuck == Some(WhenStuck::Throttle);
        match algorithm {
            AlgorithmName::Auto | AlgorithmName::Native => None,
            AlgorithmName::PreCopy if throttles => {
                Some(Self { algorithm, when_stuck: limits.when_stuck })
            }
            AlgorithmName::PreCopy
            | AlgorithmName::StopAndCopy
            | AlgorithmName::Hybrid
            | AlgorithmName::PostCopy => Some(Self { algorithm, when_stuck: None }),
        }
    }

    /// Whether the guest may run at the destination before all of its pages are there.
    #[must_use]
    pub fn owes(self) -> bool {
        matches!(self.algorithm, AlgorithmName::Hybrid | AlgorithmName::PostCopy)
    }

    /// What it does when stuck, of what the operator's limits say: to pause all the same is theirs to
    /// allow, whatever the method.
    #[must_use]
    pub fn when_stuck_within(self, limits: &Limits) -> Option<WhenStuck> {
        self.when_stuck.or(limits.when_stuck.filter(|when| *when == WhenStuck::StopAndCopy))
    }

    /// Whether it may slow the guest down.
    #[must_use]
    pub fn throttles(self) -> bool {
        self.when_stuck == Some(WhenStuck::Throttle)
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.throttles() {
            true => write!(f, "{} with throttle", self.algorithm),
            false => write!(f, "{}", self.algorithm),
        }
    }
}

/// A figure with the least and the most that it may turn out to be: microseconds or bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Band {
    /// With a link and a guest somewhat better than seen.
    pub low: u64,
    /// As seen.
    pub expected: u64,
    /// With a link and a guest somewhat worse than seen.
    pub high: u64,
}

impl Band {
    fn around(expected: u64, others: impl Iterator<Item = u64>) -> Self {
        let (low, high) = others
            .fold((expected, expected), |(low, high), other| (low.min(other), high.max(other)));
        Self { low, expected, high }
    }

    /// The expected figure, of microseconds.
    #[must_use]
    pub fn expected_time(&self) -> Duration {
        Duration::from_micros(self.expected)
    }

    /// Whether what happened is within the band.
    #[must_use]
    pub fn holds(&self, happened: u64) -> bool {
        (self.low..=self.high).contains(&happened)
    }

    /// By how much what happened was more than expected, as a part of what was expected; `None` if
    /// nothing was.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a ratio")]
    pub fn error(&self, happened: u64) -> Option<f64> {
        (self.expected > 0).then(|| happened as f64 / self.expected as f64 - 1.0)
    }
}

/// How a move is foreseen to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "foreseen", rename_all = "kebab-case")]
pub enum Foreseen {
    /// The guest runs at the destination.
    Moves,
    /// The move is given up, and the guest runs on at the source.
    GivesUp {
        /// Why.
        reason: StopReason,
    },
}

/// What one method is foreseen to cost.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Forecast {
    /// The method.
    #[serde(flatten)]
    pub method: Method,
    /// How it ends.
    #[serde(flatten)]
    pub foreseen: Foreseen,
    /// Request until the source is released.
    pub total_us: Band,
    /// vCPUs stopped until they run at the destination.
    pub downtime_us: Band,
    /// Page frames, before encryption.
    pub bytes: Band,
    /// What the guest cannot work because of the move, all vCPUs together: while it is paused, slowed
    /// down, or waits for pages.
    pub lost_work_us: Band,
    /// Rounds while the guest runs.
    pub rounds: u32,
}

impl Forecast {
    /// Whether the guest gets there.
    #[must_use]
    pub fn moves(&self) -> bool {
        self.foreseen == Foreseen::Moves
    }
}
