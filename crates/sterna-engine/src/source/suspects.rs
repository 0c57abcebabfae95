//! Pages whose newest content a scan may have missed.
//!
//! With O_DIRECT the kernel pins a guest page and marks it written when the I/O is *submitted*; the
//! data lands later, unseen. So a page that a scan reported stays suspect until it has been
//! compared again after the longest I/O in flight could have ended, and all that are left are
//! compared after the pause, when I/O is drained. Comparing is cheap where nothing changed: the
//! page is read and hashed, not sent.

use std::time::{Duration, Instant};
use sterna_page::PageSet;
use sterna_vmm::InFlightIo;

/// The suspects of a move, by the time at which they were reported.
#[derive(Debug)]
pub(crate) struct Suspects {
    longest: Option<Duration>,
    reported: Vec<(Instant, PageSet)>,
}

impl Suspects {
    pub(crate) fn new(in_flight: InFlightIo) -> Self {
        let longest = match in_flight {
            InFlightIo::Tracked => None,
            InFlightIo::Untracked(longest) => Some(longest),
        };
        Self { longest, reported: Vec::new() }
    }

    /// Takes note of the pages that a scan has just reported.
    pub(crate) fn reported(&mut self, pages: &PageSet) {
        if self.longest.is_some() && !pages.is_empty() {
            self.reported.push((Instant::now(), pages.clone()));
        }
    }

    /// Those whose I/O has ended by now, for good.
    pub(crate) fn take_ripe(&mut self) -> Option<PageSet> {
        let longest = self.longest?;
        let ripe = self.reported.iter().take_while(|(at, _)| at.elapsed() >= longest).count();
        join(self.reported.drain(..ripe))
    }

    /// All of them.
    pub(crate) fn take_all(&mut self) -> Option<PageSet> {
        join(self.reported.drain(..))
    }
}

fn join(sets: impl Iterator<Item = (Instant, PageSet)>) -> Option<PageSet> {
    sets.map(|(_, set)| set).reduce(|mut all, set| {
        all.union_with(&set);
        all
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use sterna_page::{PageCount, PageNumber};

    fn page(number: u64) -> PageSet {
        let mut set = PageSet::empty(PageCount(8));
        set.insert(PageNumber(number));
        set
    }

    #[test]
    fn tracked_io_leaves_no_suspects() {
        let mut suspects = Suspects::new(InFlightIo::Tracked);
        suspects.reported(&page(1));
        assert_eq!(suspects.take_all(), None);
    }

    #[test]
    fn a_suspect_is_compared_once_its_io_has_ended_and_not_before() {
        let mut suspects = Suspects::new(InFlightIo::Untracked(Duration::from_secs(3600)));
        suspects.reported(&page(1));
        assert_eq!(suspects.take_ripe(), None, "its I/O may still be in flight");
        let mut at_once = Suspects::new(InFlightIo::Untracked(Duration::ZERO));
        at_once.reported(&page(2));
        assert_eq!(at_once.take_ripe(), Some(page(2)));
        assert_eq!(at_once.take_ripe(), None, "once");
    }

    #[test]
    fn after_the_pause_all_are_compared() {
        let mut suspects = Suspects::new(InFlightIo::Untracked(Duration::from_secs(3600)));
        suspects.reported(&page(1));
        suspects.reported(&page(5));
        let mut both = page(1);
        both.union_with(&page(5));
        assert_eq!(suspects.take_all(), Some(both));
    }
}
