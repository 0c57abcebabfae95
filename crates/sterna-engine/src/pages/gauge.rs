//! How fast a stream sends: what its thread can do, and what the link takes of it.
//!
//! The thread's own part is processor time, which waiting does not add to. What is left of the time that
//! a write takes was spent waiting, for a processor, which the kernel counts, or for the link: a stream that waits for a good part of its time is held
//! up by it, so what went out meanwhile is what the link takes. A stream that does not wait says nothing
//! of the link, and is not held to what was once seen.

use std::time::{Duration, Instant};
use sterna_page::coding::Pace;

/// How often the link is judged.
const INTERVAL: Duration = Duration::from_millis(50);

/// The link is the limit where the stream waits for it for this part of the time.
const WAITING: f64 = 0.25;

/// How much faster the link is taken to be after an interval that says nothing of it: a stronger coder is
/// given up in seconds, and tried again after one interval.
const GROWTH: f64 = 1.02;

/// What the newest writes count for.
const NEWEST: f64 = 0.1;

/// Writes of fewer bytes are mostly overhead.
const TELLING_BYTES: usize = 16 << 10;

/// What a thread encrypts and sends in a second, until that was measured.
const SENT_AT_FIRST: f64 = 1e9;

/// Measures one stream.
#[derive(Debug)]
pub(super) struct Gauge {
    pace: Pace,
    since: Instant,
    bytes: u64,
    waited: Duration,
}

/// What a write took.
#[derive(Clone, Copy, Debug)]
pub(super) struct Took {
    /// By the clock.
    pub(super) elapsed: Duration,
    /// Of the processor.
    pub(super) processor: Duration,
}

impl Gauge {
    pub(super) fn new(now: Instant) -> Self {
        let pace = Pace { sent: SENT_AT_FIRST, link: f64::INFINITY };
        Self { pace, since: now, bytes: 0, waited: Duration::ZERO }
    }

    pub(super) fn pace(&self) -> Pace {
        self.pace
    }

    /// There is something to send again: what went before says nothing of the link.
    pub(super) fn begin(&mut self, now: Instant) {
        (self.since, self.bytes, self.waited) = (now, 0, Duration::ZERO);
    }

    /// Takes note of a write. Returns how much time has passed, whenever the link was judged anew; `queued` is
    /// how long the thread has waited for a processor since it was last asked.
    pub(super) fn wrote(
        &mut self,
        bytes: usize,
        took: Took,
        now: Instant,
        queued: impl FnOnce() -> Duration,
    ) -> Option<Duration> {
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let sent = bytes as f64;
        if bytes >= TELLING_BYTES && !took.processor.is_zero() {
            let newest = sent / took.processor.as_secs_f64();
            self.pace.sent += (newest - self.pace.sent) * NEWEST;
        }
        self.bytes += bytes as u64;
        self.waited += took.elapsed.saturating_sub(took.processor);
        let elapsed = now.saturating_duration_since(self.since);
        if elapsed < INTERVAL {
            return None;
        }
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let rate = self.bytes as f64 / elapsed.as_secs_f64();
        let waited = self.waited.saturating_sub(queued());
        self.pace.link = if waited.as_secs_f64() > elapsed.as_secs_f64() * WAITING {
            rate
        } else {
            (self.pace.link * GROWTH).max(rate)
        };
        self.begin(now);
        Some(elapsed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// A stream that hands over 64 KiB each millisecond, of which it waits for the link for so long.
    fn after(gauge: &mut Gauge, from: Instant, writes: u32, waiting: Duration) -> Instant {
        let mut now = from;
        for _ in 0..writes {
            now += MS;
            let processor = Duration::from_micros(100);
            let took = Took { elapsed: processor + waiting, processor };
            let _ = gauge.wrote(64 << 10, took, now, || Duration::ZERO);
        }
        now
    }

    #[test]
    fn a_link_is_known_once_it_holds_a_stream_up() {
        let begin = Instant::now();
        let mut gauge = Gauge::new(begin);
        let now = after(&mut gauge, begin, 60, Duration::ZERO);
        assert!(gauge.pace().link.is_infinite());
        let now = after(&mut gauge, now, 60, MS / 2);
        let link = gauge.pace().link;
        assert!((65e6..66e6).contains(&link), "{link}");
        // 64 KiB in 0.1 ms of the processor.
        let sent = gauge.pace().sent;
        assert!((655e6..660e6).contains(&sent), "{sent}");
        // A second without waiting: twenty intervals.
        after(&mut gauge, now, 1000, Duration::ZERO);
        let grown = gauge.pace().link / link;
        assert!((1.4..1.6).contains(&grown), "{grown}");
    }

    #[test]
    fn a_busy_processor_is_no_slow_link() {
        let begin = Instant::now();
        let mut gauge = Gauge::new(begin);
        let took = Took { elapsed: MS * 60, processor: MS * 10 };
        let _ = gauge.wrote(1 << 20, took, begin + MS * 60, || MS * 45);
        assert!(gauge.pace().link.is_infinite());
        let _ = gauge.wrote(1 << 20, took, begin + MS * 120, || MS * 20);
        assert!(gauge.pace().link.is_finite());
    }

    #[test]
    fn time_without_anything_to_send_does_not_make_a_link_slow() {
        let begin = Instant::now();
        let mut gauge = Gauge::new(begin);
        let now = after(&mut gauge, begin, 40, MS / 2);
        // A round has ended; the next begins.
        let later = now + MS * 500;
        gauge.begin(later);
        after(&mut gauge, later, 60, MS / 2);
        let link = gauge.pace().link;
        assert!((65e6..66e6).contains(&link), "{link}");
    }

    #[test]
    fn time_is_told_interval_by_interval() {
        let begin = Instant::now();
        let mut gauge = Gauge::new(begin);
        let took = Took { elapsed: MS, processor: MS };
        let none = || Duration::ZERO;
        assert_eq!(gauge.wrote(100, took, begin + MS * 49, none), None);
        assert_eq!(gauge.wrote(100, took, begin + MS * 51, none), Some(MS * 51));
        assert_eq!(gauge.wrote(100, took, begin + MS * 52, none), None);
    }
}
