//! Holds all streams of a move together below a bandwidth, and all moves of a host below another.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Bytes may run ahead of the limit by what it allows in this time: short enough not to be seen
/// by others on the link, long enough that sleeping is exact.
const BURST: Duration = Duration::from_millis(20);

/// A limit in bytes a second that several threads share, of one move or of many.
///
/// A schedule, not a bucket: each caller is given the moment at which its bytes are due, so that
/// threads that wait need not wake each other.
#[derive(Debug)]
pub struct Bandwidth(Mutex<Schedule>);

#[derive(Debug)]
struct Schedule {
    bytes_per_second: Option<u64>,
    due: Instant,
}

/// Makes the streams of a move wait: for the move's own limit, and for that of all moves together.
#[derive(Debug)]
pub(crate) struct Pacer {
    own: Bandwidth,
    shared: Arc<Bandwidth>,
    giving_up: Arc<GivingUp>,
}

/// Says to all who wait that the move is given up.
#[derive(Debug, Default)]
pub(crate) struct GivingUp {
    given_up: Mutex<bool>,
    told: Condvar,
}

impl GivingUp {
    /// Ends all waits, for good.
    pub(crate) fn set(&self) {
        *self.given_up.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.told.notify_all();
    }

    /// Whether it was said.
    pub(crate) fn is_set(&self) -> bool {
        *self.given_up.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `due`, or until the move is given up.
    pub(crate) fn sleep_until(&self, due: Instant) {
        let given_up = self.given_up.lock().unwrap_or_else(PoisonError::into_inner);
        let left = due.saturating_duration_since(Instant::now());
        // Why it ended is not asked: whoever goes on finds its stream cut.
        let _ = self.told.wait_timeout_while(given_up, left, |given_up| !*given_up);
    }
}

impl Default for Bandwidth {
    /// No limit.
    fn default() -> Self {
        Self::new(None)
    }
}

impl Bandwidth {
    /// A limit in bytes a second; none if `None`.
    #[must_use]
    pub fn new(bytes_per_second: Option<u64>) -> Self {
        Self(Mutex::new(Schedule { bytes_per_second, due: Instant::now() }))
    }

    /// Changes the limit for what is sent from now on.
    pub fn set(&self, bytes_per_second: Option<u64>) {
        self.lock().bytes_per_second = bytes_per_second;
    }

    /// The limit in bytes a second.
    #[must_use]
    pub fn bytes_per_second(&self) -> Option<u64> {
        self.lock().bytes_per_second
    }

    /// When `bytes` may be sent that are ready now; what comes later is due after them.
    fn book(&self, bytes: u64, now: Instant) -> Instant {
        let mut schedule = self.lock();
        let Some(rate) = schedule.bytes_per_second else { return now };
        let start = schedule.due.max(now.checked_sub(BURST).unwrap_or(now));
        schedule.due = start + cost(bytes, rate.max(1));
        start
    }

    fn lock(&self) -> MutexGuard<'_, Schedule> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long bytes take at so many a second.
fn cost(bytes: u64, rate: u64) -> Duration {
    let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(rate);
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

impl Pacer {
    /// Of a move with a limit of its own and one that it shares.
    pub(crate) fn new(
        bytes_per_second: Option<u64>,
        shared: Arc<Bandwidth>,
        giving_up: Arc<GivingUp>,
    ) -> Self {
        Self { own: Bandwidth::new(bytes_per_second), shared, giving_up }
    }

    /// Waits until `bytes` more may be sent.
    pub(crate) fn pace(&self, bytes: u64) {
        let now = Instant::now();
        let start = self.own.book(bytes, now).max(self.shared.book(bytes, now));
        if start > now {
            self.giving_up.sleep_until(start);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn bytes_cost_time_by_the_rate() {
        assert_eq!(cost(1_000_000, 1_000_000), Duration::from_secs(1));
        assert_eq!(cost(0, 1), Duration::ZERO);
        assert!(cost(u64::MAX, 1) > Duration::from_secs(1 << 30));
    }

    #[test]
    fn a_move_that_is_given_up_waits_for_nothing() {
        let giving_up = Arc::new(GivingUp::default());
        let pacer = Pacer::new(Some(1), Arc::default(), Arc::clone(&giving_up));
        pacer.pace(3600);
        giving_up.set();
        pacer.pace(1);
    }

    #[test]
    fn a_limit_makes_all_threads_together_wait() {
        let pacer = Pacer::new(Some(10_000_000), Arc::default(), Arc::default());
        let before = pacer.own.lock().due;
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| (0..5).for_each(|_| pacer.pace(10_000)));
            }
        });
        let scheduled = pacer.own.lock().due.duration_since(before);
        assert!(scheduled >= Duration::from_millis(10), "100 kB at 10 MB/s: {scheduled:?}");
    }

    #[test]
    fn moves_that_share_a_limit_wait_for_each_other() {
        let shared = Arc::new(Bandwidth::new(Some(1_000_000)));
        let now = Instant::now();
        let first = shared.book(500_000, now);
        assert!(first <= now);
        // Whoever comes next waits until the first's half second is over.
        assert_eq!(shared.book(1, now), first + Duration::from_millis(500));
        let pacer = Pacer::new(Some(u64::MAX), Arc::clone(&shared), Arc::default());
        pacer.giving_up.set();
        pacer.pace(1_000_000);
        assert!(shared.lock().due >= first + Duration::from_millis(1500));
    }

    #[test]
    fn a_limit_that_is_changed_holds_for_what_comes_next() {
        let limit = Bandwidth::new(Some(1_000_000));
        let now = Instant::now();
        let first = limit.book(100_000, now);
        limit.set(Some(10_000_000));
        let second = limit.book(100_000, now);
        assert_eq!(second, first + Duration::from_millis(100));
        assert_eq!(limit.book(1, now), second + Duration::from_millis(10));
        limit.set(None);
        assert_eq!(limit.book(1 << 40, now), now);
        assert_eq!(limit.bytes_per_second(), None);
    }
}
