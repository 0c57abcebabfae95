//! How much a stream that pushes may have under way: enough to keep the link busy, and so little that a
//! page that somebody waits for, on another connection, does not wait behind it.
//!
//! What is under way for longer than a round trip stands in a queue, where everything else waits too.
//! With the stream's own rate *r* and the round trip *t* that is *r (t + q)*, of which *q* is the queue's
//! part. The rate is measured again and again, as others come and go on the link. What was measured may
//! be what the bound itself allowed, on a host that is slow to answer: so the rate falls slowly, rises at
//! once, and never leads below a bound that is good for most links.

use std::time::{Duration, Instant};

/// *q*: a link is kept busy through the pauses of a sender that shares its processor, and a page waits
/// half a millisecond for each stream.
const QUEUED: Duration = Duration::from_micros(500);

/// How often the rate is measured.
const INTERVAL: Duration = Duration::from_millis(50);

/// Before a rate is known: half a millisecond of a link of 1 Gbit/s.
const BYTES_FIRST: usize = 64 << 10;

/// 1 Gbit/s for 0.4 ms: a sender that is not woken for longer leaves the link idle.
const BYTES_MIN: usize = 48 << 10;

/// What of a rate that was seen once is taken to be there still, an interval later.
const RATE_KEPT: f64 = 0.9;

/// More is under way nowhere.
const BYTES_MAX: usize = 64 << 20;

/// What one stream may have under way.
#[derive(Debug)]
pub(super) struct Queue {
    round_trip: Duration,
    bytes: usize,
    since: Option<Instant>,
    sent: u64,
    /// Bytes a second.
    rate: f64,
}

impl Queue {
    /// For a stream of which nothing is known but its round trip.
    pub(super) fn new(round_trip: Duration) -> Self {
        Self { round_trip, bytes: BYTES_FIRST, since: None, sent: 0, rate: 0.0 }
    }

    /// Bytes that may be under way.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes note of bytes that were handed to the stream. How much may be under way from now on, if
    /// that has changed by an eighth or more.
    pub(super) fn sent(&mut self, bytes: u64, now: Instant) -> Option<usize> {
        self.sent += bytes;
        let since = *self.since.get_or_insert(now);
        let elapsed = now.saturating_duration_since(since);
        if elapsed < INTERVAL {
            return None;
        }
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let rate = self.sent as f64 / elapsed.as_secs_f64();
        self.rate = rate.max(self.rate * RATE_KEPT);
        let under_way = self.rate * (self.round_trip + QUEUED).as_secs_f64();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "bounded below"
        )]
        let wanted = (under_way as usize).clamp(BYTES_MIN, BYTES_MAX);
        (self.since, self.sent) = (Some(now), 0);
        if wanted.abs_diff(self.bytes) < self.bytes / 8 {
            return None;
        }
        self.bytes = wanted;
        Some(wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a stream of this rate comes to.
    fn settles(bytes_per_second: u64, round_trip: Duration) -> usize {
        let mut queue = Queue::new(round_trip);
        let mut now = Instant::now();
        for _ in 0..200 {
            now += Duration::from_millis(1);
            let _ = queue.sent(bytes_per_second / 1000, now);
        }
        queue.bytes()
    }

    #[test]
    fn a_stream_has_a_round_trip_and_half_a_millisecond_under_way() {
        let lan = Duration::from_micros(200);
        // 10 Gbit/s in two streams: 700 us of 625 MB/s.
        let fast = settles(625_000_000, lan);
        assert!((400_000..480_000).contains(&fast), "{fast}");
        assert_eq!(settles(1_000_000, lan), BYTES_MIN);
        let wan = settles(62_500_000, Duration::from_millis(20));
        assert!((1_200_000..1_400_000).contains(&wan), "{wan}");
    }

    #[test]
    fn a_rate_that_hardly_changes_changes_nothing() {
        let mut queue = Queue::new(Duration::from_micros(200));
        let begin = Instant::now();
        assert_eq!(queue.sent(0, begin), None);
        let one = begin + INTERVAL;
        assert!(queue.sent(3_000_000, one).is_some());
        assert_eq!(queue.sent(3_100_000, one + INTERVAL), None);
    }

    #[test]
    fn a_stream_that_gets_slower_has_less_under_way_in_the_end() {
        let mut queue = Queue::new(Duration::from_millis(10));
        let mut now = Instant::now();
        let mut after = |seconds: u64, rate: u64| {
            for _ in 0..seconds * 1000 {
                now += Duration::from_millis(1);
                let _ = queue.sent(rate / 1000, now);
            }
            queue.bytes()
        };
        let fast = after(1, 100_000_000);
        let slow = after(3, 10_000_000);
        assert!(fast > 1_000_000 && slow < 140_000, "{fast} {slow}");
        assert!(after(1, 100_000_000) > 1_000_000);
    }
}
