//! Exit codes. They are part of the interface and do not change.

use std::process::ExitCode;
use sterna_api::{ApiError, ErrorCode};
use sterna_core::receipt::{Ending, Receipt};
use sterna_proto::message::ReasonCode;

/// The codes, for `--help`.
pub(crate) const HELP: &str = "\
Exit codes:
  0  done; for a move: the guest runs at the destination
  1  error
  2  wrong usage
  3  refused before anything was sent, with every reason; the guest runs on
     (for a plan: no method is foreseen to move the guest within the limits)
  4  undone: the guest runs on at the source
  5  cancelled: the guest runs on at the source
  6  the guest is in doubt, paused, lost or has ended: look at it";

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// What was asked for is done.
    Done,
    /// Something failed.
    Error,
    /// Refused before anything was done.
    Refused,
    /// The guest runs on at the source.
    Undone,
    /// The same, on request.
    Cancelled,
    /// The guest does not run, or nobody knows where.
    Doubt,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        // 2 is clap's.
        Self::from(match exit {
            Exit::Done => 0u8,
            Exit::Error => 1,
            Exit::Refused => 3,
            Exit::Undone => 4,
            Exit::Cancelled => 5,
            Exit::Doubt => 6,
        })
    }
}

impl Exit {
    /// Of a move, by its receipt.
    pub(crate) fn of_move(receipt: &Receipt) -> Self {
        match &receipt.ending {
            Ending::Moved => Self::Done,
            Ending::Undone { reasons } => {
                let has = |code| reasons.iter().any(|reason| reason.code == code);
                if has(ReasonCode::Cancelled) {
                    Self::Cancelled
                } else if receipt.rounds.is_empty() && reasons.iter().any(|r| refusal(r.code)) {
                    Self::Refused
                } else {
                    Self::Undone
                }
            }
            Ending::GuestGone { .. } | Ending::Stuck { .. } | Ending::Lost { .. } => Self::Doubt,
        }
    }

    /// Of a request that the agent did not grant.
    pub(crate) fn of_error(error: &ApiError) -> Self {
        match error.code {
            ErrorCode::Unable | ErrorCode::Forbidden => Self::Refused,
            _ => Self::Error,
        }
    }
}

/// Whether a destination gives this reason when it does not take a guest in.
fn refusal(code: ReasonCode) -> bool {
    match code {
        ReasonCode::NoRoom
        | ReasonCode::AlreadyHere
        | ReasonCode::StaleEpoch
        | ReasonCode::Incompatible
        | ReasonCode::Missing
        | ReasonCode::Forbidden => true,
        ReasonCode::Cancelled
        | ReasonCode::TimedOut
        | ReasonCode::LinkLost
        | ReasonCode::Protocol
        | ReasonCode::Hypervisor
        | ReasonCode::Agent
        | ReasonCode::DigestMismatch
        | ReasonCode::NotConverging
        | ReasonCode::Other => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::receipt_text::tests::receipt;
    use sterna_proto::message::Reason;

    fn undone(codes: &[ReasonCode]) -> Receipt {
        let reasons = codes.iter().map(|code| Reason::new(*code, "x")).collect();
        Receipt { ending: Ending::Undone { reasons }, rounds: vec![], ..receipt() }
    }

    #[test]
    fn each_ending_has_its_own_code() {
        assert_eq!(Exit::of_move(&receipt()), Exit::Done);
        let refused = undone(&[ReasonCode::NoRoom, ReasonCode::Missing]);
        assert_eq!(Exit::of_move(&refused), Exit::Refused);
        assert_eq!(Exit::of_move(&undone(&[ReasonCode::Cancelled])), Exit::Cancelled);
        assert_eq!(Exit::of_move(&undone(&[ReasonCode::LinkLost])), Exit::Undone);
        let later = Receipt { rounds: receipt().rounds, ..refused };
        assert_eq!(Exit::of_move(&later), Exit::Undone);
        let reason = Reason::new(ReasonCode::Hypervisor, "x");
        let lost = Receipt { ending: Ending::Lost { reason }, ..receipt() };
        assert_eq!(Exit::of_move(&lost), Exit::Doubt);
    }
}
