//! Rounds of dirty pages (Clark et al., NSDI 2005), ended by what rounds still achieve.
//!
//! Judged at round ends only: a residue sampled within a round is a saw-tooth from which no
//! progress can be read. In this order:
//!
//! 1. the residue's copy time is within the goal: pause;
//! 2. a limit on rounds, bytes or time is reached, or two rounds in a row have not made the residue
//!    a tenth smaller than the smallest before: rounds no longer help. If the predicted downtime
//!    (fixed part and residue) is within the operator's limit: pause. Otherwise the move is stuck,
//!    and the limit is widened by a quarter of the way that the operator allows (after KubeVirt's
//!    stepwise limit), and another round is made; when no step is left, the operator's choice for
//!    that case holds. If that is to slow the guest down, rounds go on
//!    and are judged anew, until they do not help at the least speed either. A round that held pages
//!    back is no proof that the move is stuck: before any of this, rounds go on that send everything;
//! 3. else: another round.

use super::residues::Residues;
use super::throttle::Throttle;
use super::{Algorithm, AlgorithmName, Decision, Tracking, View};
use crate::limits::{Limits, WhenStuck};
use crate::receipt::{Round, StopReason};
use crate::speed::VcpuSpeed;
use std::time::Duration;
use sterna_page::PageCount;

/// Rounds in a row that may fail to help: one may be bad luck.
const FRUITLESS_ROUNDS_MAX: u32 = 2;

/// Steps by which the downtime limit is widened.
const STRETCH_STEPS: u32 = 4;

/// The policy of copying in rounds.
#[derive(Clone, Copy, Debug, Default)]
pub struct PreCopy {
    residues: Residues,
    throttle: Option<Throttle>,
    /// Steps by which the downtime limit has been widened.
    stretched: u32,
    /// Whether rounds send everything, because they did not help while they held pages back.
    releases: bool,
}

impl PreCopy {
    fn copy(&self) -> Decision {
        let vcpus = self.throttle.map_or(VcpuSpeed::FULL, Throttle::speed);
        Decision::Copy { vcpus, at_most: None }
    }

    /// Widens the downtime limit by a step. `false` if it may not be wider.
    fn stretch(&mut self, view: &View<'_>) -> bool {
        let may = view.limits.downtime_stretch.is_some() && self.stretched < STRETCH_STEPS;
        if may {
            self.stretched += 1;
            self.judge_anew(view);
        }
        may
    }

    /// Has all further rounds send everything. `false` if the last one did.
    fn release(&mut self, view: &View<'_>) -> bool {
        let held = |round: &Round| round.pages.withheld > PageCount::ZERO;
        let may = !self.releases && view.rounds.last().is_some_and(held);
        if may {
            self.releases = true;
            self.judge_anew(view);
        }
        may
    }

    fn judge_anew(&mut self, view: &View<'_>) {
        self.residues = Residues::beginning_with(view.residue);
    }

    /// Slows the guest down, or further down. `false` if it is as slow as it may be.
    fn slow_down(&mut self, view: &View<'_>) -> bool {
        match &mut self.throttle {
            Some(throttle) => {
                if !throttle.harder() {
                    return false;
                }
            }
            none => *none = Some(Throttle::begin(view)),
        }
        self.judge_anew(view);
        true
    }

    fn end_of_rounds(&self, view: &View<'_>) -> Option<StopReason> {
        let no_progress = self.residues.fruitless() >= FRUITLESS_ROUNDS_MAX;
        view.limit_reached().or(no_progress.then_some(StopReason::NoProgress))
    }
}

impl Algorithm for PreCopy {
    fn name(&self) -> AlgorithmName {
        AlgorithmName::PreCopy
    }

    fn tracking(&self) -> Tracking {
        Tracking::Needed
    }

    fn may_owe(&self, limits: &Limits) -> bool {
        limits.when_stuck == Some(WhenStuck::PostCopy)
    }

    fn downtime_limit(&self, limits: &Limits) -> Duration {
        let widest = limits.downtime_at_most();
        let more = widest.saturating_sub(limits.downtime_max);
        limits.downtime_max.saturating_add(more / STRETCH_STEPS * self.stretched)
    }

    /// Not while the guest is slowed down either: how much is judged by what it writes in a round.
    fn may_hold_back(&self) -> bool {
        !self.releases && self.throttle.is_none()
    }

    fn next(&mut self, view: &View<'_>) -> Decision {
        if view.rounds.is_empty() {
            return self.copy();
        }
        self.residues.note(view.residue);
        let mut within_limit = view.downtime() <= self.downtime_limit(view.limits);
        if view.residue_time() <= view.limits.downtime_goal && within_limit {
            return Decision::Pause(StopReason::GoalReached);
        }
        let end = self.end_of_rounds(view);
        let stuck = end == Some(StopReason::NoProgress) && !within_limit;
        if stuck && self.release(view) {
            return self.copy();
        }
        if stuck && self.stretch(view) {
            within_limit = view.downtime() <= self.downtime_limit(view.limits);
            if !within_limit {
                return self.copy();
            }
        }
        match (end, view.limits.when_stuck) {
            (None, _) => {
                if let Some(throttle) = &mut self.throttle {
                    throttle.adjust(view);
                }
                self.copy()
            }
            (Some(reason), _) if within_limit => Decision::Pause(reason),
            (Some(StopReason::NoProgress), Some(WhenStuck::Throttle)) if self.slow_down(view) => {
                self.copy()
            }
            (Some(reason), Some(WhenStuck::StopAndCopy)) => Decision::Pause(reason),
            (Some(reason), Some(WhenStuck::PostCopy)) => Decision::HandOver(reason),
            (Some(reason), Some(WhenStuck::Abort | WhenStuck::Throttle) | None) => {
                Decision::GiveUp(reason)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::receipt::PagesByCoding;

    const LINK: u64 = 100_000_000;

    /// Runs the recursion of a guest that dirties `rate` bytes a second over `set` bytes.
    fn simulate(ram: u64, rate: u64, set: u64, limits: &Limits) -> (Decision, Vec<Round>) {
        let mut algorithm = PreCopy::default();
        let mut rounds: Vec<Round> = Vec::new();
        let mut residue = PageCount(ram / 4096);
        let mut elapsed = Duration::ZERO;
        loop {
            let fixed_downtime = Duration::from_millis(10);
            let view = View { fixed_downtime, ..View::after(&rounds, residue, limits) };
            let vcpus = match algorithm.next(&view) {
                Decision::Copy { vcpus, .. } => vcpus,
                end => return (end, rounds),
            };
            let took = Duration::from_micros(100 + residue.bytes() * 1_000_000 / LINK);
            elapsed += took;
            let rate = rate * u64::from(vcpus.as_percent()) / 100;
            let written = u64::try_from(took.as_micros()).unwrap() * rate / 1_000_000;
            let dirtied = PageCount(unlike(written, set) / 4096);
            let bytes = residue.bytes();
            rounds.push(Round { bytes, took, dirtied, vcpus, ..Round::default() });
            residue = dirtied;
        }
    }

    /// Bytes of a set that `written` bytes of uniform writes touch at least once.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a model"
    )]
    fn unlike(written: u64, set: u64) -> u64 {
        (set as f64 * (1.0 - (-(written as f64) / (set as f64).max(1.0)).exp())) as u64
    }

    #[test]
    fn a_guest_slower_than_the_link_converges_to_the_goal() {
        let (end, rounds) = simulate(1 << 30, LINK / 2, 256 << 20, &Limits::default());
        assert_eq!(end, Decision::Pause(StopReason::GoalReached));
        assert!(rounds.len() < 20, "{} rounds", rounds.len());
    }

    #[test]
    fn a_guest_faster_than_the_link_is_found_out_after_a_few_rounds() {
        let (end, rounds) = simulate(1 << 30, LINK * 2, 256 << 20, &Limits::default());
        assert_eq!(end, Decision::GiveUp(StopReason::NoProgress));
        assert!(rounds.len() <= 6, "{} rounds", rounds.len());
        assert!(rounds.iter().all(|round| round.vcpus == VcpuSpeed::FULL), "nobody asked for it");
        let limits = Limits { when_stuck: Some(WhenStuck::StopAndCopy), ..Limits::default() };
        let (end, _) = simulate(1 << 30, LINK * 2, 256 << 20, &limits);
        assert_eq!(end, Decision::Pause(StopReason::NoProgress));
    }

    #[test]
    fn a_guest_faster_than_the_link_is_slowed_down_until_it_converges() {
        let limits = Limits { when_stuck: Some(WhenStuck::Throttle), ..Limits::default() };
        for tenths in [11, 13, 16, 20, 30, 45] {
            for set in [64 << 20, 256 << 20, 1 << 30] {
                let (end, rounds) = simulate(1 << 30, LINK * tenths / 10, set, &limits);
                assert!(matches!(end, Decision::Pause(_)), "{tenths} {set}: {end:?}");
                let last = rounds.last().unwrap();
                let left = last.dirtied.bytes() * 1000 / LINK;
                let slowest = rounds.iter().map(|round| round.vcpus).min().unwrap();
                // Where pausing is within the limit in any case nobody is slowed down.
                let limit = if slowest == VcpuSpeed::FULL { 300 } else { 5 };
                assert!(left <= limit, "{tenths} {set}: {left} ms are left at {slowest}");
            }
        }
    }

    #[test]
    fn a_guest_is_not_slowed_down_much_more_than_it_takes() {
        let limits = Limits { when_stuck: Some(WhenStuck::Throttle), ..Limits::default() };
        let (_, rounds) = simulate(1 << 30, LINK * 2, 1 << 30, &limits);
        let slow: Vec<u8> = rounds
            .iter()
            .map(|round| round.vcpus.as_percent())
            .skip_while(|percent| *percent == 100)
            .collect();
        // One half of the link is a quarter of what this guest dirties.
        let mean = slow.iter().map(|percent| u32::from(*percent)).sum::<u32>()
            / u32::try_from(slow.len()).unwrap();
        assert!((20..=35).contains(&mean), "{slow:?}");
    }

    #[test]
    fn a_move_is_not_stuck_before_its_rounds_have_sent_everything() {
        let mut algorithm = PreCopy::default();
        let limits = Limits::default();
        let mut rounds: Vec<Round> = Vec::new();
        let mut next = |algorithm: &mut PreCopy, withheld: u64| {
            let pages = PagesByCoding { withheld: PageCount(withheld), ..PagesByCoding::default() };
            // 400 MB are left of it every time, four seconds of this link.
            let (bytes, took, dirtied) = (LINK, Duration::from_secs(1), PageCount(100_000));
            rounds.push(Round { pages, bytes, took, dirtied, ..Round::default() });
            algorithm.next(&View::after(&rounds, dirtied, &limits))
        };
        let copy = Decision::COPY;
        for _ in 0..2 {
            assert_eq!(next(&mut algorithm, 3000), copy);
            assert!(algorithm.may_hold_back());
        }
        assert_eq!(next(&mut algorithm, 3000), copy, "fruitless, but it held pages back");
        assert!(!algorithm.may_hold_back(), "for good");
        assert_eq!(next(&mut algorithm, 0), copy);
        assert_eq!(next(&mut algorithm, 0), Decision::GiveUp(StopReason::NoProgress));
    }

    #[test]
    fn the_downtime_is_stretched_as_far_as_it_takes_and_no_further() {
        let allowed = |max, stretch| Limits {
            downtime_max: Duration::from_millis(max),
            downtime_stretch: Some(Duration::from_millis(stretch)),
            ..Limits::default()
        };
        // 64 MiB are 670 ms at this link.
        let (end, few) = simulate(1 << 30, LINK * 20, 64 << 20, &allowed(300, 1500));
        assert_eq!(end, Decision::Pause(StopReason::NoProgress));
        let (end, more) = simulate(1 << 30, LINK * 20, 64 << 20, &allowed(300, 700));
        assert_eq!(end, Decision::Pause(StopReason::NoProgress));
        assert!(few.len() < more.len(), "a longer way is gone in longer steps");
        let (end, _) = simulate(1 << 30, LINK * 20, 64 << 20, &allowed(300, 600));
        assert_eq!(end, Decision::GiveUp(StopReason::NoProgress));
    }

    #[test]
    fn a_guest_is_slowed_down_only_when_the_downtime_cannot_be_stretched() {
        let both = Limits {
            when_stuck: Some(WhenStuck::Throttle),
            downtime_stretch: Some(Duration::from_millis(1500)),
            ..Limits::default()
        };
        let slowed = |rounds: &[Round]| rounds.iter().any(|round| round.vcpus < VcpuSpeed::FULL);
        let (_, rounds) = simulate(1 << 30, LINK * 20, 64 << 20, &both);
        assert!(!slowed(&rounds));
        let (end, rounds) = simulate(1 << 30, LINK * 4, 256 << 20, &both);
        assert!(matches!(end, Decision::Pause(_)), "{end:?}");
        assert!(slowed(&rounds));
    }

    #[test]
    fn a_guest_too_fast_even_at_the_least_speed_is_given_up() {
        let limits = Limits { when_stuck: Some(WhenStuck::Throttle), ..Limits::default() };
        let (end, rounds) = simulate(1 << 30, LINK * 100, 1 << 30, &limits);
        assert_eq!(end, Decision::GiveUp(StopReason::NoProgress));
        assert_eq!(rounds.last().unwrap().vcpus, VcpuSpeed::percent(2));
        assert!(rounds.len() < 15, "{} rounds", rounds.len());
    }

    #[test]
    fn a_guest_that_calms_down_gets_its_speed_back() {
        let round = |megabytes: u64, dirtied: u64| Round {
            bytes: megabytes << 20,
            took: Duration::from_millis(10 * megabytes),
            dirtied: PageCount(dirtied << 8),
            ..Round::default()
        };
        let limits = Limits { when_stuck: Some(WhenStuck::Throttle), ..Limits::default() };
        let mut algorithm = PreCopy::default();
        let mut rounds = vec![round(1000, 200)];
        let mut speeds = Vec::new();
        for (sent, dirtied) in [(200, 200), (200, 200), (200, 200), (200, 90), (90, 5), (50, 49)] {
            rounds.push(round(sent, dirtied));
            let view = View::after(&rounds, PageCount(dirtied << 8), &limits);
            if let Decision::Copy { vcpus, .. } = algorithm.next(&view) {
                speeds.push(vcpus.as_percent());
            }
        }
        assert_eq!(speeds, [100, 100, 50, 56, 100, 51]);
    }

    #[test]
    fn a_small_hot_set_within_the_limit_is_no_reason_to_give_up() {
        let (end, _) = simulate(1 << 30, LINK * 2, 8 << 20, &Limits::default());
        assert_eq!(end, Decision::Pause(StopReason::NoProgress));
    }

    #[test]
    fn the_operators_downtime_is_never_exceeded_without_leave() {
        let limits = Limits { downtime_max: Duration::from_millis(5), ..Limits::default() };
        let (end, _) = simulate(1 << 30, 0, 0, &limits);
        assert!(matches!(end, Decision::GiveUp(_)), "the fixed part alone is longer: {end:?}");
    }

    #[test]
    fn limits_on_rounds_bytes_and_time_end_the_rounds() {
        let slow = LINK * 9 / 10;
        let by_rounds = Limits { rounds_max: 3, ..Limits::default() };
        assert_eq!(
            simulate(1 << 30, slow, 1 << 30, &by_rounds).0,
            Decision::GiveUp(StopReason::RoundLimit)
        );
        let by_bytes = Limits { bytes_max: Some(1 << 30), ..Limits::default() };
        assert_eq!(
            simulate(1 << 30, slow, 1 << 30, &by_bytes).0,
            Decision::GiveUp(StopReason::ByteLimit)
        );
        let copy_time_max = Some(Duration::from_secs(1));
        let by_time = Limits { copy_time_max, ..Limits::default() };
        assert_eq!(
            simulate(1 << 30, slow, 1 << 30, &by_time).0,
            Decision::GiveUp(StopReason::TimeLimit)
        );
    }
}
