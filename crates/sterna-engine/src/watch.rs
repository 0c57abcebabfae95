//! What a move shows while it runs, and how it is told to stop.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;
use sterna_core::progress::Progress;

/// Name of the stage of a move that waits for its turn.
const WAITING: &str = "waiting";

/// Shared between the thread of a move and those who watch it.
#[derive(Debug, Default)]
pub struct Watch {
    progress: Mutex<Progress>,
    changed: Condvar,
    cancelled: AtomicBool,
    given_up: AtomicBool,
}

impl Watch {
    /// The newest progress.
    #[must_use]
    pub fn progress(&self) -> Progress {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until there is progress other than `seen`, or until `limit` has passed.
    #[must_use]
    pub fn wait(&self, seen: &Progress, limit: Duration) -> Progress {
        let guard = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        let (guard, _) = self
            .changed
            .wait_timeout_while(guard, limit, |progress| progress == seen)
            .unwrap_or_else(PoisonError::into_inner);
        guard.clone()
    }

    /// Asks the move to end; it goes on if it is too late.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Release);
    }

    /// Whether the move was asked to end.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire)
    }

    /// Ends a doubt: the destination is not asked any more whether it runs the guest, which stays paused. Holds from when
    /// there is a doubt.
    pub fn give_up(&self) {
        self.given_up.store(true, Ordering::Release);
    }

    /// Takes note that a doubt was ended; once.
    pub(crate) fn take_given_up(&self) -> bool {
        self.given_up.swap(false, Ordering::AcqRel)
    }

    /// Shows that the move has not begun, and what it waits for.
    pub fn waits_for(&self, what: impl Into<String>) {
        self.update(|progress| {
            WAITING.clone_into(&mut progress.stage);
            progress.waiting = Some(what.into());
        });
    }

    /// Whether it is shown as waiting for its beginning.
    #[must_use]
    pub fn waits(&self) -> bool {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner).stage == WAITING
    }

    /// Shows that the wait is over.
    pub fn begins(&self) {
        self.update(|progress| *progress = Progress::default());
    }

    /// Changes what is shown. Bytes done never fall.
    pub(crate) fn update(&self, change: impl FnOnce(&mut Progress)) {
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        let done = progress.ram_done_bytes;
        change(&mut progress);
        progress.ram_done_bytes = progress.ram_done_bytes.max(done);
        self.changed.notify_all();
    }
}
