//! How the source's host copies pages: what a scan reports, and rounds page by page, each page as
//! it is at the moment when its turn comes, while the guest writes on.

use crate::guest::Pages;
use crate::network::Item;
use crate::source_side::{Copy, Last, injected};
use crate::world::{Action, Broken, World};
use rand::Rng;
use sterna_core::receipt::PagesByCoding;
use sterna_core::source::{Event, RoundSent, Selection};
use sterna_page::{PAGE_SIZE_BYTES, PageCount};
use sterna_proto::message::Rest;

impl World {
    /// Takes the tracker's report to the pages that are still to be sent.
    pub(crate) fn scan(&mut self, attempt: usize) -> Pages {
        let overlooks = self.broken == Some(Broken::ScanOverlooks) && self.random(0..10) == 0;
        let instance = self.attempts[attempt].source_instance;
        let mut dirty = self.instances[instance].scan();
        if overlooks {
            dirty &= dirty.wrapping_sub(1);
        }
        let side = self.side(attempt);
        side.unsent |= dirty;
        side.unsent
    }

    pub(crate) fn begin_copy(
        &mut self,
        attempt: usize,
        round: u32,
        selection: Selection,
        last: Last,
    ) {
        let populated = self.instances[self.attempts[attempt].source_instance].populated();
        let side = self.side(attempt);
        let unsent = std::mem::take(&mut side.unsent);
        let pages = match selection {
            Selection::Populated => populated,
            Selection::Dirty => unsent,
        };
        side.copy = Some(Copy { round, pages, sent: 0, withheld: 0, last });
        let life = side.life;
        self.schedule(self.now + 1, Action::CopyStep { attempt, life });
    }

    /// Takes any pages out of the round that begins, `most` at most; they are still to be sent.
    pub(crate) fn withhold(&mut self, attempt: usize, most: PageCount) {
        if most == PageCount::ZERO {
            return;
        }
        let any: Pages = self.rng.random();
        let forgets = self.broken == Some(Broken::WithheldForgotten);
        let side = self.side(attempt);
        let Some(copy) = &mut side.copy else { return };
        let mut held = copy.pages & any;
        while u64::from(held.count_ones()) > most.0 {
            held &= held - 1;
        }
        copy.pages &= !held;
        copy.withheld = held.count_ones().into();
        if !forgets {
            side.unsent |= held;
        }
        if held != 0 {
            self.coverage.outcome("held pages back");
        }
    }

    /// Sends the next page as it is now, or the marks if none is left.
    pub(crate) fn copy_step(&mut self, attempt: usize, life: u64) {
        if !self.source_lives(attempt, life) {
            return;
        }
        let side = self.side(attempt);
        let (Some(mut copy), Some(stream)) = (side.copy, side.stream) else { return };
        if self.streams[stream].broken {
            return;
        }
        if copy.last == Last::Yes(Rest::Owed) {
            self.send_item(stream, Item::Owed(std::mem::take(&mut copy.pages)));
            self.side(attempt).follows = Some(0);
        }
        if copy.pages == 0 {
            self.side(attempt).copy = None;
            self.send_item(stream, Item::Mark(copy.round));
            self.copy_done(attempt, copy);
            return;
        }
        let page = copy.pages.trailing_zeros();
        copy.pages &= copy.pages - 1;
        copy.sent += 1;
        self.side(attempt).copy = Some(copy);
        let page = usize::try_from(page).expect("one of 16 bits");
        let content = self.instances[self.attempts[attempt].source_instance].guest.ram[page];
        self.send_item(stream, Item::Page { page, content });
        let due = self.now + self.random(1..self.plan.page_time * 2);
        self.schedule(due, Action::CopyStep { attempt, life });
        if copy.sent.is_multiple_of(8) {
            self.step_source(attempt, Event::Progress);
        }
    }

    fn copy_done(&mut self, attempt: usize, copy: Copy) {
        let (raw, withheld) = (PageCount(copy.sent), PageCount(copy.withheld));
        let sent = RoundSent {
            pages: PagesByCoding { raw, withheld, ..PagesByCoding::default() },
            bytes: copy.sent * PAGE_SIZE_BYTES,
            ..RoundSent::default()
        };
        let event = match copy.last {
            _ if self.mishap(self.plan.weather.fail_effect) => Event::Failed(injected("copy")),
            Last::No => Event::RoundSent(sent),
            Last::Yes(_) => Event::RestSent(sent),
        };
        self.step_source(attempt, event);
    }
}
