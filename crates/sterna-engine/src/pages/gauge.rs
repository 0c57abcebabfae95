//! How fast a stream sends: what its thread can do, and what the link takes of it.
//!
//! The thread's own part is processor time, which waiting does not add to. What is left of the time that
//! a write takes was spent waiting: for a processor or for the receiver, both of which the kernel counts, or for
//! the link. A stream that waits for the link for a good part of its time is held up by it, so what went out
//! meanwhile is what the link takes; but for what only filled the buffers before it, so that the first time tells
//! nothing. A stream that does not wait says nothing of the link, and is not held to what was once seen. Before any of
//! that is known the link is taken for one that many have, [`LINK_AT_FIRST`].

use std::time::{Duration, Instant};
use sterna_page::coding::Pace;

/// How often the link is judged.
const INTERVAL: Duration = Duration::from_millis(50);

/// The same while nothing is known of it, and nothing holds the stream up.
const FIRST_INTERVAL: Duration = Duration::from_millis(10);

/// How many times as fast a link of which nothing is known is taken to be after such an interval.
const FIRST_GROWTH: f64 = 4.0;

/// The link is the limit where the stream waits for it for this part of the time.
const WAITING: f64 = 0.25;

/// How much faster the link is taken to be after an interval that says nothing of it: a stronger coder is
/// given up in seconds, and tried again after one interval.
const GROWTH: f64 = 1.02;

/// What the newest writes count for.
const NEWEST: f64 = 0.1;

/// Writes of fewer bytes are mostly overhead.
const TELLING_BYTES: usize = 16 << 10;

/// Of so many coded pages what they took is forgotten by two thirds.
const SLOWED_PAGES: f64 = 512.0;

/// What a thread encrypts and sends in a second, until that was measured.
const SENT_AT_FIRST: f64 = 1e9;

/// What the link takes of one of two streams, until it was looked at: 1 Gbit/s. Where it takes more, some intervals are
/// spent on coding for nothing; where it takes less, that many bytes are spared.
const LINK_AT_FIRST: f64 = 62.5e6;

/// Measures one stream.
#[derive(Debug)]
pub(super) struct Gauge {
    pace: Pace,
    since: Instant,
    bytes: u64,
    waited: Duration,
    /// Whether it was held up before already, so that the buffers are full.
    full: bool,
    /// What is known of the link.
    known: Known,
    slowed: Slowed,
}

/// How many times as long as its processor time the thread takes, by what coding took of both: a thread that only
/// writes waits for a processor each time it wakes, and that says nothing of one that computes.
#[derive(Debug, Default)]
struct Slowed {
    elapsed: f64,
    processor: f64,
}

impl Slowed {
    fn coded(&mut self, pages: usize, took: Took) {
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let kept = (-(pages as f64) / SLOWED_PAGES).exp();
        self.elapsed = self.elapsed * kept + took.elapsed.as_secs_f64();
        self.processor = self.processor * kept + took.processor.as_secs_f64();
    }

    fn times(&self) -> f64 {
        if self.processor > 0.0 { (self.elapsed / self.processor).max(1.0) } else { 1.0 }
    }
}

/// What is known of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    /// Nothing.
    Nothing,
    /// That it has not held the stream up.
    Wide,
    /// How much it took once.
    Judged,
}

/// What of the time was spent waiting for others than the link.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Others {
    /// For a processor.
    pub(super) processor: Duration,
    /// For the receiver to take what it has.
    pub(super) receiver: Duration,
    /// Meanwhile all streams together have sent so many times as many bytes as there are streams; `None` where nobody
    /// counts them.
    pub(super) each_sent: Option<u64>,
}

/// What an interval has told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Judged {
    /// How long it was.
    pub(super) elapsed: Duration,
    /// Whether the receiver was the limit.
    pub(super) receiver: bool,
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
        let pace = Pace { sent: SENT_AT_FIRST, slowed: 1.0, link: LINK_AT_FIRST };
        let known = Known::Nothing;
        Self {
            pace,
            since: now,
            bytes: 0,
            waited: Duration::ZERO,
            full: false,
            known,
            slowed: Slowed::default(),
        }
    }

    pub(super) fn pace(&self) -> Pace {
        Pace { slowed: self.slowed.times(), ..self.pace }
    }

    /// Takes note of what coding some pages took.
    pub(super) fn coded(&mut self, pages: usize, took: Took) {
        self.slowed.coded(pages, took);
    }

    /// Whether the link holds the stream up, but nobody knows yet at what pace.
    pub(super) fn is_judging(&self) -> bool {
        self.full && self.known != Known::Judged
    }

    /// There is something to send again: what went before says nothing of the link.
    pub(super) fn begin(&mut self, now: Instant) {
        self.full = false;
        self.restart(now);
    }

    fn restart(&mut self, now: Instant) {
        (self.since, self.bytes, self.waited) = (now, 0, Duration::ZERO);
    }

    /// Takes note of a write. Tells whenever the link was judged anew; `others` is for whom else the thread has
    /// waited since that was last asked.
    pub(super) fn wrote(
        &mut self,
        bytes: usize,
        took: Took,
        now: Instant,
        others: impl FnOnce() -> Others,
    ) -> Option<Judged> {
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let sent = bytes as f64;
        if bytes >= TELLING_BYTES && !took.processor.is_zero() {
            let newest = sent / took.processor.as_secs_f64();
            self.pace.sent += (newest - self.pace.sent) * NEWEST;
        }
        self.bytes += bytes as u64;
        self.waited += took.elapsed.saturating_sub(took.processor);
        let elapsed = now.saturating_duration_since(self.since);
        let is_new = self.known == Known::Nothing && !self.full;
        if elapsed < if is_new { FIRST_INTERVAL } else { INTERVAL } {
            return None;
        }
        let others = others();
        // One stream has what another leaves while it codes; that does not make the link wider.
        let bytes = others.each_sent.unwrap_or(self.bytes);
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let rate = bytes as f64 / elapsed.as_secs_f64();
        let waited = self.waited.saturating_sub(others.processor);
        // The kernel also counts while the stream has something else to do.
        let by_receiver = others.receiver.min(waited);
        let by_link = waited - by_receiver;
        let full = by_link.as_secs_f64() > elapsed.as_secs_f64() * WAITING;
        match (full, self.full, self.known) {
            (true, true, _) => {
                self.pace.link = rate;
                self.known = Known::Judged;
            }
            (true, false, _) => {}
            (false, _, Known::Nothing) => {
                self.pace.link *= FIRST_GROWTH;
                // The thread cannot fill it.
                if self.pace.link > self.pace.sent {
                    self.pace.link = f64::INFINITY;
                    self.known = Known::Wide;
                }
            }
            (false, _, Known::Wide | Known::Judged) => {
                self.pace.link = (self.pace.link * GROWTH).max(rate);
            }
        }
        self.full = full;
        self.restart(now);
        let receiver = by_receiver.as_secs_f64() > elapsed.as_secs_f64() * WAITING;
        Some(Judged { elapsed, receiver })
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
            let _ = gauge.wrote(64 << 10, took, now, Others::default);
        }
        now
    }

    #[test]
    fn a_link_is_known_once_it_holds_a_stream_up() {
        let begin = Instant::now();
        let mut gauge = Gauge::new(begin);
        let now = after(&mut gauge, begin, 10, Duration::ZERO);
        assert!((gauge.pace().link - FIRST_GROWTH * LINK_AT_FIRST).abs() < 1.0);
        let now = after(&mut gauge, now, 10, Duration::ZERO);
        assert!(gauge.pace().link.is_infinite());
        let now = after(&mut gauge, now, 50, MS / 2);
        assert!(gauge.is_judging(), "the buffers have just become full");
        let now = after(&mut gauge, now, 50, MS / 2);
        assert!(!gauge.is_judging());
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
    fn neither_a_busy_processor_nor_a_busy_receiver_is_a_slow_link() {
        let begin = Instant::now();
        let mut gauge = Gauge::new(begin);
        let mut now = begin;
        let mut wrote = |processor, receiver| {
            now += MS * 60;
            let took = Took { elapsed: MS * 60, processor: MS * 10 };
            let judged =
                gauge.wrote(1 << 20, took, now, || Others { processor, receiver, each_sent: None });
            (judged.unwrap().receiver, gauge.pace().link.is_finite())
        };
        let none = Duration::ZERO;
        for number in 0..3 {
            // Nothing is known before the first two have shown that the link is wide.
            assert_eq!(wrote(MS * 45, none), (false, number == 0), "the processor");
            assert_eq!(wrote(none, MS * 45), (true, false), "the receiver");
        }
        assert_eq!(wrote(MS * 20, none), (false, false), "full");
        assert_eq!(wrote(MS * 20, MS * 10), (false, true));
    }

    #[test]
    fn what_a_stream_has_while_others_do_not_send_is_not_all_its_own() {
        let mut now = Instant::now();
        let mut gauge = Gauge::new(now);
        for _ in 0..3 {
            now += MS * 60;
            let took = Took { elapsed: MS * 60, processor: MS };
            let others = || Others { each_sent: Some(500_000), ..Others::default() };
            let _ = gauge.wrote(1_000_000, took, now, others);
        }
        let link = gauge.pace().link;
        assert!((8.3e6..8.4e6).contains(&link), "{link}");
    }

    #[test]
    fn time_without_anything_to_send_does_not_make_a_link_slow() {
        let begin = Instant::now();
        let mut gauge = Gauge::new(begin);
        let now = after(&mut gauge, begin, 140, MS / 2);
        // A round has ended; the next begins.
        let later = now + MS * 500;
        gauge.begin(later);
        after(&mut gauge, later, 60, MS / 2);
        let link = gauge.pace().link;
        assert!((65e6..66e6).contains(&link), "{link}");
    }

    #[test]
    fn a_link_is_taken_for_a_common_one_until_it_was_looked_at() {
        let begin = Instant::now();
        let mut gauge = Gauge::new(begin);
        assert!((gauge.pace().link - LINK_AT_FIRST).abs() < 1.0);
        after(&mut gauge, begin, 59, MS / 2);
        assert!(
            (gauge.pace().link - LINK_AT_FIRST).abs() < 1.0,
            "it is judged when buffers are full"
        );
        let mut gauge = Gauge::new(begin);
        after(&mut gauge, begin, 60, Duration::ZERO);
        assert!(gauge.pace().link.is_infinite());
    }

    #[test]
    fn a_thread_is_slowed_down_by_what_coding_waits_for_a_processor() {
        let mut gauge = Gauge::new(Instant::now());
        assert!((gauge.pace().slowed - 1.0).abs() < 1e-9);
        let mut coded = |elapsed, processor| {
            (0..50).for_each(|_| gauge.coded(64, Took { elapsed, processor }));
            gauge.pace().slowed
        };
        let slowed = coded(MS * 3, MS);
        assert!((2.9..3.1).contains(&slowed), "{slowed}");
        let slowed = coded(MS, MS);
        assert!((1.0..1.1).contains(&slowed), "{slowed}");
    }

    #[test]
    fn time_is_told_interval_by_interval() {
        let begin = Instant::now();
        let mut gauge = Gauge::new(begin);
        let took = Took { elapsed: MS, processor: MS };
        let none = Others::default;
        let mut after = begin;
        // Short ones until it is known that the thread cannot fill the link.
        for interval in [10, 10, 10, 50, 50] {
            assert_eq!(gauge.wrote(100, took, after + MS * (interval - 1), none), None);
            let judged = Judged { elapsed: MS * interval, receiver: false };
            after += MS * interval;
            assert_eq!(gauge.wrote(100, took, after, none), Some(judged));
        }
    }
}
