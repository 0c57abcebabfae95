//! The destination's agent and host: routes what comes to it, and performs what its machine asks
//! for, in virtual time.

use crate::following::Following;
use crate::guest::{Hypervisor, Instance};
use crate::network::{Frame, Item};
use crate::plan::Role;
use crate::source_side::injected;
use crate::world::{Action, Broken, World, micros_until};
use sterna_core::algorithm::AlgorithmName;
use sterna_core::destination::{Destination, Effect, Ending, Event, MayHaveRun, Served};
use sterna_core::journal::DestinationRecord;
use sterna_core::source::Found;
use sterna_proto::message::{
    Accept, ActivationTimes, Coding, JournalId, Offer, ToDestination, ToSource, Verify,
};
use sterna_proto::preamble::MoveToken;

/// A destination's machine and what its agent has under way for it.
#[derive(Debug)]
pub(crate) struct DestinationSide {
    pub(crate) machine: Destination,
    pub(crate) life: u64,
    pub(crate) connection: Option<usize>,
    timer: Option<u64>,
    stage: &'static str,
    pending: Vec<(u64, Work)>,
    recovered: Recovered,
    registers: u64,
    pub(crate) following: Following,
}

/// Whether an earlier agent may have let the guest run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Recovered {
    No,
    Yes,
}

/// Something that takes time.
#[derive(Clone, Debug)]
enum Work {
    Reserve,
    Record(DestinationRecord),
    Load,
    AwaitNative,
    Digest,
    Serve(Served, Verify),
    Activate,
    Discard,
}

impl World {
    pub(crate) fn destination_side(&mut self, attempt: usize) -> &mut DestinationSide {
        self.attempts[attempt].destination.as_mut().expect("only asked while the machine lives")
    }

    /// A message goes to the attempt's machine. Without one, an offer starts it, and a question is
    /// answered by one that is made from the journal; anything else is too late for anybody.
    pub(crate) fn route_to_destination(
        &mut self,
        connection: usize,
        attempt: usize,
        message: ToDestination,
    ) {
        if !self.hosts[self.attempts[attempt].destination_host].up {
            return;
        }
        let question = matches!(message, ToDestination::Commit | ToDestination::Query);
        let message = match message {
            ToDestination::Offer(offer) => {
                return self.offered(connection, attempt, *offer);
            }
            other => other,
        };
        if self.attempts[attempt].destination.is_none() && question {
            self.recover_destination(attempt);
        }
        let Some(side) = &mut self.attempts[attempt].destination else { return };
        // Connections are numbered in the order in which they were made.
        if question && side.connection.is_none_or(|known| known < connection) {
            side.connection = Some(connection);
            self.step_destination(attempt, Event::LinkUp);
        }
        self.step_destination(attempt, Event::Message(message));
    }

    /// An offer of an attempt that the journal knows, or that is overtaken, comes too late.
    fn offered(&mut self, connection: usize, attempt: usize, offer: Offer) {
        let a = &self.attempts[attempt];
        let known = a.destination.is_some() || a.destination_record.is_some();
        if known || attempt + 1 < self.attempts.len() {
            self.note(|| format!("a{attempt} a late offer is passed over"));
            return;
        }
        let mut effects = Vec::new();
        let machine = Destination::start(offer, self.plan.stages, self.time(), &mut effects);
        self.destination_begins(attempt, machine, Recovered::No, effects);
        self.destination_side(attempt).connection = Some(connection);
    }

    pub(crate) fn recover_destination(&mut self, attempt: usize) {
        let instance = self.attempts[attempt].destination_instance;
        let found = instance.map_or(Found::Gone, |i| self.instances[i].found());
        let mut record = self.effective_destination_record(attempt);
        let owns = matches!(record, Some(DestinationRecord::Owned | DestinationRecord::Owing));
        if self.broken == Some(Broken::OwnedForgotten) && owns {
            record = Some(DestinationRecord::Receiving);
        }
        self.note(|| format!("a{attempt} destination recovers {record:?}, found {found:?}"));
        let mut effects = Vec::new();
        let machine =
            Destination::recover(record, found, self.plan.stages, self.time(), &mut effects);
        self.destination_begins(attempt, machine, Recovered::Yes, effects);
    }

    fn destination_begins(
        &mut self,
        attempt: usize,
        machine: Destination,
        recovered: Recovered,
        effects: Vec<Effect>,
    ) {
        let life = self.unique();
        self.attempts[attempt].destination = Some(DestinationSide {
            machine,
            life,
            connection: None,
            timer: None,
            stage: "",
            pending: Vec::new(),
            recovered,
            registers: 0,
            following: Following::default(),
        });
        if let Some(gap) = self.plan.keep_alive {
            let role = Role::Destination;
            self.schedule(self.now + gap, Action::KeepAlive { attempt, role, life });
        }
        self.destination_effects(attempt, effects);
        self.wake_guests();
    }

    /// Hands an event to the machine, if there is one, and performs what it answers.
    pub(crate) fn step_destination(&mut self, attempt: usize, event: Event) {
        let now = self.time();
        if self.attempts[attempt].destination.is_none() {
            return;
        }
        self.coverage.steps += 1;
        let stage = self.destination_side(attempt).machine.stage();
        self.note(|| format!("a{attempt} destination [{stage}] {event:?}"));
        let mut effects = Vec::new();
        self.destination_side(attempt).machine.step(event, now, &mut effects);
        self.destination_effects(attempt, effects);
    }

    fn destination_effects(&mut self, attempt: usize, effects: Vec<Effect>) {
        for effect in effects {
            self.note(|| format!("a{attempt} destination   -> {}", brief(&effect)));
            self.destination_effect(attempt, effect);
        }
        let Some(side) = &mut self.attempts[attempt].destination else { return };
        let stage = side.machine.stage();
        let entered = std::mem::replace(&mut side.stage, stage) != stage;
        if entered {
            self.stage_entered(Role::Destination, stage);
        }
        self.set_destination_timer(attempt);
    }

    fn set_destination_timer(&mut self, attempt: usize) {
        let now = self.now;
        let side = self.destination_side(attempt);
        let Some(deadline) = side.machine.deadline() else { return };
        let due = micros_until(deadline).max(now);
        if side.timer.is_none_or(|timer| timer > due) {
            side.timer = Some(due);
            let life = side.life;
            self.schedule(due, Action::Timer { attempt, role: Role::Destination, life });
        }
    }

    pub(crate) fn destination_timer(&mut self, attempt: usize) {
        let now = self.time();
        let side = self.destination_side(attempt);
        side.timer = None;
        if side.machine.deadline().is_some_and(|deadline| deadline <= now) {
            self.step_destination(attempt, Event::Deadline);
        } else {
            self.set_destination_timer(attempt);
        }
    }

    fn begin_destination(&mut self, attempt: usize, work: Work, takes: std::ops::Range<u64>) {
        let mut due = self.now + self.random(takes);
        let token = self.unique();
        if matches!(work, Work::Record(_)) {
            let host = self.attempts[attempt].destination_host;
            due = due.max(self.hosts[host].journal_free + 1);
            self.hosts[host].journal_free = due;
        }
        let side = self.destination_side(attempt);
        side.pending.push((token, work));
        let life = side.life;
        self.schedule(due, Action::Done { attempt, role: Role::Destination, life, token });
    }

    fn destination_effect(&mut self, attempt: usize, effect: Effect) {
        match effect {
            Effect::Send(message) => {
                let connection = self.destination_side(attempt).connection;
                self.send(connection, Role::Destination, Frame::ToSource(message));
            }
            Effect::Reserve(_) => self.begin_destination(attempt, Work::Reserve, 50..1_500),
            Effect::Record(record) => {
                if matches!(record, DestinationRecord::Owned | DestinationRecord::Owing)
                    && self.broken == Some(Broken::ActivateUnrecorded)
                    && let Some(instance) = self.attempts[attempt].destination_instance
                {
                    self.instances[instance].run();
                }
                self.begin_destination(attempt, Work::Record(record), 20..800);
            }
            Effect::Load => self.begin_destination(attempt, Work::Load, 20..800),
            Effect::AwaitNative => self.begin_destination(attempt, Work::AwaitNative, 20..800),
            Effect::Digest => self.begin_destination(attempt, Work::Digest, 20..600),
            Effect::Serve { served, verify } => {
                self.begin_destination(attempt, Work::Serve(served, verify), 20..600);
            }
            Effect::EndServing => self.end_serving(attempt),
            Effect::Halt => {
                self.attempts[attempt].pages_lost = true;
                if let Some(instance) = self.arriving(attempt) {
                    instance.hypervisor = Hypervisor::Paused;
                }
            }
            Effect::CutOff => self.coverage.outcome("cut off, seen from the destination"),
            Effect::Activate => self.begin_destination(attempt, Work::Activate, 10..600),
            // The guest runs already; what the network learns is not modelled.
            Effect::Settle => {}
            Effect::Discard => {
                let side = self.destination_side(attempt);
                let ends =
                    |work: &Work| matches!(work, Work::Reserve | Work::Load | Work::AwaitNative);
                side.pending.retain(|(_, work)| !ends(work));
                self.begin_destination(attempt, Work::Discard, 10..1_500);
            }
            Effect::End(ending) => self.destination_ends(attempt, ending),
        }
    }

    fn destination_ends(&mut self, attempt: usize, ending: Ending) {
        self.coverage.outcome(match &ending {
            Ending::Active => "destination active",
            Ending::Discarded(_) => "destination discarded",
            Ending::Lost(_) => "destination lost",
        });
        let side = self.attempts[attempt].destination.take().expect("it lives until it ends");
        if let Some(connection) = side.connection {
            self.close(connection, Role::Destination);
        }
        self.attempts[attempt].destination_ending = Some(ending);
    }

    pub(crate) fn destination_done(&mut self, attempt: usize, life: u64, token: u64) {
        if !self.destination_lives(attempt, life) {
            return;
        }
        let side = self.destination_side(attempt);
        let Some(place) = side.pending.iter().position(|(t, _)| *t == token) else { return };
        let (_, work) = side.pending.remove(place);
        // Devices read guest RAM while they load.
        if matches!(work, Work::Load) && self.must_wait_for_page(attempt, 0) {
            return self.begin_destination(attempt, work, 50..200);
        }
        if matches!(work, Work::AwaitNative) && self.native_goes_on(attempt) {
            return self.begin_destination(attempt, work, 50..200);
        }
        let event = self.destination_work(attempt, work);
        self.step_destination(attempt, event);
        self.tell_all_here(attempt);
    }

    /// Does a piece of work, or fails at it.
    fn destination_work(&mut self, attempt: usize, work: Work) -> Event {
        let fails = self.mishap(self.plan.weather.fail_effect);
        match work {
            Work::Reserve if fails => {
                self.coverage.outcome("refused");
                Event::NotReserved(vec![injected("reserve")])
            }
            Work::Reserve => self.reserved(attempt),
            Work::Record(record) => {
                let fails = self.mishap(self.plan.weather.fail_record);
                if !fails || self.coin() {
                    self.attempts[attempt].destination_record = Some(record);
                } else if record == DestinationRecord::Refused {
                    self.attempts[attempt].refusal_unrecorded = true;
                }
                let owns = matches!(record, DestinationRecord::Owned | DestinationRecord::Owing);
                if fails && owns {
                    self.attempts[attempt].owned_record_failed = true;
                }
                if fails { Event::RecordFailed(injected("record")) } else { Event::Recorded }
            }
            Work::Load => self.loaded(attempt, fails),
            Work::AwaitNative => match self.arriving(attempt) {
                Some(_) if !fails => Event::Loaded,
                _ => Event::Failed(injected("native")),
            },
            Work::Digest => self.digested(attempt, fails),
            Work::Serve(served, verify) => self.served(attempt, served, verify, fails),
            Work::Activate => self.activated(attempt, fails),
            Work::Discard => {
                let pretends = self.broken == Some(Broken::DiscardPretended) && fails;
                if let Some(instance) = self.attempts[attempt].destination_instance
                    && !pretends
                {
                    self.instances[instance].hypervisor = Hypervisor::Gone;
                }
                Event::Discarded
            }
        }
    }

    fn reserved(&mut self, attempt: usize) -> Event {
        self.instances.push(Instance::empty());
        self.attempts[attempt].destination_instance = Some(self.instances.len() - 1);
        Event::Reserved(Accept {
            journal: JournalId(uuid::Uuid::nil()),
            token: MoveToken([0; 16]),
            streams: 1,
            codings: vec![Coding::Owed, Coding::Native],
        })
    }

    pub(crate) fn arriving(&mut self, attempt: usize) -> Option<&mut Instance> {
        let instance = self.attempts[attempt].destination_instance?;
        Some(&mut self.instances[instance]).filter(|i| i.hypervisor != Hypervisor::Gone)
    }

    fn loaded(&mut self, attempt: usize, fails: bool) -> Event {
        let registers = self.destination_side(attempt).registers;
        match self.arriving(attempt) {
            Some(instance) if !fails => {
                instance.hypervisor = Hypervisor::Loaded;
                instance.guest.registers = registers;
                Event::Loaded
            }
            _ => Event::Failed(injected("load")),
        }
    }

    fn digested(&mut self, attempt: usize, fails: bool) -> Event {
        let source = self.instances[self.attempts[attempt].source_instance].digest();
        if self.broken == Some(Broken::DigestEchoed) {
            return Event::Digest(source);
        }
        let native = self.plan.algorithm == AlgorithmName::Native;
        let as_it_came = if native { Hypervisor::Loaded } else { Hypervisor::Empty };
        let holds = self.arriving(attempt).map(|i| i.hypervisor == as_it_came);
        self.check(holds != Some(false), "RAM is hashed as it came, before the state is loaded");
        match self.arriving(attempt) {
            Some(instance) if !fails => Event::Digest(instance.digest()),
            _ => Event::Failed(injected("digest")),
        }
    }

    /// Lets the guest run. Of a guest that does not run, only an agent that has itself not yet
    /// told the hypervisor to run it can say that it never ran.
    fn activated(&mut self, attempt: usize, fails: bool) -> Event {
        let recovered = self.destination_side(attempt).recovered == Recovered::Yes;
        let record = self.attempts[attempt].destination_record;
        let owing = record == Some(DestinationRecord::Owing);
        let unknown = if recovered { MayHaveRun::Yes } else { MayHaveRun::No };
        let how = self.random(0..5);
        let doubt = |run| Event::NotActivated { reason: injected("activate"), run };
        let (event, kill) = match self.arriving(attempt) {
            None if recovered && owing => (Event::GuestGone(injected("gone")), false),
            None => (doubt(unknown), false),
            Some(instance) if !fails || instance.hypervisor == Hypervisor::Running => {
                instance.run();
                (Event::Activated(ActivationTimes::default()), false)
            }
            Some(_) if how == 0 => (doubt(unknown), false),
            Some(_) if how == 1 => (doubt(unknown), true),
            Some(_) if how == 2 => (doubt(MayHaveRun::Yes), true),
            // It ran for a moment.
            Some(instance) => {
                instance.has_run = true;
                instance.hypervisor = Hypervisor::Paused;
                (doubt(MayHaveRun::Yes), how == 3)
            }
        };
        let a = &mut self.attempts[attempt];
        a.activation_doubtful |= matches!(event, Event::NotActivated { run: MayHaveRun::Yes, .. });
        if let (true, Some(instance)) = (kill, a.destination_instance) {
            self.kill(instance);
        }
        self.wake_guests();
        event
    }

    /// A page or a mark has come over the page connections.
    pub(crate) fn item_arrived(&mut self, stream: usize, item: Item) {
        let (attempt, life) = (self.streams[stream].attempt, self.streams[stream].destination_life);
        if self.streams[stream].broken || !self.destination_lives(attempt, life) {
            return;
        }
        match item {
            Item::Page { page, content } => {
                if let Some(instance) = self.arriving(attempt) {
                    let still_empty = instance.hypervisor == Hypervisor::Empty;
                    instance.guest.ram[page] = content;
                    self.check(still_empty, "no page lands after the state was loaded");
                }
            }
            Item::Owed(pages) => {
                self.destination_side(attempt).following.owed = pages;
                self.destination_side(attempt).following.stream = Some(stream);
            }
            Item::Follow { page, content } => self.page_followed(attempt, stream, page, content),
            Item::NativeEnd(registers) => self.native_ended(attempt, registers),
            Item::Mark(round) => {
                let lacking = vec![];
                self.step_destination(attempt, Event::RoundReceived { round, lacking });
            }
        }
    }

    pub(crate) fn state_arrived(&mut self, connection: usize, attempt: usize, registers: u64) {
        let side = self.attempts[attempt].destination.as_mut();
        if let Some(side) = side.filter(|side| side.connection == Some(connection)) {
            side.registers = registers;
            self.step_destination(attempt, Event::StateReceived);
        }
    }

    /// The agent dies: what was under way takes place or not; the journal keeps its order.
    pub(crate) fn crash_destination(&mut self, attempt: usize) {
        let Some(side) = self.attempts[attempt].destination.take() else { return };
        let mut journal_writes = true;
        for (_, work) in side.pending {
            match work {
                Work::Record(record) => {
                    journal_writes = journal_writes && self.coin();
                    if journal_writes {
                        self.attempts[attempt].destination_record = Some(record);
                    }
                }
                Work::Reserve if self.coin() => {
                    self.reserved(attempt);
                }
                Work::Activate if self.coin() => {
                    if let Some(instance) = self.arriving(attempt) {
                        instance.run();
                    }
                }
                Work::Discard if self.coin() => {
                    if let Some(instance) = self.arriving(attempt) {
                        instance.hypervisor = Hypervisor::Gone;
                    }
                }
                Work::Serve(Served::First, _) if self.coin() => {
                    self.empty_owed(attempt, &side.following)
                }
                Work::Reserve
                | Work::Load
                | Work::AwaitNative
                | Work::Digest
                | Work::Serve(..)
                | Work::Activate
                | Work::Discard => {}
            }
        }
        self.note(|| format!("a{attempt} destination's agent is gone"));
    }
}

fn brief(effect: &Effect) -> String {
    match effect {
        Effect::Reserve(_) => "Reserve".into(),
        Effect::Send(ToSource::Accept(_)) => "Send(Accept)".into(),
        other => format!("{other:?}"),
    }
}
