//! Whether pages are sent in fewer bytes than they have.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// What is done with pages that could be sent in fewer bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Compress {
    /// They are sent as they are.
    #[default]
    None,
    /// They are coded by whichever coder makes the move faster, if one does.
    Auto,
}

/// A word that is no way of compressing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not none or auto")]
pub struct UnknownCompress(pub String);

impl fmt::Display for Compress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Auto => "auto",
        })
    }
}

impl FromStr for Compress {
    type Err = UnknownCompress;
    fn from_str(text: &str) -> Result<Self, UnknownCompress> {
        [Self::None, Self::Auto]
            .into_iter()
            .find(|way| way.to_string() == text)
            .ok_or_else(|| UnknownCompress(text.into()))
    }
}
