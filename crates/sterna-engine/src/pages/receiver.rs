//! The receiving end: one thread a stream, writing straight into the guest's empty RAM.

use super::{CHUNK_PAGES, read_bits, stream_of};
use crate::destination::{Arrivals, Following, NeverCame};
use std::io::{self, Read};
use std::sync::Arc;
use sterna_page::coding::{CodeError, Coder, Decoders, code_bytes_max};
use sterna_page::{PAGE_SIZE, PageCount, PageNumber, PageRun, PageSet};
use sterna_proto::message::ReasonCode;
use sterna_proto::pages::{HEADER_BYTES, PageFrame, Reference};
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
            | Self::Code { .. } => ReasonCode::Protocol,
            Self::Memory(_) => ReasonCode::Hypervisor,
        }
    }
}

/// Reads one page stream from `R`.
#[derive(Debug)]
pub(crate) struct PageReceiver<R> {
    link: R,
    memory: Arc<GuestMemory>,
    /// Takes what is owed, and what follows the guest.
    following: Arc<Following>,
    /// What all streams of the move have brought.
    arrivals: Arc<Arrivals>,
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
    pub(crate) fn new(
        link: R,
        memory: Arc<GuestMemory>,
        following: Arc<Following>,
        arrivals: Arc<Arrivals>,
        stream: u16,
    ) -> Self {
        let streams = arrivals.streams();
        let pages = memory.pages();
        let bytes = usize::try_from(CHUNK_PAGES).expect("a chunk is small") * PAGE_SIZE;
        let filled = PageSet::empty(pages);
        let (buffer, code, decoders) = (vec![0; bytes], Vec::new(), Decoders::default());
        Self { link, memory, following, arrivals, stream, streams, buffer, code, decoders, filled }
    }

    /// Reads until the stream ends, telling `tell` about it; ends early when `tell` says so.
    pub(crate) fn run(mut self, mut tell: impl FnMut(StreamEvent) -> Heard) {
        let stream = self.stream;
        let ended = self.read_frames(&mut tell);
        // Who waits for a page of this stream waits no longer.
        self.arrivals.lost(stream);
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
                    self.arrivals.ended(self.stream);
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
        if (ours || self.following.takes_pages()) && self.memory.layout().holds(run) {
            Ok(())
        } else {
            Err(ReceiveError::Misplaced { run, stream: self.stream })
        }
    }

    fn raw(&mut self, run: PageRun) -> Result<(), ReceiveError> {
        self.check(run)?;
        let length = PageFrame::Raw(run).payload_bytes();
        self.link.read_exact(&mut self.buffer[..length])?;
        self.take(run, length)
    }

    /// Copies pages from others.
    fn same(&mut self, run: PageRun) -> Result<(), ReceiveError> {
        self.check(run)?;
        if self.following.takes_pages() {
            // The guest writes to what they refer to.
            return Err(ReceiveError::Misplaced { run, stream: self.stream });
        }
        let mut references = vec![0; PageFrame::Same(run).payload_bytes()];
        self.link.read_exact(&mut references)?;
        let references = references.as_chunks().0.iter().copied().map(Reference::decode);
        let pages = self.buffer.as_chunks_mut::<PAGE_SIZE>().0;
        for (page, Reference { page: base, comes }) in pages.iter_mut().zip(references) {
            let run = PageRun { first: base, count: PageCount(1) };
            if !self.memory.layout().holds(run) {
                return Err(ReceiveError::Misplaced { run, stream: self.stream });
            }
            if comes && stream_of(base, self.streams) != self.stream {
                let waited = self.arrivals.wait_for(base);
                waited.map_err(|NeverCame| ReceiveError::NeverCame { base })?;
            }
            let read = self.memory.read(base, page);
            read.map_err(|error| ReceiveError::Memory(io::Error::other(error)))?;
        }
        self.take(run, PageFrame::Raw(run).payload_bytes())
    }

    /// Restores pages from their code. Those that nobody wants any more too: the next code may refer to
    /// them.
    fn coded(&mut self, run: PageRun, coder: Coder, length: usize) -> Result<(), ReceiveError> {
        self.check(run)?;
        if self.code.is_empty() {
            let pages = usize::try_from(CHUNK_PAGES).expect("a chunk is small");
            self.code = vec![0; code_bytes_max(pages)];
        }
        let code = &mut self.code[..length];
        self.link.read_exact(code)?;
        let bytes = PageFrame::Raw(run).payload_bytes();
        let pages = self.buffer[..bytes].as_chunks_mut::<PAGE_SIZE>().0;
        let decoded = self.decoders.decode(coder, code, pages);
        decoded.map_err(|error| ReceiveError::Code { run, coder, error })?;
        self.take(run, bytes)
    }

    /// Gives the guest these pages, which the buffer holds.
    fn take(&mut self, run: PageRun, length: usize) -> Result<(), ReceiveError> {
        let bytes = &self.buffer[..length];
        if self.following.takes_pages() {
            return self.following.place(run, bytes);
        }
        let write = self.memory.write(run.first, bytes);
        write.map_err(|error| ReceiveError::Memory(io::Error::other(error)))?;
        self.filled.insert_run(run);
        self.arrivals.came(run);
        Ok(())
    }

    /// Takes note of pages that the source does not send now.
    fn owed(&mut self, run: PageRun) -> Result<(), ReceiveError> {
        self.check(run)?;
        read_bits(&mut self.link, run, |page| self.following.owe(page))?;
        Ok(())
    }

    /// Makes pages zero again, those of them that are not.
    fn clear(&mut self, run: PageRun) -> Result<(), ReceiveError> {
        self.check(run)?;
        if self.following.takes_pages() {
            return self.following.place_zero(run);
        }
        for page in run.first.0..run.first.0 + run.count.0 {
            if self.filled.contains(PageNumber(page)) {
                let one = PageRun::new(page, 1);
                let clear = self.memory.punch(one);
                clear.map_err(|error| ReceiveError::Memory(io::Error::other(error)))?;
                self.filled.remove(PageNumber(page));
            }
        }
        Ok(())
    }
}

/// Whether someone still listens to a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    Yes,
    NoLonger,
}
