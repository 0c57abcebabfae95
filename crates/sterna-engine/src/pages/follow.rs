//! Owed pages on their way to a guest that runs at the destination: what is left of them, shared by
//! the page streams, which push it, and the urgent connection, on which pages are asked for.
//!
//! Nothing is pushed before the destination has said what it lacks: from then on it has whoever
//! touches such a page wait for it.

use crate::link::Link;
use crate::priority::come_first;
use std::io::{self, Read, Write};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use sterna_core::push::{Push, PushOrder};
use sterna_core::receipt::PagesByCoding;
use sterna_page::{PAGE_SIZE, PageCount, PageNumber, PageRun, PageSet, is_zero};
use sterna_proto::pages::{HEADER_BYTES, PageFrame};
use sterna_sys::memory::GuestMemory;

/// Pages of one pushed run at most: short, so that a page that somebody waits for, and that is just
/// being pushed, is not held up for long. 64 KiB take half a millisecond at 1 Gbit/s.
const RUN_PAGES: PageCount = PageCount(16);

/// What was sent of owed pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Followed {
    /// Pages by coding, pushed or asked for.
    pub(crate) pages: PagesByCoding,
    /// Bytes of frames.
    pub(crate) bytes: u64,
    /// Pages that went on the urgent connection, because somebody waited for them.
    pub(crate) wanted: PageCount,
}

impl std::ops::AddAssign for Followed {
    fn add_assign(&mut self, other: Self) {
        self.pages += other.pages;
        self.bytes += other.bytes;
        self.wanted += other.wanted;
    }
}

/// Told once why pages can follow no longer, unless that was wanted.
type Failed = Box<dyn Fn(io::Error) + Send + Sync>;

/// The owed pages of one move, as long as its page connections last.
pub(crate) struct Follow {
    state: Mutex<State>,
    changed: Condvar,
    failed: Failed,
}

struct State {
    push: Push,
    closed: bool,
    /// Connections that are sending something.
    sending: u32,
    followed: Followed,
}

/// What a connection is sending. Counted when it is dropped, if it was sent by then.
pub(crate) struct Sending<'a> {
    follow: &'a Follow,
    sent: Followed,
}

impl Sending<'_> {
    /// It was sent.
    pub(crate) fn was_sent(mut self, pages: PagesByCoding, bytes: u64) {
        self.sent.pages = pages;
        self.sent.bytes = bytes;
    }
}

impl Drop for Sending<'_> {
    fn drop(&mut self) {
        let mut state = self.follow.lock();
        state.sending -= 1;
        state.followed += self.sent;
        drop(state);
        self.follow.changed.notify_all();
    }
}

impl std::fmt::Debug for Follow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Follow").field("left", &self.lock().push.left()).finish_non_exhaustive()
    }
}

impl Follow {
    /// For a guest of `pages` pages.
    pub(crate) fn new(pages: PageCount, order: PushOrder, failed: Failed) -> Arc<Self> {
        let push = Push::new(pages, order);
        let state = State { push, closed: false, sending: 0, followed: Followed::default() };
        Arc::new(Self { state: Mutex::new(state), changed: Condvar::new(), failed })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next pages to push; waits until there are some. `None` once there will be none.
    pub(crate) fn next(&self) -> Option<(PageRun, Sending<'_>)> {
        let mut state = self.lock();
        loop {
            if state.closed {
                return None;
            }
            if let Some(run) = state.push.next(RUN_PAGES) {
                return Some((run, self.sending(&mut state)));
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn sending(&self, state: &mut State) -> Sending<'_> {
        state.sending += 1;
        Sending { follow: self, sent: Followed::default() }
    }

    /// Waits until no connection is sending any more, so that all is counted that was sent: the
    /// destination may say that it has the last page before whoever sent that has taken note of it.
    /// To be called when it is closed and the connections are shut down.
    pub(crate) fn settle(&self) {
        let busy = |state: &mut State| state.sending > 0;
        let settled = self.changed.wait_while(self.lock(), busy);
        drop(settled.unwrap_or_else(PoisonError::into_inner));
    }

    /// What was sent so far.
    pub(crate) fn followed(&self) -> Followed {
        self.lock().followed
    }

    /// Ends it: whoever waits for pages to push goes on, and what fails from now on is not told.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// Ends it because a connection failed.
    pub(crate) fn fail(&self, error: io::Error) {
        let closed = std::mem::replace(&mut self.lock().closed, true);
        self.changed.notify_all();
        if !closed {
            (self.failed)(error);
        }
    }

    /// Serves the urgent connection until it ends: learns what the destination lacks, and sends it
    /// each page that somebody waits for, unless that is on its way.
    pub(crate) fn serve_urgent(&self, mut link: Link, memory: &GuestMemory) {
        come_first();
        let mut lacking = PageSet::empty(memory.pages());
        loop {
            if let Err(error) = self.urgent_frame(&mut link, memory, &mut lacking) {
                return self.fail(error);
            }
        }
    }

    fn urgent_frame(
        &self,
        link: &mut Link,
        memory: &GuestMemory,
        lacking: &mut PageSet,
    ) -> io::Result<()> {
        let mut header = [0; HEADER_BYTES];
        link.read_exact(&mut header)?;
        match PageFrame::decode(&header).map_err(invalid)? {
            PageFrame::Owed(run) if memory.layout().holds(run) => {
                read_bits(link, run, |page| lacking.insert(page))?;
            }
            PageFrame::Mark { .. } => {
                let none = PageSet::empty(memory.pages());
                self.lock().push.owe(std::mem::replace(lacking, none));
                self.changed.notify_all();
            }
            PageFrame::Wanted(page) => {
                // Before it is taken from what is pushed: nobody else sends it then.
                if memory.layout().holds(PageRun { first: page, count: PageCount(1) })
                    && let Some(sending) = self.wanted(page)
                {
                    send_urgent(link, memory, page, sending)?;
                }
            }
            frame => return Err(invalid(format!("{frame:?} on the urgent connection"))),
        }
        Ok(())
    }

    /// What somebody waits for, if it is still to be sent.
    fn wanted(&self, page: PageNumber) -> Option<Sending<'_>> {
        let mut state = self.lock();
        (!state.closed && state.push.wanted(page)).then(|| self.sending(&mut state))
    }
}

fn send_urgent(
    link: &mut Link,
    memory: &GuestMemory,
    page: PageNumber,
    mut sending: Sending<'_>,
) -> io::Result<()> {
    let mut content = [0; PAGE_SIZE];
    memory.read(page, &mut content).map_err(io::Error::other)?;
    let run = PageRun { first: page, count: PageCount(1) };
    let mut pages = PagesByCoding::default();
    let mut frame = Vec::with_capacity(HEADER_BYTES + PAGE_SIZE);
    if is_zero(&content) {
        pages.zero = run.count;
        frame.extend_from_slice(&PageFrame::Zero(run).encode());
    } else {
        pages.raw = run.count;
        frame.extend_from_slice(&PageFrame::Raw(run).encode());
        frame.extend_from_slice(&content);
    }
    link.write_all(&frame)?;
    link.flush()?;
    sending.sent.wanted = run.count;
    sending.was_sent(pages, frame.len() as u64);
    Ok(())
}

fn invalid<E: Into<Box<dyn std::error::Error + Send + Sync>>>(error: E) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// Reads bits, one for each page of a run, and visits the pages whose bit is set.
pub(crate) fn read_bits(
    link: &mut impl Read,
    run: PageRun,
    mut visit: impl FnMut(PageNumber),
) -> io::Result<()> {
    let mut bits = vec![0; PageFrame::Owed(run).payload_bytes()];
    link.read_exact(&mut bits)?;
    for (offset, page) in (run.first.0..run.first.0 + run.count.0).enumerate() {
        if bits[offset / 8] >> (offset % 8) & 1 == 1 {
            visit(PageNumber(page));
        }
    }
    Ok(())
}

/// The bits of an `Owed` frame of `run`.
pub(crate) fn bits(run: PageRun, set: &PageSet) -> Vec<u8> {
    let mut bits = vec![0; PageFrame::Owed(run).payload_bytes()];
    for (offset, page) in (run.first.0..run.first.0 + run.count.0).enumerate() {
        bits[offset / 8] |= u8::from(set.contains(PageNumber(page))) << (offset % 8);
    }
    bits
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;
    use std::time::Duration;

    #[test]
    fn what_is_being_sent_when_it_ends_is_counted() {
        let follow = Follow::new(PageCount(64), PushOrder::default(), Box::new(|_| {}));
        let mut lacking = PageSet::empty(PageCount(64));
        (0..5).for_each(|page| lacking.insert(PageNumber(page)));
        follow.lock().push.owe(lacking);
        let (run, sending) = follow.next().unwrap();
        assert_eq!(run.count, PageCount(5));
        follow.close();
        let counted = thread::scope(|scope| {
            let counted = scope.spawn(|| {
                follow.settle();
                follow.followed()
            });
            thread::sleep(Duration::from_millis(20));
            let pages = PagesByCoding { raw: run.count, ..PagesByCoding::default() };
            sending.was_sent(pages, 99);
            counted.join().unwrap()
        });
        assert_eq!((counted.pages.raw, counted.bytes), (PageCount(5), 99));
    }

    #[test]
    fn what_could_not_be_sent_is_not_counted() {
        let follow = Follow::new(PageCount(64), PushOrder::default(), Box::new(|_| {}));
        let mut lacking = PageSet::empty(PageCount(64));
        lacking.insert(PageNumber(7));
        follow.lock().push.owe(lacking);
        drop(follow.next().unwrap());
        follow.settle();
        assert_eq!(follow.followed(), Followed::default());
    }

    #[test]
    fn bits_survive_the_wire() {
        let mut set = PageSet::empty(PageCount(300));
        [7, 9, 20, 21].iter().for_each(|page| set.insert(PageNumber(*page)));
        let run = PageRun::new(7, 14);
        let mut found = Vec::new();
        read_bits(&mut bits(run, &set).as_slice(), run, |page| found.push(page.0)).unwrap();
        assert_eq!(found, [7, 9, 20], "page 21 is not of the run");
    }
}
