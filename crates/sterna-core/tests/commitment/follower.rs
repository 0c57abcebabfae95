//! Whether what is seen of a move is what the commitment protocol allows.
//!
//! Agents are not looked into. All states are kept that the protocol can be in after what was seen; it is broken
//! when none is left.

use crate::model::{Commitment, DestinationSays, Guest, SourceSays, State};
use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

/// What can be seen without looking into an agent: what the guest does here and there, and what is on record.
pub(crate) type Seen = (Guest, SourceSays, Guest, DestinationSays);

pub(crate) fn seen(state: &State) -> Seen {
    (state.here, state.source_says, state.there, state.destination_says)
}

/// When an agent is killed, what it has asked for of its journal and of its hypervisor may take place at once.
const STEPS_AT_ONCE: usize = 2;

/// All states of the protocol, of moves whose pages follow the guest and of others.
struct Graph {
    seen: Vec<Seen>,
    /// What may come after each.
    after: Vec<Vec<usize>>,
    begin: Vec<usize>,
}

static GRAPH: LazyLock<Graph> = LazyLock::new(|| {
    let mut graph = Graph { seen: Vec::new(), after: Vec::new(), begin: Vec::new() };
    for owed in [false, true] {
        graph.add(Commitment { owed, faults: true, broken: None });
    }
    graph
});

impl Graph {
    fn add(&mut self, protocol: Commitment) {
        let first = self.seen.len();
        let mut states = vec![Commitment::begin()];
        let mut numbers: HashMap<State, usize> = HashMap::from([(states[0], first)]);
        let mut at = 0;
        while let Some(state) = states.get(at).copied() {
            let after = protocol.next(&state).into_iter().map(|next| {
                *numbers.entry(next).or_insert_with(|| {
                    states.push(next);
                    first + states.len() - 1
                })
            });
            self.after.push(after.collect());
            self.seen.push(seen(&state));
            at += 1;
        }
        self.begin.push(first);
    }

    /// These states, and all that come after them and look like them; ascending.
    fn closed(&self, states: impl Iterator<Item = usize>) -> Vec<usize> {
        let mut is_in = vec![false; self.seen.len()];
        let mut new: Vec<usize> = states.collect();
        while let Some(state) = new.pop() {
            if !std::mem::replace(&mut is_in[state], true) {
                let alike = |next: &&usize| self.seen[**next] == self.seen[state];
                new.extend(self.after[state].iter().filter(alike));
            }
        }
        (0..is_in.len()).filter(|state| is_in[*state]).collect()
    }
}

/// Where the protocol may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Place(usize);

/// Places are few, and come again and again.
#[derive(Default)]
struct Places {
    /// States that look alike, with all that come after them and look like them.
    sets: Vec<Vec<usize>>,
    numbers: HashMap<Vec<usize>, Place>,
    ways: HashMap<(Place, Seen), Option<Place>>,
}

static PLACES: LazyLock<Mutex<Places>> = LazyLock::new(Mutex::default);

fn places() -> MutexGuard<'static, Places> {
    PLACES.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Place {
    /// A move begins.
    pub(crate) fn begin() -> Self {
        let begin = GRAPH.closed(GRAPH.begin.iter().copied());
        places().number(begin)
    }

    /// What is seen next; `None` if it cannot be.
    pub(crate) fn sees(self, seen: Seen) -> Option<Self> {
        let mut places = places();
        if let Some(known) = places.ways.get(&(self, seen)) {
            return *known;
        }
        let mut reached = places.sets[self.0].clone();
        let mut next = Vec::new();
        for _ in 0..STEPS_AT_ONCE {
            let after = reached.iter().flat_map(|state| GRAPH.after[*state].iter().copied());
            reached = GRAPH.closed(after);
            next.extend(reached.iter().filter(|state| GRAPH.seen[**state] == seen));
        }
        let next = GRAPH.closed(next.into_iter());
        let place = (!next.is_empty()).then(|| places.number(next));
        places.ways.insert((self, seen), place);
        place
    }
}

impl Places {
    fn number(&mut self, states: Vec<usize>) -> Place {
        let new = Place(self.sets.len());
        *self.numbers.entry(states).or_insert_with_key(|states| {
            self.sets.push(states.clone());
            new
        })
    }
}
