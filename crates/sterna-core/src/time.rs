//! Time as an argument.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::time::Duration;

/// A point in time, as the distance from one that the driver chose and keeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(pub Duration);

impl Time {
    /// How long ago `earlier` was; zero if it is still to come.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl std::ops::Add<Duration> for Time {
    type Output = Self;
    fn add(self, distance: Duration) -> Self {
        Self(self.0.saturating_add(distance))
    }
}

/// Durations as whole microseconds, for fields whose written name ends in `_us`. A type rather than a module, so that
/// it has a schema.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(inline, transparent))]
pub(crate) struct Micros(u64);

impl Micros {
    fn of(time: Duration) -> Self {
        Self(u64::try_from(time.as_micros()).unwrap_or(u64::MAX))
    }

    pub(crate) fn serialize<S: Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(Self::of(*time).0)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        u64::deserialize(from).map(Duration::from_micros)
    }
}

/// Durations that may be missing, as whole microseconds.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(inline, transparent))]
pub(crate) struct MicrosOption(Option<u64>);

impl MicrosOption {
    pub(crate) fn serialize<S: Serializer>(
        time: &Option<Duration>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        Self(time.map(|time| Micros::of(time).0)).0.serialize(to)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<Duration>, D::Error> {
        Ok(Option::<u64>::deserialize(from)?.map(Duration::from_micros))
    }
}
