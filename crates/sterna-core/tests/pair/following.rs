//! Pages that follow the guest: what is missing at the destination, which outlives its agent, and
//! how the source sends it, by demand and in order.

use crate::destination_side::DestinationSide;
use crate::guest::{Hypervisor, PAGES, Pages, digest_of};
use crate::network::Item;
use crate::source_side::injected;
use crate::world::{Action, Broken, World};
use sterna_core::destination::{self, Joining, Served};
use sterna_core::source;
use sterna_page::RamDigest;
use sterna_proto::message::{Arrival, PageWaits, Reason, Verify};
use sterna_proto::preamble::MoveToken;

/// What the destination's agent knows of pages that follow.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Following {
    /// What the source said is owed.
    pub(crate) owed: Pages,
    /// The page connections that bring it.
    pub(crate) stream: Option<usize>,
    /// Set while faults are served: whether to hash what arrives.
    serves: Option<Verify>,
    told: bool,
}

/// What the destination tells the source about owed pages.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Wanted {
    /// All that is missing.
    Missing(Pages),
    /// A page that somebody waits for.
    AtOnce(u32),
}

impl World {
    /// Empties what is owed, and has whoever touches it wait.
    pub(crate) fn empty_owed(&mut self, attempt: usize, following: &Following) {
        let keeps_stale = self.broken == Some(Broken::StaleKept);
        let Some(instance) = self.arriving(attempt) else { return };
        for page in 0..PAGES {
            let stale = instance.guest.ram[page] != 0;
            if following.owed >> page & 1 == 1 && !(keeps_stale && stale) {
                instance.missing |= 1 << page;
                instance.guest.ram[page] = 0;
            }
        }
        instance.arrived = instance.guest.ram;
    }

    /// Begins to serve faults, or fails to.
    pub(crate) fn served(
        &mut self,
        attempt: usize,
        served: Served,
        verify: Verify,
        fails: bool,
    ) -> destination::Event {
        // What fails for a guest that is ours already is tried until it does not.
        let fails = fails && served == Served::First;
        if fails || self.arriving(attempt).is_none() {
            return match served {
                Served::First => destination::Event::Failed(injected("serve")),
                Served::Again => destination::Event::GuestGone(injected("serve")),
            };
        }
        match served {
            Served::First => {
                let following = self.destination_side(attempt).following;
                self.empty_owed(attempt, &following);
                self.coverage.outcome("handed over with pages owed");
            }
            Served::Again => {
                let page = self.random(0..PAGES as u64);
                let forgets = self.broken == Some(Broken::ForgottenPage);
                if let Some(instance) = self.arriving(attempt).filter(|_| forgets) {
                    instance.missing &= !(1 << page);
                }
            }
        }
        self.destination_side(attempt).following.serves = Some(verify);
        self.want_missing(attempt);
        destination::Event::Serving(Joining { token: MoveToken([0; 16]), streams: 1 })
    }

    /// Tells the source over its page connections what is missing.
    fn want_missing(&mut self, attempt: usize) {
        let missing = self.arriving(attempt).map_or(0, |instance| instance.missing);
        let Some(stream) = self.destination_side(attempt).following.stream else { return };
        self.want(stream, Wanted::Missing(missing));
    }

    fn want(&mut self, stream: usize, wanted: Wanted) {
        let due = self.now + self.random(20..300);
        if !self.streams[stream].broken {
            self.schedule(due, Action::Wanted { stream, wanted });
        }
    }

    /// The source learns what is missing. What is on its way already is not sent again.
    pub(crate) fn wanted(&mut self, stream: usize, wanted: Wanted) {
        let (attempt, life) = (self.streams[stream].attempt, self.streams[stream].source_life);
        if self.streams[stream].broken || !self.source_lives(attempt, life) {
            return;
        }
        let side = self.side(attempt);
        let Some(follows) = &mut side.follows else { return };
        match wanted {
            Wanted::AtOnce(page) if *follows >> page & 1 == 1 => {
                *follows &= !(1 << page);
                self.follow(stream, attempt, page);
            }
            Wanted::AtOnce(_) => {}
            Wanted::Missing(pages) => {
                *follows = pages;
                self.schedule(self.now + 1, Action::FollowStep { stream, source_life: life });
            }
        }
    }

    fn follow(&mut self, stream: usize, attempt: usize, page: u32) {
        let page = usize::try_from(page).expect("one of 16 bits");
        let source = &self.instances[self.attempts[attempt].source_instance];
        let (lost, content) = (source.ram_lost, source.guest.ram[page]);
        self.check(!lost, "no page is sent of RAM that is lost");
        self.send_item(stream, Item::Follow { page, content });
    }

    /// Sends the next page that is missing.
    pub(crate) fn follow_step(&mut self, stream: usize, source_life: u64) {
        let attempt = self.streams[stream].attempt;
        if self.streams[stream].broken || !self.source_lives(attempt, source_life) {
            return;
        }
        let side = self.side(attempt);
        let Some(follows) = side.follows.as_mut().filter(|follows| **follows != 0) else { return };
        let page = follows.trailing_zeros();
        *follows &= *follows - 1;
        self.follow(stream, attempt, page);
        let due = self.now + self.random(1..self.plan.follow_time * 2);
        self.schedule(due, Action::FollowStep { stream, source_life });
    }

    /// The source has made its page connections anew.
    pub(crate) fn serves_again(&mut self, attempt: usize, stream: usize) -> source::Event {
        self.coverage.outcome("streams were made anew");
        let side = self.side(attempt);
        side.follows = Some(0);
        if let Some(old) = side.stream.replace(stream) {
            self.break_stream(old);
        }
        if let Some(side) = &mut self.attempts[attempt].destination {
            side.following.stream = Some(stream);
            if side.following.serves.is_some() {
                self.step_destination(attempt, destination::Event::StreamsUp);
                if self.attempts[attempt].destination.is_some() {
                    self.want_missing(attempt);
                }
            }
        }
        source::Event::Serving
    }

    pub(crate) fn page_followed(
        &mut self,
        attempt: usize,
        stream: usize,
        page: usize,
        content: u64,
    ) {
        if self.destination_side(attempt).following.stream != Some(stream) {
            return;
        }
        let Some(instance) = self.arriving(attempt) else { return };
        let missing = instance.missing >> page & 1 == 1;
        if missing {
            instance.missing &= !(1 << page);
            instance.guest.ram[page] = content;
            instance.arrived[page] = content;
        }
        self.check(missing, "a page that follows comes once");
        self.tell_all_here(attempt);
    }

    /// Says that nothing is missing, once.
    pub(crate) fn tell_all_here(&mut self, attempt: usize) {
        let Some(side) = &self.attempts[attempt].destination else { return };
        let Following { serves: Some(verify), told: false, .. } = side.following else { return };
        let Some(instance) = self.arriving(attempt) else { return };
        if instance.missing == 0 {
            let digest: Option<RamDigest> =
                (verify == Verify::RamDigest).then(|| digest_of(&instance.arrived));
            let side: &mut DestinationSide = self.destination_side(attempt);
            side.following.told = true;
            self.step_destination(
                attempt,
                destination::Event::AllHere(Arrival { digest, waits: PageWaits::default() }),
            );
        }
    }

    pub(crate) fn end_serving(&mut self, attempt: usize) {
        let missing = self.arriving(attempt).map_or(0, |instance| instance.missing);
        self.check(missing == 0, "faults are served until nothing is missing");
    }

    /// Whether somebody at the destination has to wait for this page.
    pub(crate) fn must_wait_for_page(&mut self, attempt: usize, page: u32) -> bool {
        let missing = self.arriving(attempt).is_some_and(|i| i.missing >> page & 1 == 1);
        if missing && let Some(stream) = self.destination_side(attempt).following.stream {
            self.want(stream, Wanted::AtOnce(page));
        }
        missing
    }

    /// Whether the running guest gets at a page; if not, it waits for it.
    pub(crate) fn may_touch(&mut self, instance: usize, page: usize) -> bool {
        let arrived = self.attempts.iter().position(|a| a.destination_instance == Some(instance));
        let Some(attempt) = arrived else { return true };
        if self.instances[instance].missing >> page & 1 == 1 {
            self.coverage.outcome("a guest waited for a page");
            self.instances[instance].waits_for = Some(page);
            if self.attempts[attempt].destination.is_some() {
                let page = u32::try_from(page).expect("one of 16");
                self.must_wait_for_page(attempt, page);
            }
            return false;
        }
        self.instances[instance].waits_for = None;
        if self.instances[instance].touched >> page & 1 == 0 {
            let source = &self.instances[self.attempts[attempt].source_instance];
            let same = source.guest.ram[page] == self.instances[instance].guest.ram[page];
            self.check(same, "the guest finds each page as it left it");
        }
        true
    }

    pub(crate) fn destination_stream_broken(
        &mut self,
        attempt: usize,
        stream: usize,
        reason: Reason,
    ) {
        let following = self.destination_side(attempt).following;
        match following.stream {
            Some(newest) if newest != stream => {}
            Some(_) => {
                self.step_destination(attempt, destination::Event::StreamDown(reason));
            }
            None => self.step_destination(attempt, destination::Event::Failed(reason)),
        }
    }

    /// RAM is there as long as its hypervisor or the agent of its host is.
    pub(crate) fn ram_may_be_lost(&mut self, instance: usize) {
        let agent_up = self
            .attempts
            .iter()
            .any(|a| a.source_instance == instance && self.hosts[a.source_host].up);
        if self.instances[instance].hypervisor == Hypervisor::Gone && !agent_up {
            self.instances[instance].ram_lost = true;
        }
    }
}
