//! The thread that has the guest: it does what the machine wants done with guest and streams, one
//! order after the other, and answers with events.

mod delegating;

use crate::digest;
use crate::link::{Control, Link, LinkError, Meter, SocketControl};
use crate::native::Cuts;
use crate::pages::{Follow, Followed, GivingUp, KeepHashes, Pacer, SenderPool};
use crate::source::Move;
use crate::source::ballooning;
use crate::source::copying::{Copying, Recheck};
use crate::source::driver::Input;
use crate::source::following;
use crate::source::holding::Holding;
use crate::source::native::Native;
use crate::source::suspects::Suspects;
use crate::words;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use sterna_core::algorithm::Tracking;
use sterna_core::balloon::{Balloon, Ballooning};
use sterna_core::prediction::Look;
use sterna_core::source::{Event, Selection};
use sterna_core::speed::VcpuSpeed;
use sterna_core::working_set::SAMPLING_PERIOD;
use sterna_page::{PageCount, PageSet};
use sterna_proto::limits::STREAMS_MAX;
use sterna_proto::message::{Accept, Coding, Reason, ReasonCode, Rest, Verify};
use sterna_proto::preamble::{MoveToken, Role};
use sterna_sys::memory::GuestMemory;
use sterna_vmm::{InFlightIo, Source, VmmError};

/// How often a round looks for pages that were written again before their turn. A look takes 0.5 to
/// 13 ms a GiB of RAM, by how much of it is dirty; short rounds do without. What it sees is a sample
/// for whoever predicts what will be written again.
const PEEK_INTERVAL: Duration = SAMPLING_PERIOD;

/// How many looks are taken for each of these in a round that is made to learn of the guest.
const LOOKS_A_SAMPLE: u32 = 4;

/// A round that is to be made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Round {
    pub(crate) number: u32,
    pub(crate) selection: Selection,
    pub(crate) vcpus: VcpuSpeed,
    pub(crate) may_withhold: PageCount,
    pub(crate) at_most: Option<Duration>,
}

/// An order from the machine.
#[derive(Debug)]
pub(crate) enum Order {
    Prepare { accept: Accept, tracking: Tracking },
    CopyRound(Round),
    Delegate { downtime_max: Duration, slow_down: bool },
    Scan,
    Pause,
    Finish { round: u32, selection: Selection, rest: Rest, verify: Verify },
    Serve { token: MoveToken, streams: u16 },
    Resume,
    Release,
}

/// What the mover shares with the machine's thread.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    /// Ends waits when all is to be taken back.
    giving_up: Arc<GivingUp>,
    /// What ends the streams then.
    streams: Mutex<Vec<SocketControl>>,
    /// Pages dealt with, for progress: before the streams were made anew, and since.
    pages_done: Mutex<(u64, Arc<AtomicU64>)>,
    /// The owed pages that follow, and what had followed before the streams were made anew.
    following: Mutex<(Option<Arc<Follow>>, Followed)>,
    /// What came of asking the guest for memory.
    ballooning: Mutex<Option<Ballooning>>,
    /// The connections of a hypervisor that copies by itself.
    native: Mutex<Option<Arc<Cuts>>>,
    /// Times of the switchover.
    times: Mutex<SwitchoverTimes>,
}

/// What the switchover took, on the source.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SwitchoverTimes {
    /// When the vCPUs stood still.
    pub(crate) stopped: Option<Instant>,
    pub(crate) pause_lead: Duration,
    pub(crate) pause: Duration,
    pub(crate) copy: Duration,
    pub(crate) save: Duration,
    pub(crate) digest: Duration,
    pub(crate) state_bytes: u64,
    /// When all had been sent.
    pub(crate) sent: Option<Instant>,
}

impl Shared {
    /// Makes whatever the streams are doing fail.
    pub(crate) fn cut_streams(&self) {
        self.giving_up.set();
        for socket in self.streams.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            socket.shut_down();
        }
        if let Some(cuts) = &*self.native.lock().unwrap_or_else(PoisonError::into_inner) {
            cuts.end();
        }
    }

    /// Takes note of what a hypervisor that copies by itself has dealt with.
    pub(crate) fn copied(&self, pages: u64) {
        let pages_done = self.pages_done.lock().unwrap_or_else(PoisonError::into_inner);
        pages_done.1.store(pages, Ordering::Relaxed);
    }

    /// Takes note of a guest that its hypervisor has paused.
    pub(crate) fn paused(&self, stopped: Instant, drained: Duration) {
        self.note(|times| {
            times.stopped = Some(stopped);
            times.pause = drained;
        });
    }

    /// Takes note of new streams.
    fn take_streams(&self, pool: &SenderPool, urgent: Option<&Link>) -> io::Result<()> {
        let mut sockets = pool.sockets()?;
        if let Some(urgent) = urgent {
            sockets.push(urgent.socket.control()?);
        }
        *self.streams.lock().unwrap_or_else(PoisonError::into_inner) = sockets;
        let mut pages_done = self.pages_done.lock().unwrap_or_else(PoisonError::into_inner);
        let before = pages_done.0 + pages_done.1.load(Ordering::Relaxed);
        *pages_done = (before, pool.progress());
        Ok(())
    }

    fn follow(&self, follow: Arc<Follow>) {
        self.following.lock().unwrap_or_else(PoisonError::into_inner).0 = Some(follow);
    }

    /// Ends the streams over which pages follow; that they end is no failure.
    fn end_following(&self) {
        let mut following = self.following.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(follow) = following.0.take() else { return };
        follow.close();
        for socket in self.streams.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            socket.shut_down();
        }
        following.1 += follow.followed();
    }

    /// What has followed the guest so far.
    pub(crate) fn followed(&self) -> Followed {
        let following = self.following.lock().unwrap_or_else(PoisonError::into_inner);
        let mut followed = following.1;
        followed += following.0.as_ref().map(|follow| follow.followed()).unwrap_or_default();
        followed
    }

    fn note(&self, change: impl FnOnce(&mut SwitchoverTimes)) {
        change(&mut self.times.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub(crate) fn times(&self) -> SwitchoverTimes {
        *self.times.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn ballooning(&self) -> Option<Ballooning> {
        *self.ballooning.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn pages_done(&self) -> u64 {
        let pages_done = self.pages_done.lock().unwrap_or_else(PoisonError::into_inner);
        pages_done.0 + pages_done.1.load(Ordering::Relaxed)
    }
}

/// What ties a mover to the machine's thread and to the destination.
pub(crate) struct Ties {
    pub(crate) control: Option<Arc<Control>>,
    pub(crate) meter: Meter,
    pub(crate) shared: Arc<Shared>,
    pub(crate) inputs: Sender<Input>,
}

/// The guest and all that belongs to copying it.
pub(crate) struct Mover {
    request: Move,
    guest: Option<Box<dyn Source>>,
    /// The guest's RAM, which stays as long as somebody has it, whatever becomes of the hypervisor.
    memory: Option<Arc<GuestMemory>>,
    control: Option<Arc<Control>>,
    meter: Meter,
    shared: Arc<Shared>,
    inputs: Sender<Input>,
    copying: Option<Copying>,
    /// Page connections that were made anew after the hand-over.
    serving: Option<SenderPool>,
    /// What the destination granted, where the hypervisor copies by itself.
    granted: Option<Accept>,
    /// What the hypervisor copies by itself.
    native: Option<Native>,
}

type Outcome = Result<Vec<Event>, Event>;

impl Mover {
    pub(crate) fn new(request: Move, guest: Option<Box<dyn Source>>, ties: Ties) -> Self {
        let Ties { control, meter, shared, inputs } = ties;
        let memory = guest.as_ref().map(|guest| guest.memory());
        Self {
            request,
            guest,
            memory,
            control,
            meter,
            shared,
            inputs,
            copying: None,
            serving: None,
            granted: None,
            native: None,
        }
    }

    /// Obeys orders until there are no more; gives the guest back.
    pub(crate) fn run(mut self, orders: &Receiver<Order>) {
        while let Some(outcome) = self.next(orders) {
            for answer in outcome.unwrap_or_else(|failure| vec![failure]) {
                self.tell(answer);
            }
        }
    }

    /// Obeys the next order, or looks what a hypervisor has come to that copies by itself; `None`
    /// if there are no more orders.
    fn next(&mut self, orders: &Receiver<Order>) -> Option<Outcome> {
        if self.native.as_ref().is_none_or(|native| !native.copying) {
            return orders.recv().ok().map(|order| self.obey(order));
        }
        match orders.try_recv() {
            Ok(order) => Some(self.obey(order)),
            Err(TryRecvError::Empty) => Some(self.watch_native()),
            Err(TryRecvError::Disconnected) => None,
        }
    }

    fn tell(&self, event: Event) {
        // The machine's thread outlives its orders; without it there is nobody to tell.
        let _ = self.inputs.send(Input::Event(event));
    }

    fn obey(&mut self, order: Order) -> Outcome {
        match order {
            Order::Prepare { accept, tracking } => self.prepare(&accept, tracking),
            Order::CopyRound(round) => self.copy_round(round),
            Order::Delegate { downtime_max, slow_down } => self.delegate(downtime_max, slow_down),
            Order::Scan => self.scan(),
            Order::Pause if self.native.is_some() => self.hurry_native(),
            Order::Pause => self.pause(),
            Order::Finish { rest: Rest::Native, verify, .. } => self.finish_native(verify),
            Order::Finish { round, selection, rest, verify } => {
                self.finish(round, selection, rest, verify)
            }
            Order::Serve { token, streams } => self.serve(token, streams),
            Order::Resume => self.resume(),
            Order::Release => self.release(),
        }
    }

    fn guest(&mut self) -> Result<&mut Box<dyn Source>, Event> {
        let gone = || Event::GuestGone(Reason::new(ReasonCode::Hypervisor, "no hypervisor found"));
        self.guest.as_mut().ok_or_else(gone)
    }

    /// The guest and its streams. After a failure both stay as they are until all is taken back:
    /// streams that ended early would make the destination the first to tell why.
    fn parts(&mut self) -> Result<(&mut Box<dyn Source>, &mut Copying), Event> {
        let gone = || Event::GuestGone(Reason::new(ReasonCode::Hypervisor, "no hypervisor found"));
        let guest = self.guest.as_mut().ok_or_else(gone)?;
        Ok((guest, self.copying.as_mut().ok_or_else(not_prepared)?))
    }

    fn prepare(&mut self, accept: &Accept, tracking: Tracking) -> Outcome {
        if accept.codings.contains(&Coding::Native) {
            self.granted = Some(accept.clone());
            return Ok(vec![Event::Prepared]);
        }
        let bandwidth = self.request.bandwidth_bytes_per_second;
        let hold_back = self.request.hold_back;
        let balloon = self.request.balloon;
        let shared = Arc::clone(&self.shared);
        let guest = self.guest()?;
        if balloon == Balloon::Inflate {
            let ballooning = ballooning::inflate(guest.as_mut(), &shared.giving_up);
            let ballooning = Some(ballooning.map_err(failed)?);
            *shared.ballooning.lock().unwrap_or_else(PoisonError::into_inner) = ballooning;
            if shared.giving_up.is_set() {
                // Nobody waits for the streams any more.
                return Ok(vec![]);
            }
        }
        let memory = guest.memory();
        let pages = memory.pages();
        let in_flight = guest.in_flight_io();
        let discarding = guest.discarding().map_err(failed)?;
        let mut cleared = Instant::now();
        if tracking.is_needed() {
            guest.start_tracking().map_err(failed)?;
            cleared = Instant::now();
            if let InFlightIo::Untracked(longest) = in_flight {
                // What was submitted before tracking began must land before the first copy.
                shared.giving_up.sleep_until(Instant::now() + longest);
            }
        }
        // After what may fail here: streams that end early would make the destination tell why.
        let streams = accept.streams.clamp(1, self.request.offer.streams.max(1));
        let links = self.connect_streams(accept.token, streams).map_err(link_failed)?;
        let urgent = match accept.codings.contains(&Coding::Owed) {
            true => Some(self.connect_urgent(accept.token).map_err(link_failed)?),
            false => None,
        };
        let hashes = match (in_flight, tracking) {
            (InFlightIo::Untracked(_), Tracking::Needed) => KeepHashes::Yes { key: rand::random() },
            _ => KeepHashes::No,
        };
        let pacer = Arc::new(Pacer::new(bandwidth, Arc::clone(&shared.giving_up)));
        let pool = SenderPool::start(links, &memory, &pacer, hashes).map_err(io_failed)?;
        self.shared.take_streams(&pool, urgent.as_ref()).map_err(io_failed)?;
        self.copying = Some(Copying {
            pool,
            urgent,
            suspects: Suspects::new(in_flight),
            discarding,
            holding: Holding::new(hold_back, pages),
            dirty: PageSet::empty(pages),
            cleared,
            sent: PageSet::empty(pages),
            vcpus: VcpuSpeed::FULL,
            held_back: Duration::ZERO,
        });
        Ok(vec![Event::Prepared])
    }

    fn connect_streams(&self, token: MoveToken, streams: u16) -> Result<Vec<Link>, LinkError> {
        (0..streams).map(|stream| self.connect(Role::Pages { stream, token })).collect()
    }

    fn connect_urgent(&self, token: MoveToken) -> Result<Link, LinkError> {
        self.connect(Role::Urgent { token })
    }

    fn connect(&self, role: Role) -> Result<Link, LinkError> {
        let Move { to, to_name, identity, .. } = &self.request;
        Link::connect(*to, to_name, identity, role, &self.meter)
    }

    fn copy_round(&mut self, round: Round) -> Outcome {
        let Round { number, selection, vcpus, may_withhold, at_most } = round;
        let inputs = self.inputs.clone();
        let (guest, copying) = self.parts()?;
        if vcpus != copying.vcpus {
            guest.set_vcpu_speed(vcpus.as_percent()).map_err(failed)?;
            copying.vcpus = vcpus;
        }
        let populated = copying.populated(guest.as_ref(), selection)?;
        let mut sends = copying.select(number, selection, populated, Recheck::Ripe);
        let withheld = copying.withhold(&mut sends, may_withhold);
        sends.until = at_most.map(|most| Instant::now() + most);
        copying.pool.send(&sends);
        let mut rewritten = PageSet::empty(copying.dirty.capacity());
        let (pool, holding, cleared) = (&copying.pool, &mut copying.holding, copying.cleared);
        let looks_a_sample = if at_most.is_some() { LOOKS_A_SAMPLE } else { 1 };
        let mut looks = 0;
        let sent = pool.wait_and(PEEK_INTERVAL / looks_a_sample, || {
            // A peek that fails costs some bytes; the scan after the round will say why.
            if guest.peek(&mut rewritten).is_err() {
                return;
            }
            let look = Look { after: cleared.elapsed(), pages: rewritten.count() };
            // Nobody listens any more once the move has ended.
            let _ = inputs.send(Input::Event(Event::Looked(look)));
            pool.postpone(Some(rewritten.clone()));
            looks += 1;
            if looks % looks_a_sample == 0 {
                holding.looked(&rewritten);
            }
        });
        let mut sent = sent.map_err(stream_failed)?;
        copying.pool.take_unsent().into_iter().for_each(|run| copying.dirty.insert_run(run));
        sent.pages.withheld = withheld;
        sent.held_back = copying.newly_held_back(guest.as_ref())?;
        Ok(vec![Event::RoundSent(sent)])
    }

    fn scan(&mut self) -> Outcome {
        let (guest, copying) = self.parts()?;
        let mut written = PageSet::empty(copying.dirty.capacity());
        guest.scan(&mut written).map_err(failed)?;
        copying.cleared = Instant::now();
        copying.suspects.reported(&written);
        copying.holding.scanned(&written);
        // What was held back, or had no time, is in there already.
        copying.dirty.union_with(&written);
        Ok(vec![Event::Scanned(copying.dirty.count())])
    }

    fn pause(&mut self) -> Outcome {
        let balloon = self.request.balloon;
        let guest = self.guest()?;
        if balloon == Balloon::Inflate {
            // Now, so that it travels in the guest's own state that nobody asks for its memory: it
            // then empties its balloon by itself, whatever agent it comes to. And while it runs, so
            // that it is told, and it costs no downtime.
            guest.ask_for(0).map_err(failed)?;
        }
        let asked = Instant::now();
        let pause = guest.pause().map_err(failed)?;
        self.shared.note(|times| {
            times.stopped = Some(asked + pause.lead);
            times.pause_lead = pause.lead;
            times.pause = pause.took.saturating_sub(pause.lead);
        });
        Ok(vec![Event::Paused])
    }

    /// With the guest paused: the pages, or the word which of them follow, go over the streams while
    /// the device state is saved.
    fn finish(&mut self, round: u32, selection: Selection, rest: Rest, verify: Verify) -> Outcome {
        let began = Instant::now();
        let (shared, inputs) = (Arc::clone(&self.shared), self.inputs.clone());
        let push = self.request.push;
        let (guest, copying) = self.parts()?;
        if selection == Selection::Dirty {
            guest.scan(&mut copying.dirty).map_err(failed)?;
        }
        let populated = copying.populated(guest.as_ref(), selection)?;
        let mut sends = copying.select(round, selection, populated, Recheck::All);
        if rest == Rest::Owed {
            sends.owe();
        }
        copying.pool.send(&sends);
        let saving = Instant::now();
        let state = guest.save_device_state().map_err(failed)?;
        let save = saving.elapsed();
        let memory = guest.memory();
        let control = self.control.as_ref().ok_or_else(not_prepared)?;
        control.send_state(&state).map_err(link_failed)?;
        let (guest, copying) = self.parts()?;
        let mut sent = copying.pool.wait().map_err(stream_failed)?;
        sent.held_back = copying.newly_held_back(guest.as_ref())?;
        shared.note(|times| {
            times.copy = began.elapsed();
            times.save = save;
            times.state_bytes = state.bytes.len() as u64;
            times.sent = Some(Instant::now());
        });
        if rest == Rest::Owed {
            let urgent = copying.urgent.take().ok_or_else(not_prepared)?;
            let follow = following::begin(&copying.pool, urgent, &memory, push, &inputs);
            shared.follow(follow.map_err(io_failed)?);
        }
        // The destination goes on with these while this side hashes.
        self.tell(Event::StateSent);
        self.tell(Event::RestSent(sent));
        self.digest(&memory, rest, verify)
    }

    /// Hashes all RAM of the paused guest, if it is to be compared.
    fn digest(&mut self, memory: &GuestMemory, rest: Rest, verify: Verify) -> Outcome {
        if verify == Verify::No {
            return Ok(vec![]);
        }
        let hashing = Instant::now();
        let digest = match rest {
            Rest::Sent | Rest::Native => digest::of(memory),
            Rest::Owed => digest::of_pages(memory),
        };
        let digest = digest.map_err(io_failed)?;
        self.shared.note(|times| times.digest = hashing.elapsed());
        Ok(vec![Event::Digest(digest)])
    }

    /// Makes the page connections anew, over which owed pages follow. The guest's RAM stands still
    /// until it is released, so there is nothing to remember of what was sent.
    fn serve(&mut self, token: MoveToken, streams: u16) -> Outcome {
        self.shared.end_following();
        self.copying = None;
        self.serve_anew(token, streams).map_err(Event::ServingFailed)?;
        Ok(vec![Event::Serving])
    }

    fn serve_anew(&mut self, token: MoveToken, streams: u16) -> Result<(), Reason> {
        let lost = |error: LinkError| Reason::new(ReasonCode::LinkLost, error.in_words());
        let broken = |error: io::Error| Reason::new(ReasonCode::Agent, error.to_string());
        let memory = self.memory.clone().ok_or_else(|| {
            Reason::new(ReasonCode::Hypervisor, "the guest's RAM is no longer there")
        })?;
        let links = self.connect_streams(token, streams.clamp(1, STREAMS_MAX)).map_err(lost)?;
        let urgent = self.connect_urgent(token).map_err(lost)?;
        let bandwidth = self.request.bandwidth_bytes_per_second;
        let pacer = Arc::new(Pacer::new(bandwidth, Arc::clone(&self.shared.giving_up)));
        let pool = SenderPool::start(links, &memory, &pacer, KeepHashes::No).map_err(broken)?;
        self.shared.take_streams(&pool, Some(&urgent)).map_err(broken)?;
        let follow = following::begin(&pool, urgent, &memory, self.request.push, &self.inputs)
            .map_err(broken)?;
        self.shared.follow(follow);
        self.serving = Some(pool);
        Ok(())
    }

    fn resume(&mut self) -> Outcome {
        self.shared.end_following();
        self.copying = None;
        self.native = None;
        let Ok(guest) = self.guest() else { return Ok(vec![Event::Resumed]) };
        match guest.resume() {
            Ok(()) => Ok(vec![Event::Resumed]),
            Err(error @ VmmError::Gone { .. }) => {
                let reason = words::hypervisor(&error);
                Ok(vec![Event::GuestGone(reason.clone()), Event::ResumeFailed(reason)])
            }
            Err(error) => Ok(vec![Event::ResumeFailed(words::hypervisor(&error))]),
        }
    }

    fn release(&mut self) -> Outcome {
        self.shared.end_following();
        self.copying = None;
        self.native = None;
        self.serving = None;
        if let Some(guest) = &mut self.guest
            && let Err(error) = guest.release()
        {
            tracing::error!(%error, "the released guest's hypervisor could not be ended");
        }
        self.guest = None;
        Ok(vec![Event::Released])
    }
}

pub(super) fn failed(error: VmmError) -> Event {
    match error {
        VmmError::Gone { .. } => Event::GuestGone(words::hypervisor(&error)),
        other => Event::Failed(words::hypervisor(&other)),
    }
}

fn link_failed(error: LinkError) -> Event {
    Event::Failed(Reason::new(ReasonCode::LinkLost, error.in_words()))
}

fn stream_failed(error: io::Error) -> Event {
    let detail = format!("a page stream failed: {error}");
    Event::Failed(Reason::new(ReasonCode::LinkLost, detail))
}

fn io_failed(error: io::Error) -> Event {
    Event::Failed(Reason::new(ReasonCode::Agent, error.to_string()))
}

fn not_prepared() -> Event {
    Event::Failed(Reason::new(ReasonCode::Agent, "the move was not prepared"))
}
