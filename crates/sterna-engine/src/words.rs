//! Errors as reasons: what the other side and the operator are told.

use std::error::Error;
use sterna_proto::message::{Reason, ReasonCode};
use sterna_vmm::VmmError;

/// An error and all that caused it, in one line.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// A hypervisor's failure as a reason.
pub(crate) fn hypervisor(error: &VmmError) -> Reason {
    Reason::new(ReasonCode::Hypervisor, chain(error))
}
