//! How fast a guest's vCPUs may run.

use serde::{Deserialize, Deserializer, Serialize, de::Error};
use std::fmt;

/// Speed of the vCPUs in percent of their full one, 1 to 100.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "schema", schemars(extend("minimum" = 1, "maximum" = 100)))]
#[serde(transparent)]
pub struct VcpuSpeed(u8);

impl VcpuSpeed {
    /// Not slowed down.
    pub const FULL: Self = Self(100);

    /// A speed of so many percent; less than 1 counts as 1 and more than 100 as 100.
    #[must_use]
    pub const fn percent(percent: u8) -> Self {
        match percent {
            0 => Self(1),
            1..=100 => Self(percent),
            _ => Self::FULL,
        }
    }

    /// The speed nearest to a number of percents.
    #[must_use]
    pub fn nearest(percent: f64) -> Self {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped")]
        Self(percent.round().clamp(1.0, 100.0) as u8)
    }

    /// The number of percents.
    #[must_use]
    pub fn as_percent(self) -> u8 {
        self.0
    }
}

impl Default for VcpuSpeed {
    fn default() -> Self {
        Self::FULL
    }
}

impl fmt::Display for VcpuSpeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} %", self.0)
    }
}

impl<'de> Deserialize<'de> for VcpuSpeed {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let percent = u8::deserialize(from)?;
        if (1..=100).contains(&percent) {
            Ok(Self(percent))
        } else {
            Err(D::Error::custom(format!("{percent} % is no speed; 1 to 100 are")))
        }
    }
}
