//! Which pages a round sends, of those that were written, exist, or ceased to.

use super::holding::Holding;
use super::mover::failed;
use super::suspects::Suspects;
use crate::link::Link;
use crate::pages::{SenderPool, Sends};
use std::sync::Arc;
use std::time::{Duration, Instant};
use sterna_core::source::{Event, Selection};
use sterna_core::speed::VcpuSpeed;
use sterna_page::{PageCount, PageRun, PageSet};
use sterna_proto::message::{Reason, ReasonCode};
use sterna_vmm::{Discarding, Source};

/// What a move that copies has under way.
pub(super) struct Copying {
    pub(super) pool: SenderPool,
    /// The connection on which owed pages are asked for, until it is used.
    pub(super) urgent: Option<Link>,
    pub(super) suspects: Suspects,
    pub(super) discarding: Discarding,
    pub(super) holding: Holding,
    /// Reported by scans and not sent since.
    pub(super) dirty: PageSet,
    /// Written while the guest was copied.
    pub(super) changing: PageSet,
    /// When the tracker was last cleared.
    pub(super) cleared: Instant,
    /// Ever sent.
    pub(super) sent: PageSet,
    /// At which speed the guest runs.
    pub(super) vcpus: VcpuSpeed,
    /// For how long its vCPUs had been held back when that was last told.
    pub(super) held_back: Duration,
}

/// Which suspects a round compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Recheck {
    /// Those whose I/O must have ended.
    Ripe,
    /// All: the guest is paused and its I/O drained.
    All,
}

impl Copying {
    /// For how long vCPUs were held back since this was last asked.
    pub(super) fn newly_held_back(&mut self, guest: &dyn Source) -> Result<Duration, Event> {
        let before = std::mem::replace(&mut self.held_back, guest.held_back().map_err(failed)?);
        Ok(self.held_back.saturating_sub(before))
    }

    /// The pages that exist, where that may have changed or is not known yet.
    pub(super) fn populated(
        &self,
        guest: &dyn Source,
        selection: Selection,
    ) -> Result<Option<PageSet>, Event> {
        let unchanged = self.discarding == Discarding::Never && selection == Selection::Dirty;
        if unchanged { Ok(None) } else { guest.populated().map(Some).map_err(failed) }
    }

    /// Takes the pages that do not exist out of those that are to be sent: they must not be read.
    /// Returns them, with those that were sent once and have been given back since.
    fn no_longer(&mut self, pages: &mut PageSet, populated: &PageSet) -> PageSet {
        let mut gone = pages.clone();
        gone.union_with(&self.sent);
        gone.subtract(populated);
        pages.subtract(&gone);
        self.sent.subtract(&gone);
        gone
    }

    /// Leaves out of a round what is likely to be written again, `most` pages at most. They stay
    /// dirty, so a later round or the pause sends them; returns how many they are.
    pub(super) fn withhold(&mut self, sends: &mut Sends, most: PageCount) -> PageCount {
        let withheld = self.holding.withhold(Arc::make_mut(&mut sends.pages), most);
        self.dirty.union_with(&withheld);
        withheld.count()
    }

    /// What the destination was to get by itself and lacks is dirty again.
    pub(super) fn lacking(&mut self, runs: &[(u64, u64)]) -> Result<(), Event> {
        for (first, count) in runs {
            let end = first.checked_add(*count).filter(|end| *end <= self.dirty.capacity().0);
            if end.is_none() || *count == 0 {
                let detail = format!("the destination lacks {count} pages from page {first:#x} on");
                return Err(Event::Failed(Reason::new(ReasonCode::Protocol, detail)));
            }
            let lacking = self.pool.lacking(PageRun::new(*first, *count));
            lacking.into_iter().for_each(|page| self.dirty.insert(page));
        }
        Ok(())
    }

    /// Chooses what a round sends, of the pages that exist now.
    pub(super) fn select(
        &mut self,
        round: u32,
        selection: Selection,
        populated: Option<PageSet>,
        recheck: Recheck,
    ) -> Sends {
        let mut pages = match selection {
            Selection::Populated => {
                populated.clone().unwrap_or_else(|| PageSet::full(self.dirty.capacity()))
            }
            Selection::Dirty => {
                let none = PageSet::empty(self.dirty.capacity());
                std::mem::replace(&mut self.dirty, none)
            }
        };
        let absent = populated.map(|populated| self.no_longer(&mut pages, &populated));
        let mut suspects = match recheck {
            Recheck::Ripe => self.suspects.take_ripe(),
            Recheck::All => self.suspects.take_all(),
        };
        if let Some(suspects) = &mut suspects {
            suspects.subtract(&pages);
            if let Some(absent) = &absent {
                suspects.subtract(absent);
            }
        }
        self.sent.union_with(&pages);
        let some = |set: PageSet| (!set.is_empty()).then(|| Arc::new(set));
        Sends {
            round,
            pages: Arc::new(pages),
            suspects: suspects.and_then(some),
            absent: absent.and_then(some),
            owed: None,
            until: None,
            may_lack: true,
        }
    }
}
