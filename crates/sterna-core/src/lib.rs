//! A migration as two state machines, [`source::Source`] and [`destination::Destination`], and the
//! pool of algorithms that decides what the source does next.
//!
//! Everything here is pure: no I/O, no clock, no threads, no randomness. A machine is fed events
//! with the time at which they happened and answers with effects; the engine performs them and
//! feeds back what became of them. The same machines run under virtual time in `tests/pair.rs`
//! (seeded faults at every step) and in the data-centre simulator.
//!
//! `docs/architecture.md` says why the hand-over cannot run a guest twice.

#![forbid(unsafe_code)]

pub mod algorithm;
pub mod balloon;
pub mod compress;
pub mod destination;
pub mod journal;
pub mod limits;
pub mod prediction;
pub mod progress;
pub mod push;
pub mod receipt;
pub mod source;
pub mod speed;
mod time;
pub mod working_set;

pub use time::Time;
