//! The flight recorder: the workload of the test guest, which checks its own memory all the time.
//!
//! It fills memory with pages whose content is a pure function of seed, page, kind and version,
//! rewrites pages of a working set at a given rate, and compares every page with what it must
//! be, over and over. A page that a migration lost, delayed or mixed up is found by the guest
//! itself and told on the console. Counters in tick lines, one each millisecond by default, show from
//! outside how long the guest stood still and how much work it lost.
//!
//! ```text
//!            ┌─ worker ── writes pages, checks pages ──┐ counters
//! console ◀──┤                                         ▼
//!            ├─ ticker ── one line each slot ◀─────────┘
//! console ──▶└─ commands ── `rate 0`, `check`, … ──▶ taker: memory taken and given back
//! port 7  ◀─▶   echo
//! disk    ──▶   disk reader (optional)
//! ```
//!
//! The modules [`settings`], [`command`], [`content`], [`schedule`] and [`picker`] are pure: time
//! and randomness are arguments. One thread owns the memory, so that no page is ever checked
//! while it is being written; it runs at the lowest priority, so that ticks and echoes tell of
//! the host and not of the guest's own load.
//!
//! What it does not see: memory that is not its own (the guest's kernel would crash or not), and
//! a memory image that is old as a whole: pages and the table of their versions then still agree.
#![forbid(unsafe_code)]

pub mod command;
pub mod console;
pub mod content;
pub mod disk;
pub mod echo;
pub mod line;
pub mod memory;
pub mod picker;
pub mod quantity;
pub mod schedule;
pub mod settings;
pub mod taker;
mod text;
pub mod ticker;
pub mod worker;
