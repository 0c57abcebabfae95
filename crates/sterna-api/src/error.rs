//! Errors as the interface answers them.

use serde::{Deserialize, Serialize};
use std::fmt;
use sterna_proto::message::Reason;

/// Stable codes of [`ApiError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum ErrorCode {
    /// The request cannot be understood.
    BadRequest,
    /// The request describes no guest or no move.
    Invalid,
    /// There is no such guest, move or path.
    NotFound,
    /// The path is known, but not with this method.
    MethodNotAllowed,
    /// The guest was moved to another host.
    MovedAway,
    /// Something of that name or id is already there.
    AlreadyExists,
    /// The guest is in a state in which this cannot be done.
    WrongState,
    /// What is to be changed has been changed by somebody else meanwhile.
    Changed,
    /// The request is larger than its limit.
    TooLarge,
    /// The request did not come whole within the time that it may take.
    TooSlow,
    /// The caller holds more connections or relays than it may, or all callers together do.
    TooMany,
    /// The caller may not do this.
    Forbidden,
    /// This host cannot run or move this guest; see the reasons.
    Unable,
    /// The hypervisor failed.
    Hypervisor,
    /// Another host, to which the caller was to be passed on, cannot be reached.
    Unreachable,
    /// The agent is about to end.
    ShuttingDown,
    /// The agent failed.
    #[serde(other)]
    Internal,
}

impl ErrorCode {
    /// The HTTP status it is answered with.
    #[must_use]
    pub fn status(self) -> u16 {
        match self {
            Self::BadRequest => 400,
            Self::Forbidden => 403,
            Self::NotFound => 404,
            Self::MethodNotAllowed => 405,
            Self::AlreadyExists | Self::WrongState | Self::Changed => 409,
            Self::MovedAway => 410,
            Self::TooSlow => 408,
            Self::TooLarge => 413,
            Self::TooMany => 429,
            Self::Invalid | Self::Unable => 422,
            Self::Internal => 500,
            Self::Hypervisor | Self::Unreachable => 502,
            Self::ShuttingDown => 503,
        }
    }
}

/// What went wrong, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ApiError {
    /// Stable code.
    pub code: ErrorCode,
    /// Words for people, with all causes.
    pub message: String,
    /// What to do next, one step each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hints: Vec<String>,
    /// Every reason, where a guest cannot come or go.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<Reason>,
}

impl ApiError {
    /// An error without hints.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hints: Vec::new(), reasons: Vec::new() }
    }

    /// Adds what to do next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    /// Adds reasons.
    #[must_use]
    pub fn reasons(mut self, reasons: Vec<Reason>) -> Self {
        self.reasons.extend(reasons);
        self
    }

    /// An error and all that caused it, in one message.
    #[must_use]
    pub fn from_chain(code: ErrorCode, error: &dyn std::error::Error) -> Self {
        let mut message = error.to_string();
        let mut cause = error.source();
        while let Some(inner) = cause {
            message = format!("{message}: {inner}");
            cause = inner.source();
        }
        Self::new(code, message)
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for ApiError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_agents_code_is_read_as_internal() {
        let error: ApiError =
            serde_json::from_str(r#"{"code":"solar-flare","message":"x","later":1}"#).unwrap();
        assert_eq!(error.code, ErrorCode::Internal);
    }

    #[test]
    fn a_chain_becomes_one_message() {
        #[derive(Debug)]
        struct Outer(ApiError);
        impl fmt::Display for Outer {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("cannot start")
            }
        }
        impl std::error::Error for Outer {
            fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
                Some(&self.0)
            }
        }
        let chain = Outer(ApiError::new(ErrorCode::Internal, "no space"));
        let error = ApiError::from_chain(ErrorCode::Internal, &chain);
        assert_eq!(error.message, "cannot start: no space");
    }
}
