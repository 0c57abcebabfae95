//! How a stream codes its pages: by the coder of which a page takes least, as measured on the way.

use super::gauge::{Gauge, Took};
use super::{CHUNK_PAGES, usize_of};
use rustix::time::{ClockId, clock_gettime};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use sterna_core::receipt::{Coded, CodedPages};
use sterna_page::PageCount;
use sterna_page::coding::{Choice, Coder, Encoders, PageBytes, PageClass, Tried, code_bytes_max};

/// Pages that are coded at once: the link carries one code while the next is made, so the first of a
/// round, for which it waits, shall not take long. The strongest coder takes some milliseconds.
const RUN_PAGES: usize = 64;

/// What one stream knows of its coders, of its link, and of its pages.
#[derive(Debug)]
pub(super) struct Coding {
    choice: Choice,
    encoders: Encoders,
    gauge: Gauge,
    code: Vec<u8>,
    /// The stream's time, and the pages that it dealt with meanwhile.
    spent: Duration,
    pages: u64,
    /// What the coders of all streams did.
    did: Arc<Mutex<Coded>>,
}

impl Coding {
    pub(super) fn new(did: Arc<Mutex<Coded>>) -> Self {
        Self {
            choice: Choice::default(),
            encoders: Encoders::default(),
            gauge: Gauge::new(Instant::now()),
            code: vec![0; code_bytes_max(usize_of(CHUNK_PAGES))],
            spent: Duration::ZERO,
            pages: 0,
            did,
        }
    }

    /// There is something to send again.
    pub(super) fn begin(&mut self) {
        self.gauge.begin(Instant::now());
    }

    /// Whether it pays to look what kind of pages they are.
    pub(super) fn may_code(&self) -> bool {
        self.choice.may_code(self.gauge.pace())
    }

    /// By which coder the first of `pages` pages of a class go, if any, and how many of them.
    pub(super) fn next(&mut self, class: PageClass, pages: usize) -> (Option<Coder>, usize) {
        self.choice.next(class, pages.min(RUN_PAGES), self.gauge.pace())
    }

    /// What a page has taken so far, on average; so many come now. At first nobody knows.
    pub(super) fn page_takes(&mut self, pages: PageCount) -> Option<Duration> {
        let known = u32::try_from(self.pages).unwrap_or(u32::MAX);
        self.pages += pages.0;
        (!self.spent.is_zero()).then(|| self.spent / known.max(1))
    }

    /// Codes pages; [`Coding::code`] is the code, which has so many bytes.
    pub(super) fn encode(&mut self, class: PageClass, coder: Coder, pages: &[PageBytes]) -> usize {
        let began = Instant::now();
        let code_bytes = self.encoders.encode(coder, pages, &mut self.code);
        let took = began.elapsed();
        self.choice.tried(class, coder, Tried { pages: pages.len(), code_bytes, took });
        let did =
            CodedPages { pages: PageCount(pages.len() as u64), bytes: code_bytes as u64, took };
        *self.did.lock().unwrap_or_else(PoisonError::into_inner).by(coder) += did;
        code_bytes
    }

    /// The beginning of what was coded last.
    pub(super) fn code(&self, bytes: usize) -> &[u8] {
        &self.code[..bytes]
    }

    /// Writes by `write`, and takes note of what it took.
    pub(super) fn measured(
        &mut self,
        bytes: usize,
        write: impl FnOnce(&Self) -> io::Result<()>,
    ) -> io::Result<()> {
        let (began, processor) = (Instant::now(), processor_time());
        write(self)?;
        let now = Instant::now();
        let processor = processor_time().saturating_sub(processor);
        let took = Took { elapsed: now - began, processor };
        if let Some(time) = self.gauge.wrote(bytes, took, now) {
            self.choice.spent(time);
            self.spent += time;
        }
        Ok(())
    }
}

/// Processor time of this thread.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or_default())
}
