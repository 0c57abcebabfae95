//! cgroups: a group of its own for a process, and a limit on the processor time of some of its threads.
//!
//! ```text
//!   v1, one tree for each controller       v2, one tree
//!
//!   home of whoever makes them             parent (delegated)          root
//!    ├─ NAME        a process              ├─ agent   who makes them    ├─ NAME      a process
//!    │   └─ sterna-PID   limited threads   └─ NAME    a process         │   └─ sterna-PID
//!    └─ …                                      └─ sterna-PID            └─ …
//! ```
//!
//! In v2 a group that gives controllers to groups below it has no processes of its own, so whoever makes them
//! must be in a leaf beside them; the root alone may have both.

mod cpu_limit;
mod group;
mod hierarchy;

pub use cpu_limit::CpuLimit;
pub use group::{Bounds, Group, LEAF, NoGroups, Parents};
