//! The speed of a synthetic guest's writers.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

/// How fast writers work, as a part of their full speed, and what they lost by it.
#[derive(Debug)]
pub(super) struct Speed {
    percent: AtomicU8,
    held_back_ns: AtomicU64,
}

impl Default for Speed {
    fn default() -> Self {
        Self { percent: AtomicU8::new(100), held_back_ns: AtomicU64::new(0) }
    }
}

impl Speed {
    pub(super) fn set(&self, percent: u8) {
        self.percent.store(percent.clamp(1, 100), Ordering::Relaxed);
    }

    pub(super) fn percent(&self) -> u8 {
        self.percent.load(Ordering::Relaxed)
    }

    /// How long a writer rests after it has worked for `worked`.
    pub(super) fn rest_after(&self, worked: Duration) -> Duration {
        let percent = u32::from(self.percent.load(Ordering::Relaxed));
        let rest = worked * (100 - percent) / percent;
        let nanoseconds = u64::try_from(rest.as_nanos()).unwrap_or(u64::MAX);
        self.held_back_ns.fetch_add(nanoseconds, Ordering::Relaxed);
        rest
    }

    /// The rests so far, of all writers together.
    pub(super) fn held_back(&self) -> Duration {
        Duration::from_nanos(self.held_back_ns.load(Ordering::Relaxed))
    }
}
