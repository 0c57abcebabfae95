//! What a round leaves out, because the guest is likely to write it again soon.
//!
//! The predictor is shown what the looks within rounds and the scans after them report, one sample a
//! [`SAMPLING_PERIOD`]: rounds shorter than that make up a sample together.

use std::time::Instant;
use sterna_core::working_set::{HoldBack, Predictor, SAMPLING_PERIOD};
use sterna_page::{PageCount, PageSet};

/// The pages that a move holds back.
#[derive(Debug)]
pub(crate) struct Holding {
    predictor: Option<Box<dyn Predictor>>,
    /// Seen since the last sample.
    written: PageSet,
    sampled: Instant,
}

impl Holding {
    pub(crate) fn new(way: HoldBack, pages: PageCount) -> Self {
        Self {
            predictor: way.start(pages),
            written: PageSet::empty(pages),
            sampled: Instant::now(),
        }
    }

    /// A look within a round has seen these pages written; there is one each sampling period.
    pub(crate) fn looked(&mut self, written: &PageSet) {
        let Some(predictor) = &mut self.predictor else { return };
        self.written.union_with(written);
        predictor.observe(&self.written);
        self.written.clear();
        self.sampled = Instant::now();
    }

    /// The scan after a round has reported these.
    pub(crate) fn scanned(&mut self, written: &PageSet) {
        if self.predictor.is_none() {
            return;
        }
        if self.sampled.elapsed() >= SAMPLING_PERIOD {
            self.looked(written);
        } else {
            self.written.union_with(written);
        }
    }

    /// Takes out of `pages` those that are likely to be written again, `most` at most, and returns
    /// them.
    pub(crate) fn withhold(&self, pages: &mut PageSet, most: PageCount) -> PageSet {
        let Some(predictor) = self.predictor.as_ref().filter(|_| most > PageCount::ZERO) else {
            return PageSet::empty(pages.capacity());
        };
        let mut withheld = pages.clone();
        pages.subtract(&predictor.hot(most));
        withheld.subtract(pages);
        withheld
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sterna_page::PageRun;

    const PAGES: PageCount = PageCount(100);

    fn pages(first: u64, count: u64) -> PageSet {
        let mut set = PageSet::empty(PAGES);
        set.insert_run(PageRun::new(first, count));
        set
    }

    fn held(way: HoldBack, most: u64) -> (PageSet, PageSet) {
        let mut holding = Holding::new(way, PAGES);
        for _ in 0..3 {
            holding.looked(&pages(10, 20));
        }
        let mut sent = pages(0, 15);
        let withheld = holding.withhold(&mut sent, PageCount(most));
        (sent, withheld)
    }

    #[test]
    fn what_is_hot_stays_behind_and_the_rest_is_sent() {
        for way in [HoldBack::Lru, HoldBack::Aged] {
            assert_eq!(held(way, 100), (pages(0, 10), pages(10, 5)), "{way}");
        }
    }

    #[test]
    fn where_nothing_is_to_be_held_back_all_is_sent() {
        assert_eq!(held(HoldBack::None, 100), (pages(0, 15), PageSet::empty(PAGES)));
        assert_eq!(held(HoldBack::Aged, 0), (pages(0, 15), PageSet::empty(PAGES)));
    }

    #[test]
    fn scans_of_short_rounds_make_up_a_sample_together() {
        let mut holding = Holding::new(HoldBack::Aged, PAGES);
        holding.scanned(&pages(0, 1));
        holding.scanned(&pages(5, 1));
        let mut both = pages(0, 1);
        both.union_with(&pages(5, 1));
        assert_eq!(holding.written, both);
        holding.looked(&pages(0, 6));
        assert!(holding.written.is_empty());
        assert!(holding.withhold(&mut pages(0, 6), PAGES).is_empty(), "one sample is no sign");
    }
}
