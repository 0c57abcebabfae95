//! Rounds of copying first, so that few pages are owed, then hand-over (Sahni and Varma, CCGrid
//! 2012).
//!
//! When to change over is predicted at each round end. Of *R* pages that a round sends, the guest
//! writes *ρR* again meanwhile; the working-set curve tells *ρ* for the time that the next round takes,
//! or, before it is known, the last round does: as a shorter round leaves the guest less time, that is
//! an upper bound. Another round thus costs *R* pages of link and spares the guest *(1 − ρ) R* pages to
//! wait for; the move takes *ρR* pages longer for it. It is made while it spares more than it lengthens,
//! which is while *ρ < ½*. Such rounds shrink by half at least, so they soon reach the downtime goal, and
//! then nothing is owed at all.

use super::{Algorithm, AlgorithmName, Decision, Tracking, View};
use crate::limits::Limits;
use crate::receipt::{Round, StopReason};

/// The policy of rounds before the hand-over.
#[derive(Clone, Copy, Debug)]
pub struct Hybrid;

impl Algorithm for Hybrid {
    fn name(&self) -> AlgorithmName {
        AlgorithmName::Hybrid
    }

    fn tracking(&self) -> Tracking {
        Tracking::Needed
    }

    fn may_owe(&self, _limits: &Limits) -> bool {
        true
    }

    fn next(&mut self, view: &View<'_>) -> Decision {
        let Some(last) = view.rounds.last() else {
            return Decision::COPY;
        };
        let within_limit = view.downtime() <= view.limits.downtime_max;
        if view.residue_time() <= view.limits.downtime_goal && within_limit {
            return Decision::Pause(StopReason::GoalReached);
        }
        if let Some(reason) = view.limit_reached() {
            return Decision::HandOver(reason);
        }
        if !another_pays(view, last) {
            return Decision::HandOver(StopReason::FollowingIsCheaper);
        }
        Decision::COPY
    }
}

/// Whether the guest will write less than half of another round again meanwhile.
fn another_pays(view: &View<'_>, last: &Round) -> bool {
    #[expect(clippy::cast_precision_loss, reason = "an estimate")]
    let pages = |count: u64| count as f64;
    if view.curve.is_known() {
        let again = view.curve.pages_within(view.residue_time().as_secs_f64());
        return again * 2.0 < pages(view.residue.0);
    }
    let sent = last.pages.raw.0.saturating_add(last.pages.zero.0);
    pages(last.dirtied.0) * 2.0 < pages(sent)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::receipt::PagesByCoding;
    use std::time::Duration;
    use sterna_page::PageCount;

    /// A link of 100 MB/s carries one page in 41 µs.
    fn round(sent: u64, dirtied: u64) -> Round {
        Round {
            pages: PagesByCoding { raw: PageCount(sent), ..PagesByCoding::default() },
            bytes: sent * 4096,
            took: Duration::from_micros(sent * 41),
            dirtied: PageCount(dirtied),
            ..Round::default()
        }
    }

    fn decide(rounds: &[Round], limits: &Limits) -> Decision {
        let residue = rounds.last().map_or(PageCount::ZERO, |round| round.dirtied);
        Hybrid.next(&View::after(rounds, residue, limits))
    }

    #[test]
    fn rounds_go_on_while_they_spare_more_than_they_lengthen() {
        let limits = Limits::default();
        let more = Decision::COPY;
        let over = Decision::HandOver(StopReason::FollowingIsCheaper);
        assert_eq!(decide(&[], &limits), more);
        assert_eq!(decide(&[round(100_000, 40_000)], &limits), more);
        assert_eq!(decide(&[round(100_000, 60_000)], &limits), over);
        assert_eq!(decide(&[round(100_000, 40_000), round(40_000, 40_000)], &limits), over);
    }

    #[test]
    fn a_residue_within_the_goal_is_sent_at_the_pause() {
        let rounds = [round(100_000, 400), round(400, 50)];
        assert_eq!(decide(&rounds, &Limits::default()), Decision::Pause(StopReason::GoalReached));
    }

    #[test]
    fn a_limit_ends_the_rounds_by_handing_over() {
        let limits = Limits { rounds_max: 2, ..Limits::default() };
        let rounds = [round(100_000, 10_000), round(10_000, 1_000)];
        assert_eq!(decide(&rounds, &limits), Decision::HandOver(StopReason::RoundLimit));
    }
}
