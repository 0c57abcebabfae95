//! When was what: the moments of a move that its receipt implies.

use crate::figures;
use std::time::Duration;
use sterna_core::algorithm::{AlgorithmName, link_bytes_per_second};
use sterna_core::receipt::{Ending, Receipt, Round};

/// A stretch of time, counted from the request to move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    /// Its begin.
    pub(crate) from: Duration,
    /// Its end, never before its begin.
    pub(crate) to: Duration,
}

/// The share of a move up to which its end is too short to be seen beside the rest.
const MAGNIFIED_SHARE_MAX: f64 = 0.15;

/// End of a round.
pub(crate) fn end(round: &Round) -> Duration {
    round.started.saturating_add(round.took)
}

/// The rate at which the guest wrote during a round, in bytes a second.
pub(crate) fn dirty_rate(round: &Round) -> Option<f64> {
    figures::per_second(round.dirtied.bytes(), round.took)
}

/// The number of rounds that were made while the guest ran; a last one may follow after the pause.
pub(crate) fn live_rounds(receipt: &Receipt) -> usize {
    let copied_after_pause = receipt.downtime.is_some_and(|downtime| !downtime.copy.is_zero());
    let last_is_final = copied_after_pause
        || receipt.ending == Ending::Moved
        || receipt.algorithm == AlgorithmName::StopAndCopy;
    receipt.rounds.len().saturating_sub(usize::from(last_is_final))
}

/// When the guest stood still.
pub(crate) fn standstill(receipt: &Receipt) -> Option<Span> {
    let downtime = receipt.downtime?;
    let from = match receipt.rounds.get(live_rounds(receipt)) {
        Some(last) => last.started.saturating_sub(downtime.pause),
        None => receipt.rounds.last().map_or(receipt.negotiation, end),
    };
    Some(Span { from, to: from.saturating_add(downtime.total) })
}

/// The whole move, with whatever reaches beyond its total.
pub(crate) fn whole(receipt: &Receipt) -> Span {
    let rounds = receipt.rounds.iter().map(end);
    let still = standstill(receipt).map(|span| span.to);
    let to = rounds.chain(still).chain([receipt.negotiation]).fold(receipt.total, Duration::max);
    Span { from: Duration::ZERO, to }
}

/// The time from the second round to the end of the standstill, if it is too short to be seen in
/// a picture of the whole.
pub(crate) fn magnified(receipt: &Receipt) -> Option<Span> {
    let from = receipt.rounds.get(1)?.started;
    let still = standstill(receipt)?;
    let to = receipt.rounds.iter().map(end).fold(still.to, Duration::max);
    let whole = whole(receipt).to.as_secs_f64();
    let length = to.checked_sub(from)?;
    let small = length.as_secs_f64() < whole * MAGNIFIED_SHARE_MAX;
    // Some of the first round, so that one sees where the window begins.
    let margin = length / 20;
    (small && !length.is_zero())
        .then(|| Span { from: from.saturating_sub(margin), to: to.saturating_add(margin) })
}

/// Bytes a second that the link let through, as the algorithms judge it.
pub(crate) fn link_rate(receipt: &Receipt) -> Option<f64> {
    link_bytes_per_second(&receipt.rounds)
}
