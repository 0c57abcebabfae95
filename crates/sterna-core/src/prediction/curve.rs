//! The working-set curve: how many different pages a guest writes within a time.
//!
//! It is what a tracker sees that is read several times and not cleared. It rises with the guest's
//! write rate and flattens as the guest comes back to pages that it has written before; a round of
//! copying that takes *t* leaves as many pages to be sent again as the curve has at *t*.

use serde::{Deserialize, Serialize};
use std::time::Duration;
use sterna_page::PageCount;

/// One look at the tracker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Look {
    /// Since the tracker was cleared.
    #[serde(with = "crate::time::Micros", rename = "after_us")]
    pub after: Duration,
    /// Different pages written since then.
    pub pages: PageCount,
}

/// Different pages that a guest writes, by time.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WorkingSetCurve {
    /// Seconds and pages, both ascending.
    points: Vec<(f64, f64)>,
    tail: Tail,
}

/// How the curve goes on after the last look.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Tail {
    /// Nothing is known, or it has been seen to be flat.
    #[default]
    Flat,
    /// At this many pages a second.
    Straight(f64),
    /// Towards `more` pages more, of which a share of `1/e` is left after each `seconds`.
    Saturating { more: f64, seconds: f64 },
}

/// Guests write in bursts, and a look takes its time: over half a second the pages added may well be off
/// by this part, over longer times by less.
const DOUBT: f64 = 0.25;
const DOUBT_SECONDS: f64 = 0.5;

/// A curve of which the second half of the time adds nearly as much as the first cannot be told from
/// a straight line: 1 - x of [`tail_of`].
const STRAIGHT: f64 = 0.02;

impl WorkingSetCurve {
    /// The curve through these looks, in any order.
    #[must_use]
    pub fn new(looks: &[Look]) -> Self {
        let mut points: Vec<(f64, f64)> = looks
            .iter()
            .filter(|look| !look.after.is_zero())
            .map(|look| (look.after.as_secs_f64(), pages_f64(look.pages)))
            .collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        points.dedup_by(|later, earlier| {
            let same = later.0 <= earlier.0;
            if same {
                earlier.1 = earlier.1.max(later.1);
            }
            same
        });
        let mut most = 0.0_f64;
        for point in &mut points {
            most = most.max(point.1);
            point.1 = most;
        }
        let tail = tail_of(&points);
        Self { points, tail }
    }

    /// Whether anything is known of the guest.
    #[must_use]
    pub fn is_known(&self) -> bool {
        !self.points.is_empty()
    }

    /// The looks it goes through.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "whole, as it was")]
    pub fn looks(&self) -> Vec<Look> {
        let look = |(seconds, pages): &(f64, f64)| Look {
            after: Duration::try_from_secs_f64(*seconds).unwrap_or(Duration::MAX),
            pages: PageCount(*pages as u64),
        };
        self.points.iter().map(look).collect()
    }

    /// Different pages written within `seconds`.
    #[must_use]
    pub fn pages_within(&self, seconds: f64) -> f64 {
        let Some(&(end, most)) = self.points.last() else { return 0.0 };
        if seconds <= end {
            return between(&self.points, seconds.max(0.0));
        }
        let over = seconds - end;
        most + match self.tail {
            Tail::Flat => 0.0,
            Tail::Straight(slope) => slope * over,
            Tail::Saturating { more, seconds } => more * (1.0 - (-over / seconds).exp()),
        }
    }

    /// All pages that the guest ever writes, as far as can be told; infinite if the curve does not
    /// flatten.
    #[must_use]
    pub fn working_set(&self) -> f64 {
        self.pages_within(f64::MAX)
    }
}

/// The value at `seconds`, within the points, which begin at nothing.
fn between(points: &[(f64, f64)], seconds: f64) -> f64 {
    let next = points.partition_point(|point| point.0 < seconds);
    let (from, to) = match next {
        0 => return before(points, seconds),
        next if next == points.len() => return points[next - 1].1,
        next => (points[next - 1], points[next]),
    };
    from.1 + (to.1 - from.1) * (seconds - from.0) / (to.0 - from.0)
}

/// The value before the first look, at *t₁*. If twice that time adds a share *q* of the pages at *t₁*,
/// uniform writes give *(1 - q^(t/t₁)) / (1 - q)* of them at *t*: a straight line for *q* = 1, and a step
/// for a set that was full long before.
fn before(points: &[(f64, f64)], seconds: f64) -> f64 {
    let (first, pages) = points[0];
    if pages <= 0.0 {
        return 0.0;
    }
    let last = points.len() - 1;
    let doubled =
        if points[last].0 < first * 2.0 { pages * 2.0 } else { between(points, first * 2.0) };
    let more = (doubled / pages - 1.0).clamp(0.01, 1.0);
    let part = seconds / first;
    if more > 0.99 {
        return pages * part;
    }
    pages * (1.0 - more.powf(part)) / (1.0 - more)
}

/// Fits one exponential to the last three quarters of the looks, in halves and quarters of their time
/// *T*. Uniform writes at rate *r* to a set of *S* pages give *S (1 - x⁴)* at *T*, with
/// *x = exp(-rT/4S)*. The pages added from *T/2* to *T* are then *x (1 + x)* times those added from
/// *T/4* to *T/2*, which gives *x*, and from it what is still to come. A small hot set beside a large
/// one is full by then and does not disturb it.
fn tail_of(points: &[(f64, f64)]) -> Tail {
    let Some(&(end, most)) = points.last() else { return Tail::Flat };
    let (half, quarter) = (between(points, end / 2.0), between(points, end / 4.0));
    let (first, second) = (half - quarter, most - half);
    if second <= 0.0 {
        return Tail::Flat;
    }
    if first <= 0.0 {
        return Tail::Straight(second / (end / 2.0));
    }
    // In doubt the guest goes on: to foresee too little is the worse mistake.
    let doubt = DOUBT * (DOUBT_SECONDS / end).min(1.0);
    let x = f64::midpoint(-1.0, (1.0 + 4.0 * (1.0 + doubt) * second / first).sqrt());
    if x >= 1.0 - STRAIGHT {
        return Tail::Straight(second / (end / 2.0));
    }
    let (squared, to_the_fourth) = (x.powi(2), x.powi(4));
    let more = second * to_the_fourth / (squared - to_the_fourth);
    Tail::Saturating { more, seconds: end / (-4.0 * x.ln()) }
}

#[expect(clippy::cast_precision_loss, reason = "an estimate")]
pub(super) fn pages_f64(pages: PageCount) -> f64 {
    pages.0 as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn looks(of: impl Fn(f64) -> f64) -> Vec<Look> {
        let at = [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2];
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small")]
        let look = |&seconds: &f64| Look {
            after: Duration::from_secs_f64(seconds),
            pages: PageCount(of(seconds) as u64),
        };
        at.iter().map(look).collect()
    }

    fn uniform(rate: f64, set: f64) -> impl Fn(f64) -> f64 {
        move |seconds| set * (1.0 - (-rate * seconds / set).exp())
    }

    fn assert_near(found: f64, right: f64, percent: f64) {
        let off = (found / right - 1.0).abs() * 100.0;
        assert!(off <= percent, "{found} is {off:.1} % off {right}");
    }

    #[test]
    fn between_looks_and_after_them_uniform_writes_are_told() {
        let truth = uniform(20_000.0, 40_000.0);
        let curve = WorkingSetCurve::new(&looks(&truth));
        for seconds in [0.1, 0.3, 1.0, 3.2] {
            assert_near(curve.pages_within(seconds), truth(seconds), 3.0);
        }
        for seconds in [4.0, 6.4, 20.0, 100.0] {
            assert_near(curve.pages_within(seconds), truth(seconds), 8.0);
        }
        assert_near(curve.working_set(), 40_000.0, 8.0);
        let fast = uniform(100_000.0, 2_000.0);
        let curve = WorkingSetCurve::new(&looks(&fast));
        for seconds in [0.01, 0.02, 0.04] {
            assert_near(curve.pages_within(seconds), fast(seconds), 5.0);
        }
    }

    #[test]
    fn a_hot_tenth_does_not_hide_the_rest() {
        // Nine of ten writes go to a tenth.
        let (hot, cold) = (uniform(18_000.0, 4_000.0), uniform(2_000.0, 36_000.0));
        let truth = |seconds| hot(seconds) + cold(seconds);
        let curve = WorkingSetCurve::new(&looks(truth));
        assert_near(curve.pages_within(6.4), truth(6.4), 5.0);
        assert_near(curve.pages_within(12.8), truth(12.8), 15.0);
    }

    #[test]
    fn a_curve_that_does_not_flatten_goes_on() {
        let curve = WorkingSetCurve::new(&looks(|seconds| 1000.0 * seconds));
        assert_near(curve.pages_within(32.0), 32_000.0, 1.0);
        assert!(curve.working_set() > 1e9);
    }

    #[test]
    fn a_guest_that_rewrites_a_few_pages_is_flat() {
        let curve = WorkingSetCurve::new(&looks(|_| 300.0));
        assert_near(curve.working_set(), 300.0, 0.1);
        // Its few pages were full long before the first look.
        assert!(curve.pages_within(0.025) > 250.0);
    }

    #[test]
    fn nothing_is_told_of_a_guest_that_was_never_looked_at() {
        let curve = WorkingSetCurve::new(&[]);
        assert!(!curve.is_known());
        assert_near(curve.pages_within(10.0) + 1.0, 1.0, 0.0);
    }

    #[test]
    fn looks_that_contradict_each_other_make_a_curve_all_the_same() {
        let look =
            |after, pages| Look { after: Duration::from_millis(after), pages: PageCount(pages) };
        let curve = WorkingSetCurve::new(&[look(100, 50), look(0, 7), look(50, 60), look(100, 40)]);
        assert_near(curve.pages_within(0.1), 60.0, 0.0);
        assert_near(curve.pages_within(1000.0), 60.0, 0.0);
        let one = WorkingSetCurve::new(&[look(100, 50)]);
        assert!(one.working_set().is_finite() || one.working_set() > 50.0);
    }
}
