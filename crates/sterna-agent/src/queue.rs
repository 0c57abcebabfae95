//! The moves from this host that are under way, and those that wait for their turn.
//!
//! A move begins once fewer moves are under way than the host allows, and fewer of them go where it goes. Of
//! those that may begin the one of the highest priority does, of equal ones the one that has waited longest. One that
//! waits for its destination holds nobody up who goes elsewhere.
//!
//! Moves that are made one after the other end sooner than the same moves at once: each has the whole link, so its guest
//! writes less meanwhile that must be sent again (the order of gang migrations, `docs/design/0004`).

use crate::settings::MoveLimits;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use sterna_api::Priority;
use tokio::sync::watch;

/// Who goes now, and who waits.
#[derive(Debug)]
pub(crate) struct Queue {
    state: Mutex<State>,
    news: watch::Sender<()>,
}

#[derive(Debug)]
struct State {
    at_once: NonZeroU32,
    to_one_host: NonZeroU32,
    /// Where the moves go that are under way.
    under_way: Vec<IpAddr>,
    /// In the order in which they came.
    waiting: Vec<Waiting>,
    next_number: u64,
}

#[derive(Clone, Copy, Debug)]
struct Waiting {
    number: u64,
    to: IpAddr,
    priority: Priority,
}

/// A move's turn: until this is dropped it counts as under way.
#[derive(Debug)]
pub(crate) struct Turn {
    queue: Arc<Queue>,
    to: IpAddr,
}

/// A place among those that wait; given up when it is dropped.
#[derive(Debug)]
struct Place {
    queue: Arc<Queue>,
    number: u64,
}

impl Queue {
    /// A queue in which nobody is.
    pub(crate) fn new(limits: &MoveLimits) -> Self {
        let state = State {
            at_once: limits.from_here,
            to_one_host: limits.to_one_host,
            under_way: Vec::new(),
            waiting: Vec::new(),
            next_number: 0,
        };
        Self { state: Mutex::new(state), news: watch::Sender::new(()) }
    }

    /// Changes what is allowed. Moves that are under way go on.
    pub(crate) fn set_limits(&self, limits: &MoveLimits) {
        {
            let mut state = self.lock();
            (state.at_once, state.to_one_host) = (limits.from_here, limits.to_one_host);
        }
        self.news.send_replace(());
    }

    /// Waits for the turn of a move. What it waits for is told to `waits`, again whenever that changes.
    pub(crate) async fn turn(
        self: &Arc<Self>,
        to: IpAddr,
        priority: Priority,
        mut waits: impl FnMut(String),
    ) -> Turn {
        let mut news = self.news.subscribe();
        let place = self.enter(to, priority);
        loop {
            match place.try_begin() {
                Ok(turn) => return turn,
                Err(why) => waits(why),
            }
            // Its sender lives as long as the queue, so there can only be news.
            let _ = news.changed().await;
        }
    }

    fn enter(self: &Arc<Self>, to: IpAddr, priority: Priority) -> Place {
        let mut state = self.lock();
        let number = state.next_number;
        state.next_number += 1;
        state.waiting.push(Waiting { number, to, priority });
        drop(state);
        // Others wait behind it now, if it is of a higher priority.
        self.news.send_replace(());
        Place { queue: Arc::clone(self), number }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn is_full(&self) -> bool {
        self.under_way.len() >= size(self.at_once)
    }

    fn has_room_at(&self, to: IpAddr) -> bool {
        self.under_way.iter().filter(|other| **other == to).count() < size(self.to_one_host)
    }

    /// Whose turn it is.
    fn next(&self) -> Option<Waiting> {
        let may_begin = |waiting: &&Waiting| !self.is_full() && self.has_room_at(waiting.to);
        self.waiting.iter().filter(may_begin).min_by_key(|w| w.order()).copied()
    }

    /// What a move waits for.
    fn why(&self, this: Waiting) -> String {
        let before = self.waiting.iter().filter(|other| other.order() < this.order()).count();
        let ahead = match before {
            0 => String::new(),
            1 => ", and one waits ahead of it".to_owned(),
            more => format!(", and {more} wait ahead of it"),
        };
        let busy = if self.has_room_at(this.to) || self.is_full() {
            moves_are(self.under_way.len(), "from this host")
        } else {
            let there = self.under_way.iter().filter(|other| **other == this.to).count();
            moves_are(there, &format!("from this host to {}", this.to))
        };
        format!("{busy}{ahead}")
    }
}

fn moves_are(count: usize, which: &str) -> String {
    match count {
        1 => format!("one move {which} is under way"),
        more => format!("{more} moves {which} are under way"),
    }
}

fn size(count: NonZeroU32) -> usize {
    usize::try_from(count.get()).unwrap_or(usize::MAX)
}

impl Waiting {
    /// The least goes first.
    fn order(&self) -> (std::cmp::Reverse<Priority>, u64) {
        (std::cmp::Reverse(self.priority), self.number)
    }
}

impl Place {
    /// Begins if it is this one's turn, or says what it waits for.
    fn try_begin(&self) -> Result<Turn, String> {
        let mut state = self.queue.lock();
        let mine = |waiting: &Waiting| waiting.number == self.number;
        // It waits until this is dropped.
        let Some(this) = state.waiting.iter().find(|waiting| mine(waiting)).copied() else {
            return Err("its place in the queue is lost".into());
        };
        if !state.next().is_some_and(|next| mine(&next)) {
            return Err(state.why(this));
        }
        state.under_way.push(this.to);
        Ok(Turn { queue: Arc::clone(&self.queue), to: this.to })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.queue.lock().waiting.retain(|waiting| waiting.number != self.number);
        self.queue.news.send_replace(());
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut state = self.queue.lock();
        if let Some(at) = state.under_way.iter().position(|to| *to == self.to) {
            state.under_way.swap_remove(at);
        }
        drop(state);
        self.queue.news.send_replace(());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::task::JoinHandle;

    const B: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));
    const C: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 3));

    fn limits(from_here: u32, to_one_host: u32) -> MoveLimits {
        let count = |number| NonZeroU32::new(number).unwrap();
        let (from_here, to_one_host) = (count(from_here), count(to_one_host));
        MoveLimits { from_here, to_one_host, ..MoveLimits::default() }
    }

    fn queue(from_here: u32, to_one_host: u32) -> Arc<Queue> {
        Arc::new(Queue::new(&limits(from_here, to_one_host)))
    }

    /// A move that waits for its turn, and what it was told last.
    struct Mover {
        turn: JoinHandle<Turn>,
        told: Arc<Mutex<String>>,
    }

    impl Mover {
        async fn new(queue: &Arc<Queue>, to: IpAddr, priority: Priority) -> Self {
            let told = Arc::new(Mutex::new(String::new()));
            let turn = tokio::spawn({
                let (queue, told) = (Arc::clone(queue), Arc::clone(&told));
                async move { queue.turn(to, priority, |why| *told.lock().unwrap() = why).await }
            });
            let mover = Self { turn, told };
            settle().await;
            mover
        }

        fn has_begun(&self) -> bool {
            self.turn.is_finished()
        }

        fn told(&self) -> String {
            self.told.lock().unwrap().clone()
        }
    }

    /// Lets every task run until it waits: there is one thread.
    async fn settle() {
        for _ in 0..50 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn the_highest_priority_goes_first_and_of_equal_ones_the_oldest() {
        let queue = queue(1, 1);
        let first = Mover::new(&queue, B, Priority::Low).await;
        assert!(first.has_begun());
        let low = Mover::new(&queue, B, Priority::Low).await;
        let normal = Mover::new(&queue, B, Priority::Normal).await;
        let later = Mover::new(&queue, B, Priority::Normal).await;
        let high = Mover::new(&queue, C, Priority::High).await;
        let under_way = "one move from this host is under way";
        assert_eq!(low.told(), format!("{under_way}, and 3 wait ahead of it"));
        assert_eq!(high.told(), under_way);
        let mut turn = first.turn.await.unwrap();
        for next in [high, normal, later, low] {
            assert!(!next.has_begun());
            drop(turn);
            settle().await;
            assert!(next.has_begun(), "{}", next.told());
            turn = next.turn.await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_busy_destination_holds_nobody_up_who_goes_elsewhere() {
        let queue = queue(2, 1);
        let first = Mover::new(&queue, B, Priority::Normal).await;
        let second = Mover::new(&queue, B, Priority::High).await;
        let elsewhere = Mover::new(&queue, C, Priority::Low).await;
        assert!(first.has_begun() && elsewhere.has_begun() && !second.has_begun());
        drop(elsewhere.turn.await);
        settle().await;
        assert_eq!(second.told(), "one move from this host to 10.0.0.2 is under way");
        drop(first.turn.await);
        settle().await;
        assert!(second.has_begun());
    }

    #[tokio::test]
    async fn who_gives_up_waiting_lets_others_pass() {
        let queue = queue(1, 1);
        let first = Mover::new(&queue, B, Priority::Normal).await;
        let gives_up = Mover::new(&queue, B, Priority::High).await;
        let waits = Mover::new(&queue, B, Priority::Normal).await;
        assert!(waits.told().ends_with("one waits ahead of it"), "{}", waits.told());
        gives_up.turn.abort();
        settle().await;
        assert_eq!(waits.told(), "one move from this host is under way");
        drop(first.turn.await);
        settle().await;
        assert!(waits.has_begun());
    }

    #[tokio::test]
    async fn limits_may_change_while_moves_wait() {
        let queue = queue(1, 1);
        let first = Mover::new(&queue, B, Priority::Normal).await;
        let second = Mover::new(&queue, B, Priority::Normal).await;
        let third = Mover::new(&queue, B, Priority::Normal).await;
        queue.set_limits(&limits(3, 2));
        settle().await;
        assert!(second.has_begun() && !third.has_begun());
        queue.set_limits(&limits(1, 1));
        drop(first.turn.await);
        settle().await;
        assert!(!third.has_begun(), "the second is still under way");
        drop(second.turn.await);
        settle().await;
        assert!(third.has_begun());
    }

    #[tokio::test]
    async fn many_that_wait_all_get_their_turn_and_never_too_many_at_once() {
        let queue = queue(3, 2);
        let running = Arc::new(Mutex::new((0, 0)));
        let movers: Vec<_> = (0..40)
            .map(|number| {
                let (queue, running) = (Arc::clone(&queue), Arc::clone(&running));
                tokio::spawn(async move {
                    let to = if number % 3 == 0 { C } else { B };
                    let turn = queue.turn(to, Priority::Normal, drop).await;
                    let enter = |by: i32| {
                        let mut now = running.lock().unwrap();
                        *(if to == B { &mut now.0 } else { &mut now.1 }) += by;
                        assert!(now.0 <= 2 && now.1 <= 2 && now.0 + now.1 <= 3, "{now:?}");
                    };
                    enter(1);
                    tokio::task::yield_now().await;
                    enter(-1);
                    drop(turn);
                })
            })
            .collect();
        for mover in movers {
            mover.await.unwrap();
        }
        let state = queue.lock();
        assert!(state.under_way.is_empty() && state.waiting.is_empty(), "{state:?}");
    }
}
