//! A guest made of threads that write to real memory under the same kernel tracking as QEMU's.
//!
//! It exists for tests and benches: it starts in a millisecond, writes at memory speed, and knows
//! what its memory should hold, so that a move can be checked page by page.
//!
//! - **RAM** is a memfd. The writers go through a mapping of their own, registered with a
//!   userfaultfd of this process; the engine sees another mapping, as with QEMU.
//! - **vCPUs** are the writer threads; a pause parks them between two page writes.
//! - **Device state** is the [`Registers`] of the writers as JSON, with the configuration.
//! - **Pages** carry their number, a version, and a seal over both; the rest of the page follows
//!   from these (see `synthetic::page`). A writer's registers hold a sum over the versions of all
//!   its pages, so that [`SyntheticGuest::check`] finds a page that is torn, of another place, or
//!   of another time.
//!
//! A guest may arrive before its pages ([`crate::Faults`]): its writers wait for those they touch.
//!
//! A guest ends when its last handle (guest, source, or destination after its load) is dropped:
//! its threads must not outlive a test.

mod check;
mod config;
mod destination;
mod failures;
mod hosted;
mod machine;
mod memories;
mod native;
mod page;
mod registers;
mod source;
mod speed;

pub use check::{CheckReport, Fault};
pub use config::{Content, Rewrite, SyntheticConfig, WriteRate};
pub use destination::SyntheticDestination;
pub use failures::Step;
pub use hosted::AwaitedRam;
pub use machine::SyntheticGuest;
pub use registers::{Registers, WriterRegisters};
pub use source::SyntheticSource;

#[cfg(test)]
mod tests;
