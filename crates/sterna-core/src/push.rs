//! In which order the pages that are owed to a guest are sent to it.
//!
//! **Linear**: from the first page to the last. **Bubbling** (adaptive pre-paging: Hines and Gopalan,
//! VEE 2009, section 3.2): what lies beside a page that was just waited for is likely to be wanted
//! next. Each of the newest faults is a *pivot*; bubbles grow around all pivots in turn, upwards and
//! downwards. An edge that meets a page that was sent stops; a pivot of which both edges have stopped
//! is dropped. Without pivots the order is linear.
//!
//! Every page is handed out once.

use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use sterna_page::{PageCount, PageNumber, PageRun, PageSet};

/// Pivots at most; of more, the oldest is dropped.
const PIVOTS_MAX: usize = 8;

/// The order of sending.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum PushOrder {
    /// From the first page to the last.
    Linear,
    /// Around the newest faults.
    #[default]
    Bubbling,
}

/// The pages that are owed and not sent yet.
#[derive(Debug)]
pub struct Push {
    unsent: PageSet,
    left: PageCount,
    order: PushOrder,
    pivots: VecDeque<Bubble>,
    /// Where the linear order goes on.
    cursor: PageNumber,
}

/// Pages around a fault, all of which were sent: from `low` to before `high`.
#[derive(Clone, Copy, Debug)]
struct Bubble {
    low: u64,
    high: u64,
    grows_down: bool,
    grows_up: bool,
    /// Whether it is the upper edge's turn.
    up: bool,
}

impl Push {
    /// Nothing is owed yet.
    #[must_use]
    pub fn new(pages: PageCount, order: PushOrder) -> Self {
        Self {
            unsent: PageSet::empty(pages),
            left: PageCount::ZERO,
            order,
            pivots: VecDeque::new(),
            cursor: PageNumber(0),
        }
    }

    /// These pages are owed; whatever was before.
    pub fn owe(&mut self, pages: PageSet) {
        self.left = pages.count();
        self.unsent = pages;
        self.pivots.clear();
        self.cursor = PageNumber(0);
    }

    /// Pages that are owed and not handed out yet.
    #[must_use]
    pub fn left(&self) -> PageCount {
        self.left
    }

    /// Somebody waits for `page`. Whether it is to be sent now: if not it was handed out before.
    pub fn wanted(&mut self, page: PageNumber) -> bool {
        if !self.unsent.contains(page) {
            return false;
        }
        self.take(PageRun { first: page, count: PageCount(1) });
        if self.order == PushOrder::Bubbling {
            self.pivots.truncate(PIVOTS_MAX - 1);
            self.pivots.push_front(Bubble {
                low: page.0,
                high: page.0 + 1,
                grows_down: true,
                grows_up: true,
                up: true,
            });
        }
        true
    }

    /// Hands out the next run, of at most `pages` pages; `None` if nothing is left.
    pub fn next(&mut self, pages: PageCount) -> Option<PageRun> {
        while let Some(mut bubble) = self.pivots.pop_front() {
            if let Some(run) = bubble.grow(&self.unsent, pages.0) {
                self.pivots.push_back(bubble);
                self.take(run);
                return Some(run);
            }
        }
        let run = self
            .unsent
            .runs_from(self.cursor)
            .next()
            .or_else(|| self.unsent.runs_from(PageNumber(0)).next())?;
        let run = PageRun { count: run.count.min(pages), ..run };
        self.cursor = run.end().unwrap_or(PageNumber(0));
        self.take(run);
        Some(run)
    }

    fn take(&mut self, run: PageRun) {
        self.unsent.remove_run(run);
        self.left = PageCount(self.left.0.saturating_sub(run.count.0));
    }
}

impl Bubble {
    /// The next pages at one of its edges; `None` if both have met pages that were sent.
    fn grow(&mut self, unsent: &PageSet, most: u64) -> Option<PageRun> {
        while self.grows_up || self.grows_down {
            let up = self.grows_up && (self.up || !self.grows_down);
            self.up = !up;
            let is_unsent = |page: &u64| unsent.contains(PageNumber(*page));
            let count = |found: usize| u64::try_from(found).unwrap_or(most);
            if up {
                let found = count((self.high..).take_while(is_unsent).take(room(most)).count());
                self.grows_up = found == most;
                let first = self.high;
                self.high += found;
                if found > 0 {
                    return Some(PageRun::new(first, found));
                }
            } else {
                let below = (0..self.low).rev();
                let found = count(below.take_while(is_unsent).take(room(most)).count());
                self.grows_down = found == most;
                self.low -= found;
                if found > 0 {
                    return Some(PageRun::new(self.low, found));
                }
            }
        }
        None
    }
}

fn room(pages: u64) -> usize {
    usize::try_from(pages).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn owing(pages: u64, order: PushOrder) -> Push {
        let mut push = Push::new(PageCount(pages), order);
        push.owe(PageSet::full(PageCount(pages)));
        push
    }

    fn take(push: &mut Push, runs: usize) -> Vec<(u64, u64)> {
        let next = |_| push.next(PageCount(4)).map(|run| (run.first.0, run.count.0));
        (0..runs).map_while(next).collect()
    }

    #[test]
    fn without_faults_pages_go_in_order() {
        let mut push = owing(10, PushOrder::Bubbling);
        assert_eq!(take(&mut push, 9), [(0, 4), (4, 4), (8, 2)]);
        assert_eq!(push.left(), PageCount::ZERO);
    }

    #[test]
    fn bubbles_grow_around_the_newest_faults_in_turn() {
        let mut push = owing(1000, PushOrder::Bubbling);
        assert!(push.wanted(PageNumber(100)) && push.wanted(PageNumber(500)));
        let expected =
            [(501, 4), (101, 4), (496, 4), (96, 4), (505, 4), (105, 4), (492, 4), (92, 4)];
        assert_eq!(take(&mut push, 8), expected);
    }

    #[test]
    fn an_edge_that_meets_sent_pages_stops_and_the_order_is_linear_after_that() {
        let mut push = owing(20, PushOrder::Bubbling);
        assert!(push.wanted(PageNumber(10)));
        assert!(push.wanted(PageNumber(13)));
        let expected = [(14, 4), (11, 2), (18, 2), (6, 4), (2, 4), (0, 2)];
        assert_eq!(take(&mut push, 9), expected);
    }

    #[test]
    fn in_linear_order_faults_lead_nowhere() {
        let mut push = owing(12, PushOrder::Linear);
        assert_eq!(take(&mut push, 1), [(0, 4)]);
        assert!(push.wanted(PageNumber(9)));
        assert_eq!(take(&mut push, 9), [(4, 4), (8, 1), (10, 2)]);
    }

    proptest! {
        #[test]
        fn every_page_is_handed_out_once(
            pages in 1u64..300,
            bubbling in any::<bool>(),
            steps in proptest::collection::vec((any::<bool>(), 0u64..300, 1u64..20), 0..200),
        ) {
            let order = if bubbling { PushOrder::Bubbling } else { PushOrder::Linear };
            let mut push = owing(pages, order);
            let mut given = PageSet::empty(PageCount(pages));
            let mut give = |run: PageRun| {
                for page in run.first.0..run.first.0 + run.count.0 {
                    assert!(page < pages && !given.contains(PageNumber(page)), "{page} again");
                    given.insert(PageNumber(page));
                }
            };
            for (fault, page, most) in steps {
                if fault {
                    if push.wanted(PageNumber(page)) {
                        give(PageRun::new(page, 1));
                    }
                } else if let Some(run) = push.next(PageCount(most)) {
                    assert!(run.count.0 <= most);
                    give(run);
                }
            }
            while let Some(run) = push.next(PageCount(7)) {
                give(run);
            }
            prop_assert_eq!(given.count(), PageCount(pages));
            prop_assert_eq!(push.left(), PageCount::ZERO);
        }
    }
}
