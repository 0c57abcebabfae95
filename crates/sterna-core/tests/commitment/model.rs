//! The commitment protocol, apart from all that only makes it fast: two hosts, their journals, the guest's two
//! hypervisors, and everything that was ever said between them.
//!
//! The network is worse than a real one: what was said may arrive at any later time, any number of times, in
//! any order, or never; but for the offer, which comes once: it is the first word of a connection. Agents may be killed and restarted at any moment, hypervisors may die, records may fail, with
//! or without having become durable. Nothing else is left of time limits than that they may end at any moment.
//!
//! `docs/design/0001`, "Commitment", says why it holds.

/// The guest, as it is in one of the hypervisors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Guest {
    /// There is no hypervisor for it.
    None,
    /// All that was executed of it was executed elsewhere.
    Waits,
    Runs,
    /// It ran here.
    Paused,
    /// An agent has ended its hypervisor.
    Gone,
    /// Its hypervisor has ended by itself.
    Died,
}

/// What the source's journal says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum SourceSays {
    Nothing,
    Moving,
    Released,
    Undone,
}

/// What the destination's journal says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum DestinationSays {
    Nothing,
    Receiving,
    Owned,
    Owing,
    Active,
    Lost,
    Refused,
}

/// Where the source's agent is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Source {
    Negotiates,
    Copies,
    /// The guest is paused, and the rest goes over.
    Finishes,
    /// It has said `Commit`, or does not know whether it has.
    Asks,
    /// The destination runs the guest and is owed pages.
    Serves,
    Releases,
    /// It ends the guest here.
    Ends,
    Undoes,
    /// The guest was resumed, or could not be, which is to be recorded.
    Undid,
    Over,
    Killed,
}

/// Where the destination's agent is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Destination {
    /// It knows of no such move.
    Idle,
    Receives,
    Ready,
    Owns,
    Activates,
    Owes,
    /// The guest runs here as a whole, which is to be recorded.
    Completes,
    /// It gives the guest up. The record is to be made first, or beside.
    Discards {
        first: bool,
        refused: Refusal,
        ended: bool,
    },
    /// It can neither run the guest nor say that it did not.
    Loses,
    Over,
    Killed,
}

/// How the record stands that refuses the attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Refusal {
    Asked,
    Made,
    Failed,
}

/// What was ever said, one bit each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Said(u16);

/// Something to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    Offer,
    Switchover,
    Commit,
    Query,
    Abort,
    PagesLost,
    Ready,
    Owing,
    Active,
    Never,
    Lost,
}

impl Said {
    fn has(self, word: Word) -> bool {
        self.0 >> word as u16 & 1 == 1
    }

    fn without(self, word: Word) -> Self {
        Self(self.0 & !(1 << word as u16))
    }

    fn with(self, word: Word) -> Self {
        Self(self.0 | 1 << word as u16)
    }
}

/// All of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct State {
    pub(crate) source: Source,
    pub(crate) source_says: SourceSays,
    pub(crate) here: Guest,
    /// Whether an agent of the source still has the RAM after its hypervisor has ended.
    pub(crate) ram: bool,
    pub(crate) destination: Destination,
    pub(crate) destination_says: DestinationSays,
    pub(crate) there: Guest,
    /// Whether the guest has executed anything there.
    pub(crate) ran_there: bool,
    /// Whether a hypervisor has died, or could not do what it was asked, or a journal could record neither that
    /// the guest is owned nor that it is not: then it may end paused, or nowhere.
    pub(crate) broken: bool,
    pub(crate) said: Said,
}

/// The protocol.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Commitment {
    /// Whether pages follow the guest.
    pub(crate) owed: bool,
    /// Whether anything may go wrong but the network.
    pub(crate) faults: bool,
    /// A rule that is broken on purpose.
    pub(crate) broken: Option<Broken>,
}

/// What would not be safe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Broken {
    /// An offer may come again, to an agent that knows nothing of it any more.
    OfferComesAgain,
    /// A source that gets no answer to its commit takes the guest back.
    SourceGivesUpWaiting,
    /// A new agent of the source takes a paused guest for its own.
    PausedIsOurs,
    /// The destination says that it will never run the guest before that is certain.
    NeverSaidEarly,
    /// The destination lets the guest run before that is on record.
    RunsUnrecorded,
    /// The source ends its guest when it has committed.
    EndedOnCommit,
    /// The destination ends the hypervisor of a guest that it owns before it has recorded that it gives it up.
    EndedUnrefused,
}

impl Commitment {
    pub(crate) fn begin() -> State {
        State {
            source: Source::Negotiates,
            source_says: SourceSays::Nothing,
            here: Guest::Runs,
            ram: true,
            destination: Destination::Idle,
            destination_says: DestinationSays::Nothing,
            there: Guest::None,
            ran_there: false,
            broken: false,
            said: Said::default().with(Word::Offer),
        }
    }

    fn is_broken(self, rule: Broken) -> bool {
        self.broken == Some(rule)
    }

    /// All states that may come next.
    pub(crate) fn next(self, state: &State) -> Vec<State> {
        let mut all = Vec::new();
        self.source(state, &mut all);
        self.destination(state, &mut all);
        if self.faults {
            self.faults(state, &mut all);
        }
        all.retain(|next| next != state);
        all.sort_unstable();
        all.dedup();
        all
    }

    /// What the source's agent may do.
    fn source(self, s: &State, all: &mut Vec<State>) {
        use Source::{
            Asks, Copies, Ends, Finishes, Killed, Negotiates, Over, Releases, Serves, Undid, Undoes,
        };
        let to = |source| State { source, ..*s };
        let says = |word, source| State { source, said: s.said.with(word), ..*s };
        match s.source {
            // What is granted is recorded before the first page is sent.
            Negotiates => all.push(State { source_says: SourceSays::Moving, ..to(Copies) }),
            Copies if s.here == Guest::Runs => {
                all.push(State { here: Guest::Paused, ..to(Finishes) });
            }
            Finishes => {
                all.push(says(Word::Switchover, Finishes));
                if s.said.has(Word::Ready) {
                    all.push(says(Word::Commit, Asks));
                }
            }
            Asks | Serves => {
                all.push(says(Word::Query, s.source));
                if s.source == Asks && self.is_broken(Broken::SourceGivesUpWaiting) {
                    all.push(to(Undoes));
                }
                if self.is_broken(Broken::EndedOnCommit) {
                    all.push(to(Releases));
                }
                if s.said.has(Word::Active) {
                    all.push(to(Releases));
                }
                if s.said.has(Word::Owing) {
                    all.push(to(Serves));
                    if !s.ram {
                        all.push(says(Word::PagesLost, s.source));
                    }
                }
                if s.said.has(Word::Lost) {
                    all.push(to(Over));
                }
                if s.said.has(Word::Never) && s.source == Asks {
                    all.push(to(Undoes));
                }
            }
            // A record that fails does no harm.
            Releases => {
                all.push(State { source_says: SourceSays::Released, ..to(Ends) });
                if self.faults {
                    all.push(to(Ends));
                }
            }
            Ends => {
                let gone = if ended(s.here) { s.here } else { Guest::Gone };
                all.push(State { here: gone, ..to(Over) });
            }
            Undoes => {
                let resumed = if s.here == Guest::Paused { Guest::Runs } else { s.here };
                all.push(State { here: resumed, ..to(Undid) });
                if self.faults {
                    all.push(State { broken: true, ..to(Undid) });
                }
            }
            Undid => {
                all.push(State { source_says: SourceSays::Undone, ..to(Over) });
                if self.faults {
                    all.push(to(Over));
                }
            }
            Copies | Over | Killed => {}
        }
        // Whatever fails before the commitment, or lasts too long.
        if matches!(s.source, Negotiates | Copies | Finishes) {
            all.push(says(Word::Abort, Undoes));
        }
    }

    /// What the destination's agent may do.
    fn destination(self, s: &State, all: &mut Vec<State>) {
        use Destination::{
            Activates, Completes, Discards, Idle, Killed, Loses, Over, Owes, Owns, Ready, Receives,
        };
        let to = |destination| State { destination, ..*s };
        let says = |word, destination| State { destination, said: s.said.with(word), ..*s };
        let asked = s.said.has(Word::Commit) || s.said.has(Word::Query);
        match s.destination {
            Idle => {
                if s.said.has(Word::Offer) {
                    let again = self.is_broken(Broken::OfferComesAgain);
                    let said = if again { s.said } else { s.said.without(Word::Offer) };
                    let taken = State { said, ..*s };
                    // The hypervisor is there before the record is.
                    let there = Guest::Waits;
                    all.push(State { there, destination: Receives, ..taken });
                    // It is refused, or given up before there is a hypervisor.
                    all.push(State { destination: DISCARDS, ..taken });
                }
                if asked {
                    all.push(to(DISCARDS));
                }
            }
            Receives => {
                if s.destination_says == DestinationSays::Nothing {
                    let receiving = DestinationSays::Receiving;
                    all.push(State { destination_says: receiving, ..to(Receives) });
                } else if s.said.has(Word::Switchover) && s.there == Guest::Waits {
                    all.push(says(Word::Ready, Ready));
                }
            }
            Ready if s.said.has(Word::Commit) => {
                all.push(to(Owns));
                if self.is_broken(Broken::RunsUnrecorded) {
                    all.push(to(Activates));
                }
            }
            Owns => {
                let owned = if self.owed { DestinationSays::Owing } else { DestinationSays::Owned };
                all.push(State { destination_says: owned, ..to(Activates) });
                if self.faults {
                    // Durable or not.
                    let discards = match self.is_broken(Broken::EndedUnrefused) {
                        true => DISCARDS,
                        false => DISCARDS_FIRST,
                    };
                    all.push(State { destination_says: owned, ..to(discards) });
                    all.push(to(discards));
                }
                if ended(s.there) {
                    all.push(State { destination_says: owned, ..to(DISCARDS_FIRST) });
                }
            }
            Activates => {
                let word = if self.owed { Word::Owing } else { Word::Active };
                let next = if self.owed { Owes } else { Completes };
                if exists(s.there) {
                    let runs = State { there: Guest::Runs, ran_there: true, ..says(word, next) };
                    all.push(runs);
                }
                if self.faults && !self.owed {
                    // It surely did not run, or nobody can tell.
                    if !s.ran_there {
                        all.push(State { broken: true, ..to(DISCARDS_FIRST) });
                    }
                    all.push(State { broken: true, ..to(Loses) });
                    let briefly =
                        [Guest::Runs, Guest::Paused].into_iter().filter(|_| exists(s.there));
                    all.extend(briefly.map(|there| State {
                        there,
                        ran_there: true,
                        broken: true,
                        ..to(Loses)
                    }));
                }
                if self.faults && self.owed {
                    all.push(says(Word::Owing, Owes));
                    if exists(s.there) {
                        let there = Guest::Paused;
                        all.push(State { there, ran_there: true, ..says(Word::Owing, Owes) });
                    }
                    if !s.ran_there {
                        all.push(State { broken: true, ..to(DISCARDS_FIRST) });
                    }
                }
            }
            Owes => {
                all.push(says(Word::Owing, Owes));
                if exists(s.there) {
                    all.push(State { there: Guest::Runs, ran_there: true, ..*s });
                }
                if s.there == Guest::Runs && s.source == Source::Serves && s.ram {
                    all.push(says(Word::Active, Completes));
                }
                if ended(s.there) {
                    // If the agent has seen it run it has ended as any guest may.
                    if s.ran_there {
                        all.push(says(Word::Active, Completes));
                    }
                    all.push(to(Loses));
                }
                if s.said.has(Word::PagesLost) {
                    let halted = if s.there == Guest::Runs { Guest::Paused } else { s.there };
                    all.push(State { there: halted, broken: true, ..to(Loses) });
                }
            }
            Completes => {
                all.push(State { destination_says: DestinationSays::Active, ..to(Over) });
                if self.faults {
                    all.push(to(Over));
                }
            }
            Loses => {
                all.push(says(Word::Lost, Over));
                if self.owed {
                    let lost = DestinationSays::Lost;
                    all.push(State { destination_says: lost, ..says(Word::Lost, Over) });
                }
            }
            Discards { first, refused, ended } => {
                let at = |refused, ended| to(Discards { first, refused, ended });
                // It was asked for before.
                if s.destination_says == DestinationSays::Nothing && refused == Refusal::Asked {
                    let receiving = DestinationSays::Receiving;
                    all.push(State { destination_says: receiving, ..*s });
                }
                if refused == Refusal::Asked {
                    let says = DestinationSays::Refused;
                    all.push(State { destination_says: says, ..at(Refusal::Made, ended) });
                    if self.faults {
                        // What is owned and not refused, and has no hypervisor any more, may have run to a new agent.
                        let broken = s.broken || first;
                        all.push(State { broken, ..at(Refusal::Failed, ended) });
                        all.push(State { destination_says: says, ..at(Refusal::Failed, ended) });
                    }
                }
                let waits = first && refused == Refusal::Asked;
                if !ended && !waits {
                    let gone = if exists(s.there) { Guest::Gone } else { s.there };
                    all.push(State { there: gone, ..at(refused, true) });
                }
                if refused == Refusal::Made || ended || self.is_broken(Broken::NeverSaidEarly) {
                    all.push(says(Word::Never, s.destination));
                }
                if ended && refused != Refusal::Asked && s.said.has(Word::Never) {
                    all.push(to(Over));
                }
            }
            Over => {
                // Whoever asks is answered from the journal.
                if asked {
                    all.push(to(Killed));
                }
            }
            Ready | Killed => {}
        }
        if matches!(s.destination, Receives | Ready) {
            all.push(to(DISCARDS));
        }
        if s.destination == Killed {
            restart_destination(s, all);
        }
    }
}

/// Whether there was a hypervisor with the guest, and is none any more.
fn ended(guest: Guest) -> bool {
    matches!(guest, Guest::Gone | Guest::Died)
}

/// Whether there is a hypervisor with the guest.
fn exists(guest: Guest) -> bool {
    matches!(guest, Guest::Waits | Guest::Runs | Guest::Paused)
}

const DISCARDS: Destination =
    Destination::Discards { first: false, refused: Refusal::Asked, ended: false };
const DISCARDS_FIRST: Destination =
    Destination::Discards { first: true, refused: Refusal::Asked, ended: false };

/// A new agent, which knows what is on record and what the hypervisors do.
fn restart_destination(s: &State, all: &mut Vec<State>) {
    use Destination::{Activates, Completes, Idle, Loses, Owes};
    let to = |destination| State { destination, ..*s };
    let exists = exists(s.there);
    all.push(match s.destination_says {
        DestinationSays::Nothing if s.there == Guest::None => to(Idle),
        DestinationSays::Nothing | DestinationSays::Receiving | DestinationSays::Refused => {
            to(DISCARDS)
        }
        DestinationSays::Owned if exists => to(Activates),
        DestinationSays::Owing if exists => to(Owes),
        DestinationSays::Owned | DestinationSays::Owing | DestinationSays::Lost => to(Loses),
        DestinationSays::Active => State { said: s.said.with(Word::Active), ..to(Completes) },
    });
}

impl Commitment {
    fn restart_source(self, s: &State) -> State {
        use Source::{Asks, Ends, Over, Undoes};
        let to = |source| State { source, ..*s };
        match (s.source_says, s.here) {
            (SourceSays::Nothing, _) => to(Over),
            (SourceSays::Moving, Guest::Runs) => to(Undoes),
            (SourceSays::Moving, _) if self.is_broken(Broken::PausedIsOurs) => to(Undoes),
            (SourceSays::Moving, _) => to(Asks),
            (SourceSays::Released, _) => to(Ends),
            (SourceSays::Undone, Guest::Paused) => State { here: Guest::Runs, ..to(Over) },
            (SourceSays::Undone, _) => to(Over),
        }
    }

    /// What happens to agents and hypervisors.
    fn faults(self, s: &State, all: &mut Vec<State>) {
        // With the agent goes the RAM of a hypervisor that has ended before.
        let ram = s.ram && !ended(s.here);
        all.push(match s.source {
            Source::Killed => self.restart_source(s),
            _ => State { source: Source::Killed, ram, ..*s },
        });
        if s.destination != Destination::Killed {
            all.push(State { destination: Destination::Killed, ..*s });
        }
        if matches!(s.here, Guest::Runs | Guest::Paused) {
            let ram = s.ram && s.source != Source::Killed;
            all.push(State { here: Guest::Died, ram, broken: true, ..*s });
        }
        if exists(s.there) {
            all.push(State { there: Guest::Died, broken: true, ..*s });
        }
    }
}
