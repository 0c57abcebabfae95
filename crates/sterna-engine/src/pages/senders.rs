//! All streams of a move at the sending end: what they shall send, and what they have sent.

use super::sender::{Common, PageSender, Task};
use super::{Alike, Follow, KeepHashes, Pacer};
use crate::link::{Link, SocketControl};
use std::io;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use sterna_core::receipt::Coded;
use sterna_core::source::RoundSent;
use sterna_page::{PageNumber, PageRun, PageSet};
use sterna_sys::memory::GuestMemory;

/// What all streams together shall send.
#[derive(Clone, Debug)]
pub(crate) struct Sends {
    /// Number of the round, for the marks.
    pub(crate) round: u32,
    /// Pages to send.
    pub(crate) pages: Arc<PageSet>,
    /// Pages to compare with what was sent last, and to send if they differ.
    pub(crate) suspects: Option<Arc<PageSet>>,
    /// Pages that no longer exist.
    pub(crate) absent: Option<Arc<PageSet>>,
    /// When the streams stop sending pages, if they have not sent them all by then;
    /// [`SenderPool::take_unsent`] tells which are left.
    pub(crate) until: Option<Instant>,
    /// Pages that are not sent now: the destination is told to do without what it has of them.
    pub(crate) owed: Option<Arc<PageSet>>,
    /// Whether another round follows, for what the destination was to get by itself and could not.
    pub(crate) may_lack: bool,
}

impl Sends {
    /// The pages that the destination may have otherwise afterwards.
    fn concerns(&self) -> Arc<PageSet> {
        let mut pages = Arc::clone(&self.pages);
        for more in [&self.suspects, &self.absent, &self.owed].into_iter().flatten() {
            Arc::make_mut(&mut pages).union_with(more);
        }
        pages
    }

    /// Sends none of it: what the destination has of these pages is stale, and they will follow.
    pub(crate) fn owe(&mut self) {
        let none = PageSet::empty(self.pages.capacity());
        let mut owed = std::mem::replace(&mut self.pages, Arc::new(none));
        if let Some(suspects) = self.suspects.take() {
            Arc::make_mut(&mut owed).union_with(&suspects);
        }
        self.owed = Some(owed);
    }
}

/// The threads of a move's page streams.
#[derive(Debug)]
pub(crate) struct SenderPool {
    threads: Vec<SenderThread>,
    done: Receiver<io::Result<RoundSent>>,
    common: Common,
    alike: Option<Alike>,
}

#[derive(Debug)]
struct SenderThread {
    orders: Sender<Task>,
    socket: SocketControl,
    thread: Option<JoinHandle<()>>,
}

/// How pages are sent.
#[derive(Clone, Debug)]
pub(crate) struct Manner {
    /// No faster than this.
    pub(crate) pacer: Arc<Pacer>,
    pub(crate) hashes: KeepHashes,
    /// In fewer bytes, where that is faster; takes note of what the coders do.
    pub(crate) coded: Option<Arc<Mutex<Coded>>>,
    /// As references, where the destination has their content, or not at all.
    pub(crate) alike: Option<Alike>,
}

impl SenderPool {
    /// Starts one thread for each link.
    pub(crate) fn start(
        links: Vec<Link>,
        memory: &Arc<GuestMemory>,
        manner: &Manner,
    ) -> io::Result<Self> {
        let (done_to, done) = channel();
        let common = Common::default();
        let streams = u16::try_from(links.len()).map_err(io::Error::other)?;
        let mut threads = Vec::new();
        for (stream, link) in (0..streams).zip(links) {
            let socket = link.socket.control()?;
            let (orders, orders_from) = channel();
            let sender = PageSender::new(link, memory, manner, (stream, streams), &common);
            let done = done_to.clone();
            let thread = thread::Builder::new()
                .name(format!("pages-out-{stream}"))
                .spawn(move || sender.run(&orders_from, &done))?;
            threads.push(SenderThread { orders, socket, thread: Some(thread) });
        }
        let alike = manner.alike.clone();
        Ok(Self { threads, done, common, alike })
    }

    /// Hands an order to all streams; [`SenderPool::wait`] tells when it is done.
    pub(crate) fn send(&self, sends: &Sends) {
        if let Some(alike) = &self.alike {
            alike.begin(sends.concerns(), sends.may_lack);
        }
        for thread in &self.threads {
            // A thread that has ended has said why; `wait` will find it.
            let _ = thread.orders.send(Task::Round(sends.clone()));
        }
    }

    /// Has all streams push owed pages from now on; what fails is told to `follow`.
    pub(crate) fn follow(&self, follow: &Arc<Follow>) {
        for thread in &self.threads {
            if thread.orders.send(Task::Follow(Arc::clone(follow))).is_err() {
                follow.fail(io::Error::other("a page stream has ended"));
            }
        }
    }

    /// Waits until every stream has done one order.
    pub(crate) fn wait(&self) -> io::Result<RoundSent> {
        self.wait_and(Duration::MAX, || {})
    }

    /// As [`SenderPool::wait`]; calls `meanwhile` whenever `interval` has passed.
    pub(crate) fn wait_and(
        &self,
        interval: Duration,
        mut meanwhile: impl FnMut(),
    ) -> io::Result<RoundSent> {
        let mut total = RoundSent::default();
        let mut waiting = self.threads.len();
        while waiting > 0 {
            match self.done.recv_timeout(interval) {
                Ok(sent) => {
                    let sent = sent?;
                    total.pages += sent.pages;
                    total.bytes += sent.bytes;
                    waiting -= 1;
                }
                Err(RecvTimeoutError::Timeout) => meanwhile(),
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(io::Error::other("a page stream has ended"));
                }
            }
        }
        self.postpone(None);
        Ok(total)
    }

    /// Tells the streams which pages of the round need not be sent in it, because the next scan
    /// will report them in any case (Clark et al., NSDI 2005, section 4.2: `to_skip`).
    pub(crate) fn postpone(&self, pages: Option<PageSet>) {
        *self.common.rewritten.write().unwrap_or_else(PoisonError::into_inner) = pages;
    }

    /// The pages that rounds had no time for since this was last asked.
    pub(crate) fn take_unsent(&self) -> Vec<PageRun> {
        std::mem::take(&mut self.common.unsent.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The destination lacks these pages. Returns those that must be sent again; all others of them were
    /// never sent, or not by what it could lack.
    pub(crate) fn lacking(&self, run: PageRun) -> Vec<PageNumber> {
        self.alike.as_ref().map(|alike| alike.lacking(run)).unwrap_or_default()
    }

    /// Pages dealt with so far, by all streams.
    pub(crate) fn progress(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.common.progress)
    }

    /// What ends the streams from another thread.
    pub(crate) fn sockets(&self) -> io::Result<Vec<SocketControl>> {
        self.threads.iter().map(|thread| thread.socket.try_clone()).collect()
    }
}

impl Drop for SenderPool {
    fn drop(&mut self) {
        for thread in &self.threads {
            thread.socket.shut_down();
        }
        for SenderThread { orders, thread, .. } in self.threads.drain(..) {
            drop(orders);
            if let Some(thread) = thread {
                // A sender that panicked has already failed the move through its channel.
                let _ = thread.join();
            }
        }
    }
}
