//! How many pages a round may hold back.
//!
//! What is held back is copied at the pause, so it may take half of the downtime that is accepted,
//! less the switchover's fixed part, at the link's speed; the other half is for what else is dirty
//! then. Nothing is held back before that speed is known, which is in the first round.

use crate::algorithm::View;
use std::time::Duration;
use sterna_page::{PAGE_SIZE, PageCount};

/// The share of the accepted downtime that held pages may take.
const SHARE: f64 = 0.5;

/// Pages that the next round may hold back, where `accepted` is the longest downtime that is accepted
/// by now.
#[must_use]
pub fn allowance(view: &View<'_>, accepted: Duration) -> PageCount {
    let Some(rate) = view.pages_per_second() else { return PageCount::ZERO };
    let copying = accepted.saturating_sub(view.fixed_downtime);
    pages_within(copying, rate)
}

/// The same over a link that carries so many bytes a second, where `copying` is what the accepted
/// downtime leaves for copying and pages are sent as they are.
#[must_use]
pub fn allowance_at(bytes_per_second: f64, copying: Duration) -> PageCount {
    pages_within(copying, bytes_per_second / PAGE_SIZE as f64)
}

fn pages_within(copying: Duration, pages_per_second: f64) -> PageCount {
    let pages = copying.as_secs_f64() * SHARE * pages_per_second;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "it is not negative, and what is too large saturates"
    )]
    let pages = pages as u64;
    PageCount(pages)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::Limits;
    use crate::receipt::Round;

    const FIXED: Duration = Duration::from_millis(15);

    fn allowed(rounds: &[Round], accepted: Duration) -> u64 {
        let limits = Limits::default();
        let view = View::after(rounds, PageCount(4000), &limits);
        allowance(&View { fixed_downtime: FIXED, ..view }, accepted).0
    }

    #[test]
    fn nothing_is_held_back_before_the_links_speed_is_known() {
        assert_eq!(allowed(&[], Duration::from_secs(1)), 0);
    }

    #[test]
    fn held_pages_may_take_half_of_what_the_downtime_leaves_for_copying() {
        // A link that carries a page in 100 µs.
        let took = Duration::from_secs(1);
        let rounds = [Round { bytes: 10_000 * 4096, took, ..Round::default() }];
        let pages = allowed(&rounds, Duration::from_millis(215));
        assert!((999..=1000).contains(&pages), "{pages}");
        assert_eq!(allowed(&rounds, Duration::from_millis(10)), 0);
    }

    #[test]
    fn an_endless_downtime_and_a_link_without_end_do_no_harm() {
        let took = Duration::from_nanos(1);
        let rounds = [Round { bytes: u64::MAX, took, ..Round::default() }];
        assert_eq!(allowed(&rounds, Duration::MAX), u64::MAX);
    }
}
