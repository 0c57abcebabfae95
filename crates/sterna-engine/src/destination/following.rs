//! Pages that follow the guest, at the side where it runs.
//!
//! ```text
//!   page streams ──▶ owe      which pages are owed, before the hand-over
//!                ──▶ place    pages as they come         ┐ clears them in `Missing`,
//!   urgent       ──▶ place    pages that were asked for  ┘ wakes who waits
//!                ◀── Owed     all that is missing, once serving has begun
//!                ◀── Wanted   pages that somebody waits for
//!   fault thread ──▶ who touches a missing page; of a page that is not missing it gets zeroes
//! ```
//!
//! One lock orders what comes: a page is placed, counted and taken from what is missing as one step,
//! so that each is hashed once and nobody is told to wait for a page that has just come.

use super::driver::Input;
use super::missing::Missing;
use crate::link::{Link, ReadHalf, SocketControl, WriteHalf, split};
use crate::pages::{ReceiveError, StreamEvent, bits, chunks_of};
use crate::priority::come_first;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use sterna_page::{PAGE_SIZE, PAGE_SIZE_BYTES, PageCount, PageNumber, PageRun, PageSet, PageSum};
use sterna_proto::message::{Arrival, PageWaits, Verify};
use sterna_proto::pages::{HEADER_BYTES, PageFrame};
use sterna_sys::memory::GuestMemory;
use sterna_vmm::Faults;

/// How long the fault thread waits for a fault before it looks whether it shall end.
const FAULT_WAIT: Duration = Duration::from_millis(200);

/// Number of the urgent connection among the streams, for what it tells.
pub(crate) const URGENT: u16 = u16::MAX;

/// What follows one guest. Shared by the move's thread, its connections and the fault thread.
#[derive(Debug)]
pub(crate) struct Following {
    memory: Arc<GuestMemory>,
    inputs: Sender<Input>,
    state: Mutex<State>,
    ended: AtomicBool,
}

#[derive(Debug)]
struct State {
    /// Told by the source before the hand-over.
    owed: PageSet,
    serving: Option<Serving>,
    /// The connection on which pages are asked for.
    urgent: Option<WriteHalf>,
}

/// Faults are served.
#[derive(Debug)]
struct Serving {
    faults: Arc<Faults>,
    missing: Missing,
    /// Pages that somebody waits for, and since when.
    waiting: HashMap<PageNumber, Instant>,
    waits_us: Vec<u64>,
    sum: Option<PageSum>,
    told: bool,
}

impl Following {
    pub(crate) fn new(memory: Arc<GuestMemory>, inputs: Sender<Input>) -> Arc<Self> {
        let owed = PageSet::empty(memory.pages());
        let state = Mutex::new(State { owed, serving: None, urgent: None });
        Arc::new(Self { memory, inputs, state, ended: AtomicBool::new(false) })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The source owes this page. Whatever came of it before is stale.
    pub(crate) fn owe(&self, page: PageNumber) {
        self.lock().owed.insert(page);
    }

    /// All that the source has said it owes.
    pub(super) fn owed(&self) -> PageSet {
        self.lock().owed.clone()
    }

    /// Begins to serve faults: whoever touches a page of `missing` waits for it from now on.
    pub(super) fn serve(
        self: &Arc<Self>,
        faults: Arc<Faults>,
        missing: Missing,
        sum: Option<PageSum>,
    ) -> io::Result<()> {
        let this = Arc::clone(self);
        let theirs = Arc::clone(&faults);
        {
            let mut state = self.lock();
            let (waiting, waits_us) = (HashMap::new(), Vec::new());
            let told = false;
            state.serving = Some(Serving { faults, missing, waiting, waits_us, sum, told });
            state.tell_missing();
        }
        thread::Builder::new().name("faults".into()).spawn(move || this.serve_faults(&theirs))?;
        self.tell_if_all_here(&mut self.lock());
        Ok(())
    }

    /// Ends it: whatever comes from now on is passed over, and no fault is answered.
    pub(super) fn end(&self) {
        let mut state = self.lock();
        self.ended.store(true, Ordering::Release);
        state.urgent = None;
        state.serving = None;
    }

    /// Whether pages are to be given to [`Following::place`] rather than written: from when faults
    /// are served, or nothing more may be written at all.
    pub(crate) fn takes_pages(&self) -> bool {
        self.lock().serving.is_some() || self.ended.load(Ordering::Acquire)
    }

    /// Whether faults are served.
    pub(super) fn is_serving(&self) -> bool {
        self.lock().serving.is_some()
    }

    /// Places pages that have come. What is not missing is left alone: it was here, and the guest may
    /// have given it back.
    pub(crate) fn place(&self, run: PageRun, bytes: &[u8]) -> Result<(), ReceiveError> {
        let mut state = self.lock();
        let Some(serving) = &mut state.serving else { return Ok(()) };
        for part in serving.missing.part_of(run) {
            let from = usize::try_from((part.first.0 - run.first.0) * PAGE_SIZE_BYTES);
            let from = from.expect("an offset into a slice");
            let bytes = &bytes[from..];
            let pages = (part.first.0..part.first.0 + part.count.0).map(PageNumber);
            if let Some(sum) = &mut serving.sum {
                for (page, bytes) in pages.zip(bytes.as_chunks().0) {
                    sum.add(page, bytes);
                }
            }
            let length = usize::try_from(part.count.bytes()).expect("a part of a slice");
            serving.faults.place(part.first, &bytes[..length]).map_err(memory)?;
            serving.arrived(part)?;
        }
        self.tell_if_all_here(&mut state);
        Ok(())
    }

    /// Pages of zeroes have come. Only those that somebody waits for need to exist.
    pub(crate) fn place_zero(&self, run: PageRun) -> Result<(), ReceiveError> {
        let mut state = self.lock();
        let Some(serving) = &mut state.serving else { return Ok(()) };
        let end = run.first.0 + run.count.0;
        for page in (run.first.0..end).map(PageNumber) {
            if serving.waiting.contains_key(&page) {
                let one = PageRun { first: page, count: PageCount(1) };
                serving.faults.place_zero(one).map_err(memory)?;
            }
        }
        serving.arrived(run)?;
        self.tell_if_all_here(&mut state);
        Ok(())
    }

    fn tell_if_all_here(&self, state: &mut State) {
        let Some(serving) = state.serving.as_mut().filter(|s| s.missing.is_empty() && !s.told)
        else {
            return;
        };
        serving.told = true;
        let digest = serving.sum.map(|sum| sum.digest());
        let waits = summary(&mut serving.waits_us);
        // A machine that has ended needs to know no more.
        let _ = self.inputs.send(Input::AllHere(Arrival { digest, waits }));
    }

    /// The fault thread.
    fn serve_faults(&self, faults: &Faults) {
        come_first();
        let mut pages = Vec::new();
        while !self.ended.load(Ordering::Acquire) {
            pages.clear();
            let served = faults.wait(FAULT_WAIT, &mut pages).and_then(|()| self.answer(&pages));
            if let Err(error) = served {
                let _ = self.inputs.send(Input::Faults(error));
                return;
            }
        }
    }

    /// Every fault is answered: by the source, if the page is missing, else with what there is, which
    /// is nothing where the guest has given the page back or never had it.
    fn answer(&self, pages: &[PageNumber]) -> Result<(), sterna_vmm::VmmError> {
        let now = Instant::now();
        let mut state = self.lock();
        let State { serving: Some(serving), urgent, .. } = &mut *state else { return Ok(()) };
        for page in pages.iter().copied() {
            if !serving.missing.contains(page) {
                serving.faults.place_zero(PageRun { first: page, count: PageCount(1) })?;
            } else if let Entry::Vacant(first) = serving.waiting.entry(page) {
                first.insert(now);
                ask(urgent, page);
            }
        }
        Ok(())
    }

    /// Serves an urgent connection until it ends. A newer one takes the place of an older.
    pub(crate) fn serve_urgent(self: &Arc<Self>, link: Link) {
        come_first();
        let (mut read, ending) = match self.take_urgent(link) {
            Ok(halves) => halves,
            Err(error) => return self.urgent_ended(ReceiveError::Io(error)),
        };
        let error = loop {
            if let Err(error) = self.urgent_frame(&mut read) {
                break error;
            }
        };
        ending.shut_down();
        self.urgent_ended(error);
    }

    fn take_urgent(&self, link: Link) -> io::Result<(ReadHalf, SocketControl)> {
        let (write, read) = split(link, None)?;
        let ending = write.ending()?;
        let mut state = self.lock();
        // The old one ends with it.
        state.urgent = Some(write);
        if state.serving.is_some() {
            state.tell_missing();
            let _ = self.inputs.send(Input::StreamsUp);
        }
        Ok((read, ending))
    }

    fn urgent_frame(&self, read: &mut ReadHalf) -> Result<(), ReceiveError> {
        let mut header = [0; HEADER_BYTES];
        read.read_exact(&mut header)?;
        let frame = PageFrame::decode(&header)?;
        let one = |run: PageRun| run.count == PageCount(1) && self.memory.layout().holds(run);
        match frame {
            PageFrame::Raw(run) if one(run) => {
                let mut content = [0; PAGE_SIZE];
                read.read_exact(&mut content)?;
                self.place(run, &content)
            }
            PageFrame::Zero(run) if one(run) => self.place_zero(run),
            PageFrame::Raw(run) | PageFrame::Zero(run) => {
                Err(ReceiveError::Misplaced { run, stream: URGENT })
            }
            _ => {
                let run = PageRun::new(0, 1);
                Err(ReceiveError::Misplaced { run, stream: URGENT })
            }
        }
    }

    fn urgent_ended(&self, error: ReceiveError) {
        let event = StreamEvent::Ended { stream: URGENT, error };
        let _ = self.inputs.send(Input::Stream(event));
    }
}

impl State {
    /// Tells the source what is missing, and for which pages somebody waits.
    fn tell_missing(&mut self) {
        let (Some(serving), Some(urgent)) = (&self.serving, &mut self.urgent) else { return };
        let mut text = Vec::new();
        for chunk in chunks_of(serving.missing.pages()) {
            text.extend_from_slice(&PageFrame::Owed(chunk).encode());
            text.extend_from_slice(&bits(chunk, serving.missing.pages()));
        }
        text.extend_from_slice(&PageFrame::Mark { round: 0 }.encode());
        for page in serving.waiting.keys() {
            text.extend_from_slice(&PageFrame::Wanted(*page).encode());
        }
        if urgent.send(&text).is_err() {
            // Whoever reads it finds out why.
            self.urgent = None;
        }
    }
}

/// Asks for a page. Without a connection it is asked for as soon as there is one.
fn ask(urgent: &mut Option<WriteHalf>, page: PageNumber) {
    let Some(half) = urgent else { return };
    if half.send(&PageFrame::Wanted(page).encode()).is_err() {
        *urgent = None;
    }
}

impl Serving {
    /// The pages of `run` are there.
    fn arrived(&mut self, run: PageRun) -> Result<(), ReceiveError> {
        let end = run.first.0 + run.count.0;
        if !self.waiting.is_empty() {
            for page in (run.first.0..end).map(PageNumber) {
                if let Some(since) = self.waiting.remove(&page) {
                    let waited = u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX);
                    self.waits_us.push(waited);
                }
            }
        }
        self.missing.remove(run).map_err(ReceiveError::Memory)
    }
}

fn memory(error: sterna_vmm::VmmError) -> ReceiveError {
    ReceiveError::Memory(io::Error::other(error))
}

fn summary(waits_us: &mut [u64]) -> PageWaits {
    waits_us.sort_unstable();
    let share = |percent: usize| {
        let index = (waits_us.len() * percent).div_ceil(100).saturating_sub(1);
        waits_us.get(index).copied().unwrap_or_default()
    };
    PageWaits {
        pages: waits_us.len() as u64,
        total_us: waits_us.iter().sum(),
        median_us: share(50),
        p99_us: share(99),
        longest_us: share(100),
    }
}

/// Whether RAM is hashed as it comes, and what there is of it already.
pub(super) fn sum_of_present(
    memory: &GuestMemory,
    missing: &PageSet,
    verify: Verify,
) -> io::Result<Option<PageSum>> {
    match verify {
        Verify::No => Ok(None),
        Verify::RamDigest => crate::digest::sum_of_pages(memory, Some(missing)).map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_summed_up() {
        let mut waits: Vec<u64> = (1..=200).rev().collect();
        let expected = PageWaits {
            pages: 200,
            total_us: 20_100,
            median_us: 100,
            p99_us: 198,
            longest_us: 200,
        };
        assert_eq!(summary(&mut waits), expected);
        assert_eq!(summary(&mut []), PageWaits::default());
    }
}
