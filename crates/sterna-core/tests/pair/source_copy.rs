//! How the source's host copies pages: what a scan reports, and rounds page by page, each page as
//! it is at the moment when its turn comes, while the guest writes on.

use crate::guest::Pages;
use crate::network::Item;
use crate::source_side::{Copy, Last, injected};
use crate::world::{Action, Broken, World};
use rand::Rng;
use std::time::Duration;
use sterna_core::prediction::Look;
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
        side.copy = Some(Copy { round, pages, sent: 0, withheld: 0, ends: None, unsent: 0, last });
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

    /// Has the round end after some time, whatever it has sent by then: a host is not to be relied on
    /// for how long that is.
    pub(crate) fn cut_short(&mut self, attempt: usize) {
        let ends = self.now + self.random(0..3_000);
        if let Some(copy) = &mut self.side(attempt).copy {
            copy.ends = Some(ends);
        }
    }

    /// Leaves what a round that was cut short has not sent to be sent later.
    fn end_early(&mut self, attempt: usize, copy: &mut Copy) {
        let left = std::mem::take(&mut copy.pages);
        copy.unsent = left.count_ones().into();
        if self.broken != Some(Broken::UnsentForgotten) {
            self.side(attempt).unsent |= left;
        }
        if left != 0 {
            self.coverage.outcome("cut a round short");
        }
    }

    /// Tells what the guest has written since the last scan.
    fn look(&mut self, attempt: usize) {
        let instance = self.attempts[attempt].source_instance;
        let pages = PageCount(self.instances[instance].dirty.count_ones().into());
        let after = Duration::from_micros(self.random(0..2_000));
        self.step_source(attempt, Event::Looked(Look { after, pages }));
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
        if copy.ends.is_some_and(|ends| ends <= self.now) {
            self.end_early(attempt, &mut copy);
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
        } else if copy.sent.is_multiple_of(5) && copy.last == Last::No {
            self.look(attempt);
        }
    }

    fn copy_done(&mut self, attempt: usize, copy: Copy) {
        let (raw, withheld) = (PageCount(copy.sent), PageCount(copy.withheld));
        let unsent = PageCount(copy.unsent);
        let sent = RoundSent {
            pages: PagesByCoding { raw, withheld, unsent, ..PagesByCoding::default() },
            bytes: copy.sent * PAGE_SIZE_BYTES,
            ..RoundSent::default()
        };
        let event = match copy.last {
            _ if self.mishap(self.plan.weather.fail_effect) => Event::Failed(injected("copy")),
            Last::No => Event::RoundSent(sent.into()),
            Last::Yes(_) => Event::RestSent(sent.into()),
        };
        self.step_source(attempt, event);
    }
}
