//! What a page costs a stream: with its content, or got by the destination itself.

use super::gauge::Gauge;
use std::time::Duration;
use sterna_page::PageCount;

/// How long pages must have taken before that tells something.
const TELLING: Duration = Duration::from_millis(50);

/// Of so many pages it is known how long they took; twice as old ones count for half.
const CONTENT_PAGES: u64 = 1 << 14;

/// Getting pages is taken for so many times as hard after an interval in which the receiver was the limit while
/// it did, and for so much less after any other.
const BACKOFF: f64 = 1.5;
const RECOVERY: f64 = 0.98;
/// More than that it never is: what takes the receiver long is mostly what comes beside these pages.
const BACKOFF_MAX: f64 = 2.25;

/// So many pages of disks are read at most before anybody knows whether that pays.
const READ_BLINDLY_MAX: u64 = 1024;

/// What a page costs.
#[derive(Clone, Copy, Debug)]
pub(super) struct PageCost {
    /// The stream, with its content, once that is known.
    pub(super) takes: Option<Duration>,
    /// The destination, to get it by itself: how many times as long as thought.
    pub(super) getting_times: f64,
    /// Whether pages may be read from disks while nobody knows what they take otherwise.
    pub(super) may_read_blindly: bool,
}

/// What pages have cost of late.
#[derive(Debug)]
pub(super) struct Costs {
    /// Coding and writing pages with their content.
    time: Duration,
    bytes: u64,
    pages: u64,
    getting_times: f64,
    /// Since that was last judged: pages that the destination was to get, and pages that went with their content.
    got: u64,
    sent: u64,
    /// Pages that were read from disks.
    read: u64,
}

impl Default for Costs {
    fn default() -> Self {
        Self {
            time: Duration::ZERO,
            bytes: 0,
            pages: 0,
            getting_times: 1.0,
            got: 0,
            sent: 0,
            read: 0,
        }
    }
}

impl Costs {
    /// Coding took so long.
    pub(super) fn coded(&mut self, took: Duration) {
        self.time += took;
    }

    /// Writing pages with their content took so long.
    pub(super) fn wrote(&mut self, pages: PageCount, bytes: u64, took: Duration) {
        self.sent += pages.0;
        self.time += took;
        self.bytes += bytes;
        self.pages += pages.0;
        if self.pages > CONTENT_PAGES {
            (self.time, self.bytes, self.pages) = (self.time / 2, self.bytes / 2, self.pages / 2);
        }
    }

    /// The destination gets so many pages by itself.
    pub(super) fn gets(&mut self, pages: PageCount) {
        self.got += pages.0;
    }

    /// It reads so many on disks.
    pub(super) fn reads(&mut self, pages: PageCount) {
        self.got += pages.0;
        self.read += pages.0;
    }

    /// An interval has ended in which the receiver was, or was not, the limit.
    pub(super) fn judged(&mut self, receiver: bool) {
        if !receiver {
            self.getting_times = (self.getting_times * RECOVERY).max(1.0);
        } else if self.got > self.sent {
            self.getting_times = (self.getting_times * BACKOFF).min(BACKOFF_MAX);
        }
        (self.got, self.sent) = (0, 0);
    }

    /// What a page costs, on a link of which this is known.
    pub(super) fn of_page(&self, gauge: &Gauge) -> PageCost {
        PageCost {
            takes: self.page_takes(gauge),
            getting_times: self.getting_times,
            may_read_blindly: self.read < READ_BLINDLY_MAX,
        }
    }

    /// On average over those of late, and what it takes the link at least: now and then pages only fill what lies
    /// between the thread and the link. Nobody knows before it has taken a while.
    fn page_takes(&self, gauge: &Gauge) -> Option<Duration> {
        if self.time < TELLING || gauge.is_judging() {
            return None;
        }
        let each = self.time.checked_div(u32::try_from(self.pages).ok()?)?;
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let page_bytes = self.bytes as f64 / self.pages as f64;
        let on_link = Duration::try_from_secs_f64(page_bytes / gauge.pace().link);
        Some(each.max(on_link.unwrap_or_default()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::gauge::{Others, Took};
    use super::*;
    use std::time::Instant;

    const MS: Duration = Duration::from_millis(1);
    const TEN: PageCount = PageCount(10);

    #[test]
    fn only_pages_that_go_with_their_content_tell_what_one_takes() {
        let gauge = Gauge::new(Instant::now());
        let mut costs = Costs::default();
        costs.gets(TEN);
        assert_eq!(costs.of_page(&gauge).takes, None);
        costs.wrote(TEN, 1000, MS);
        assert_eq!(costs.of_page(&gauge).takes, None, "too soon to tell");
        costs.coded(TELLING);
        assert_eq!(costs.of_page(&gauge).takes, Some((TELLING + MS) / 10));
        costs.gets(TEN);
        assert_eq!(costs.of_page(&gauge).takes, Some((TELLING + MS) / 10));
    }

    #[test]
    fn what_only_fills_buffers_takes_as_long_as_the_link_does() {
        let begin = Instant::now();
        let mut gauge = Gauge::new(begin);
        let mut costs = Costs::default();
        costs.wrote(PageCount(1000), 1_000_000, TELLING);
        let held_up = Took { elapsed: MS * 60, processor: MS };
        let _ = gauge.wrote(1_000_000, held_up, begin + MS * 60, Others::default);
        assert_eq!(costs.of_page(&gauge).takes, None, "nobody knows the link");
        // A million bytes in 60 ms: a page of 1000 bytes takes 60 us, not the 50 of writing it.
        let _ = gauge.wrote(1_000_000, held_up, begin + MS * 120, Others::default);
        let takes = costs.of_page(&gauge).takes.unwrap();
        assert_eq!(takes.as_micros(), 60);
    }

    #[test]
    fn few_pages_are_read_before_it_is_known_whether_that_pays() {
        let mut costs = Costs::default();
        let gauge = Gauge::new(Instant::now());
        costs.gets(PageCount(READ_BLINDLY_MAX));
        costs.reads(TEN);
        assert!(costs.of_page(&gauge).may_read_blindly);
        costs.reads(PageCount(READ_BLINDLY_MAX));
        assert!(!costs.of_page(&gauge).may_read_blindly);
    }

    #[test]
    fn getting_pages_is_taken_for_harder_where_the_receiver_falls_behind_and_only_there() {
        let mut costs = Costs::default();
        let gauge = Gauge::new(Instant::now());
        costs.gets(TEN);
        costs.judged(true);
        costs.gets(TEN);
        costs.judged(true);
        let behind = costs.of_page(&gauge).getting_times;
        assert!((behind - 2.25).abs() < 1e-9, "{behind}");
        // Pages with their content were too much for it.
        costs.wrote(TEN, 1000, MS);
        costs.judged(true);
        assert!((costs.of_page(&gauge).getting_times - behind).abs() < 1e-9);
        (0..100).for_each(|_| costs.judged(false));
        assert!((costs.of_page(&gauge).getting_times - 1.0).abs() < 1e-9);
        for _ in 0..100 {
            costs.gets(TEN);
            costs.judged(true);
        }
        assert!(costs.of_page(&gauge).getting_times <= BACKOFF_MAX);
    }
}
