//! Which pages of a round have come: what a page on one stream refers to may come on another. And which
//! could not be got here although the source thinks so.
//!
//! The source refers only to pages that it has sent before, as it counts; so of all that wait here for
//! each other there is always one that need not wait.

use crate::pages::stream_of;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use sterna_page::{PageCount, PageNumber, PageRun, PageSet};
use sterna_proto::limits::LACKING_RUNS_MAX;

/// What the page streams of one move have brought in the round that is under way.
#[derive(Debug)]
pub(crate) struct Arrivals {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    came: PageSet,
    /// Pages that are not what the source takes them for, of all rounds so far.
    lacking: PageSet,
    streams: Vec<Stage>,
}

/// How far a stream is with this round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Under,
    Ended,
    /// For good.
    Lost,
}

/// Something was referred to that does not come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NeverCame;

impl Arrivals {
    pub(crate) fn new(pages: PageCount, streams: u16) -> Self {
        let none = PageSet::empty(pages);
        let streams = vec![Stage::Under; streams.into()];
        let state = State { came: none.clone(), lacking: none, streams };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// How many streams the move has.
    pub(crate) fn streams(&self) -> u16 {
        u16::try_from(self.lock().streams.len()).unwrap_or(u16::MAX)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// These pages are in the guest's RAM, or will follow it.
    pub(crate) fn came(&self, run: PageRun) {
        let mut state = self.lock();
        state.came.insert_run(run);
        state.lacking.remove_run(run);
        drop(state);
        self.changed.notify_all();
    }

    /// This page cannot be got here.
    pub(crate) fn lacks(&self, page: PageNumber) {
        let mut state = self.lock();
        state.came.insert(page);
        state.lacking.insert(page);
        drop(state);
        self.changed.notify_all();
    }

    /// Whether a page, which has come or was there before, is what the source takes it for.
    pub(crate) fn is_whole(&self, page: PageNumber) -> bool {
        !self.lock().lacking.contains(page)
    }

    /// What the source must send again, as first page and count: all that is lacking, and more where
    /// that would be too long a list.
    pub(crate) fn lacking(&self) -> Vec<(u64, u64)> {
        coarse(&self.lock().lacking, LACKING_RUNS_MAX)
    }

    /// A stream has brought all that it has for this round. The last begins the next round.
    pub(crate) fn ended(&self, stream: u16) {
        self.enter(stream, Stage::Ended);
    }

    /// A stream will bring nothing more at all.
    pub(crate) fn lost(&self, stream: u16) {
        self.enter(stream, Stage::Lost);
    }

    /// The move is over: nobody waits any longer.
    pub(crate) fn close(&self) {
        self.lock().streams.fill(Stage::Lost);
        self.changed.notify_all();
    }

    fn enter(&self, stream: u16, stage: Stage) {
        let mut state = self.lock();
        if let Some(known) = state.streams.get_mut(usize::from(stream)) {
            *known = stage;
        }
        if !state.streams.contains(&Stage::Under) {
            let ended = state.streams.iter_mut().filter(|stage| **stage == Stage::Ended);
            ended.for_each(|stage| *stage = Stage::Under);
            state.came.clear();
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Waits until a page has come in this round, or could not be got.
    pub(crate) fn wait_for(&self, page: PageNumber) -> Result<(), NeverCame> {
        let mut state = self.lock();
        loop {
            if state.came.contains(page) {
                return Ok(());
            }
            let streams = u16::try_from(state.streams.len()).unwrap_or(u16::MAX);
            if state.streams[usize::from(stream_of(page, streams))] != Stage::Under {
                return Err(NeverCame);
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// At most so many runs that hold all pages of a set, as first page and count.
fn coarse(set: &PageSet, most: usize) -> Vec<(u64, u64)> {
    let mut block = 1;
    loop {
        let mut runs: Vec<(u64, u64)> = Vec::new();
        for run in set.runs() {
            let first = run.first.0 / block * block;
            let end = (run.first.0 + run.count.0).next_multiple_of(block).min(set.capacity().0);
            match runs.last_mut() {
                Some((before, count)) if *before + *count >= first => *count = end - *before,
                _ => runs.push((first, end - first)),
            }
        }
        if runs.len() <= most {
            return runs;
        }
        block *= 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pages::CHUNK_PAGES;
    use std::thread;
    use std::time::Duration;

    const OTHER: PageNumber = PageNumber(CHUNK_PAGES);

    #[test]
    fn what_comes_later_on_another_stream_is_waited_for() {
        let arrivals = Arrivals::new(PageCount(2 * CHUNK_PAGES), 2);
        let waited = thread::scope(|scope| {
            let waiting = scope.spawn(|| arrivals.wait_for(OTHER));
            thread::sleep(Duration::from_millis(20));
            assert!(!waiting.is_finished());
            arrivals.came(PageRun { first: OTHER, count: PageCount(3) });
            waiting.join().unwrap()
        });
        assert_eq!(waited, Ok(()));
    }

    #[test]
    fn what_does_not_come_is_waited_for_no_longer_than_its_stream_lasts() {
        let arrivals = Arrivals::new(PageCount(2 * CHUNK_PAGES), 2);
        let waited = thread::scope(|scope| {
            let waiting = scope.spawn(|| arrivals.wait_for(OTHER));
            thread::sleep(Duration::from_millis(20));
            arrivals.ended(1);
            waiting.join().unwrap()
        });
        assert_eq!(waited, Err(NeverCame));
    }

    #[test]
    fn streams_that_wait_for_each_other_end_with_their_move() {
        let arrivals = Arrivals::new(PageCount(2 * CHUNK_PAGES), 2);
        let waited = thread::scope(|scope| {
            let one = scope.spawn(|| arrivals.wait_for(OTHER));
            let other = scope.spawn(|| arrivals.wait_for(PageNumber(0)));
            thread::sleep(Duration::from_millis(20));
            assert!(!one.is_finished() && !other.is_finished());
            arrivals.close();
            [one, other].map(|waiting| waiting.join().unwrap())
        });
        assert_eq!(waited, [Err(NeverCame); 2]);
    }

    #[test]
    fn what_could_not_be_got_is_lacking_until_it_comes() {
        let arrivals = Arrivals::new(PageCount(2 * CHUNK_PAGES), 1);
        arrivals.lacks(PageNumber(3));
        arrivals.lacks(PageNumber(4));
        assert_eq!(arrivals.wait_for(PageNumber(3)), Ok(()), "nobody waits for it in vain");
        assert!(!arrivals.is_whole(PageNumber(3)) && arrivals.is_whole(PageNumber(5)));
        arrivals.ended(0);
        assert_eq!(arrivals.lacking(), [(3, 2)]);
        arrivals.came(PageRun::new(3, 1));
        assert_eq!(arrivals.lacking(), [(4, 1)]);
    }

    #[test]
    fn a_list_that_would_be_too_long_names_more_pages_instead() {
        let mut set = PageSet::empty(PageCount(1001));
        (0..1001).step_by(10).for_each(|page| set.insert(PageNumber(page)));
        assert_eq!(coarse(&set, 101).len(), 101);
        let runs = coarse(&set, 50);
        assert!((1..=50).contains(&runs.len()), "{runs:?}");
        let named =
            |page| runs.iter().any(|(first, count)| (*first..first + count).contains(&page));
        assert!(set.iter().all(|page| named(page.0)));
        assert!(runs.iter().all(|(first, count)| first + count <= 1001), "{runs:?}");
    }

    #[test]
    fn each_round_begins_with_nothing() {
        let arrivals = Arrivals::new(PageCount(2 * CHUNK_PAGES), 2);
        arrivals.came(PageRun { first: OTHER, count: PageCount(1) });
        arrivals.ended(1);
        assert_eq!(arrivals.wait_for(OTHER), Ok(()), "the round is not over");
        arrivals.ended(0);
        arrivals.ended(1);
        assert_eq!(arrivals.wait_for(OTHER), Err(NeverCame));
        arrivals.lost(1);
        arrivals.ended(0);
        assert_eq!(arrivals.wait_for(OTHER), Err(NeverCame), "it does not come back");
    }
}
