//! The source's agent and host: performs what the source's machine asks for, in virtual time.

use crate::guest::{Hypervisor, PAGES, Pages};
use crate::native::NativeCopy;
use crate::network::Frame;
use crate::plan::Role;
use crate::world::{Action, Attempt, Broken, World, micros_until};
use std::time::Duration;
use sterna_core::algorithm::Tracking;
use sterna_core::journal::SourceRecord;
use sterna_core::prediction::Surroundings;
use sterna_core::receipt::{Ending, RamCheck};
use sterna_core::source::{Config, Effect, Event, Source};
use sterna_core::speed::VcpuSpeed;
use sterna_page::{PAGE_SIZE_BYTES, RamBlock, RamLayout};
use sterna_proto::message::{Offer, Reason, ReasonCode, Rest, ToDestination, Verify};

/// A source's machine and what its agent has under way for it.
#[derive(Debug)]
pub(crate) struct SourceSide {
    pub(crate) machine: Source,
    /// Tells this machine from others of the same attempt.
    pub(crate) life: u64,
    pub(crate) connection: Option<usize>,
    timer: Option<u64>,
    stage: &'static str,
    pub(crate) pending: Vec<(u64, Work)>,
    pub(crate) copy: Option<Copy>,
    pub(crate) stream: Option<usize>,
    /// Pages that are still to follow the guest, once it was handed over.
    pub(crate) follows: Option<Pages>,
    /// What the hypervisor copies by itself.
    pub(crate) native: Option<NativeCopy>,
    /// Pages that scans have reported and no round has sent since.
    pub(crate) unsent: Pages,
    committed: bool,
}

/// Something that takes time.
#[derive(Clone, Debug)]
pub(crate) enum Work {
    Reconnect,
    NoLink,
    Record(SourceRecord),
    Prepare(Tracking),
    Scan,
    Pause,
    SaveState,
    Digest,
    Serve,
    Resume,
    Release,
}

/// Pages on their way to the stream.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Copy {
    pub(crate) round: u32,
    pub(crate) pages: Pages,
    pub(crate) sent: u64,
    /// How many were left out.
    pub(crate) withheld: u64,
    /// When the round ends, if it is cut short.
    pub(crate) ends: Option<u64>,
    /// How many it did not come to.
    pub(crate) unsent: u64,
    pub(crate) last: Last,
}

/// Whether a copy is the one after the pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Last {
    No,
    /// With what becomes of the pages.
    Yes(Rest),
}

pub(crate) fn injected(what: &str) -> Reason {
    Reason::new(ReasonCode::Hypervisor, what)
}

impl World {
    fn config(&self) -> Config {
        let block = RamBlock {
            name: "ram".into(),
            size_bytes: PAGES as u64 * PAGE_SIZE_BYTES,
            host_page_bytes: PAGE_SIZE_BYTES,
        };
        Config {
            offer: Offer {
                name: String::new(),
                layout: RamLayout::new(vec![block]).expect("one block of whole pages"),
                hypervisor: String::new(),
                definition: serde_json::Value::Null,
                wishes: None,
                algorithm: String::new(),
                codings: Vec::new(),
                streams: 1,
                verify: self.plan.verify,
                host_cpu: None,
                native: None,
            },
            algorithm: self.plan.algorithm.start(),
            limits: self.plan.limits,
            stages: self.plan.stages,
            fixed_downtime: Duration::from_micros(500),
            surroundings: Surroundings::default(),
            planned: None,
        }
    }

    pub(crate) fn side(&mut self, attempt: usize) -> &mut SourceSide {
        self.attempts[attempt].source.as_mut().expect("only asked while the machine lives")
    }

    /// Begins a move of the guest in `source_instance`, which runs.
    pub(crate) fn start_attempt(&mut self, source_instance: usize) {
        let source_host = self.host_of(source_instance);
        self.attempts.push(Attempt {
            source_host,
            destination_host: 1 - source_host,
            source_instance,
            destination_instance: None,
            source: None,
            destination: None,
            source_record: None,
            destination_record: None,
            source_ending: None,
            destination_ending: None,
            resume_failed: false,
            activation_doubtful: false,
            pages_lost: false,
            owned_record_failed: false,
            refusal_unrecorded: false,
        });
        let attempt = self.attempts.len() - 1;
        self.note(|| format!("a{attempt} h{source_host} starts to move i{source_instance}"));
        let connection = self.connect(attempt);
        let mut effects = Vec::new();
        let machine = Source::start(self.config(), self.time(), &mut effects);
        self.source_begins(attempt, machine, connection, effects);
        if connection.is_none() {
            self.begin(attempt, Work::NoLink, 50..500);
        }
    }

    fn host_of(&self, instance: usize) -> usize {
        let arrived = self.attempts.iter().find(|a| a.destination_instance == Some(instance));
        arrived.map_or(0, |a| a.destination_host)
    }

    pub(crate) fn recover_source(&mut self, attempt: usize) {
        let found = self.instances[self.attempts[attempt].source_instance].found();
        self.note(|| format!("a{attempt} source recovers, found {found:?}"));
        let mut effects = Vec::new();
        let machine = Source::recover(self.config(), found, self.time(), &mut effects);
        self.source_begins(attempt, machine, None, effects);
    }

    fn source_begins(
        &mut self,
        attempt: usize,
        machine: Source,
        connection: Option<usize>,
        effects: Vec<Effect>,
    ) {
        let life = self.unique();
        self.attempts[attempt].source = Some(SourceSide {
            machine,
            life,
            connection,
            timer: None,
            stage: "",
            pending: Vec::new(),
            copy: None,
            stream: None,
            follows: None,
            native: None,
            unsent: 0,
            committed: false,
        });
        if let Some(gap) = self.plan.keep_alive {
            self.schedule(self.now + gap, Action::KeepAlive { attempt, role: Role::Source, life });
        }
        self.source_effects(attempt, effects);
        self.wake_guests();
    }

    /// Hands an event to the machine, if there is one, and performs what it answers.
    pub(crate) fn step_source(&mut self, attempt: usize, event: Event) {
        let now = self.time();
        if self.attempts[attempt].source.is_none() {
            return;
        }
        self.coverage.steps += 1;
        let stage = self.side(attempt).machine.stage();
        self.note(|| format!("a{attempt} source [{stage}] {event:?}"));
        let mut effects = Vec::new();
        self.side(attempt).machine.step(event, now, &mut effects);
        self.source_effects(attempt, effects);
    }

    fn source_effects(&mut self, attempt: usize, effects: Vec<Effect>) {
        for effect in effects {
            self.note(|| format!("a{attempt} source   -> {}", brief(&effect)));
            self.source_effect(attempt, effect);
        }
        let Some(side) = &mut self.attempts[attempt].source else { return };
        let stage = side.machine.stage();
        let entered = std::mem::replace(&mut side.stage, stage) != stage;
        if entered {
            self.stage_entered(Role::Source, stage);
        }
        self.set_source_timer(attempt);
    }

    fn set_source_timer(&mut self, attempt: usize) {
        let now = self.now;
        let side = self.side(attempt);
        let Some(deadline) = side.machine.deadline() else { return };
        let due = micros_until(deadline).max(now);
        if side.timer.is_none_or(|timer| timer > due) {
            side.timer = Some(due);
            let life = side.life;
            self.schedule(due, Action::Timer { attempt, role: Role::Source, life });
        }
    }

    pub(crate) fn source_timer(&mut self, attempt: usize) {
        let now = self.time();
        let broken = self.broken;
        let side = self.side(attempt);
        side.timer = None;
        if side.machine.deadline().is_some_and(|deadline| deadline <= now) {
            if broken == Some(Broken::AskOnce) && side.machine.stage() == "committing" {
                return;
            }
            self.step_source(attempt, Event::Deadline);
        } else {
            self.set_source_timer(attempt);
        }
    }

    pub(crate) fn begin(&mut self, attempt: usize, work: Work, takes: std::ops::Range<u64>) {
        let mut due = self.now + self.random(takes);
        let token = self.unique();
        if matches!(work, Work::Record(_)) {
            let host = self.attempts[attempt].source_host;
            due = due.max(self.hosts[host].journal_free + 1);
            self.hosts[host].journal_free = due;
        }
        let side = self.side(attempt);
        side.pending.push((token, work));
        let life = side.life;
        self.schedule(due, Action::Done { attempt, role: Role::Source, life, token });
    }

    fn source_effect(&mut self, attempt: usize, effect: Effect) {
        match effect {
            Effect::Send(message) => self.source_sends(attempt, message),
            Effect::Reconnect => self.begin(attempt, Work::Reconnect, 50..1_500),
            Effect::Record(record) => self.begin(attempt, Work::Record(record), 20..800),
            Effect::Prepare { tracking, .. } => {
                self.begin(attempt, Work::Prepare(tracking), 50..800);
            }
            Effect::CopyRound { round, selection, vcpus, may_withhold, at_most } => {
                let instance = self.attempts[attempt].source_instance;
                self.instances[instance].speed = vcpus;
                if vcpus < VcpuSpeed::FULL {
                    self.coverage.outcome("slowed down");
                }
                self.begin_copy(attempt, round, selection, Last::No);
                self.withhold(attempt, may_withhold);
                if at_most.is_some() {
                    self.cut_short(attempt);
                }
            }
            Effect::Scan => self.begin(attempt, Work::Scan, 5..200),
            Effect::Delegate { slow_down, .. } => self.begin_native(attempt, slow_down),
            Effect::Pause => {
                if !self.hurry_native(attempt) {
                    self.begin(attempt, Work::Pause, 5..600);
                }
            }
            Effect::Finish { rest: Rest::Native, verify, .. } => {
                self.finish_native(attempt);
                if verify == Verify::RamDigest {
                    self.begin(attempt, Work::Digest, 20..600);
                }
            }
            Effect::Finish { round, selection, rest, verify } => {
                self.scan(attempt);
                self.begin_copy(attempt, round, selection, Last::Yes(rest));
                self.begin(attempt, Work::SaveState, 20..600);
                if verify == Verify::RamDigest {
                    self.begin(attempt, Work::Digest, 20..600);
                }
            }
            Effect::Serve { .. } => self.begin(attempt, Work::Serve, 50..800),
            Effect::CutOff => self.coverage.outcome("cut off, seen from the source"),
            Effect::Resume => self.begin_resume(attempt),
            Effect::Release => self.begin(attempt, Work::Release, 10..500),
            Effect::CancelTooLate => self.coverage.outcome("cancel too late"),
            Effect::InDoubt => self.coverage.outcome("in doubt"),
            Effect::End(ending) => self.source_ends(attempt, ending),
        }
    }

    fn source_sends(&mut self, attempt: usize, message: ToDestination) {
        if message == ToDestination::Commit {
            let again = std::mem::replace(&mut self.side(attempt).committed, true);
            let instance = self.attempts[attempt].source_instance;
            match self.broken {
                Some(Broken::ResumeAfterCommit) if again => self.instances[instance].run(),
                Some(Broken::ReleaseOnCommit) => {
                    self.instances[instance].hypervisor = Hypervisor::Gone;
                }
                _ => {}
            }
        }
        let connection = self.side(attempt).connection;
        self.send(connection, Role::Source, Frame::ToDestination(message));
    }

    pub(crate) fn keep_alive(&mut self, attempt: usize, role: Role, life: u64) {
        let a = &self.attempts[attempt];
        let source = a.source.as_ref().and_then(|side| side.connection);
        let destination = a.destination.as_ref().and_then(|side| side.connection);
        match role {
            Role::Source => {
                self.send(source, role, Frame::ToDestination(ToDestination::KeepAlive));
            }
            Role::Destination => {
                let message = sterna_proto::message::ToSource::KeepAlive;
                self.send(destination, role, Frame::ToSource(message));
            }
        }
        let gap = self.plan.keep_alive.unwrap_or(5_000);
        self.schedule(self.now + gap, Action::KeepAlive { attempt, role, life });
    }

    /// Everything of the move ends before the guest runs; a pause under way is through by then.
    fn begin_resume(&mut self, attempt: usize) {
        let instance = self.attempts[attempt].source_instance;
        let side = self.side(attempt);
        side.copy = None;
        side.follows = None;
        side.native = None;
        let stream = side.stream.take();
        let pausing = side.pending.iter().any(|(_, work)| matches!(work, Work::Pause));
        side.pending.retain(|(_, work)| !matches!(work, Work::Pause | Work::Prepare(_)));
        if pausing && self.coin() {
            self.pause(instance);
        }
        if let Some(stream) = stream {
            self.break_stream(stream);
        }
        self.instances[instance].tracking = false;
        self.begin(attempt, Work::Resume, 10..600);
    }

    pub(crate) fn pause(&mut self, instance: usize) {
        if self.instances[instance].hypervisor == Hypervisor::Running {
            self.instances[instance].hypervisor = Hypervisor::Paused;
        }
    }

    pub(crate) fn unpause(&mut self, instance: usize) {
        if self.instances[instance].hypervisor == Hypervisor::Paused {
            self.instances[instance].run();
        }
    }

    fn source_ends(&mut self, attempt: usize, ending: Ending) {
        self.coverage.outcome(match &ending {
            Ending::Moved => "source moved",
            Ending::Undone { .. } => "source undone",
            Ending::GuestGone { .. } => "source guest-gone",
            Ending::Stuck { .. } => "source stuck",
            Ending::Lost { .. } => "source lost",
        });
        let side = self.attempts[attempt].source.take().expect("it lives until it ends");
        if side.machine.ram_check() == RamCheck::Different {
            self.coverage.outcome("digests differ");
        }
        if let Some(connection) = side.connection {
            self.close(connection, Role::Source);
        }
        if let Some(stream) = side.stream {
            self.break_stream(stream);
        }
        if matches!(ending, Ending::Moved | Ending::Undone { .. }) {
            let due = self.now + self.random(1..4_000);
            self.schedule(due, Action::NextAttempt);
        }
        self.attempts[attempt].source_ending = Some(ending);
    }

    /// Moves the guest again, or back, if it runs on a host whose agent is there and free.
    pub(crate) fn next_attempt(&mut self) {
        if self.attempts.len() >= self.plan.attempts_max || self.now >= self.plan.faults_end {
            return;
        }
        let runs = |i: &crate::guest::Instance| i.hypervisor == Hypervisor::Running;
        let Some(instance) = self.instances.iter().position(runs) else { return };
        let host = self.host_of(instance);
        // An agent works on one move of a guest at a time: a destination that is still letting the
        // guest run would otherwise let it run again after this move has paused it.
        let busy = self.attempts.iter().any(|a| {
            let destination = a.destination.as_ref().map(|side| side.machine.stage());
            a.source.is_some()
                || a.destination_instance == Some(instance)
                    && matches!(destination, Some("activating" | "owing"))
        });
        if self.hosts[host].up && !busy {
            self.start_attempt(instance);
        }
    }
}

fn brief(effect: &Effect) -> String {
    match effect {
        Effect::Send(ToDestination::Offer(_)) => "Send(Offer)".into(),
        Effect::Prepare { tracking, .. } => format!("Prepare({tracking:?})"),
        other => format!("{other:?}"),
    }
}
