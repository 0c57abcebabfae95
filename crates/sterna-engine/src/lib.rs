//! Runs migrations: the machines of `sterna-core` over real connections, guests and journals.
//!
//! ```text
//!   source                                                  destination
//!   ┌──────────────┐   control connection (TLS 1.3)    ┌──────────────┐
//!   │ source::move │◀─────────────────────────────────▶│ destination  │  one thread each runs the
//!   └──────┬───────┘                                   └──────┬───────┘  machine and its effects
//!   ┌──────┴───────┐   page connections (TLS 1.3)      ┌──────┴───────┐
//!   │ page senders │──────────────────────────────────▶│ page readers │  one thread a stream
//!   └──────────────┘                                   └──────────────┘
//! ```
//!
//! The engine decides nothing: what to do next is the machines' answer, what a host allows is the
//! [`Host`]'s. It never hands a guest over without the machines' word, and whatever fails here is
//! fed to them as an event.

#![forbid(unsafe_code)]

#[cfg(test)]
extern crate self as sterna_engine;

pub mod destination;
mod digest;
#[doc(hidden)]
pub mod fuzzing;
mod host;
pub mod identity;
mod inquiry;
mod interface;
mod link;
pub mod native;
mod observe;
mod pages;
mod priority;
mod probe;
mod sample;
pub mod source;
mod watch;
mod words;

pub use digest::of as ram_digest;
pub use host::{Disks, FoundMove, Host, Keeper, SourceJournal};
pub use inquiry::inquire;
pub use link::UNACKNOWLEDGED_MAX;
pub use observe::{Observed, observe};
pub use pages::Bandwidth;
pub use probe::{LinkTrial, try_link};
pub use sample::Sample;
pub use watch::Watch;
