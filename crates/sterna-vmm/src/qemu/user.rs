//! The user that one QEMU runs as, and no other process.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::num::NonZeroU32;

/// A user id, with the group id of the same number. It is one guest's for as long as its QEMU runs: whoever has taken
/// that over then reaches nothing of other guests, nor of the agent, which is root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UserId(NonZeroU32);

impl UserId {
    /// The user of this number, unless that is root.
    #[must_use]
    pub fn new(number: u32) -> Option<Self> {
        NonZeroU32::new(number).map(Self)
    }

    /// Its number.
    #[must_use]
    pub fn number(self) -> u32 {
        self.0.get()
    }
}

impl fmt::Display for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_is_nobodys_own_user_not_even_in_a_record() {
        assert_eq!(UserId::new(0), None);
        assert!(serde_json::from_str::<UserId>("0").is_err());
        assert_eq!(serde_json::from_str::<UserId>("7").unwrap().number(), 7);
    }
}
