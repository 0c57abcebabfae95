//! The thread that has the guest: it does what the machine wants done with guest and streams, one
//! order after the other, and answers with events.

mod delegating;
mod finishing;
mod shared;

pub(super) use shared::Shared;

use crate::link::{Control, Link, LinkError, Meter};
use crate::pages::{Alike, KeepHashes, Manner, Pacer, SenderPool, known};
use crate::source::Move;
use crate::source::ballooning;
use crate::source::copying::{Copying, Recheck};
use crate::source::driver::Input;
use crate::source::holding::Holding;
use crate::source::native::Native;
use crate::source::suspects::Suspects;
use crate::words;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError};
use std::time::{Duration, Instant};
use sterna_core::algorithm::Tracking;
use sterna_core::balloon::Balloon;
use sterna_core::prediction::Look;
use sterna_core::source::{Event, Selection};
use sterna_core::speed::VcpuSpeed;
use sterna_core::working_set::SAMPLING_PERIOD;
use sterna_page::{PageCount, PageSet};
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

    /// What holds this move below its limits.
    fn pacer(&self) -> Arc<Pacer> {
        let own = self.request.bandwidth_bytes_per_second;
        let shared = Arc::clone(&self.request.host_bandwidth);
        Arc::new(Pacer::new(own, shared, Arc::clone(&self.shared.giving_up)))
    }

    fn prepare(&mut self, accept: &Accept, tracking: Tracking) -> Outcome {
        if accept.codings.contains(&Coding::Native) {
            self.granted = Some(accept.clone());
            return Ok(vec![Event::Prepared]);
        }
        let hold_back = self.request.hold_back;
        let balloon = self.request.balloon;
        let shared = Arc::clone(&self.shared);
        let guest = self.guest()?;
        if balloon == Balloon::Inflate {
            let ballooning = ballooning::inflate(guest.as_mut(), &shared.giving_up);
            shared.ballooned(ballooning.map_err(failed)?);
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
        let pacer = self.pacer();
        let coded = accept.codings.contains(&Coding::Coded);
        let coded = coded.then(|| Arc::clone(&shared.coders));
        let alike = self.alike(accept, pages)?;
        let manner = Manner { pacer, hashes, coded, alike };
        let pool = SenderPool::start(links, &memory, &manner).map_err(io_failed)?;
        self.shared.take_streams(&pool, urgent.as_ref()).map_err(io_failed)?;
        self.copying = Some(Copying {
            pool,
            urgent,
            suspects: Suspects::new(in_flight),
            discarding,
            holding: Holding::new(hold_back, pages),
            dirty: PageSet::empty(pages),
            changing: PageSet::empty(pages),
            cleared,
            sent: PageSet::empty(pages),
            vcpus: VcpuSpeed::FULL,
            held_back: Duration::ZERO,
        });
        Ok(vec![Event::Prepared])
    }

    /// What need not be sent twice, or at all.
    fn alike(&self, accept: &Accept, pages: PageCount) -> Result<Option<Alike>, Event> {
        let granted = |coding| accept.codings.contains(&coding);
        let with_deltas = |alike: Alike| {
            if granted(Coding::Changed) { alike.with_deltas(rand::random()) } else { alike }
        };
        if granted(Coding::Same) && granted(Coding::Known) {
            let link = self.connect(Role::Known { token: accept.token }).map_err(link_failed)?;
            link.socket.set_read_limit(known::PATIENCE).map_err(io_failed)?;
            self.shared.take_link(&link).map_err(io_failed)?;
            let heard = known::hear(link, pages);
            let (hasher, known) = heard
                .map_err(|error| Event::Failed(Reason::new(error.code(), words::chain(&error))))?;
            tracing::debug!(pages = known.len(), "the destination has pages already");
            let alike = with_deltas(Alike::with(pages, hasher, known));
            let disks = self.request.disks.as_ref().filter(|_| granted(Coding::OnDisk));
            return Ok(Some(match disks {
                Some(disks) => alike.with_disks(disks.look(hasher, pages)),
                None => alike,
            }));
        }
        Ok(granted(Coding::Same).then(|| with_deltas(Alike::new(pages, rand::random()))))
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
        let (inputs, shared) = (self.inputs.clone(), Arc::clone(&self.shared));
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
            if shared.tracked(|| guest.peek(&mut rewritten)).is_err() {
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
        Ok(vec![Event::RoundSent(sent.into())])
    }

    fn scan(&mut self) -> Outcome {
        let lacking = self.shared.take_lacking();
        let shared = Arc::clone(&self.shared);
        let (guest, copying) = self.parts()?;
        copying.lacking(&lacking)?;
        let mut written = PageSet::empty(copying.dirty.capacity());
        shared.tracked(|| guest.scan(&mut written)).map_err(failed)?;
        shared.stopped_by_scans(guest.tracked());
        copying.cleared = Instant::now();
        copying.suspects.reported(&written);
        copying.holding.scanned(&written);
        // What was held back, or had no time, is in there already.
        copying.dirty.union_with(&written);
        copying.changing.union_with(&written);
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
        let copying = self.copying.take();
        let copied_by_itself = self.native.take().is_some();
        self.serving = None;
        let Some(mut guest) = self.guest.take() else { return Ok(vec![Event::Released]) };
        let memory = guest.memory();
        if let Err(error) = guest.release() {
            tracing::error!(%error, "the released guest's hypervisor could not be ended");
        } else if let Some(keeper) = self.request.keeper.as_ref().filter(|_| !copied_by_itself) {
            let none = || PageSet::empty(memory.pages());
            let changing = copying.map_or_else(none, |copying| copying.changing);
            keeper.keep(self.request.attempt, memory, changing);
        }
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
