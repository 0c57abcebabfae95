//! Tick lines with the host's time of arrival: gaps, and work that was lost.
//!
//! Lost work over a window is the integral of `1 - throughput / baseline`, throughput being the
//! growth of the counter of checked pages. The integral of the first term is the window's length
//! and that of the second the pages checked over the baseline's rate, so that no throughput has
//! to be made up for single moments.

use std::time::{Duration, Instant};

use sterna_guest::line::Tick;

use super::{Window, longest_gap};

/// The step in which throughput is looked at when one asks since when it is back.
const STEP: Duration = Duration::from_millis(100);

/// A tick line as it arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    /// When the host read it.
    pub at: Instant,
    /// What it said.
    pub tick: Tick,
}

/// The tick lines of one guest from all its consoles, in the order of arrival.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TickLog {
    samples: Vec<Sample>,
}

/// A growing count of pages in a tick.
type Counter = fn(&Tick) -> u64;

impl TickLog {
    /// Merges samples of any number of consoles by their time of arrival.
    #[must_use]
    pub fn new(mut samples: Vec<Sample>) -> Self {
        samples.sort_by_key(|sample| (sample.at, sample.tick.number));
        Self { samples }
    }

    /// Returns the samples in the order of arrival.
    #[must_use]
    pub fn samples(&self) -> &[Sample] {
        &self.samples
    }

    /// Returns the longest time within a window in which no tick line arrived.
    #[must_use]
    pub fn longest_gap(&self, window: Window) -> Duration {
        longest_gap(self.samples.iter().map(|sample| sample.at), window)
    }

    /// Returns how many ticks arrived more than once: a guest that ran in two places at a time.
    #[must_use]
    pub fn seen_twice(&self) -> usize {
        let mut numbers: Vec<u64> = self.samples.iter().map(|sample| sample.tick.number).collect();
        let all = numbers.len();
        numbers.sort_unstable();
        numbers.dedup();
        all - numbers.len()
    }

    /// Returns the pages checked per second within a window, or nothing if too few ticks fall
    /// into it.
    #[must_use]
    pub fn checked_per_second(&self, window: Window) -> Option<f64> {
        self.rate(window, |tick| tick.checked)
    }

    /// Returns the pages rewritten per second within a window, or nothing if too few ticks fall
    /// into it.
    #[must_use]
    pub fn written_per_second(&self, window: Window) -> Option<f64> {
        self.rate(window, |tick| tick.written)
    }

    /// Returns how many seconds' worth of checking the guest lost within a window, against what
    /// it did in a baseline window; below zero if it did more. Nothing if the baseline shows no
    /// work.
    #[must_use]
    pub fn lost_work(&self, baseline: Window, window: Window) -> Option<f64> {
        let rate = self.checked_per_second(baseline).filter(|&rate| rate > 0.0)?;
        let done = self.count_at(window.to, |tick| tick.checked)?
            - self.count_at(window.from, |tick| tick.checked)?;
        Some(window.length().as_secs_f64() - done / rate)
    }

    /// Returns how long after `from` the guest was back at a share of the baseline's throughput,
    /// in steps of 100 ms: the end of the last step below it. Nothing if it was below it in the
    /// last step of the record too.
    #[must_use]
    pub fn recovered_after(&self, baseline: Window, from: Instant, share: f64) -> Option<Duration> {
        let wanted = self.checked_per_second(baseline)? * share;
        let end = self.samples.last()?.at;
        let (mut recovered, mut step) = (from, Window::new(from, from + STEP));
        while step.to <= end {
            let done = self.count_at(step.to, |tick| tick.checked)?
                - self.count_at(step.from, |tick| tick.checked)?;
            if done / STEP.as_secs_f64() < wanted {
                recovered = step.to;
            }
            step = Window::new(step.to, step.to + STEP);
        }
        (recovered < step.from).then(|| recovered - from)
    }

    fn rate(&self, window: Window, counter: Counter) -> Option<f64> {
        let mut within = self.samples.iter().filter(|sample| window.contains(sample.at));
        let first = within.next()?;
        let last = within.next_back()?;
        let seconds = (last.at - first.at).as_secs_f64();
        let pages = as_float(counter(&last.tick)) - as_float(counter(&first.tick));
        (seconds > 0.0).then(|| pages / seconds)
    }

    /// Returns a counter at an instant, on the straight line between the ticks around it; before
    /// the first and after the last tick it stands still.
    fn count_at(&self, at: Instant, counter: Counter) -> Option<f64> {
        let after = self.samples.partition_point(|sample| sample.at <= at);
        let value = |sample: &Sample| as_float(counter(&sample.tick));
        let before = after.checked_sub(1).map(|index| &self.samples[index]);
        match (before, self.samples.get(after)) {
            (None, None) => None,
            (Some(one), None) | (None, Some(one)) => Some(value(one)),
            (Some(before), Some(after)) => {
                let part = (at - before.at).as_secs_f64() / (after.at - before.at).as_secs_f64();
                Some(value(before) + (value(after) - value(before)) * part)
            }
        }
    }
}

/// Counts of pages stay far below 2^53, up to which a float holds every whole number.
fn as_float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Series {
        start: Instant,
        samples: Vec<Sample>,
        checked: u64,
    }

    impl Series {
        fn new() -> Self {
            Self { start: Instant::now(), samples: Vec::new(), checked: 0 }
        }

        /// Ticks each millisecond from one millisecond to another, checking so many pages each.
        fn run(mut self, from: u64, to: u64, pages: u64) -> Self {
            for number in from..to {
                self.checked += pages;
                let tick = Tick { number, checked: self.checked, written: self.checked / 2 };
                self.samples.push(Sample { at: self.at(number), tick });
            }
            self
        }

        fn at(&self, milliseconds: u64) -> Instant {
            self.start + Duration::from_millis(milliseconds)
        }

        fn window(&self, from: u64, to: u64) -> Window {
            Window::new(self.at(from), self.at(to))
        }

        fn log(&self) -> TickLog {
            TickLog::new(self.samples.clone())
        }
    }

    fn about(value: Option<f64>, expected: f64) -> bool {
        value.is_some_and(|value| (value - expected).abs() < 0.005)
    }

    #[test]
    fn a_pause_loses_its_length_of_work() {
        let series = Series::new().run(0, 1000, 50).run(1300, 3000, 50);
        let log = series.log();
        let (baseline, move_window) = (series.window(0, 1000), series.window(1000, 2500));
        assert!(
            about(log.lost_work(baseline, move_window), 0.3),
            "{:?}",
            log.lost_work(baseline, move_window)
        );
        assert_eq!(log.longest_gap(move_window), Duration::from_millis(300));
    }

    #[test]
    fn a_guest_at_half_speed_loses_half_of_the_time() {
        let series = Series::new().run(0, 1000, 50).run(1000, 2000, 25).run(2000, 3000, 50);
        let lost = series.log().lost_work(series.window(0, 1000), series.window(1000, 3000));
        assert!(about(lost, 0.5), "{lost:?}");
    }

    #[test]
    fn a_faster_destination_gains_work() {
        let series = Series::new().run(0, 1000, 50).run(1000, 2000, 100);
        let lost = series.log().lost_work(series.window(0, 1000), series.window(1000, 1900));
        assert!(about(lost, -0.9), "{lost:?}");
    }

    #[test]
    fn no_baseline_no_lost_work() {
        let idle = Series::new().run(0, 100, 0);
        assert_eq!(idle.log().lost_work(idle.window(0, 50), idle.window(50, 100)), None);
        let empty = TickLog::default();
        assert_eq!(empty.lost_work(idle.window(0, 50), idle.window(50, 100)), None);
    }

    #[test]
    fn recovery_is_the_end_of_the_last_slow_step() {
        let series = Series::new().run(0, 1000, 50).run(1250, 1600, 20).run(1600, 3000, 50);
        let recovered =
            |from| series.log().recovered_after(series.window(0, 1000), series.at(from), 0.95);
        assert_eq!(recovered(1000), Some(Duration::from_millis(600)));
        assert_eq!(recovered(2000), Some(Duration::ZERO));
    }

    #[test]
    fn a_guest_that_stays_slow_has_not_recovered() {
        let series = Series::new().run(0, 1000, 50).run(1000, 3000, 40);
        let baseline = series.window(0, 1000);
        assert_eq!(series.log().recovered_after(baseline, series.at(1000), 0.95), None);
    }

    #[test]
    fn two_consoles_are_merged_by_time_and_a_guest_in_two_places_shows() {
        let source = Series::new().run(0, 10, 1);
        let mut samples = source.samples.clone();
        samples.reverse();
        assert_eq!(TickLog::new(samples.clone()), source.log());
        assert_eq!(source.log().seen_twice(), 0);
        samples.extend(&source.samples[7..]);
        assert_eq!(TickLog::new(samples).seen_twice(), 3);
    }

    #[test]
    fn rates_are_taken_between_the_ticks_of_the_window() {
        let series = Series::new().run(0, 1000, 50);
        let log = series.log();
        assert!(about(log.checked_per_second(series.window(0, 1000)), 50_000.0));
        assert!(about(log.written_per_second(series.window(0, 1000)), 25_000.0));
        assert_eq!(log.checked_per_second(series.window(5, 6)), None);
    }
}
