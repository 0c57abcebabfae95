//! What a mover shares with the machine's thread: how far it is, and what makes it stop.

use crate::link::{Link, SocketControl};
use crate::native::Cuts;
use crate::pages::{Follow, Followed, GivingUp, SenderPool};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use sterna_core::balloon::Ballooning;
use sterna_core::receipt::{Coded, TrackedBy, Tracking};
use sterna_vmm::{Tracked, Tracker};

/// What the mover shares with the machine's thread.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    /// Ends waits when all is to be taken back.
    pub(super) giving_up: Arc<GivingUp>,
    /// What ends the streams then.
    streams: Mutex<Vec<SocketControl>>,
    /// Pages dealt with, for progress: before the streams were made anew, and since.
    pages_done: Mutex<(u64, Arc<AtomicU64>)>,
    /// The owed pages that follow, and what had followed before the streams were made anew.
    following: Mutex<(Option<Arc<Follow>>, Followed)>,
    /// What came of asking the guest for memory.
    ballooning: Mutex<Option<Ballooning>>,
    /// What the streams' coders did.
    pub(super) coders: Arc<Mutex<Coded>>,
    /// What scans took.
    tracking: Mutex<Tracking>,
    /// What the destination lacks after the newest round, as first page and count.
    lacking: Mutex<Vec<(u64, u64)>>,
    /// The connections of a hypervisor that copies by itself.
    native: Mutex<Option<Arc<Cuts>>>,
    /// Times of the switchover.
    times: Mutex<SwitchoverTimes>,
}

/// What the switchover took, on the source.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SwitchoverTimes {
    /// When the vCPUs stood still.
    pub(crate) stopped: Option<Instant>,
    pub(crate) pause_lead: Duration,
    pub(crate) pause: Duration,
    pub(crate) copy: Duration,
    pub(crate) save: Duration,
    pub(crate) digest: Duration,
    pub(crate) state_bytes: u64,
    /// When all had been sent.
    pub(crate) sent: Option<Instant>,
}

impl Shared {
    /// Makes whatever the streams are doing fail.
    pub(crate) fn cut_streams(&self) {
        self.giving_up.set();
        for socket in self.streams.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            socket.shut_down();
        }
        if let Some(cuts) = &*self.native.lock().unwrap_or_else(PoisonError::into_inner) {
            cuts.end();
        }
    }

    /// Takes note of what a hypervisor that copies by itself has dealt with.
    pub(crate) fn copied(&self, pages: u64) {
        let pages_done = self.pages_done.lock().unwrap_or_else(PoisonError::into_inner);
        pages_done.1.store(pages, Ordering::Relaxed);
    }

    /// Takes note of a guest that its hypervisor has paused.
    pub(crate) fn paused(&self, stopped: Instant, drained: Duration) {
        self.note(|times| {
            times.stopped = Some(stopped);
            times.pause = drained;
        });
    }

    /// Takes note of what the destination lacks, of all rounds: what it said before is no longer so.
    pub(crate) fn lacks(&self, runs: &[(u64, u64)]) {
        *self.lacking.lock().unwrap_or_else(PoisonError::into_inner) = runs.to_vec();
    }

    pub(super) fn take_lacking(&self) -> Vec<(u64, u64)> {
        std::mem::take(&mut self.lacking.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes note of a connection that is read before there are streams.
    pub(super) fn take_link(&self, link: &Link) -> io::Result<()> {
        let socket = link.socket.control()?;
        self.streams.lock().unwrap_or_else(PoisonError::into_inner).push(socket);
        Ok(())
    }

    /// Takes note of new streams.
    pub(super) fn take_streams(&self, pool: &SenderPool, urgent: Option<&Link>) -> io::Result<()> {
        let mut sockets = pool.sockets()?;
        if let Some(urgent) = urgent {
            sockets.push(urgent.socket.control()?);
        }
        *self.streams.lock().unwrap_or_else(PoisonError::into_inner) = sockets;
        let mut pages_done = self.pages_done.lock().unwrap_or_else(PoisonError::into_inner);
        let before = pages_done.0 + pages_done.1.load(Ordering::Relaxed);
        *pages_done = (before, pool.progress());
        Ok(())
    }

    pub(super) fn follow(&self, follow: Arc<Follow>) {
        self.following.lock().unwrap_or_else(PoisonError::into_inner).0 = Some(follow);
    }

    /// Ends the streams over which pages follow; that they end is no failure.
    pub(super) fn end_following(&self) {
        let mut following = self.following.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(follow) = following.0.take() else { return };
        follow.close();
        for socket in self.streams.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            socket.shut_down();
        }
        follow.settle();
        following.1 += follow.followed();
    }

    /// What has followed the guest so far.
    pub(crate) fn followed(&self) -> Followed {
        let following = self.following.lock().unwrap_or_else(PoisonError::into_inner);
        let mut followed = following.1;
        followed += following.0.as_ref().map(|follow| follow.followed()).unwrap_or_default();
        followed
    }

    pub(super) fn note(&self, change: impl FnOnce(&mut SwitchoverTimes)) {
        change(&mut self.times.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub(crate) fn times(&self) -> SwitchoverTimes {
        *self.times.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn ballooned(&self, ballooning: Ballooning) {
        *self.ballooning.lock().unwrap_or_else(PoisonError::into_inner) = Some(ballooning);
    }

    pub(super) fn delegates(&self, cuts: Arc<Cuts>) {
        *self.native.lock().unwrap_or_else(PoisonError::into_inner) = Some(cuts);
    }

    pub(crate) fn ballooning(&self) -> Option<Ballooning> {
        *self.ballooning.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks which pages the guest has written, and takes note of what that took.
    pub(super) fn tracked<T>(&self, look: impl FnOnce() -> T) -> T {
        let began = Instant::now();
        let seen = look();
        let mut tracking = self.tracking.lock().unwrap_or_else(PoisonError::into_inner);
        tracking.scans += 1;
        tracking.took += began.elapsed();
        seen
    }

    /// Takes note of how the guest is tracked, and what scans that forget have taken of its time.
    pub(super) fn stopped_by_scans(&self, tracked: Tracked) {
        let mut tracking = self.tracking.lock().unwrap_or_else(PoisonError::into_inner);
        tracking.by = Some(match tracked.tracker {
            Tracker::PagemapScan => TrackedBy::PagemapScan,
            Tracker::SoftDirty => TrackedBy::SoftDirty,
        });
        tracking.stopped = tracked.stopped;
        tracking.longest_stop = tracked.longest_stop;
    }

    pub(crate) fn tracking(&self) -> Tracking {
        *self.tracking.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn coders(&self) -> Coded {
        *self.coders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn pages_done(&self) -> u64 {
        let pages_done = self.pages_done.lock().unwrap_or_else(PoisonError::into_inner);
        pages_done.0 + pages_done.1.load(Ordering::Relaxed)
    }
}
