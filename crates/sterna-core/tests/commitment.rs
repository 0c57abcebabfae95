//! Every state that the commitment protocol can come to, and whether the guest is safe in it.
//!
//! That the machines of this crate keep to the protocol is checked beside them, in `pair`.

#[path = "commitment/model.rs"]
mod model;

use model::{Broken, Commitment, Destination, DestinationSays, Guest, Source, SourceSays, State};
use stateright::{Checker, Model, Property};
use std::collections::{HashMap, HashSet, VecDeque};

impl Model for Commitment {
    type State = State;
    type Action = State;

    fn init_states(&self) -> Vec<State> {
        vec![Self::begin()]
    }

    fn actions(&self, state: &State, actions: &mut Vec<State>) {
        actions.extend((*self).next(state));
    }

    fn next_state(&self, _last: &State, next: State) -> Option<State> {
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("the guest never runs twice", |_, s: &State| {
                !(s.here == Guest::Runs && s.there == Guest::Runs)
            }),
            Property::always("what ran there does not run here again", |_, s: &State| {
                !s.ran_there || s.here != Guest::Runs
            }),
            Property::always("it runs only where that is on record", |_, s: &State| {
                let owns = [
                    DestinationSays::Owned,
                    DestinationSays::Owing,
                    DestinationSays::Active,
                    DestinationSays::Lost,
                ];
                !s.ran_there || owns.contains(&s.destination_says)
            }),
            Property::always("it is ended here only once it ran there", |_, s: &State| {
                let ended = s.source_says == SourceSays::Released;
                !ended || s.ran_there
            }),
            Property::always("no guest is lost by itself", |_, s: &State| {
                let over = s.source == Source::Over && s.destination == Destination::Over;
                !over || s.broken || s.here == Guest::Runs || s.there == Guest::Runs
            }),
            Property::sometimes("it can be moved", |_, s: &State| {
                s.source == Source::Over && s.here == Guest::Gone && s.there == Guest::Runs
            }),
            Property::sometimes("it can stay", |_, s: &State| {
                s.source_says == SourceSays::Undone && s.here == Guest::Runs
            }),
        ]
    }
}

const ALL: [Commitment; 4] = [
    Commitment { owed: false, faults: false, broken: None },
    Commitment { owed: true, faults: false, broken: None },
    Commitment { owed: false, faults: true, broken: None },
    Commitment { owed: true, faults: true, broken: None },
];

#[test]
fn the_guest_is_safe_in_every_state() {
    for protocol in ALL {
        let checker = protocol.checker().spawn_bfs().join();
        println!("{protocol:?}: {} states", checker.unique_state_count());
        checker.assert_properties();
    }
}

#[test]
fn no_rule_can_be_broken() {
    let rules = [
        Broken::OfferComesAgain,
        Broken::SourceGivesUpWaiting,
        Broken::PausedIsOurs,
        Broken::NeverSaidEarly,
        Broken::RunsUnrecorded,
        Broken::EndedOnCommit,
        Broken::EndedUnrefused,
    ];
    for rule in rules {
        let protocol = Commitment { owed: false, faults: true, broken: Some(rule) };
        let found = protocol.checker().spawn_bfs().join().discoveries();
        let unsafe_states = found.keys().filter(|property| !property.starts_with("it can"));
        assert!(unsafe_states.count() > 0, "{rule:?} does no harm");
    }
}

/// From wherever faults have brought it, a move can still end as it should once there are no more: the guest
/// runs in one place, and both agents have done with it; unless a hypervisor was lost, or could not do its part.
#[test]
fn every_state_has_a_way_to_an_end() {
    for protocol in ALL {
        let mut before: HashMap<State, Vec<State>> = HashMap::new();
        let mut seen = HashSet::from([Commitment::begin()]);
        let mut queue = VecDeque::from([Commitment::begin()]);
        while let Some(state) = queue.pop_front() {
            for next in protocol.next(&state) {
                before.entry(next).or_default().push(state);
                if seen.insert(next) {
                    queue.push_back(next);
                }
            }
        }
        let is_end = |s: &&State| {
            let source = s.source == Source::Over;
            let one = (s.here == Guest::Runs) != (s.there == Guest::Runs);
            source && (one || s.broken)
        };
        let mut good: HashSet<State> = seen.iter().filter(is_end).copied().collect();
        let mut queue: VecDeque<State> = good.iter().copied().collect();
        while let Some(state) = queue.pop_front() {
            for earlier in before.get(&state).into_iter().flatten() {
                if good.insert(*earlier) {
                    queue.push_back(*earlier);
                }
            }
        }
        let stuck = seen.iter().find(|state| !good.contains(state));
        assert_eq!(stuck, None, "{protocol:?}");
    }
}
