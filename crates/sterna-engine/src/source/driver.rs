//! Feeds the source's machine and performs its effects.

mod telling;

use super::Move;
use super::mover::{self, Mover, Order, Shared, Ties};
use crate::host::SourceJournal;
use crate::interface;
use crate::link::{Control, Link, LinkError, Meter, Received};
use crate::watch::Watch;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use sterna_core::Time;
use sterna_core::journal::SourceRecord;
use sterna_core::receipt::{Ending, Receipt};
use sterna_core::source::{Effect, Event, Found, Source};
use sterna_proto::message::{Envelope, JournalId, Reason, ReasonCode, ToDestination, ToSource};
use sterna_proto::preamble::Role;

/// How often progress is shown and a cancel looked for.
const BEAT: Duration = Duration::from_millis(100);

/// What reaches the machine's thread.
#[derive(Debug)]
pub(super) enum Input {
    /// From the mover.
    Event(Event),
    /// From the control connection of this generation; of an older one it means nothing.
    Link(u32, Event),
    /// A new control connection, or why there is none.
    NewLink(Result<Arc<Control>, LinkError>),
}

pub(super) struct Driver<'a> {
    request: &'a Move,
    guest: Option<Box<dyn sterna_vmm::Source>>,
    journal: &'a Arc<dyn SourceJournal>,
    /// The journal that accepted the move.
    accepted_by: Option<JournalId>,
    watch: &'a Arc<Watch>,
    began: Instant,
    began_unix: Duration,
    meter: Meter,
    shared: Arc<Shared>,
    inputs: (Sender<Input>, Receiver<Input>),
    control: Option<Arc<Control>>,
    /// Counts control connections.
    generation: u32,
    orders: Option<Sender<Order>>,
    mover: Option<JoinHandle<()>>,
    negotiation: Duration,
    streams: u16,
    hashed: Option<Instant>,
    ready: Option<Instant>,
    active: Option<Instant>,
    /// When the destination had all of the guest.
    complete: Option<Instant>,
    interface: Option<interface::Counter>,
    cancel_seen: bool,
    in_doubt: bool,
    /// Pages dealt with when that was last told.
    pages_seen: u64,
}

impl<'a> Driver<'a> {
    pub(super) fn new(
        request: &'a Move,
        accepted_by: Option<JournalId>,
        guest: Option<Box<dyn sterna_vmm::Source>>,
        journal: &'a Arc<dyn SourceJournal>,
        watch: &'a Arc<Watch>,
    ) -> Self {
        Self {
            request,
            guest,
            journal,
            accepted_by,
            watch,
            began: Instant::now(),
            began_unix: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(),
            meter: Meter::default(),
            shared: Arc::default(),
            inputs: channel(),
            control: None,
            generation: 0,
            orders: None,
            mover: None,
            negotiation: Duration::ZERO,
            streams: 0,
            hashed: None,
            ready: None,
            active: None,
            complete: None,
            interface: None,
            cancel_seen: false,
            in_doubt: false,
            pages_seen: 0,
        }
    }

    pub(super) fn migrate(mut self) -> Receipt {
        // One that was cancelled while it waited for its turn asks nobody.
        let over = match self.watch.is_cancelled() {
            true => Some(Event::Cancel),
            false => self.connect().err().map(|error| Event::LinkDown(link_lost(&error))),
        };
        self.start_mover();
        let mut effects = Vec::new();
        let mut machine = Source::start(self.request.config(), self.now(), &mut effects);
        if let Some(event) = over {
            effects.clear();
            machine.step(event, self.now(), &mut effects);
        }
        self.run(machine, effects)
    }

    pub(super) fn resolve(mut self, found: Found) -> Receipt {
        self.start_mover();
        let mut effects = Vec::new();
        let machine = Source::recover(self.request.config(), found, self.now(), &mut effects);
        self.run(machine, effects)
    }

    fn now(&self) -> Time {
        Time(self.began.elapsed())
    }

    fn connect(&mut self) -> Result<(), LinkError> {
        let Move { to, to_name, identity, .. } = self.request;
        let link = Link::connect(*to, to_name, identity, Role::Control, &self.meter)?;
        self.interface = interface::Counter::towards(*to);
        self.control = Some(listen(link, self.request, self.generation, &self.inputs.0)?);
        Ok(())
    }

    fn start_mover(&mut self) {
        let (orders, orders_from) = channel();
        let ties = Ties {
            control: self.control.clone(),
            meter: self.meter.clone(),
            shared: Arc::clone(&self.shared),
            inputs: self.inputs.0.clone(),
        };
        let mover = Mover::new(self.request.clone(), self.guest.take(), ties);
        let name = "mover".to_owned();
        let spawned = thread::Builder::new().name(name).spawn(move || mover.run(&orders_from));
        match spawned {
            Ok(thread) => self.mover = Some(thread),
            Err(error) => {
                let reason = Reason::new(ReasonCode::Agent, error.to_string());
                // The receiver is ours.
                let _ = self.inputs.0.send(Input::Event(Event::Failed(reason)));
            }
        }
        self.orders = Some(orders);
    }

    /// Runs the machine to its end.
    fn run(mut self, mut machine: Source, effects: Vec<Effect>) -> Receipt {
        let mut effects = VecDeque::from(effects);
        let ending = loop {
            if let Some(ending) = self.perform(&mut machine, &mut effects) {
                break ending;
            }
            let event = self.next_event(&machine);
            self.show(&machine);
            let Some(event) = event else { continue };
            self.note(&event);
            let mut new = Vec::new();
            machine.step(event, self.now(), &mut new);
            effects.extend(new);
        };
        self.orders = None;
        if let Some(mover) = self.mover.take() {
            // A mover that panicked has left the guest as the machine last saw it.
            let _ = mover.join();
        }
        let receipt = self.receipt(&machine, ending);
        let done = receipt.ending == Ending::Moved;
        self.watch.update(|progress| {
            progress.stage = if done { "moved" } else { "ended" }.into();
            progress.waiting = None;
            progress.eta = None;
        });
        receipt
    }

    fn next_event(&mut self, machine: &Source) -> Option<Event> {
        if self.watch.is_cancelled() && !self.cancel_seen {
            self.cancel_seen = true;
            return Some(Event::Cancel);
        }
        // What was said before there was any doubt holds once there is.
        if self.in_doubt && self.watch.take_given_up() {
            return Some(Event::GiveUp);
        }
        let due = machine.deadline().map(|deadline| deadline.since(self.now()));
        match self.inputs.1.recv_timeout(due.map_or(BEAT, |due| due.min(BEAT))) {
            Ok(Input::Event(event)) => Some(event),
            Ok(Input::Link(generation, event)) => (generation == self.generation).then_some(event),
            Ok(Input::NewLink(Ok(control))) => {
                self.control = Some(control);
                Some(Event::LinkUp)
            }
            Ok(Input::NewLink(Err(error))) => Some(Event::LinkDown(link_lost(&error))),
            Err(RecvTimeoutError::Timeout) => {
                let pages = self.shared.pages_done();
                if pages > self.pages_seen {
                    self.pages_seen = pages;
                    return Some(Event::Progress);
                }
                machine.deadline().is_some_and(|at| at <= self.now()).then_some(Event::Deadline)
            }
            Err(RecvTimeoutError::Disconnected) => None,
        }
    }

    fn note(&mut self, event: &Event) {
        match event {
            Event::Message(ToSource::Accept(accept)) => {
                self.negotiation = self.began.elapsed();
                self.accepted_by = Some(accept.journal);
                self.streams = accept.streams.min(self.request.offer.streams);
            }
            Event::Message(ToSource::RoundReceived { lacking, .. }) => self.shared.lacks(lacking),
            Event::Message(ToSource::Ready { .. }) => self.ready = Some(Instant::now()),
            Event::Digest(_) => self.hashed = Some(Instant::now()),
            Event::Message(ToSource::Owing { .. }) => {
                self.active.get_or_insert_with(Instant::now);
            }
            Event::Message(ToSource::Active { .. }) => {
                let now = Instant::now();
                self.active.get_or_insert(now);
                self.complete.get_or_insert(now);
            }
            Event::Serving => self.watch.update(|progress| progress.waiting = None),
            _ => {}
        }
    }

    /// Performs effects until none is left, or the end.
    fn perform(&mut self, machine: &mut Source, effects: &mut VecDeque<Effect>) -> Option<Ending> {
        while let Some(effect) = effects.pop_front() {
            let answer = match effect {
                Effect::End(ending) => return Some(ending),
                Effect::Send(message) => {
                    self.send(message);
                    None
                }
                Effect::Record(record) => Some(self.record(&record)),
                Effect::Reconnect => {
                    self.reconnect();
                    None
                }
                Effect::CancelTooLate => {
                    let text = "it is too late to cancel: the destination may run the guest";
                    self.wait_for(text);
                    None
                }
                Effect::CutOff => {
                    let text = "the destination runs the guest and cannot be reached; whoever needs \
                                a page there that is still here waits for it";
                    tracing::error!(attempt = %self.request.attempt, "{text}");
                    self.wait_for(text);
                    None
                }
                Effect::InDoubt => {
                    let text = "the destination does not say whether it runs the guest; the guest \
                                stays paused here until it does";
                    tracing::error!(attempt = %self.request.attempt, "{text}");
                    self.in_doubt = true;
                    self.wait_for(text);
                    None
                }
                order => {
                    self.order(order);
                    None
                }
            };
            if let Some(event) = answer {
                let mut new = Vec::new();
                machine.step(event, self.now(), &mut new);
                effects.extend(new);
            }
        }
        None
    }

    fn order(&mut self, effect: Effect) {
        let order = match effect {
            Effect::Prepare { accept, tracking } => Order::Prepare { accept, tracking },
            Effect::CopyRound { round: number, selection, vcpus, may_withhold, at_most } => {
                Order::CopyRound(mover::Round { number, selection, vcpus, may_withhold, at_most })
            }
            Effect::Delegate { downtime_max, slow_down } => {
                Order::Delegate { downtime_max, slow_down }
            }
            Effect::Scan => Order::Scan,
            Effect::Pause => Order::Pause,
            Effect::Finish { round, selection, rest, verify } => {
                Order::Finish { round, selection, rest, verify }
            }
            Effect::Serve { token, streams } => Order::Serve { token, streams },
            Effect::Resume => {
                self.shared.cut_streams();
                Order::Resume
            }
            Effect::Release => Order::Release,
            Effect::Send(_)
            | Effect::Reconnect
            | Effect::Record(_)
            | Effect::CancelTooLate
            | Effect::InDoubt
            | Effect::CutOff
            | Effect::End(_) => return,
        };
        tracing::debug!(attempt = %self.request.attempt, ?order, "order");
        // A mover that is gone is found by the stage's time limit.
        let _ = self.orders.as_ref().map(|orders| orders.send(order));
    }

    fn send(&self, message: ToDestination) {
        let Some(control) = &self.control else { return };
        let asked_of = match &message {
            ToDestination::Commit | ToDestination::Query => self.accepted_by,
            _ => None,
        };
        let envelope = Envelope { attempt: self.request.attempt, asked_of, body: message };
        // A link that fails here is reported by the thread that reads it.
        let _ = control.send(&envelope);
    }

    fn record(&self, record: &SourceRecord) -> Event {
        match self.journal.record(self.request.attempt, record) {
            Ok(()) => Event::Recorded,
            Err(error) => {
                let detail = format!("the source's journal cannot be written: {error}");
                Event::RecordFailed(Reason::new(ReasonCode::Agent, detail))
            }
        }
    }

    fn reconnect(&mut self) {
        if let Some(old) = self.control.take() {
            old.shut_down();
        }
        self.generation += 1;
        let request = self.request.clone();
        let meter = self.meter.clone();
        let inputs = self.inputs.0.clone();
        let generation = self.generation;
        let spawned = thread::Builder::new().name("reconnect".into()).spawn(move || {
            let Move { to, to_name, identity, .. } = &request;
            let made = Link::connect(*to, to_name, identity, Role::Control, &meter)
                .and_then(|link| listen(link, &request, generation, &inputs));
            // Nobody listens any more once the move has ended.
            let _ = inputs.send(Input::NewLink(made));
        });
        if let Err(error) = spawned {
            // The receiver is ours.
            let _ = self.inputs.0.send(Input::NewLink(Err(error.into())));
        }
    }

    fn wait_for(&self, what: &str) {
        self.watch.update(|progress| progress.waiting = Some(what.into()));
    }
}

fn link_lost(error: &LinkError) -> Reason {
    Reason::new(ReasonCode::LinkLost, error.in_words())
}

/// Starts the thread that reads a new control connection.
fn listen(
    link: Link,
    request: &Move,
    generation: u32,
    inputs: &Sender<Input>,
) -> Result<Arc<Control>, LinkError> {
    let (control, mut incoming) = Control::split::<Envelope<ToSource>>(link)?;
    let control = Arc::new(control);
    let inputs = inputs.clone();
    let attempt = request.attempt;
    let body = ToDestination::KeepAlive;
    Control::keep_alive(&control, Envelope { attempt, asked_of: None, body })?;
    thread::Builder::new().name("control-in".into()).spawn(move || {
        loop {
            let event = match incoming.receive() {
                Ok(Received::Message(envelope)) if envelope.attempt == attempt => {
                    Event::Message(envelope.body)
                }
                // Of another attempt: not for this machine.
                Ok(Received::Message(_)) => continue,
                Ok(Received::State(_)) => {
                    let detail = "the destination sent a device state";
                    Event::LinkDown(Reason::new(ReasonCode::Protocol, detail))
                }
                Err(error) => Event::LinkDown(link_lost(&error)),
            };
            let last = matches!(event, Event::LinkDown(_));
            if inputs.send(Input::Link(generation, event)).is_err() || last {
                return;
            }
        }
    })?;
    Ok(control)
}
