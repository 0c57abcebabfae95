//! The receiving end: one thread a stream, writing straight into the guest's empty RAM.

use super::{CHUNK_PAGES, read_bits, stream_of, usize_of};
use crate::destination::{Arrivals, Following, NeverCame};
use std::io::{self, Read};
use std::sync::Arc;
use sterna_page::coding::{CodeError, Coder, Decoders, PageBytes, code_bytes_max};
use sterna_page::delta::{self, BadDelta};
use sterna_page::known::KnownPages;
use sterna_page::sent::ContentHash;
use sterna_page::{PAGE_SIZE, PageCount, PageNumber, PageRun, PageSet};
use sterna_proto::message::ReasonCode;
use sterna_proto::pages::{HEADER_BYTES, OnDisk, PageFrame, Reference};
use sterna_sys::memory::GuestMemory;
use thiserror::Error;

/// What a page stream says to the move it belongs to.
#[derive(Debug)]
pub(crate) enum StreamEvent {
    /// All pages of this round have arrived on the stream.
    Mark { stream: u16, round: u32 },
    /// Pages arrive.
    Progress,
    /// The stream has ended, in order or not.
    Ended { stream: u16, error: ReceiveError },
}

/// Why a page stream ended.
#[derive(Debug, Error)]
pub(crate) enum ReceiveError {
    /// The connection.
    #[error("page connection lost")]
    Io(#[from] io::Error),
    /// A frame that is none.
    #[error("bad page frame")]
    Frame(#[from] sterna_proto::pages::FrameError),
    /// Pages outside the guest's RAM, or on a stream that is not theirs.
    #[error("pages {first:#x} to {last:#x} do not belong on stream {stream}", first = .run.first.0, last = .run.first.0 + .run.count.0 - 1)]
    Misplaced { run: PageRun, stream: u16 },
    /// A page that others have the content of, and that its own stream did not bring.
    #[error("page {:#x}, to which another refers, did not come", .base.0)]
    NeverCame {
        /// The page.
        base: PageNumber,
    },
    /// A code that is none.
    #[error("bad code of the coder {coder:?} at page {first:#x}", first = .run.first.0)]
    Code {
        /// For these pages.
        run: PageRun,
        /// By this coder.
        coder: Coder,
        /// Why.
        #[source]
        error: CodeError,
    },
    /// A code of no pages.
    #[error("a code of none of the pages at page {first:#x}", first = .run.first.0)]
    CodeOfNone {
        /// Of which some should be coded.
        run: PageRun,
    },
    /// Deltas that are none.
    #[error("bad deltas of pages at page {first:#x}", first = .run.first.0)]
    Delta {
        /// Of these pages.
        run: PageRun,
        /// Why.
        #[source]
        error: BadDelta,
    },
    /// Guest RAM could not be written.
    #[error("cannot write guest RAM")]
    Memory(#[source] io::Error),
}

impl ReceiveError {
    /// Its stable code.
    pub(crate) fn code(&self) -> ReasonCode {
        match self {
            Self::Io(_) => ReasonCode::LinkLost,
            Self::Frame(_)
            | Self::Misplaced { .. }
            | Self::NeverCame { .. }
            | Self::Code { .. }
            | Self::CodeOfNone { .. }
            | Self::Delta { .. } => ReasonCode::Protocol,
            Self::Memory(_) => ReasonCode::Hypervisor,
        }
    }
}

/// Where the pages of a move go, on whatever stream they come.
#[derive(Clone)]
pub(crate) struct Place {
    pub(crate) memory: Arc<GuestMemory>,
    /// Takes what is owed, and what follows the guest.
    pub(crate) following: Arc<Following>,
    /// What all streams of the move have brought.
    pub(crate) arrivals: Arc<Arrivals>,
    /// Pages that need not come over the link.
    pub(crate) known: Option<Arc<dyn KnownPages>>,
}

/// Reads one page stream from `R`.
pub(crate) struct PageReceiver<R> {
    link: R,
    place: Place,
    stream: u16,
    streams: u16,
    buffer: Vec<u8>,
    code: Vec<u8>,
    decoders: Decoders,
    /// Pages that hold content; all others do not exist yet and read as zeroes.
    filled: PageSet,
}

/// Progress is told once for this many frames.
const FRAMES_PER_PROGRESS: u32 = 64;

impl<R: Read> PageReceiver<R> {
    pub(crate) fn new(link: R, place: Place, stream: u16) -> Self {
        let streams = place.arrivals.streams();
        let pages = place.memory.pages();
        let bytes = usize::try_from(CHUNK_PAGES).expect("a chunk is small") * PAGE_SIZE;
        let filled = PageSet::empty(pages);
        let (buffer, code, decoders) = (vec![0; bytes], Vec::new(), Decoders::default());
        Self { link, place, stream, streams, buffer, code, decoders, filled }
    }

    /// Reads until the stream ends, telling `tell` about it; ends early when `tell` says so.
    pub(crate) fn run(mut self, mut tell: impl FnMut(StreamEvent) -> Heard) {
        let stream = self.stream;
        let ended = self.read_frames(&mut tell);
        // Who waits for a page of this stream waits no longer.
        self.place.arrivals.lost(stream);
        if let Err(error) = ended {
            let _ = tell(StreamEvent::Ended { stream, error });
        }
    }

    fn read_frames(
        &mut self,
        tell: &mut impl FnMut(StreamEvent) -> Heard,
    ) -> Result<(), ReceiveError> {
        let mut frames = 0u32;
        loop {
            let mut header = [0; HEADER_BYTES];
            self.link.read_exact(&mut header)?;
            let event = match PageFrame::decode(&header)? {
                PageFrame::Raw(run) => self.raw(run).map(|()| None)?,
                PageFrame::Same(run) => self.same(run).map(|()| None)?,
                PageFrame::Known(run) => self.known(run).map(|()| None)?,
                PageFrame::OnDisk(run) => self.on_disk(run).map(|()| None)?,
                PageFrame::Changed { run, length } => {
                    self.changed(run, length as usize).map(|()| None)?
                }
                PageFrame::Coded { run, coder, length } => {
                    self.coded(run, coder, length as usize).map(|()| None)?
                }
                PageFrame::Zero(run) | PageFrame::Absent(run) => self.clear(run).map(|()| None)?,
                PageFrame::Owed(run) => self.owed(run).map(|()| None)?,
                PageFrame::Wanted(page) => {
                    let run = PageRun { first: page, count: PageCount(1) };
                    return Err(ReceiveError::Misplaced { run, stream: self.stream });
                }
                PageFrame::Mark { round } => {
                    self.place.arrivals.ended(self.stream);
                    Some(StreamEvent::Mark { stream: self.stream, round })
                }
            };
            frames = frames.wrapping_add(1);
            let due = frames.is_multiple_of(FRAMES_PER_PROGRESS).then_some(StreamEvent::Progress);
            if let Some(event) = event.or(due)
                && tell(event) == Heard::NoLonger
            {
                return Ok(());
            }
        }
    }

    fn check(&self, run: PageRun) -> Result<(), ReceiveError> {
        let last = PageNumber(run.first.0 + (run.count.0 - 1));
        let one_chunk = run.first.0 / CHUNK_PAGES == last.0 / CHUNK_PAGES;
        let ours = one_chunk && stream_of(run.first, self.streams) == self.stream;
        // What follows the guest comes once, so it may come anywhere.
        if (ours || self.place.following.takes_pages()) && self.place.memory.layout().holds(run) {
            Ok(())
        } else {
            Err(ReceiveError::Misplaced { run, stream: self.stream })
        }
    }

    fn raw(&mut self, run: PageRun) -> Result<(), ReceiveError> {
        self.check(run)?;
        let length = PageFrame::Raw(run).payload_bytes();
        self.link.read_exact(&mut self.buffer[..length])?;
        self.take(run)
    }

    /// Reads what stands for the content of pages, `N` bytes each. Not once the guest may write to where
    /// that content is.
    fn stand_ins<const N: usize>(&mut self, run: PageRun) -> Result<Vec<[u8; N]>, ReceiveError> {
        self.check(run)?;
        if self.place.following.takes_pages() {
            return Err(ReceiveError::Misplaced { run, stream: self.stream });
        }
        let mut bytes = vec![0; usize_of(run.count.0) * N];
        self.link.read_exact(&mut bytes)?;
        Ok(bytes.as_chunks().0.to_vec())
    }

    /// Copies pages from others.
    fn same(&mut self, run: PageRun) -> Result<(), ReceiveError> {
        let references = self.stand_ins(run)?;
        let mut got = Vec::with_capacity(references.len());
        let pages = self.buffer.as_chunks_mut::<PAGE_SIZE>().0;
        for (page, reference) in pages.iter_mut().zip(references) {
            let Reference { page: base, comes } = Reference::decode(reference);
            let run = PageRun { first: base, count: PageCount(1) };
            if !self.place.memory.layout().holds(run) {
                return Err(ReceiveError::Misplaced { run, stream: self.stream });
            }
            if comes && stream_of(base, self.streams) != self.stream {
                let waited = self.place.arrivals.wait_for(base);
                waited.map_err(|NeverCame| ReceiveError::NeverCame { base })?;
            }
            got.push(self.place.arrivals.is_whole(base));
            let read = self.place.memory.read(base, page);
            read.map_err(|error| ReceiveError::Memory(io::Error::other(error)))?;
        }
        self.take_those(run, &got)
    }

    /// Gets pages from where this host has them.
    fn known(&mut self, run: PageRun) -> Result<(), ReceiveError> {
        let read = |known: &dyn KnownPages, hash, page: &mut PageBytes| {
            let hash = ContentHash::decode(hash);
            known.read(hash, page).then_some(hash)
        };
        self.get(run, read)
    }

    /// Reads pages on the guest's disks.
    fn on_disk(&mut self, run: PageRun) -> Result<(), ReceiveError> {
        let read = |known: &dyn KnownPages, bytes, page: &mut PageBytes| {
            let OnDisk { hash, block } = OnDisk::decode(bytes);
            known.read_block(block, page).then_some(hash)
        };
        self.get(run, read)
    }

    /// Gets pages by `read` from what stands for them, and makes sure that they are those of the hashes that
    /// it tells.
    fn get<const N: usize>(
        &mut self,
        run: PageRun,
        read: impl Fn(&dyn KnownPages, [u8; N], &mut PageBytes) -> Option<ContentHash>,
    ) -> Result<(), ReceiveError> {
        let stand_ins = self.stand_ins(run)?;
        let Some(known) = self.place.known.as_deref() else {
            return Err(ReceiveError::Misplaced { run, stream: self.stream });
        };
        let hasher = known.hasher();
        let pages = self.buffer.as_chunks_mut::<PAGE_SIZE>().0;
        let got: Vec<bool> = pages
            .iter_mut()
            .zip(stand_ins)
            .map(|(page, bytes)| {
                read(known, bytes, page).is_some_and(|hash| hasher.hash(page) == hash)
            })
            .collect();
        self.take_those(run, &got)
    }

    /// Makes pages of what they were and what has changed of them.
    fn changed(&mut self, run: PageRun, length: usize) -> Result<(), ReceiveError> {
        self.check(run)?;
        if self.place.following.takes_pages() {
            return Err(ReceiveError::Misplaced { run, stream: self.stream });
        }
        let mut deltas = vec![0; length];
        self.link.read_exact(&mut deltas)?;
        let mut rest = deltas.as_slice();
        let mut got = Vec::with_capacity(usize_of(run.count.0));
        let pages = self.buffer.as_chunks_mut::<PAGE_SIZE>().0;
        for (page, number) in pages.iter_mut().zip(run.first.0..run.first.0 + run.count.0) {
            let number = PageNumber(number);
            let read = self.place.memory.read(number, page);
            read.map_err(|error| ReceiveError::Memory(io::Error::other(error)))?;
            let (fits, left) =
                delta::apply(rest, page).map_err(|error| ReceiveError::Delta { run, error })?;
            got.push(fits && self.place.arrivals.is_whole(number));
            rest = left;
        }
        if !rest.is_empty() {
            return Err(ReceiveError::Delta { run, error: BadDelta(rest.len()) });
        }
        self.take_those(run, &got)
    }

    /// Takes those pages that were got, of a run that the buffer holds; the others are lacking.
    fn take_those(&mut self, run: PageRun, got: &[bool]) -> Result<(), ReceiveError> {
        let mut start = 0;
        for alike in got.chunk_by(|one, next| one == next) {
            let part = PageRun::new(run.first.0 + start as u64, alike.len() as u64);
            if alike[0] {
                self.take_from(start * PAGE_SIZE, part)?;
            } else {
                (part.first.0..part.first.0 + part.count.0)
                    .for_each(|page| self.place.arrivals.lacks(PageNumber(page)));
            }
            start += alike.len();
        }
        Ok(())
    }

    /// Restores pages from their code. Those that nobody wants any more too: the next code may refer to
    /// them.
    fn coded(&mut self, run: PageRun, coder: Coder, length: usize) -> Result<(), ReceiveError> {
        self.check(run)?;
        let mut parts: Vec<PageRun> = Vec::new();
        read_bits(&mut self.link, run, |page| match parts.last_mut() {
            Some(part) if part.end() == Some(page) => part.count += PageCount(1),
            _ => parts.push(PageRun::new(page.0, 1)),
        })?;
        let count = usize_of(parts.iter().map(|part| part.count.0).sum());
        if count == 0 {
            return Err(ReceiveError::CodeOfNone { run });
        }
        if self.code.is_empty() {
            self.code = vec![0; code_bytes_max(usize_of(CHUNK_PAGES))];
        }
        let code = &mut self.code[..length];
        self.link.read_exact(code)?;
        let pages = &mut self.buffer.as_chunks_mut::<PAGE_SIZE>().0[..count];
        let decoded = self.decoders.decode(coder, code, pages);
        decoded.map_err(|error| ReceiveError::Code { run, coder, error })?;
        let mut start = 0;
        for part in parts {
            self.take_from(start * PAGE_SIZE, part)?;
            start += usize_of(part.count.0);
        }
        Ok(())
    }

    /// Gives the guest these pages, which the buffer holds.
    fn take(&mut self, run: PageRun) -> Result<(), ReceiveError> {
        self.take_from(0, run)
    }

    /// Gives the guest these pages, which the buffer holds from this byte on.
    fn take_from(&mut self, start: usize, run: PageRun) -> Result<(), ReceiveError> {
        let bytes = &self.buffer[start..start + usize_of(run.count.0) * PAGE_SIZE];
        if self.place.following.takes_pages() {
            return self.place.following.place(run, bytes);
        }
        let write = self.place.memory.write(run.first, bytes);
        write.map_err(|error| ReceiveError::Memory(io::Error::other(error)))?;
        self.filled.insert_run(run);
        self.place.arrivals.came(run);
        Ok(())
    }

    /// Takes note of pages that the source does not send now.
    fn owed(&mut self, run: PageRun) -> Result<(), ReceiveError> {
        self.check(run)?;
        read_bits(&mut self.link, run, |page| {
            self.place.following.owe(page);
            self.place.arrivals.came(PageRun { first: page, count: PageCount(1) });
        })?;
        Ok(())
    }

    /// Makes pages zero again, those of them that are not.
    fn clear(&mut self, run: PageRun) -> Result<(), ReceiveError> {
        self.check(run)?;
        if self.place.following.takes_pages() {
            return self.place.following.place_zero(run);
        }
        for page in run.first.0..run.first.0 + run.count.0 {
            if self.filled.contains(PageNumber(page)) {
                let one = PageRun::new(page, 1);
                let clear = self.place.memory.punch(one);
                clear.map_err(|error| ReceiveError::Memory(io::Error::other(error)))?;
                self.filled.remove(PageNumber(page));
            }
        }
        self.place.arrivals.came(run);
        Ok(())
    }
}

/// Whether someone still listens to a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    Yes,
    NoLonger,
}
