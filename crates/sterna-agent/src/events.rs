//! What happens on this host, for those who watch it.
//!
//! The newest [`KEPT`] events are remembered, so that a reader who broke off can go on behind the last one that it has
//! seen. A reader holds nothing: one that is too slow finds that some are no longer remembered, and is told so.

use crate::moves::Move;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};
use sterna_api::{Event, Happened};
use tokio::sync::watch;

/// Events that are remembered.
const KEPT: usize = 1024;

/// All that has happened lately.
#[derive(Debug)]
pub(crate) struct Events {
    log: Mutex<Log>,
    news: watch::Sender<()>,
}

#[derive(Debug)]
struct Log {
    kept: VecDeque<Event>,
    /// Number of the next one.
    next: u64,
}

/// Reads events one after the other.
#[derive(Debug)]
pub(crate) struct Reader {
    events: Arc<Events>,
    /// Number of the first that it has not seen.
    next: u64,
    news: watch::Receiver<()>,
}

impl Default for Events {
    fn default() -> Self {
        // By the clock, so that an agent's first event comes after the last one of its predecessor.
        let next = unix_ms().saturating_mul(1000);
        let log = Log { kept: VecDeque::new(), next };
        Self { log: Mutex::new(log), news: watch::Sender::new(()) }
    }
}

impl Events {
    /// Tells that something has happened.
    pub(crate) fn tell(&self, what: Happened) {
        {
            let mut log = self.lock();
            if log.kept.len() == KEPT {
                log.kept.pop_front();
            }
            let event = Event { number: log.next, unix_ms: unix_ms(), what };
            log.kept.push_back(event);
            log.next += 1;
        }
        self.news.send_replace(());
    }

    /// Tells that a move has begun or ended.
    pub(crate) fn tell_of(&self, entry: &Move) {
        let view = entry.view();
        let (id, guest, direction) = (view.id, view.guest, view.direction);
        let (peer, state) = (view.peer, view.state);
        self.tell(Happened::Move { id, guest, direction, peer, state });
    }

    /// A reader of all that comes after the event of this number, or from now on.
    pub(crate) fn reader(self: &Arc<Self>, after: Option<u64>) -> Reader {
        let news = self.news.subscribe();
        let newest = self.lock().next;
        let next = after.map_or(newest, |after| after.saturating_add(1).min(newest));
        Reader { events: Arc::clone(self), next, news }
    }

    fn lock(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reader {
    /// The events that the reader has not seen; waits until there is one.
    pub(crate) async fn next(&mut self) -> Vec<Event> {
        loop {
            let new = self.unseen();
            if let Some(last) = new.last() {
                self.next = last.number + 1;
                return new;
            }
            // Its sender lives as long as the events.
            let _ = self.news.changed().await;
        }
    }

    fn unseen(&self) -> Vec<Event> {
        let log = self.events.lock();
        let unseen = log.kept.iter().filter(|event| event.number >= self.next).cloned();
        let mut new: Vec<Event> = unseen.collect();
        // Numbers have no gaps but between agents.
        if let Some(first) = new.first()
            && first.number > self.next
        {
            let (number, unix_ms) = (first.number - 1, first.unix_ms);
            new.insert(0, Event { number, unix_ms, what: Happened::Missed });
        }
        new
    }
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sterna_proto::message::GuestId;
    use uuid::Uuid;

    fn gone(number: usize) -> Happened {
        Happened::GuestGone { name: number.to_string(), id: GuestId(Uuid::nil()) }
    }

    fn whats(events: &[Event]) -> Vec<Happened> {
        events.iter().map(|event| event.what.clone()).collect()
    }

    #[tokio::test]
    async fn a_reader_sees_what_comes_and_goes_on_where_it_was() {
        let events = Arc::new(Events::default());
        events.tell(gone(0));
        let mut from_now_on = events.reader(None);
        let waiting = tokio::spawn(async move { from_now_on.next().await });
        tokio::task::yield_now().await;
        events.tell(gone(1));
        let seen = waiting.await.unwrap();
        assert_eq!(whats(&seen), [gone(1)]);
        events.tell(gone(2));
        events.tell(gone(3));
        let again = events.reader(Some(seen[0].number)).next().await;
        assert_eq!(whats(&again), [gone(2), gone(3)]);
    }

    #[tokio::test]
    async fn a_reader_that_was_too_slow_is_told_so_once() {
        let events = Arc::new(Events::default());
        let mut slow = events.reader(None);
        for number in 0..KEPT + 5 {
            events.tell(gone(number));
        }
        let seen = whats(&slow.next().await);
        assert_eq!(seen.len(), KEPT + 1);
        assert_eq!((&seen[0], &seen[1]), (&Happened::Missed, &gone(5)));
        events.tell(gone(0));
        assert_eq!(whats(&slow.next().await), [gone(0)]);
    }

    #[tokio::test]
    async fn who_has_seen_events_of_an_earlier_agent_misses_some() {
        let events = Arc::new(Events::default());
        events.tell(gone(0));
        let seen = whats(&events.reader(Some(1)).next().await);
        assert_eq!(seen, [Happened::Missed, gone(0)]);
        // A number of the future, as after the clock was set back, is no reason to wait for it.
        let mut ahead = events.reader(Some(u64::MAX));
        events.tell(gone(1));
        assert_eq!(whats(&ahead.next().await), [gone(1)]);
    }
}
