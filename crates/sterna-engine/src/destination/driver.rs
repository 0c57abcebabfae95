//! Feeds the destination's machine and performs its effects.
//!
//! Effects are performed on the machine's own thread: nothing else has to happen meanwhile, and
//! the guest's driver sets a limit to each of its operations.

mod delegating;
mod serving;

use super::Service;
use super::arrivals::Arrivals;
use super::following::Following;
use super::native::Native;
use super::registry::Streams;
use crate::digest;
use crate::identity::PeerName;
use crate::link::{Control, Incoming, Received};
use crate::native;
use crate::pages::{Place, StreamEvent};
use crate::words;
use std::collections::{HashSet, VecDeque};
use std::fs;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};
use sterna_core::Time;
use sterna_core::destination::{Destination, Effect, Ending, Event, MayHaveRun};
use sterna_core::journal::DestinationRecord;
use sterna_page::known::KnownPages;
use sterna_proto::message::{
    Accept, ActivationTimes, Arrival, AttemptId, Coding, Envelope, Offer, Reason, ReasonCode,
    ToDestination, ToSource,
};
use sterna_proto::preamble::MoveToken;
use sterna_sys::memory::GuestMemory;
use sterna_vmm::{DeviceState, VmmError};

/// How often the source is told that we are alive.
const BEAT: Duration = Duration::from_millis(500);

/// Codings that this side reads.
const KNOWN: [Coding; 3] = [Coding::Absent, Coding::Zero, Coding::Raw];

/// What reaches the machine's thread.
pub(crate) enum Input {
    Message(ToDestination),
    State(DeviceState),
    /// The control connection of this number is gone.
    LinkDown(u32, Reason),
    /// The source is back; the connection's first message.
    LinkUp(Arc<Control>, Envelope<ToDestination>, Sender<u32>),
    Stream(StreamEvent),
    /// A connection between the hypervisors is gone.
    NativeDown(Reason),
    /// The source has made the urgent connection anew.
    StreamsUp,
    /// Nothing is owed any more.
    AllHere(Arrival),
    /// Faults can no longer be served.
    Faults(VmmError),
}

/// One arriving move.
pub(crate) struct Driver {
    service: Arc<Service>,
    attempt: AttemptId,
    peer: PeerName,
    control: Arc<Control>,
    /// Counts control connections.
    generation: u32,
    guest: Option<Box<dyn sterna_vmm::Destination>>,
    /// What follows the guest.
    following: Option<Arc<Following>>,
    /// What the streams have brought.
    arrivals: Option<Arc<Arrivals>>,
    /// What the hypervisors send each other, if they copy the guest among themselves.
    native: Option<Arc<Native>>,
    /// Whether an earlier agent may have let the guest run.
    before: MayHaveRun,
    state: Option<DeviceState>,
    /// The round that is arriving, and the streams that have delivered it.
    round: u32,
    marks: HashSet<u16>,
    streams: u16,
    token: Option<MoveToken>,
    inputs: (Sender<Input>, Receiver<Input>),
    began: Instant,
    times: ActivationTimes,
    cancel_seen: bool,
    gone_seen: bool,
}

impl Driver {
    pub(crate) fn new(
        service: Arc<Service>,
        attempt: AttemptId,
        peer: PeerName,
        control: Arc<Control>,
    ) -> Self {
        Self {
            service,
            attempt,
            peer,
            control,
            generation: 0,
            guest: None,
            following: None,
            arrivals: None,
            native: None,
            before: MayHaveRun::No,
            state: None,
            round: 0,
            marks: HashSet::new(),
            streams: 0,
            token: None,
            inputs: channel(),
            began: Instant::now(),
            times: ActivationTimes::default(),
            cancel_seen: false,
            gone_seen: false,
        }
    }

    pub(crate) fn inputs(&self) -> Sender<Input> {
        self.inputs.0.clone()
    }

    fn now(&self) -> Time {
        Time(self.began.elapsed())
    }

    /// Runs the move that `first` begins or asks about, to its end.
    pub(crate) fn run(
        mut self,
        first: Envelope<ToDestination>,
        incoming: Incoming<Envelope<ToDestination>>,
    ) {
        let inputs = self.inputs();
        let attempt = self.attempt;
        let reader = thread::Builder::new()
            .name("control-in".into())
            .spawn(move || read_control(incoming, attempt, &inputs, None));
        let alive = reader.and_then(|_| self.keep_alive());
        if let Err(error) = alive {
            tracing::error!(%error, %attempt, "no thread for a control connection");
            return;
        }
        let mut effects = Vec::new();
        let stages = self.service.stages;
        let machine = match first.body {
            ToDestination::Offer(offer) => {
                Destination::start(*offer, stages, self.now(), &mut effects)
            }
            _ if self.is_other_journal(&first) => {
                self.send(ToSource::Lost { reason: journal_lost() });
                return;
            }
            message => {
                let Some(found) = self.service.host.find(attempt, &self.peer) else {
                    tracing::warn!(%attempt, peer = %self.peer, "a peer asked about another's move");
                    return;
                };
                self.guest = found.guest;
                let owned = [DestinationRecord::Owned, DestinationRecord::Owing];
                if found.record.is_some_and(|record| owned.contains(&record)) {
                    self.before = MayHaveRun::Yes;
                }
                let mut machine = Destination::recover(
                    found.record,
                    found.found,
                    stages,
                    self.now(),
                    &mut effects,
                );
                machine.step(Event::Message(message), self.now(), &mut effects);
                machine
            }
        };
        self.drive(machine, effects);
    }

    fn keep_alive(&self) -> io::Result<()> {
        let body = ToSource::KeepAlive;
        let message = Envelope { attempt: self.attempt, asked_of: None, body };
        Control::keep_alive(&self.control, message)
    }

    fn is_other_journal(&self, envelope: &Envelope<ToDestination>) -> bool {
        envelope.asked_of.is_some_and(|journal| journal != self.service.host.journal())
    }

    fn drive(&mut self, mut machine: Destination, effects: Vec<Effect>) {
        let mut effects = VecDeque::from(effects);
        loop {
            while let Some(effect) = effects.pop_front() {
                if let Effect::End(ending) = effect {
                    self.end(&ending);
                    return;
                }
                if let Some(event) = self.perform(effect) {
                    let mut new = Vec::new();
                    machine.step(event, self.now(), &mut new);
                    effects.extend(new);
                }
            }
            if let Some(event) = self.next_event(&machine) {
                let mut new = Vec::new();
                machine.step(event, self.now(), &mut new);
                effects.extend(new);
            }
        }
    }

    fn end(&mut self, ending: &Ending) {
        tracing::info!(attempt = %self.attempt, ?ending, role = "destination", "move ended");
        if let Some(following) = &self.following {
            following.end();
        }
        self.end_native();
        // Only now: an agent that is restarted before the end is on record reads it again.
        let missing = self.service.host.missing_pages(self.attempt);
        if let Err(error) = fs::remove_file(&missing)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %missing.display(), %error, "cannot be removed");
        }
        self.service.host.ended(self.attempt, ending);
        self.control.shut_down();
    }

    fn next_event(&mut self, machine: &Destination) -> Option<Event> {
        if !self.cancel_seen && self.service.host.is_cancelled(self.attempt) {
            self.cancel_seen = true;
            return Some(Event::Cancel);
        }
        if let Some(gone) = self.gone_while_pages_follow() {
            return Some(gone);
        }
        let due = machine.deadline().map(|deadline| deadline.since(self.now()));
        match self.inputs.1.recv_timeout(due.map_or(BEAT, |due| due.min(BEAT))) {
            Ok(input) => self.translate(input),
            Err(RecvTimeoutError::Timeout) => {
                machine.deadline().is_some_and(|at| at <= self.now()).then_some(Event::Deadline)
            }
            Err(RecvTimeoutError::Disconnected) => None,
        }
    }

    fn translate(&mut self, input: Input) -> Option<Event> {
        match input {
            Input::Message(message) => Some(Event::Message(message)),
            Input::State(state) => {
                self.state = Some(state);
                Some(Event::StateReceived)
            }
            Input::LinkDown(generation, reason) => {
                (generation == self.generation).then_some(Event::LinkDown(reason))
            }
            Input::LinkUp(control, first, generation_to) => {
                self.generation += 1;
                // The reader has asked and waits.
                let _ = generation_to.send(self.generation);
                self.control.shut_down();
                self.control = control;
                if let Err(error) = self.keep_alive() {
                    tracing::error!(%error, attempt = %self.attempt, "no thread for a connection");
                }
                let _ = self.inputs.0.send(Input::Message(first.body));
                Some(Event::LinkUp)
            }
            Input::NativeDown(reason) => Some(Event::StreamDown(self.why_native(reason))),
            Input::StreamsUp => Some(Event::StreamsUp),
            Input::AllHere(arrival) => Some(Event::AllHere(arrival)),
            Input::Faults(error) => Some(self.faults_failed(&error)),
            Input::Stream(StreamEvent::Progress) => Some(Event::Progress),
            Input::Stream(StreamEvent::Mark { stream, round }) => self.mark(stream, round),
            Input::Stream(StreamEvent::Ended { stream, error }) => {
                self.stream_ended(stream, &error)
            }
        }
    }

    /// A round is here once every stream has delivered its mark. Rounds follow one another, and a
    /// source begins one only when the last was received: any other mark is a broken peer's.
    fn mark(&mut self, stream: u16, round: u32) -> Option<Event> {
        if round != self.round || !self.marks.insert(stream) {
            let detail = format!("stream {stream} marked round {round} in round {}", self.round);
            return Some(Event::StreamDown(Reason::new(ReasonCode::Protocol, detail)));
        }
        if self.marks.len() < usize::from(self.streams) {
            return Some(Event::Progress);
        }
        self.marks.clear();
        self.round = self.round.saturating_add(1);
        let lacking = self.arrivals.as_ref().map(|arrivals| arrivals.lacking()).unwrap_or_default();
        Some(Event::RoundReceived { round, lacking })
    }

    fn stream_ended(&self, stream: u16, error: &crate::pages::ReceiveError) -> Option<Event> {
        let text = words::chain(error);
        tracing::debug!(attempt = %self.attempt, stream, error = text, "page stream ended");
        Some(Event::StreamDown(Reason::new(error.code(), text)))
    }

    fn perform(&mut self, effect: Effect) -> Option<Event> {
        match effect {
            Effect::Send(message) => {
                self.send(message);
                None
            }
            Effect::Reserve(offer) => Some(self.reserve(&offer)),
            Effect::Record(record) => Some(self.record(record)),
            Effect::Load => Some(self.load()),
            Effect::AwaitNative => Some(self.await_native()),
            Effect::Digest => Some(self.digest()),
            Effect::Serve { served, verify } => Some(self.serve(served, verify)),
            Effect::EndServing => {
                self.end_serving();
                None
            }
            Effect::Halt => {
                self.halt();
                None
            }
            Effect::CutOff => {
                let detail = "pages of a guest that runs here are still with its source, which \
                              cannot be reached; whoever needs one of them waits";
                tracing::error!(attempt = %self.attempt, "{detail}");
                None
            }
            Effect::Activate => Some(self.activate()),
            Effect::Settle => {
                self.settle();
                None
            }
            Effect::Discard => Some(self.discard()),
            Effect::End(_) => None,
        }
    }

    fn send(&self, body: ToSource) {
        let envelope = Envelope { attempt: self.attempt, asked_of: None, body };
        // A link that fails here is reported by the thread that reads it.
        let _ = self.control.send(&envelope);
    }

    fn reserve(&mut self, offer: &Offer) -> Event {
        let codings: Vec<Coding> =
            offer.codings.iter().copied().filter(|c| KNOWN.contains(c)).collect();
        let missing = KNOWN.iter().any(|needed| !codings.contains(needed));
        if missing {
            let detail = "the source does not offer the codings absent, zero and raw";
            return Event::NotReserved(vec![Reason::new(ReasonCode::Incompatible, detail)]);
        }
        match self.service.host.reserve(self.attempt, offer, &self.peer) {
            Ok(guest) => {
                let mut codings = codings;
                let ours = [Coding::Coded, Coding::Same, Coding::Changed];
                codings.extend(ours.iter().filter(|coding| offer.codings.contains(coding)));
                if offer.codings.contains(&Coding::Owed) && guest.can_serve_faults().is_ok() {
                    codings.push(Coding::Owed);
                }
                let streams = native::streams(offer);
                self.native = delegating::native_of(offer, guest.as_ref(), streams);
                if self.native.is_some() {
                    codings.push(Coding::Native);
                }
                let token = MoveToken(rand::random());
                let memory = guest.memory();
                self.guest = Some(guest);
                // Hashes of them go with references, or not at all.
                let wanted =
                    [Coding::Same, Coding::Known].iter().all(|c| offer.codings.contains(c));
                let known = wanted.then(|| self.service.host.known_pages(self.attempt)).flatten();
                if let Some(known) = &known {
                    codings.push(Coding::Known);
                    if known.has_disks() && offer.codings.contains(&Coding::OnDisk) {
                        codings.push(Coding::OnDisk);
                    }
                }
                self.open_streams(token, streams, memory, known);
                let journal = self.service.host.journal();
                Event::Reserved(Accept { journal, token, streams, codings })
            }
            Err(reasons) => Event::NotReserved(reasons),
        }
    }

    fn open_streams(
        &mut self,
        token: MoveToken,
        count: u16,
        memory: Arc<GuestMemory>,
        known: Option<Arc<dyn KnownPages>>,
    ) {
        self.streams = count;
        let following = Following::new(Arc::clone(&memory), self.inputs());
        self.following = Some(Arc::clone(&following));
        let native = self.native.clone();
        let arrivals = Arc::new(Arrivals::new(memory.pages(), count));
        self.arrivals = Some(Arc::clone(&arrivals));
        let place = Place { memory, following, arrivals, known };
        let open = Streams { token, count, place, native };
        self.service.registry.open_streams(self.attempt, open);
        self.token = Some(token);
    }

    fn record(&mut self, record: DestinationRecord) -> Event {
        let began = Instant::now();
        match self.service.host.record(self.attempt, record) {
            Ok(()) => {
                if matches!(record, DestinationRecord::Owned | DestinationRecord::Owing) {
                    self.times.record_us = micros(began);
                }
                Event::Recorded
            }
            Err(error) => {
                let detail = format!("the destination's journal cannot be written: {error}");
                Event::RecordFailed(Reason::new(ReasonCode::Agent, detail))
            }
        }
    }

    fn load(&mut self) -> Event {
        let began = Instant::now();
        // All pages are here: from now on nobody writes RAM but the guest's own hypervisor.
        if let Some(following) = self.following.as_ref().filter(|f| !f.is_serving()) {
            following.end();
        }
        let (Some(guest), Some(state)) = (&mut self.guest, self.state.take()) else {
            return Event::Failed(Reason::new(ReasonCode::Agent, "nothing to load"));
        };
        let loaded = guest.load_device_state(&state);
        self.times.load_us = micros(began);
        match loaded {
            Ok(()) => Event::Loaded,
            Err(error) => failed(&error),
        }
    }

    fn digest(&mut self) -> Event {
        let began = Instant::now();
        let Some(guest) = &self.guest else {
            return Event::Failed(Reason::new(ReasonCode::Agent, "no guest to hash"));
        };
        let digest = digest::of(&guest.memory());
        self.times.digest_us = micros(began);
        match digest {
            Ok(digest) => Event::Digest(digest),
            Err(error) => Event::Failed(Reason::new(ReasonCode::Agent, error.to_string())),
        }
    }

    fn activate(&mut self) -> Event {
        let began = Instant::now();
        let Some(guest) = &mut self.guest else {
            let reason = Reason::new(ReasonCode::Hypervisor, "the guest's hypervisor is gone");
            return Event::NotActivated { reason, run: MayHaveRun::Yes };
        };
        if !guest.is_alive() {
            let detail = "the guest's hypervisor ended before it could run";
            let reason = Reason::new(ReasonCode::Hypervisor, detail);
            let served_before = self.before == MayHaveRun::Yes && self.following.is_some();
            return match served_before {
                true => Event::GuestGone(reason),
                false => Event::NotActivated { reason, run: self.before },
            };
        }
        match guest.activate() {
            Ok(()) => {
                self.times.activate_us = micros(began);
                Event::Activated(self.times)
            }
            Err(error) => {
                // A hypervisor that answers has refused; one that does not may have obeyed.
                let run = match error {
                    VmmError::Refused { .. } => self.before,
                    _ => MayHaveRun::Yes,
                };
                // From now on nobody can tell that it did not.
                self.before = run;
                Event::NotActivated { reason: words::hypervisor(&error), run }
            }
        }
    }

    fn settle(&mut self) {
        if let Some(guest) = &mut self.guest
            && let Err(error) = guest.settle()
        {
            tracing::warn!(attempt = %self.attempt, %error, "the guest runs, but was left unsettled");
        }
    }

    fn discard(&mut self) -> Event {
        if let Some(following) = &self.following {
            following.end();
        }
        let Some(guest) = &mut self.guest else { return Event::Discarded };
        match guest.discard() {
            Ok(()) => {
                self.guest = None;
                Event::Discarded
            }
            Err(error) => {
                tracing::error!(attempt = %self.attempt, %error, "an arriving guest stays behind");
                Event::NotDiscarded(words::hypervisor(&error))
            }
        }
    }
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}

fn failed(error: &VmmError) -> Event {
    let reason = words::hypervisor(error);
    match error {
        VmmError::Gone { .. } => Event::GuestGone(reason),
        _ => Event::Failed(reason),
    }
}

fn journal_lost() -> Reason {
    let detail = "the destination's journal is not the one that accepted the move, so nobody knows \
                  whether the guest ran there";
    Reason::new(ReasonCode::Agent, detail)
}

/// Reads a control connection and feeds the move it belongs to, until either ends.
pub(crate) fn read_control(
    mut incoming: Incoming<Envelope<ToDestination>>,
    attempt: AttemptId,
    inputs: &Sender<Input>,
    returned: Option<(Arc<Control>, Envelope<ToDestination>)>,
) {
    let mut generation = 0;
    if let Some((control, first)) = returned {
        let (number_to, number) = channel();
        if inputs.send(Input::LinkUp(control, first, number_to)).is_err() {
            return;
        }
        let Ok(number) = number.recv() else { return };
        generation = number;
    }
    loop {
        let input = match incoming.receive() {
            Ok(Received::Message(envelope)) if envelope.attempt == attempt => {
                Input::Message(envelope.body)
            }
            // Of another attempt: not for this machine.
            Ok(Received::Message(_)) => continue,
            Ok(Received::State(state)) => Input::State(state),
            Err(error) => {
                let reason = Reason::new(ReasonCode::LinkLost, error.in_words());
                Input::LinkDown(generation, reason)
            }
        };
        let last = matches!(input, Input::LinkDown(..));
        if inputs.send(input).is_err() || last {
            return;
        }
    }
}
