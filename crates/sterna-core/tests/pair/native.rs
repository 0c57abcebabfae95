//! Hypervisors that copy the guest among themselves, over streams that the agents relay: rounds until
//! little is left, a pause of their own, and RAM and registers as one. One whose stream breaks before
//! it has written all of it lets its guest run again, without asking anybody.

use crate::guest::{Hypervisor, Pages};
use crate::network::Item;
use crate::source_side::injected;
use crate::world::{Action, Broken, World};
use sterna_core::receipt::PagesByCoding;
use sterna_core::source::{Event, HypervisorRound, RoundSent};
use sterna_core::speed::VcpuSpeed;
use sterna_page::{PAGE_SIZE_BYTES, PageCount};

/// Pages that a hypervisor takes for few enough to pause the guest.
const FEW: u32 = 2;

/// What a source's hypervisor has under way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NativeCopy {
    pages: Pages,
    sent: u64,
    phase: Phase,
    /// Whether the guest is slowed down where rounds do not help.
    slow_down: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Rounds,
    /// The guest is to be paused at the end of the round, whatever is left.
    Hurried,
    /// The guest is paused, and the agent is waited for.
    Paused,
    Finishing,
    /// All was written.
    Done,
}

impl World {
    /// The source's hypervisor begins to copy.
    pub(crate) fn begin_native(&mut self, attempt: usize, slow_down: bool) {
        let instance = self.attempts[attempt].source_instance;
        self.instances[instance].tracking = true;
        self.instances[instance].dirty = 0;
        let pages = self.instances[instance].populated();
        let phase = Phase::Rounds;
        self.side(attempt).native = Some(NativeCopy { pages, sent: 0, phase, slow_down });
        self.next_native_step(attempt);
    }

    fn next_native_step(&mut self, attempt: usize) {
        let due = self.now + self.random(1..self.plan.page_time * 2);
        let life = self.side(attempt).life;
        self.schedule(due, Action::NativeStep { attempt, life });
    }

    /// Has the hypervisor pause the guest at the end of its round; `false` if it copies nothing.
    pub(crate) fn hurry_native(&mut self, attempt: usize) -> bool {
        match &mut self.side(attempt).native {
            Some(copy) => {
                copy.phase = Phase::Hurried;
                true
            }
            None => false,
        }
    }

    /// Leave to send what is left, and the registers.
    pub(crate) fn finish_native(&mut self, attempt: usize) {
        if let Some(copy) = &mut self.side(attempt).native {
            copy.phase = Phase::Finishing;
            self.next_native_step(attempt);
        }
    }

    /// Sends the next page as it is now, or ends the round.
    pub(crate) fn native_step(&mut self, attempt: usize, life: u64) {
        if !self.source_lives(attempt, life) {
            return;
        }
        let instance = self.attempts[attempt].source_instance;
        let side = self.side(attempt);
        let (Some(mut copy), Some(stream)) = (side.native, side.stream) else { return };
        let gone = self.instances[instance].hypervisor == Hypervisor::Gone;
        if self.streams[stream].broken || gone {
            return;
        }
        if copy.pages == 0 {
            return self.end_native_round(attempt, copy);
        }
        let page = usize::try_from(copy.pages.trailing_zeros()).expect("one of 16 bits");
        copy.pages &= copy.pages - 1;
        copy.sent += 1;
        self.side(attempt).native = Some(copy);
        let content = self.instances[instance].guest.ram[page];
        self.send_item(stream, Item::Page { page, content });
        self.next_native_step(attempt);
        if copy.sent.is_multiple_of(8) {
            self.step_source(attempt, Event::Progress);
        }
    }

    fn end_native_round(&mut self, attempt: usize, mut copy: NativeCopy) {
        if self.mishap(self.plan.weather.fail_effect) {
            self.native_fails(attempt);
            return self.step_source(attempt, Event::Failed(injected("native")));
        }
        let instance = self.attempts[attempt].source_instance;
        let sent = RoundSent {
            pages: PagesByCoding { raw: PageCount(copy.sent), ..PagesByCoding::default() },
            bytes: std::mem::take(&mut copy.sent) * PAGE_SIZE_BYTES,
            ..RoundSent::default()
        };
        if copy.phase == Phase::Finishing {
            copy.phase = Phase::Done;
            let registers = self.instances[instance].guest.registers;
            let side = self.side(attempt);
            side.native = Some(copy);
            if let Some(stream) = side.stream {
                self.send_item(stream, Item::NativeEnd(registers));
            }
            self.coverage.outcome("hypervisors copied the guest");
            self.step_source(attempt, Event::StateSent);
            return self.step_source(attempt, Event::RestSent(sent.into()));
        }
        copy.pages = self.scan(attempt);
        self.side(attempt).unsent = 0;
        let left = PageCount(copy.pages.count_ones().into());
        if copy.phase == Phase::Hurried || copy.pages.count_ones() <= FEW {
            copy.phase = Phase::Paused;
            self.side(attempt).native = Some(copy);
            self.pause(instance);
            return self.step_source(attempt, Event::Paused);
        }
        self.side(attempt).native = Some(copy);
        self.next_native_step(attempt);
        let vcpus = if copy.slow_down { VcpuSpeed::percent(30) } else { VcpuSpeed::FULL };
        self.instances[instance].speed = vcpus;
        self.step_source(
            attempt,
            Event::RoundPassed(Box::new(HypervisorRound { sent, left, vcpus })),
        );
    }

    /// The hypervisor gives its copying up. One that had been given leave to send all lets its guest
    /// run again by itself; one that waits for leave goes on waiting.
    pub(crate) fn native_fails(&mut self, attempt: usize) {
        let instance = self.attempts[attempt].source_instance;
        let Some(copy) = self.side(attempt).native.take() else { return };
        self.resumes_by_itself(instance, copy);
    }

    pub(crate) fn resumes_by_itself(&mut self, instance: usize, copy: NativeCopy) {
        let pages_on = copy.phase == Phase::Finishing
            || copy.phase == Phase::Done && self.broken == Some(Broken::NativeResumesLate);
        if pages_on && self.instances[instance].hypervisor == Hypervisor::Paused {
            self.coverage.outcome("a hypervisor resumed by itself");
            self.unpause(instance);
            self.wake_guests();
        }
    }

    /// The destination's hypervisor has all.
    pub(crate) fn native_ended(&mut self, attempt: usize, registers: u64) {
        if let Some(instance) = self.arriving(attempt) {
            instance.hypervisor = Hypervisor::Loaded;
            instance.guest.registers = registers;
        }
    }

    /// Whether the destination's hypervisor still waits for the end of what it is sent.
    pub(crate) fn native_goes_on(&mut self, attempt: usize) -> bool {
        self.broken != Some(Broken::NativeUnfinished)
            && self.arriving(attempt).is_some_and(|i| i.hypervisor == Hypervisor::Empty)
    }
}
