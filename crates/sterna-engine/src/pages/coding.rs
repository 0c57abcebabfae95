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

/// How long pages must have taken before that tells something.
const TELLING: Duration = Duration::from_millis(50);

/// Of so many pages it is known how long they took; twice as old ones count for half.
const CONTENT_PAGES: u64 = 1 << 14;

/// What one stream knows of its coders, of its link, and of its pages.
#[derive(Debug)]
pub(super) struct Coding {
    choice: Choice,
    encoders: Encoders,
    gauge: Gauge,
    /// How long the thread had waited for a processor when that was last asked.
    queued: Duration,
    code: Vec<u8>,
    /// How long it took to code and write pages' content, of late, and of how many pages.
    content: (Duration, u64),
    /// What the coders of all streams did.
    did: Arc<Mutex<Coded>>,
}

impl Coding {
    pub(super) fn new(did: Arc<Mutex<Coded>>) -> Self {
        Self {
            choice: Choice::default(),
            encoders: Encoders::default(),
            gauge: Gauge::new(Instant::now()),
            queued: Duration::ZERO,
            code: vec![0; code_bytes_max(usize_of(CHUNK_PAGES))],
            content: (Duration::ZERO, 0),
            did,
        }
    }

    /// There is something to send again.
    pub(super) fn begin(&mut self) {
        self.gauge.begin(Instant::now());
        self.queued = time_queued();
    }

    /// Whether it pays to look what kind of pages they are.
    pub(super) fn may_code(&self) -> bool {
        self.choice.may_code(self.gauge.pace())
    }

    /// By which coder the first of `pages` pages of a class go, if any, and how many of them.
    pub(super) fn next(&mut self, class: PageClass, pages: usize) -> (Option<Coder>, usize) {
        self.choice.next(class, pages.min(RUN_PAGES), self.gauge.pace())
    }

    /// What a page takes that goes with its content, on average over those of late. Nobody knows before that
    /// has taken a while: the first ones only fill what lies between this thread and the link.
    pub(super) fn page_takes(&self) -> Option<Duration> {
        let (time, pages) = self.content;
        let pages = u32::try_from(pages).ok().filter(|_| time >= TELLING);
        pages.and_then(|pages| time.checked_div(pages))
    }

    /// Codes pages; [`Coding::code`] is the code, which has so many bytes.
    pub(super) fn encode(&mut self, class: PageClass, coder: Coder, pages: &[PageBytes]) -> usize {
        let began = Instant::now();
        let code_bytes = self.encoders.encode(coder, pages, &mut self.code);
        let took = began.elapsed();
        self.content.0 += took;
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
        write: impl FnOnce(&Self) -> io::Result<()>,
    ) -> io::Result<()> {
        let (began, processor) = (Instant::now(), processor_time());
        write(self)?;
        let now = Instant::now();
        let processor = processor_time().saturating_sub(processor);
        let took = Took { elapsed: now - began, processor };
        if pages > PageCount::ZERO {
            let (time, known) = self.content;
            self.content = (time + took.elapsed, known + pages.0);
            if self.content.1 > CONTENT_PAGES {
                self.content = (self.content.0 / 2, self.content.1 / 2);
            }
        }
        let since = self.queued;
        let queued = &mut self.queued;
        let newly_queued = || {
            *queued = time_queued();
            queued.saturating_sub(since)
        };
        if let Some(time) = self.gauge.wrote(bytes, took, now, newly_queued) {
            self.choice.spent(time);
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
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread::sleep;

    #[test]
    fn only_pages_that_go_with_their_content_tell_what_one_takes() {
        let mut coding = Coding::new(Arc::default());
        let mut write = |pages, time| {
            let written = coding.measured(100, PageCount(pages), |_| {
                sleep(time);
                Ok(())
            });
            written.unwrap();
            coding.page_takes()
        };
        assert_eq!(write(0, TELLING), None, "references and hashes");
        assert_eq!(write(10, Duration::ZERO), None, "too soon to tell");
        let takes = write(10, TELLING).unwrap();
        assert!(takes >= TELLING / 20, "{takes:?}");
        assert_eq!(write(0, TELLING), Some(takes));
    }
}
