//! The hypervisor copies by itself; this policy only judges what it achieves, round by round, and ends
//! it where it achieves nothing.
//!
//! When to pause is the hypervisor's decision: when what is left fits the longest downtime. The
//! operator's other limits are judged at its round ends as [`PreCopy`](super::PreCopy) judges them at
//! ours. Where they are reached, or some rounds in a row have not made the residue a tenth smaller, the
//! move is given up, or the hypervisor is told to pause whatever is left. Where the hypervisor slows
//! the guest down, rounds are judged anew at each speed, and only those at the least speed end the
//! move; how many there are then does not matter, as it makes them short.

use super::residues::Residues;
use super::{Algorithm, AlgorithmName, Decision, Tracking, View};
use crate::limits::{Limits, WhenStuck};
use crate::receipt::StopReason;
use crate::speed::VcpuSpeed;
use sterna_page::PageCount;

/// Rounds in a row that may fail to help. The first whose residue is known is the one after the first
/// pass; what a hypervisor says of a residue is an estimate.
const FRUITLESS_ROUNDS_MAX: u32 = 3;

/// The same at the least speed, where there is no other way left.
const FRUITLESS_ROUNDS_AT_LEAST_SPEED_MAX: u32 = 20;

/// The least speed to which hypervisors slow a guest down, in percent.
const SLOWEST_PERCENT: u8 = 1;

/// The policy of letting the hypervisor copy.
#[derive(Clone, Copy, Debug, Default)]
pub struct Native {
    residues: Residues,
    vcpus: VcpuSpeed,
}

impl Native {
    fn note(&mut self, residue: PageCount, vcpus: VcpuSpeed) {
        if vcpus != self.vcpus {
            *self = Self { vcpus, ..Self::default() };
        }
        self.residues.note(residue);
    }
}

impl Algorithm for Native {
    fn name(&self) -> AlgorithmName {
        AlgorithmName::Native
    }

    fn tracking(&self) -> Tracking {
        Tracking::NotNeeded
    }

    fn may_owe(&self, _limits: &Limits) -> bool {
        false
    }

    fn delegates(&self) -> bool {
        true
    }

    fn may_hold_back(&self) -> bool {
        false
    }

    fn next(&mut self, view: &View<'_>) -> Decision {
        if view.rounds.is_empty() {
            return Decision::Delegate;
        }
        let vcpus = view.rounds.last().map_or(VcpuSpeed::FULL, |round| round.vcpus);
        self.note(view.residue, vcpus);
        let when_stuck = view.limits.when_stuck;
        let (limit, fruitless_max) = match when_stuck {
            Some(WhenStuck::Throttle) => {
                let limits = Limits { rounds_max: u32::MAX, ..*view.limits };
                let at_least = vcpus.as_percent() <= SLOWEST_PERCENT;
                let max = if at_least { FRUITLESS_ROUNDS_AT_LEAST_SPEED_MAX } else { u32::MAX };
                (View { limits: &limits, ..*view }.limit_reached(), max)
            }
            _ => (view.limit_reached(), FRUITLESS_ROUNDS_MAX),
        };
        let no_progress =
            (self.residues.fruitless() >= fruitless_max).then_some(StopReason::NoProgress);
        match (limit.or(no_progress), when_stuck) {
            (None, _) => Decision::Delegate,
            // The hypervisor is about to find that too.
            (Some(reason), _) if view.residue_time() <= view.limits.downtime_max => {
                Decision::Pause(reason)
            }
            (Some(reason), Some(WhenStuck::StopAndCopy)) => Decision::Pause(reason),
            (Some(reason), _) => Decision::GiveUp(reason),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::receipt::Round;
    use std::time::Duration;

    /// What is decided after rounds that left these residues.
    fn decide(residues: &[u64], limits: &Limits) -> Decision {
        let mut algorithm = Native::default();
        let mut rounds = Vec::new();
        let fixed_downtime = Duration::ZERO;
        let mut decision = Decision::Delegate;
        for residue in residues {
            rounds.push(Round { dirtied: PageCount(*residue), ..Round::default() });
            let elapsed = Duration::from_secs(1);
            let view = View::after(&rounds, PageCount(*residue), limits);
            let view = View { elapsed, fixed_downtime, ..view };
            decision = algorithm.next(&view);
        }
        decision
    }

    #[test]
    fn rounds_that_do_not_help_end_the_move_as_the_operator_wants() {
        let limits = |when_stuck| Limits { when_stuck, ..Limits::default() };
        let stuck = [900, 880, 900, 890];
        let reason = StopReason::NoProgress;
        assert_eq!(decide(&stuck[..3], &limits(Some(WhenStuck::Abort))), Decision::Delegate);
        assert_eq!(decide(&stuck, &limits(Some(WhenStuck::Abort))), Decision::GiveUp(reason));
        assert_eq!(decide(&stuck, &limits(Some(WhenStuck::StopAndCopy))), Decision::Pause(reason));
        assert_eq!(decide(&stuck, &limits(Some(WhenStuck::Throttle))), Decision::Delegate);
        assert_eq!(
            decide(&[900, 700, 500, 300], &limits(Some(WhenStuck::Abort))),
            Decision::Delegate
        );
    }

    #[test]
    fn a_guest_that_is_slowed_down_is_given_up_at_the_least_speed_only() {
        let limits = Limits { when_stuck: Some(WhenStuck::Throttle), ..Limits::default() };
        let mut algorithm = Native::default();
        let mut rounds = Vec::new();
        let mut rounds_at = |percent: u8, count: usize| {
            let mut decisions = (0..count).map(|_| {
                let vcpus = VcpuSpeed::percent(percent);
                rounds.push(Round { dirtied: PageCount(900), vcpus, ..Round::default() });
                algorithm.next(&View {
                    elapsed: Duration::from_secs(1),
                    fixed_downtime: Duration::ZERO,
                    ..View::after(&rounds, PageCount(900), &limits)
                })
            });
            decisions.find(|decision| *decision != Decision::Delegate)
        };
        assert_eq!(rounds_at(100, 200), None);
        assert_eq!(rounds_at(20, 200), None);
        assert_eq!(rounds_at(1, 20), None);
        assert_eq!(rounds_at(1, 2), Some(Decision::GiveUp(StopReason::NoProgress)));
    }

    #[test]
    fn a_limit_ends_the_move_also_where_the_guest_is_slowed_down() {
        let copy_time_max = Some(Duration::from_secs(1));
        let slow = Limits { when_stuck: Some(WhenStuck::Throttle), ..Limits::default() };
        let limits = Limits { copy_time_max, ..slow };
        assert_eq!(decide(&[900], &limits), Decision::GiveUp(StopReason::TimeLimit));
        let limits = Limits { rounds_max: 3, ..Limits::default() };
        assert_eq!(decide(&[900, 700], &limits), Decision::Delegate);
        let reason = StopReason::RoundLimit;
        assert_eq!(decide(&[900, 700, 500], &limits), Decision::GiveUp(reason));
        let limits = Limits { rounds_max: 3, ..slow };
        assert_eq!(decide(&[900, 700, 500], &limits), Decision::Delegate);
    }
}
