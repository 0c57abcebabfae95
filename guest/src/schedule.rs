//! When work falls due: pages by a rate, ticks by the slot. Time is an argument.
//!
//! Both go by absolute deadlines counted from one start, so that nothing drifts, and neither
//! catches up: what fell due while the guest stood still is lost. That is the point: counters
//! over time then show how much the guest lost.

use std::num::NonZeroU8;
use std::time::Duration;

use crate::quantity::Rate;

/// The grid of all deadlines: slots of so many milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grid(pub NonZeroU8);

/// Pages that fall due at a steady rate, in slots of a grid.
#[derive(Debug)]
pub struct RateSchedule {
    rate: Rate,
    grid: Grid,
    slot: Option<u64>,
    left: u64,
}

impl RateSchedule {
    /// Starts a schedule; the first pages fall due in the slot in which it is first asked.
    #[must_use]
    pub fn new(rate: Rate, grid: Grid) -> Self {
        Self { rate, grid, slot: None, left: 0 }
    }

    /// Returns how many pages are due now: what is left of this slot's share. The shares of
    /// slots that have gone by are lost.
    pub fn due(&mut self, now: Duration) -> u64 {
        let slot = self.grid.slot(now);
        if self.slot != Some(slot) {
            self.slot = Some(slot);
            let end = slot + u64::from(self.grid.0.get());
            self.left = self.rate.pages_after(end) - self.rate.pages_after(slot);
        }
        self.left
    }

    /// Takes note that `pages` of those that were due are done.
    pub fn done(&mut self, pages: u64) {
        self.left = self.left.saturating_sub(pages);
    }
}

impl Grid {
    /// As fine as it gets.
    pub const MILLISECOND: Self = Self(NonZeroU8::MIN);

    /// Returns how long it is from `now` to the next slot: never nothing.
    #[must_use]
    pub fn until_next_slot(self, now: Duration) -> Duration {
        let next = self.slot(now) + u64::from(self.0.get());
        Duration::from_millis(next).saturating_sub(now)
    }

    /// Returns the millisecond in which the slot began that `now` is in; ticks carry it.
    #[must_use]
    pub fn slot(self, now: Duration) -> u64 {
        // The last milliseconds that can be told are left out, so that a slot has an end.
        let now = u64::try_from(now.as_millis()).unwrap_or(u64::MAX).min(u64::MAX - 0x100);
        now - now % u64::from(self.0.get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(microseconds: u64) -> Duration {
        Duration::from_micros(microseconds)
    }

    #[test]
    fn a_second_of_slots_gives_the_whole_rate_even_if_no_slot_gives_whole_pages() {
        for bytes in [4096, 50_000, 1_000_003, 50 << 20] {
            let mut schedule = RateSchedule::new(Rate(bytes), Grid::MILLISECOND);
            let mut total = 0;
            for millisecond in 0..1000 {
                let due = schedule.due(at(millisecond * 1000 + 500));
                schedule.done(due);
                total += due;
            }
            assert_eq!(total, bytes / 4096, "{bytes} B/s");
        }
    }

    #[test]
    fn what_fell_due_while_nobody_asked_is_lost() {
        let mut schedule = RateSchedule::new(Rate(4096 * 1000), Grid::MILLISECOND);
        assert_eq!(schedule.due(at(0)), 1);
        schedule.done(1);
        assert_eq!(schedule.due(at(500_000)), 1);
    }

    #[test]
    fn what_a_slot_leaves_undone_is_not_added_to_the_next() {
        let mut schedule = RateSchedule::new(Rate(4096 * 20_000), Grid::MILLISECOND);
        assert_eq!(schedule.due(at(0)), 20);
        schedule.done(5);
        assert_eq!(schedule.due(at(1000)), 20);
    }

    #[test]
    fn a_slot_is_worked_off_in_parts() {
        let mut schedule = RateSchedule::new(Rate(4096 * 20_000), Grid::MILLISECOND);
        assert_eq!(schedule.due(at(0)), 20);
        schedule.done(8);
        assert_eq!(schedule.due(at(900)), 12);
        schedule.done(12);
        assert_eq!(schedule.due(at(999)), 0);
        assert_eq!(schedule.due(at(1000)), 20);
    }

    #[test]
    fn a_rate_of_nothing_never_falls_due_and_the_largest_does_not_overflow() {
        let mut none = RateSchedule::new(Rate(0), Grid::MILLISECOND);
        assert_eq!(none.due(at(123_456)), 0);
        let mut largest = RateSchedule::new(Rate(u64::MAX), Grid::MILLISECOND);
        assert!(largest.due(Duration::from_secs(1 << 40)) < u64::MAX);
    }

    #[test]
    fn deadlines_lie_on_the_grid_however_late_one_asks() {
        let grid = Grid::MILLISECOND;
        assert_eq!(grid.until_next_slot(at(0)), at(1000));
        assert_eq!(grid.until_next_slot(at(1_000_999)), at(1));
        assert_eq!(grid.slot(at(999)), 0);
        assert_eq!(grid.slot(at(7_300)), 7);
    }

    #[test]
    fn a_coarser_grid_gives_the_same_rate_in_fewer_slots() {
        let grid = Grid(NonZeroU8::new(10).unwrap());
        assert_eq!(grid.until_next_slot(at(7_300)), at(2_700));
        assert_eq!((grid.slot(at(9_999)), grid.slot(at(10_000))), (0, 10));
        let mut schedule = RateSchedule::new(Rate(1 << 20), grid);
        let mut total = 0;
        for slot in 0..100 {
            let due = schedule.due(at(slot * 10_000 + 4_000));
            schedule.done(due);
            assert_eq!(schedule.due(at(slot * 10_000 + 9_000)), 0);
            total += due;
        }
        assert_eq!(total, 256);
    }
}
