//! A guest that began anew: when, after which step of a move, and what makes a move suspect.

use std::fmt;
use std::time::{Duration, Instant};

use thiserror::Error;

use super::KnownMove;

/// Why a reset may be the fault of a move.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Suspicion {
    /// It happened again.
    #[error("{0} resets")]
    Again(usize),
    /// The guest's own kernel or the recorder had something to say.
    #[error("before that it said {0:?}")]
    Spoke(Vec<String>),
    /// It did not tick for long enough where it had arrived.
    #[error("it ran {0:?} of its own time after a move")]
    JustArrived(Duration),
    /// Nobody knows whether the move before it brought all of RAM.
    #[error("RAM was not found equal by the move")]
    RamNotEqual,
    /// A switchover was near, or its time is not known.
    #[error("a move was under way")]
    UnderWay,
    /// It began anew elsewhere than it was last heard, without a move in between.
    #[error("it began anew in another place")]
    Elsewhere,
    /// It never ticked.
    #[error("it never ticked before")]
    NeverRan,
}

/// A guest that began anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reset {
    /// What of the moves was last before it was silent, and for how long; nothing without a move.
    pub after: Option<(MoveEvent, Duration)>,
    /// The last tick of the old life, if it had any.
    pub last_tick: Option<u64>,
    /// From the last tick of the old life until the new one said that it begins.
    pub silent: Duration,
}

/// Something that happens in a move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct MoveEvent {
    /// The number of the move, from 1.
    pub number: usize,
    /// What happened.
    pub what: MoveStep,
}

/// A step of a move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum MoveStep {
    /// It was asked for.
    Begin,
    /// The guest was told to stand still.
    Pause,
    /// The guest was told to run at the destination.
    Resume,
    /// Its end was told.
    End,
}

impl fmt::Display for MoveEvent {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.what {
            MoveStep::Begin => "the begin",
            MoveStep::Pause => "the pause",
            MoveStep::Resume => "the resume",
            MoveStep::End => "the end",
        };
        write!(formatter, "{what} of move {}", self.number)
    }
}

impl fmt::Display for Reset {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.last_tick {
            Some(number) => write!(formatter, "its last tick was {number}, ")?,
            None => write!(formatter, "it had not ticked, ")?,
        }
        match self.after {
            Some((event, after)) => write!(formatter, "{} ms after {event}", after.as_millis())?,
            None => write!(formatter, "before any move")?,
        }
        write!(formatter, ", and it began anew {} ms later", self.silent.as_millis())
    }
}

/// The steps of all moves whose time is known.
pub(super) fn events(moves: &[KnownMove]) -> impl Iterator<Item = (Instant, MoveEvent)> {
    moves.iter().zip(1..).flat_map(|(known, number)| {
        let steps = [
            (Some(known.asked), MoveStep::Begin),
            (known.switchover.map(|window| window.from), MoveStep::Pause),
            (known.switchover.map(|window| window.to), MoveStep::Resume),
            (known.ended, MoveStep::End),
        ];
        steps.into_iter().filter_map(move |(at, what)| Some((at?, MoveEvent { number, what })))
    })
}
