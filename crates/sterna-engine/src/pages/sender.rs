//! One stream at the sending end: a thread with its share of the guest's pages.

use super::{
    CHUNK_PAGES, Coding, Follow, Hashes, Likeness, Manner, Outbox, Queue, Sends, Way, bits,
    chunks_of, coding::processor_time, parts_on, stream_of, usize_of,
};
use crate::link::Link;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Instant;
use sterna_core::source::RoundSent;
use sterna_page::coding::{PageBytes, PageClass, classify};
use sterna_page::delta::{self, Lines};
use sterna_page::sent::{Base, ContentHash};
use sterna_page::{PAGE_SIZE, PageCount, PageNumber, PageRun, PageSet, is_zero};
use sterna_proto::pages::{HEADER_BYTES, OnDisk, PageFrame, Reference};
use sterna_sys::memory::GuestMemory;

/// What a stream does next.
#[derive(Debug)]
pub(super) enum Task {
    /// Sends its share of a round.
    Round(Sends),
    /// Pushes owed pages until there are none, or the stream ends.
    Follow(Arc<Follow>),
}

/// What all streams of a move tell and are told while they send.
#[derive(Clone, Debug, Default)]
pub(super) struct Common {
    /// Pages dealt with so far.
    pub(super) progress: Arc<AtomicU64>,
    /// Pages that the guest has written again since the round began; see
    /// [`super::SenderPool::postpone`].
    pub(super) rewritten: Arc<RwLock<Option<PageSet>>>,
    /// What the round had no time for.
    pub(super) unsent: Arc<Mutex<Vec<PageRun>>>,
}

pub(super) struct PageSender {
    outbox: Outbox,
    memory: Arc<GuestMemory>,
    stream: u16,
    streams: u16,
    buffer: Vec<u8>,
    /// Pages that are coded together, where they do not lie together.
    gathered: Vec<PageBytes>,
    /// References, hashes, deltas or bits, of the frame that is being sent.
    stand_ins: Vec<u8>,
    coding: Option<Coding>,
    likeness: Option<Likeness>,
    hashes: Option<Hashes>,
    common: Common,
    sent: RoundSent,
}

impl PageSender {
    /// The stream with this number, of so many.
    pub(super) fn new(
        link: Link,
        memory: &Arc<GuestMemory>,
        manner: &Manner,
        (stream, streams): (u16, u16),
        common: &Common,
    ) -> Self {
        let coded = manner.coded.clone();
        Self {
            coding: coded.map(|did| Coding::new(did, link.socket.try_clone().ok(), streams)),
            outbox: Outbox::new(link, &manner.pacer),
            memory: Arc::clone(memory),
            stream,
            streams,
            buffer: vec![0; usize_of(CHUNK_PAGES) * PAGE_SIZE],
            gathered: Vec::new(),
            stand_ins: Vec::new(),
            likeness: manner.alike.clone().map(|alike| Likeness::new(alike, streams)),
            hashes: Hashes::new(manner.hashes, memory.pages(), streams),
            common: common.clone(),
            sent: RoundSent::default(),
        }
    }

    pub(super) fn run(mut self, orders: &Receiver<Task>, done: &Sender<io::Result<RoundSent>>) {
        for task in orders {
            let order = match task {
                Task::Round(order) => order,
                Task::Follow(follow) => {
                    if let Err(error) = self.push(&follow) {
                        follow.fail(error);
                    }
                    return;
                }
            };
            self.sent = RoundSent::default();
            let result = self.obey(&order).map(|()| self.sent);
            let failed = result.is_err();
            if done.send(result).is_err() || failed {
                return;
            }
        }
    }

    fn obey(&mut self, order: &Sends) -> io::Result<()> {
        if let Some(coding) = &mut self.coding {
            coding.begin();
        }
        if let Some(likeness) = &mut self.likeness {
            likeness.begin();
        }
        let (stream, streams) = (self.stream, self.streams);
        for run in order.pages.runs() {
            for part in parts_on(run, stream, streams) {
                if order.until.is_some_and(|until| Instant::now() >= until) {
                    self.leave(part);
                    continue;
                }
                for part in self.due(part) {
                    self.send_part(part)?;
                }
            }
        }
        for run in order.suspects.iter().flat_map(|set| set.runs()) {
            for part in parts_on(run, stream, streams) {
                self.recheck_part(part)?;
            }
        }
        for run in order.absent.iter().flat_map(|set| set.runs()) {
            for part in parts_on(run, stream, streams) {
                self.sent.pages.absent += part.count;
                if let Some(likeness) = &mut self.likeness {
                    likeness.forget(part);
                }
                self.frame(PageFrame::Absent(part), 0..0)?;
            }
        }
        if let Some(owed) = &order.owed {
            for chunk in chunks_of(owed) {
                if stream_of(chunk.first, streams) == stream {
                    self.owe(chunk, owed)?;
                }
            }
        }
        self.frame(PageFrame::Mark { round: order.round }, 0..0)?;
        self.outbox.flush(self.coding.as_mut())
    }

    /// Tells which pages of a chunk are owed.
    fn owe(&mut self, chunk: PageRun, owed: &PageSet) -> io::Result<()> {
        let bits = bits(chunk, owed);
        let owed: u32 = bits.iter().map(|byte| byte.count_ones()).sum();
        self.sent.pages.owed += PageCount(owed.into());
        self.buffer[..bits.len()].copy_from_slice(&bits);
        self.frame(PageFrame::Owed(chunk), 0..bits.len())
    }

    /// Pushes owed pages until there are no more.
    fn push(&mut self, follow: &Follow) -> io::Result<()> {
        // The guest writes there now.
        self.likeness = None;
        let mut queue = Queue::new(self.outbox.link.round_trip);
        self.outbox.link.socket.bound_queue(queue.bytes())?;
        while let Some((run, sending)) = follow.next() {
            self.sent = RoundSent::default();
            self.send_part(run)?;
            // Somebody may wait for one of them.
            self.outbox.flush(self.coding.as_mut())?;
            sending.was_sent(self.sent.pages, self.sent.bytes);
            if let Some(bytes) = queue.sent(self.sent.bytes, Instant::now()) {
                self.outbox.link.socket.bound_queue(bytes)?;
            }
        }
        Ok(())
    }

    /// Leaves a part out, as the round's time is over.
    fn leave(&mut self, part: PageRun) {
        self.sent.pages.unsent += part.count;
        let mut unsent = self.common.unsent.lock().unwrap_or_else(PoisonError::into_inner);
        match unsent.last_mut() {
            Some(run) if run.end() == Some(part.first) => run.count += part.count,
            _ => unsent.push(part),
        }
    }

    /// The pages of a part whose turn it is: not those that were written again.
    fn due(&mut self, part: PageRun) -> Vec<PageRun> {
        let rewritten = self.common.rewritten.read().unwrap_or_else(PoisonError::into_inner);
        let Some(rewritten) = rewritten.as_ref() else { return vec![part] };
        let mut due: Vec<PageRun> = Vec::new();
        for page in part.first.0..part.first.0 + part.count.0 {
            if rewritten.contains(PageNumber(page)) {
                continue;
            }
            match due.last_mut() {
                Some(run) if run.end() == Some(PageNumber(page)) => run.count += PageCount(1),
                _ => due.push(PageRun::new(page, 1)),
            }
        }
        let sent: u64 = due.iter().map(|run| run.count.0).sum();
        self.sent.pages.postponed += PageCount(part.count.0 - sent);
        self.common.progress.fetch_add(part.count.0 - sent, Ordering::Relaxed);
        due
    }

    /// Sends one part of a chunk: reads it once, then sends what was read.
    fn send_part(&mut self, part: PageRun) -> io::Result<()> {
        let bytes = usize_of(part.count.0) * PAGE_SIZE;
        self.memory.read(part.first, &mut self.buffer[..bytes]).map_err(io::Error::other)?;
        self.remember(part);
        let ways = self.ways(part);
        self.send_buffer(part, &ways)?;
        self.common.progress.fetch_add(part.count.0, Ordering::Relaxed);
        Ok(())
    }

    /// Sends the pages of a part that are not as they were when last sent.
    fn recheck_part(&mut self, part: PageRun) -> io::Result<()> {
        let bytes = usize_of(part.count.0) * PAGE_SIZE;
        self.memory.read(part.first, &mut self.buffer[..bytes]).map_err(io::Error::other)?;
        let changed = self.changed(part);
        self.common.progress.fetch_add(part.count.0 - changed.len() as u64, Ordering::Relaxed);
        self.sent.pages.unchanged += PageCount(part.count.0 - changed.len() as u64);
        for page in changed {
            self.send_part(PageRun::new(page.0, 1))?;
        }
        Ok(())
    }

    fn remember(&mut self, part: PageRun) {
        let Some(hashes) = &mut self.hashes else { return };
        for (page, bytes) in (part.first.0..).zip(self.buffer.as_chunks::<PAGE_SIZE>().0) {
            if page == part.first.0 + part.count.0 {
                break;
            }
            hashes.set(PageNumber(page), bytes);
        }
    }

    fn changed(&self, part: PageRun) -> Vec<PageNumber> {
        let pages = (part.first.0..part.first.0 + part.count.0).map(PageNumber);
        let contents = self.buffer.as_chunks::<PAGE_SIZE>().0;
        let differs = |hashes: &Hashes, page, bytes| !hashes.matches(page, bytes);
        pages
            .zip(contents)
            .filter(|(page, bytes)| {
                self.hashes.as_ref().is_none_or(|hashes| differs(hashes, *page, bytes))
            })
            .map(|(page, _)| page)
            .collect()
    }

    /// How the pages that the buffer holds of `part` are to be sent; nothing if nobody looked.
    fn ways(&mut self, part: PageRun) -> Vec<Way> {
        let (Some(likeness), Some(coding)) = (&mut self.likeness, &self.coding) else {
            return Vec::new();
        };
        let pages = &self.buffer.as_chunks::<PAGE_SIZE>().0[..usize_of(part.count.0)];
        likeness.send(part, pages, coding.page_cost())
    }

    /// Sends what the buffer holds of `part`: what is coded of it first, so that nothing refers to what comes
    /// later; then the rest in order.
    fn send_buffer(&mut self, part: PageRun, ways: &[Way]) -> io::Result<()> {
        let look = self.coding.as_ref().is_some_and(Coding::may_code);
        let pages = &self.buffer.as_chunks::<PAGE_SIZE>().0[..usize_of(part.count.0)];
        let ways = ways.iter().copied().chain(std::iter::repeat(Way::Whole));
        let class = |(page, way)| Class::of(page, way, look);
        let began = processor_time();
        let mut classes: Vec<Class> = pages.iter().zip(ways).map(class).collect();
        if let Some(coding) = self.coding.as_mut().filter(|_| look) {
            let took = processor_time().saturating_sub(began);
            coding.looked(classes.iter().filter_map(|class| class.looked()), took);
        }
        if look {
            for class in PageClass::CODED {
                self.send_class(class, part.first, &mut classes)?;
            }
        }
        let mut start = 0;
        for alike in classes.chunk_by(|one, next| one.goes_with(*next)) {
            let run = PageRun::new(part.first.0 + start as u64, alike.len() as u64);
            match alike[0] {
                Class::Zero => {
                    self.sent.pages.zero += run.count;
                    self.frame(PageFrame::Zero(run), 0..0)?;
                }
                Class::Unchanged => self.sent.pages.unchanged += run.count,
                Class::Like(_) => {
                    self.sent.pages.same += run.count;
                    self.send_stand_ins(PageFrame::Same(run), alike)?;
                }
                Class::There(_) => {
                    self.sent.pages.known += run.count;
                    self.send_stand_ins(PageFrame::Known(run), alike)?;
                }
                Class::OnDisk(_) => {
                    self.sent.pages.on_disk += run.count;
                    self.send_stand_ins(PageFrame::OnDisk(run), alike)?;
                }
                Class::Changed(_) => self.send_changed(run, start, alike)?,
                Class::Coded => {}
                Class::Looked(_) | Class::Any => self.send_raw(run, start)?,
            }
            start += alike.len();
        }
        Ok(())
    }

    /// Sends what stands for the content of pages.
    fn send_stand_ins(&mut self, frame: PageFrame, alike: &[Class]) -> io::Result<()> {
        self.stand_ins.clear();
        for class in alike {
            match class {
                Class::Like(reference) => self.stand_ins.extend_from_slice(&reference.encode()),
                Class::There(hash) => self.stand_ins.extend_from_slice(&hash.encode()),
                Class::OnDisk(place) => self.stand_ins.extend_from_slice(&place.encode()),
                _ => {}
            }
        }
        self.frame(frame, 0..0)
    }

    /// Sends what has changed of pages. The first is at `start` of the buffer.
    fn send_changed(&mut self, run: PageRun, start: usize, alike: &[Class]) -> io::Result<()> {
        self.sent.pages.changed += run.count;
        self.stand_ins.clear();
        let pages = &self.buffer.as_chunks::<PAGE_SIZE>().0[start..];
        for (page, class) in pages.iter().zip(alike) {
            if let Class::Changed(lines) = class {
                delta::encode(page, *lines, &mut self.stand_ins);
            }
        }
        let length = u32::try_from(self.stand_ins.len()).map_err(io::Error::other)?;
        self.frame(PageFrame::Changed { run, length }, 0..0)
    }

    /// Sends the pages of a run as they are. The first is at `start` of the buffer.
    fn send_raw(&mut self, run: PageRun, start: usize) -> io::Result<()> {
        self.sent.pages.raw += run.count;
        let end = start + usize_of(run.count.0);
        self.frame(PageFrame::Raw(run), start * PAGE_SIZE..end * PAGE_SIZE)
    }

    /// Codes pages of this class, however they lie in the buffer, whose first page is `first`; those that take least
    /// as they are become [`Class::Any`].
    fn send_class(
        &mut self,
        class: PageClass,
        first: PageNumber,
        classes: &mut [Class],
    ) -> io::Result<()> {
        let Some(coding) = &mut self.coding else { return Ok(()) };
        let places: Vec<usize> =
            (0..classes.len()).filter(|place| classes[*place] == Class::Looked(class)).collect();
        let mut left = places.as_slice();
        while !left.is_empty() {
            let (coder, count) = coding.next(class, left.len());
            let (these, rest) = left.split_at(count);
            left = rest;
            let becomes = if coder.is_some() { Class::Coded } else { Class::Any };
            these.iter().for_each(|place| classes[*place] = becomes);
            let Some(coder) = coder else { continue };
            let pages = self.buffer.as_chunks::<PAGE_SIZE>().0;
            let (lowest, highest) = (these[0], these[count - 1]);
            let pages = if highest - lowest < count {
                &pages[lowest..=highest]
            } else {
                self.gathered.clear();
                self.gathered.extend(these.iter().map(|place| pages[*place]));
                &self.gathered
            };
            let length = coding.encode(class, coder, pages);
            let run = PageRun::new(first.0 + lowest as u64, (highest - lowest + 1) as u64);
            let bits = &mut self.stand_ins;
            bits.clear();
            bits.resize((highest - lowest) / 8 + 1, 0);
            for place in these.iter().map(|place| place - lowest) {
                bits[place / 8] |= 1 << (place % 8);
            }
            let count = PageCount(count as u64);
            let code = u32::try_from(length).map_err(io::Error::other)?;
            let frame = PageFrame::Coded { run, coder, length: code };
            self.sent.pages.coded += count;
            self.sent.bytes += (HEADER_BYTES + frame.payload_bytes()) as u64;
            self.outbox.push_code(&frame.encode(), bits, length, (count, coding))?;
        }
        Ok(())
    }

    /// Sends a frame, whose payload is what stands for its pages or else this part of the buffer.
    fn frame(&mut self, frame: PageFrame, payload: std::ops::Range<usize>) -> io::Result<()> {
        self.sent.bytes += (HEADER_BYTES + frame.payload_bytes()) as u64;
        let mut content = PageCount::ZERO;
        let mut coding = self.coding.as_mut();
        match (frame, &mut coding) {
            (PageFrame::Raw(run), _) => content = run.count,
            (PageFrame::Known(run), Some(coding)) => coding.gets(run.count),
            (PageFrame::OnDisk(run), Some(coding)) => coding.reads(run.count),
            _ => {}
        }
        let payload = match frame {
            PageFrame::Same(_)
            | PageFrame::Known(_)
            | PageFrame::OnDisk(_)
            | PageFrame::Changed { .. } => self.stand_ins.as_slice(),
            _ => &self.buffer[payload],
        };
        self.outbox.push(&frame.encode(), payload, content, coding)
    }
}

/// What a page is sent as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Zero,
    /// The destination has it.
    Unchanged,
    /// The destination has, or gets, the same elsewhere.
    Like(Reference),
    /// The destination gets it by itself.
    There(ContentHash),
    /// It reads it on a disk.
    OnDisk(OnDisk),
    /// These lines of it have changed since it was last sent.
    Changed(Lines),
    /// It looks like that.
    Looked(PageClass),
    /// Its code was sent already.
    Coded,
    /// Anything but zero; nobody looked, or no code is worth it.
    Any,
}

impl Class {
    fn of(page: &PageBytes, way: Way, look: bool) -> Self {
        match way {
            Way::Unchanged => return Self::Unchanged,
            Way::Like(page, base) => {
                return Self::Like(Reference { page, comes: base == Base::Coming });
            }
            Way::There(hash) => return Self::There(hash),
            Way::OnDisk(hash, block) => return Self::OnDisk(OnDisk { hash, block }),
            Way::Changed(lines) => return Self::Changed(lines),
            Way::Whole => {}
        }
        if look {
            match classify(page) {
                PageClass::Zero => Self::Zero,
                class => Self::Looked(class),
            }
        } else if is_zero(page) {
            Self::Zero
        } else {
            Self::Any
        }
    }

    /// What a page looks like that was looked at.
    fn looked(self) -> Option<PageClass> {
        match self {
            Self::Zero => Some(PageClass::Zero),
            Self::Looked(class) => Some(class),
            _ => None,
        }
    }

    /// Whether a page and the next are sent in one frame.
    fn goes_with(self, next: Self) -> bool {
        self == next
            || matches!(
                (self, next),
                (Self::Like(_), Self::Like(_))
                    | (Self::There(_), Self::There(_))
                    | (Self::OnDisk(_), Self::OnDisk(_))
                    | (Self::Changed(_), Self::Changed(_))
            )
    }
}
