//! How a stream codes its pages: by the coder of which a page takes least, as measured on the way.

use super::cost::{Costs, PageCost};
use super::gauge::{Gauge, Judged, Others, Took};
use super::{CHUNK_PAGES, usize_of};
use crate::link::Metered;
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
    waits: Waits,
    code: Vec<u8>,
    costs: Costs,
    /// What the coders of all streams did.
    did: Arc<Mutex<Coded>>,
}

/// For whom a stream's thread waits, beside the link.
#[derive(Debug)]
struct Waits {
    connection: Option<Metered>,
    streams: u16,
    /// What was last told.
    before: Others,
}

impl Waits {
    /// What has come since the last time.
    fn newly(&mut self) -> Others {
        let receiver = self.connection.as_ref().map(Metered::held_up_by_receiver);
        let sent = self.connection.as_ref().map(Metered::sent_by_all);
        let now = Others {
            processor: time_queued(),
            receiver: receiver.unwrap_or_default(),
            each_sent: sent.map(|sent| sent / u64::from(self.streams.max(1))),
        };
        let before = std::mem::replace(&mut self.before, now);
        Others {
            processor: now.processor.saturating_sub(before.processor),
            receiver: now.receiver.saturating_sub(before.receiver),
            each_sent: now.each_sent.map(|now| now - before.each_sent.unwrap_or_default()),
        }
    }
}

impl Coding {
    /// Of one of so many streams, on this connection.
    pub(super) fn new(did: Arc<Mutex<Coded>>, connection: Option<Metered>, streams: u16) -> Self {
        Self {
            choice: Choice::default(),
            encoders: Encoders::default(),
            gauge: Gauge::new(Instant::now()),
            waits: Waits { connection, streams, before: Others::default() },
            code: vec![0; code_bytes_max(usize_of(CHUNK_PAGES))],
            costs: Costs::default(),
            did,
        }
    }

    /// There is something to send again.
    pub(super) fn begin(&mut self) {
        self.gauge.begin(Instant::now());
        let _ = self.waits.newly();
    }

    /// Whether it pays to look what kind of pages they are.
    pub(super) fn may_code(&self) -> bool {
        self.choice.may_code(self.gauge.pace())
    }

    /// Takes note of what looking at pages has shown, and of the processor's time that took.
    pub(super) fn looked(&mut self, classes: impl Iterator<Item = PageClass>, took: Duration) {
        self.choice.looked(classes, took);
    }

    /// By which coder the first of `pages` pages of a class go, if any, and how many of them.
    pub(super) fn next(&mut self, class: PageClass, pages: usize) -> (Option<Coder>, usize) {
        self.choice.next(class, pages.min(RUN_PAGES), self.gauge.pace())
    }

    /// What a page costs.
    pub(super) fn page_cost(&self) -> PageCost {
        self.costs.of_page(&self.gauge)
    }

    /// The destination gets so many pages by itself.
    pub(super) fn gets(&mut self, pages: PageCount) {
        self.costs.gets(pages);
    }

    /// It reads so many on disks.
    pub(super) fn reads(&mut self, pages: PageCount) {
        self.costs.reads(pages);
    }

    /// Codes pages; [`Coding::code`] is the code, which has so many bytes.
    pub(super) fn encode(&mut self, class: PageClass, coder: Coder, pages: &[PageBytes]) -> usize {
        self.encoders.prepare(coder);
        let (began, processor) = (Instant::now(), processor_time());
        let code_bytes = self.encoders.encode(coder, pages, &mut self.code);
        let took = processor_time().saturating_sub(processor);
        let elapsed = began.elapsed();
        self.gauge.coded(pages.len(), Took { elapsed, processor: took });
        self.costs.coded(elapsed);
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

    /// Writes by `write` so many bytes, with the content of so many pages, and takes note of what it took.
    pub(super) fn measured(
        &mut self,
        bytes: usize,
        pages: PageCount,
        write: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<()> {
        let (began, processor) = (Instant::now(), processor_time());
        write()?;
        let now = Instant::now();
        let processor = processor_time().saturating_sub(processor);
        let took = Took { elapsed: now - began, processor };
        if pages > PageCount::ZERO {
            self.costs.wrote(pages, bytes as u64, took.elapsed);
        }
        let judged = self.gauge.wrote(bytes, took, now, || self.waits.newly());
        if let Some(Judged { elapsed, receiver }) = judged {
            self.choice.spent(elapsed);
            self.costs.judged(receiver);
        }
        Ok(())
    }
}

/// How long this thread has waited for a processor, as its scheduler counts it; zero where it does not.
fn time_queued() -> Duration {
    let counted = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanoseconds = counted.split_whitespace().nth(1).and_then(|field| field.parse().ok());
    nanoseconds.map_or(Duration::ZERO, Duration::from_nanos)
}

/// Processor time of this thread.
pub(super) fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or_default())
}
