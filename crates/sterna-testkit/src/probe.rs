//! Watching a guest from outside: answers over the network, ticks on the console.
//!
//! Both probes only record, with the host's time; what is read out of a record afterwards
//! (longest gap, losses, lost work, whether it lived one life) is a pure function of it.

mod console_log;
mod lives;
mod move_log;
mod reset;
mod tick_log;
mod udp_echo;

use std::time::{Duration, Instant};

pub use console_log::ConsoleLog;
pub use lives::{AWAY, Heard, NotOneLife, RESET_BY_ITSELF, Told, examine, tell};
pub use move_log::{KnownMove, MoveLog, MoveUnderway};
pub use reset::{MoveEvent, MoveStep, Reset, Suspicion};
pub use tick_log::{Sample, TickLog};
pub use udp_echo::{EchoLog, Exchange, UdpEcho};

/// A span of the host's time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Its first instant.
    pub from: Instant,
    /// The instant after its last.
    pub to: Instant,
}

impl Window {
    /// Returns the window between two instants; empty if they are in the wrong order.
    #[must_use]
    pub fn new(from: Instant, to: Instant) -> Self {
        Self { from, to: to.max(from) }
    }

    /// Returns how long the window is.
    #[must_use]
    pub fn length(self) -> Duration {
        self.to - self.from
    }

    fn contains(self, at: Instant) -> bool {
        self.from <= at && at < self.to
    }
}

/// Returns the longest time within a window without any of these events. The window's own ends
/// count as events: without any event the gap is the whole window.
fn longest_gap(events: impl Iterator<Item = Instant>, window: Window) -> Duration {
    let mut within: Vec<Instant> = events.filter(|&at| window.contains(at)).collect();
    within.extend([window.from, window.to]);
    within.sort_unstable();
    within.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gap(events: &[u64], from: u64, to: u64) -> u128 {
        let start = Instant::now();
        let at = |milliseconds: u64| start + Duration::from_millis(milliseconds);
        let window = Window::new(at(from), at(to));
        longest_gap(events.iter().map(|&event| at(event)), window).as_millis()
    }

    #[test]
    fn the_longest_gap_is_found_whatever_the_order_of_events() {
        assert_eq!(gap(&[1, 2, 10, 3, 11, 12], 0, 13), 7);
    }

    #[test]
    fn silence_at_the_ends_of_the_window_counts() {
        assert_eq!(gap(&[10, 11, 12], 0, 13), 10);
        assert_eq!(gap(&[1, 2, 3], 0, 50), 47);
        assert_eq!(gap(&[], 0, 50), 50);
    }

    #[test]
    fn gaps_outside_the_window_do_not_count() {
        assert_eq!(gap(&[0, 100, 101, 102, 200], 100, 103), 1);
        assert_eq!(gap(&[0, 1], 9, 3), 0);
    }
}
