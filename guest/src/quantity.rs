//! Byte counts and rates as they are written in settings: `512M`, `64K`, `1G`.

use std::fmt;
use std::str::FromStr;

/// Bytes of one page, the unit of all memory here.
pub const PAGE_SIZE: usize = 4096;
/// [`PAGE_SIZE`] for arithmetic on byte counts.
const PAGE_BYTES: u64 = 4096;
const SUFFIXES: [(char, u64); 3] = [('G', 1 << 30), ('M', 1 << 20), ('K', 1 << 10)];

/// A number of bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

/// A number of bytes per second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rate(pub u64);

/// The number of a page in the filled area.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageNumber(pub u32);

/// A quantity that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a number with an optional K, M or G")]
pub struct BadQuantity(String);

impl Bytes {
    /// Returns `count` mebibytes.
    #[must_use]
    pub fn mebibytes(count: u32) -> Self {
        Self(u64::from(count) << 20)
    }

    /// Returns how many whole pages these bytes are, at most what a page number can hold.
    #[must_use]
    pub fn pages(self) -> u32 {
        u32::try_from(self.0 / PAGE_BYTES).unwrap_or(u32::MAX)
    }
}

impl Rate {
    /// Returns `count` mebibytes per second.
    #[must_use]
    pub fn mebibytes_per_second(count: u32) -> Self {
        Self(u64::from(count) << 20)
    }

    /// Returns how many pages have fallen due after `milliseconds` at this rate.
    pub(crate) fn pages_after(self, milliseconds: u64) -> u64 {
        let bytes = u128::from(self.0) * u128::from(milliseconds) / 1000;
        u64::try_from(bytes / u128::from(PAGE_BYTES)).unwrap_or(u64::MAX)
    }
}

impl PageNumber {
    /// Returns the number as an index into a slice of pages.
    #[must_use]
    pub fn index(self) -> usize {
        usize::try_from(self.0).expect("the recorder runs on 64-bit machines only")
    }
}

impl FromStr for Bytes {
    type Err = BadQuantity;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || BadQuantity(text.to_owned());
        let suffix = SUFFIXES.iter().find(|(letter, _)| text.ends_with(*letter));
        let (digits, unit) = match suffix {
            Some((_, unit)) => (&text[..text.len() - 1], *unit),
            None => (text, 1),
        };
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(bad());
        }
        let count: u64 = digits.parse().map_err(|_| bad())?;
        count.checked_mul(unit).map(Self).ok_or_else(bad)
    }
}

impl FromStr for Rate {
    type Err = BadQuantity;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(|Bytes(bytes)| Self(bytes))
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fitting = |(_, unit): &&(char, u64)| self.0 != 0 && self.0.is_multiple_of(*unit);
        match SUFFIXES.iter().find(fitting) {
            Some((letter, unit)) => write!(formatter, "{}{letter}", self.0 / unit),
            None => write!(formatter, "{}", self.0),
        }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        Bytes(self.0).fmt(formatter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        for bytes in [0, 1, 1023, 1024, 5 << 20, 3 << 30, (1 << 30) + 1] {
            assert_eq!(Bytes(bytes).to_string().parse(), Ok(Bytes(bytes)));
        }
        assert_eq!(Bytes(512 << 20).to_string(), "512M");
    }

    #[test]
    fn nonsense_and_overflow_are_refused() {
        for text in
            ["", "M", "12X", "-1", "+1", "1 M", "1MM", "99999999999999999999", "99999999999G"]
        {
            assert!(text.parse::<Bytes>().is_err(), "{text:?}");
        }
    }
}
