//! What holds for everything that is read from JSON.

use serde::{Serialize, de::DeserializeOwned};
use std::fmt::Debug;

/// Reads a `T`, and makes sure that it is the same after it was written and read again.
///
/// # Panics
/// When it is not.
pub(crate) fn reread<T>(data: &[u8]) -> Option<T>
where
    T: DeserializeOwned + Serialize + PartialEq + Debug,
{
    let value: T = serde_json::from_slice(data).ok()?;
    let written = serde_json::to_string(&value).expect("what was read can be written");
    let again: T = serde_json::from_str(&written)
        .unwrap_or_else(|error| panic!("{written} is not read again: {error}"));
    assert_eq!(again, value, "read from {written}");
    Some(value)
}
