//! Holds all streams of a move together below a bandwidth.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Bytes may run ahead of the limit by what it allows in this time: short enough not to be seen
/// by others on the link, long enough that sleeping is exact.
const BURST: Duration = Duration::from_millis(20);

/// A limit in bytes a second that several threads share.
///
/// A schedule, not a bucket: each caller is given the moment at which its bytes are due, so that
/// threads that wait need not wake each other.
#[derive(Debug)]
pub(crate) struct Pacer {
    bytes_per_second: Option<u64>,
    due: Mutex<Instant>,
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

impl Pacer {
    pub(crate) fn new(bytes_per_second: Option<u64>, giving_up: Arc<GivingUp>) -> Self {
        Self {
            bytes_per_second: bytes_per_second.map(|b| b.max(1)),
            due: Mutex::new(Instant::now()),
            giving_up,
        }
    }

    /// Waits until `bytes` more may be sent.
    pub(crate) fn pace(&self, bytes: u64) {
        let Some(rate) = self.bytes_per_second else { return };
        let now = Instant::now();
        let start = {
            let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
            let start = (*due).max(now.checked_sub(BURST).unwrap_or(now));
            *due = start + Self::cost(bytes, rate);
            start
        };
        if start > now {
            self.giving_up.sleep_until(start);
        }
    }

    fn cost(bytes: u64, rate: u64) -> Duration {
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(rate);
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn bytes_cost_time_by_the_rate() {
        assert_eq!(Pacer::cost(1_000_000, 1_000_000), Duration::from_secs(1));
        assert_eq!(Pacer::cost(0, 1), Duration::ZERO);
        assert!(Pacer::cost(u64::MAX, 1) > Duration::from_secs(1 << 30));
    }

    #[test]
    fn a_move_that_is_given_up_waits_for_nothing() {
        let giving_up = Arc::new(GivingUp::default());
        let pacer = Pacer::new(Some(1), Arc::clone(&giving_up));
        pacer.pace(3600);
        giving_up.set();
        pacer.pace(1);
    }

    #[test]
    fn a_limit_makes_all_threads_together_wait() {
        let pacer = Pacer::new(Some(10_000_000), Arc::default());
        let before = *pacer.due.lock().unwrap();
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| (0..5).for_each(|_| pacer.pace(10_000)));
            }
        });
        let scheduled = pacer.due.lock().unwrap().duration_since(before);
        assert!(scheduled >= Duration::from_millis(10), "100 kB at 10 MB/s: {scheduled:?}");
    }
}
