//! What a guest was seen to write of late.

use super::{Look, WorkingSetCurve};
use crate::speed::VcpuSpeed;

/// Looks that are kept of one round: those of a long one become fewer and wider apart.
const LOOKS_MAX: usize = 64;

/// A guest that writes this much more or less than before, in percent of what the curve says, has
/// changed: what was seen before means nothing any more.
const CHANGED_PERCENT: std::ops::RangeInclusive<f64> = 70.0..=140.0;

/// The looks at a guest, those of the newest rounds before those of older ones.
#[derive(Clone, Debug, Default)]
pub(crate) struct Behaviour {
    /// Of the round that is under way.
    current: Vec<Look>,
    kept: Vec<Look>,
    curve: WorkingSetCurve,
}

impl Behaviour {
    /// Takes note of a look within a round. A guest that runs at half its speed comes half as far.
    pub(crate) fn looked(&mut self, look: Look, vcpus: VcpuSpeed) {
        if self.current.len() == LOOKS_MAX {
            let mut number = 0;
            self.current.retain(|_| {
                number += 1;
                number % 2 == 0
            });
        }
        let after = look.after.saturating_mul(vcpus.as_percent().into()) / 100;
        self.current.push(Look { after, ..look });
    }

    /// Takes the round's looks into the curve. Of older ones those remain that are longer than all of
    /// this round's, unless the guest has changed.
    pub(crate) fn round_ended(&mut self) {
        let Some(longest) = self.current.iter().max_by_key(|look| look.after).copied() else {
            return;
        };
        let before = self.curve.pages_within(longest.after.as_secs_f64());
        let changed = super::curve::pages_f64(longest.pages) * 100.0 / before;
        if CHANGED_PERCENT.contains(&changed) {
            self.kept.retain(|look| look.after > longest.after);
        } else {
            self.kept.clear();
        }
        self.kept.append(&mut self.current);
        self.curve = WorkingSetCurve::new(&self.kept);
    }

    /// What is known by now.
    pub(crate) fn curve(&self) -> &WorkingSetCurve {
        &self.curve
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use sterna_page::PageCount;

    fn look(millis: u64, pages: u64) -> Look {
        Look { after: Duration::from_millis(millis), pages: PageCount(pages) }
    }

    fn seen(rounds: &[&[Look]]) -> WorkingSetCurve {
        let mut behaviour = Behaviour::default();
        for round in rounds {
            round.iter().for_each(|look| behaviour.looked(*look, VcpuSpeed::FULL));
            behaviour.round_ended();
        }
        behaviour.curve().clone()
    }

    fn pages(curve: &WorkingSetCurve, seconds: f64) -> u64 {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small")]
        let whole = curve.pages_within(seconds).round() as u64;
        whole
    }

    #[test]
    fn a_short_round_refines_what_a_long_one_told() {
        let long = [look(500, 500), look(1000, 900), look(2000, 1200)];
        let curve = seen(&[&long, &[look(500, 450)]]);
        assert_eq!((pages(&curve, 0.5), pages(&curve, 2.0)), (450, 1200));
    }

    #[test]
    fn a_guest_that_has_changed_is_not_judged_by_what_it_was() {
        let curve = seen(&[&[look(500, 100), look(2000, 150)], &[look(500, 5000)]]);
        assert_eq!(pages(&curve, 2.0), 20_000);
        let curve = seen(&[&[look(500, 5000), look(2000, 20_000)], &[look(500, 100)]]);
        assert_eq!(pages(&curve, 2.0), 400);
    }

    #[test]
    fn a_slow_guest_is_judged_by_the_time_that_it_had() {
        let mut behaviour = Behaviour::default();
        behaviour.looked(look(1000, 100), VcpuSpeed::percent(50));
        behaviour.round_ended();
        assert_eq!(pages(behaviour.curve(), 0.5), 100);
    }

    #[test]
    fn a_round_of_any_length_is_kept_in_little_space() {
        let mut behaviour = Behaviour::default();
        (1..10_000).for_each(|at| behaviour.looked(look(at, at), VcpuSpeed::FULL));
        assert!(behaviour.current.len() <= LOOKS_MAX);
        behaviour.round_ended();
        let last = behaviour.kept.last().unwrap().after;
        assert!(last >= Duration::from_millis(9_000), "{last:?}");
        assert_eq!(pages(behaviour.curve(), 5.0), 5000);
    }
}
