//! From values to coordinates that are always finite: straight scales and their marks.

use std::time::Duration;

/// The largest coordinate that is written; far outside of every picture.
const COORDINATE_MAX: f64 = 1e5;

/// Marks on one axis at most.
const MARKS_MAX: u32 = 20;

/// A straight scale from values to coordinates.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scale {
    from: f64,
    to: f64,
    start: f64,
    end: f64,
}

impl Scale {
    /// Values from `from` to `to` on coordinates from `start` to `end`. Where the values have no
    /// extent they get one, so that nothing is divided by zero.
    pub(crate) fn new(from: f64, to: f64, start: f64, end: f64) -> Self {
        let from = if from.is_finite() { from } else { 0.0 };
        let sound = to.is_finite() && to - from > from.abs() * 1e-9;
        let to = if sound { to } else { from + from.abs().max(1e-3) };
        Self { from, to, start, end }
    }

    /// The coordinate of a value; values outside are put on the edge.
    pub(crate) fn at(&self, value: f64) -> f64 {
        let share = ((value - self.from) / (self.to - self.from)).clamp(0.0, 1.0);
        let share = if share.is_nan() { 0.0 } else { share };
        self.start + share * (self.end - self.start)
    }

    /// The coordinate of a time, on a scale of seconds.
    pub(crate) fn time(&self, time: Duration) -> f64 {
        self.at(time.as_secs_f64())
    }

    /// Whether a value is within the scale.
    pub(crate) fn holds(&self, value: f64) -> bool {
        (self.from..=self.to).contains(&value)
    }

    /// About `wanted` round values within the scale, at steps of 1, 2 or 5 times a power of ten,
    /// where one of the unit is `unit`; and how many decimals they need.
    pub(crate) fn marks(&self, wanted: u32, unit: f64) -> (Vec<f64>, usize) {
        let (from, to) = (self.from / unit, self.to / unit);
        let rough = (to - from) / f64::from(wanted.clamp(1, MARKS_MAX));
        let magnitude = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0]
            .into_iter()
            .map(|factor| factor * magnitude)
            .find(|step| *step >= rough * 0.999)
            .unwrap_or(rough);
        let first = (from / step - 1e-6).ceil();
        let marks = (0..=MARKS_MAX)
            .map(|index| (first + f64::from(index)) * step)
            .take_while(|mark| *mark <= to + step * 1e-6)
            .map(|mark| mark * unit)
            .collect();
        (marks, decimals(step))
    }
}

fn decimals(step: f64) -> usize {
    let mut scaled = step;
    (0..9)
        .find(|_| {
            let whole = scaled > 0.999_999;
            scaled *= 10.0;
            whole
        })
        .unwrap_or(9)
}

/// A coordinate as it is written.
pub(crate) fn px(value: f64) -> String {
    let value = if value.is_finite() { value } else { 0.0 };
    let text = format!("{:.2}", value.clamp(-COORDINATE_MAX, COORDINATE_MAX));
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" { "0".into() } else { text.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_without_extent_still_has_coordinates() {
        for (from, to) in [(0.0, 0.0), (5.0, 5.0), (5.0, 1.0), (f64::NAN, f64::INFINITY)] {
            let scale = Scale::new(from, to, 10.0, 20.0);
            for value in [0.0, 5.0, f64::NAN, f64::INFINITY] {
                assert!((10.0..=20.0).contains(&scale.at(value)), "{from} {to} {value}");
            }
            assert!(scale.marks(5, 1.0).0.iter().all(|mark| mark.is_finite()));
        }
    }

    #[test]
    fn marks_are_round_and_within() {
        let (marks, decimals) = Scale::new(0.0, 5.3, 0.0, 1.0).marks(6, 1.0);
        assert_eq!((marks, decimals), (vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0], 0));
        let (marks, decimals) = Scale::new(5.281, 5.32, 0.0, 1.0).marks(4, 1.0);
        assert_eq!((marks.len(), decimals), (4, 2));
        assert!((marks[0] - 5.29).abs() < 1e-9);
    }

    #[test]
    fn coordinates_are_short_and_finite() {
        assert_eq!(px(1.0), "1");
        assert_eq!(px(1.256), "1.26");
        assert_eq!(px(-0.001), "0");
        assert_eq!(px(f64::NAN), "0");
        assert_eq!(px(f64::INFINITY), "0");
        assert_eq!(px(1e300), "100000");
    }
}
