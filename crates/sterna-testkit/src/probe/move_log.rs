//! The moves of one guest, with the host's time.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use sterna_core::receipt::{RamCheck, Receipt};

use super::Window;

/// A move, as far as whoever asked for it knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownMove {
    /// Just before it was asked for.
    pub asked: Instant,
    /// From the request to pause until the guest ran again, if it came so far.
    pub switchover: Option<Window>,
    /// Just after its end was told; nothing while it was not.
    pub ended: Option<Instant>,
    /// Whether RAM was the same on both sides.
    pub ram: RamCheck,
}

/// All moves of one guest so far. Clones share one log.
#[derive(Debug, Clone, Default)]
pub struct MoveLog(Arc<Mutex<Vec<KnownMove>>>);

/// A move that is in the log and whose end is not.
#[derive(Debug)]
pub struct MoveUnderway {
    log: MoveLog,
    index: usize,
}

impl MoveLog {
    /// Notes that a move is about to be asked for.
    #[must_use]
    pub fn begin(&self) -> MoveUnderway {
        let mut moves = self.lock();
        let index = moves.len();
        let asked = Instant::now();
        moves.push(KnownMove { asked, switchover: None, ended: None, ram: RamCheck::NotChecked });
        drop(moves);
        MoveUnderway { log: self.clone(), index }
    }

    /// Returns all moves, in the order in which they were asked for.
    #[must_use]
    pub fn moves(&self) -> Vec<KnownMove> {
        self.lock().clone()
    }

    /// Moves are added and changed whole, so those of a test that panicked are good.
    fn lock(&self) -> MutexGuard<'_, Vec<KnownMove>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl MoveUnderway {
    /// Notes that a move has just ended, with this receipt.
    pub fn ended(self, receipt: &Receipt) {
        let now = Instant::now();
        let known = &mut self.log.lock()[self.index];
        known.ended = Some(now);
        known.ram = receipt.ram_digest;
        known.switchover = switchover(receipt, now);
    }
}

/// When the guest was switched over, if it was: the last round begins after the pause.
fn switchover(receipt: &Receipt, now: Instant) -> Option<Window> {
    let (downtime, last) = (receipt.downtime?, receipt.rounds.last()?);
    let now_unix = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    let ago = now_unix.checked_sub(Duration::from_millis(receipt.started_unix_ms))?;
    let lead = downtime.pause_lead + downtime.pause;
    let from = now.checked_sub(ago)? + last.started.checked_sub(lead)?;
    Some(Window::new(from, from + downtime.pause_lead + downtime.total))
}
