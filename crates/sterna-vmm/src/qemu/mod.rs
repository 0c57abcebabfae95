//! The QEMU driver: stock QEMU, started so that its guests can be moved from outside.
//!
//! QEMU moves only its device state. RAM is a memfd that QEMU inherits from us and maps as a named
//! shared file, which its capability `x-ignore-shared` leaves out of the migration stream; the
//! stream goes through unix sockets between this process and QEMU, on either side.
//!
//! ```text
//!                  source QEMU                              destination QEMU (-S -incoming defer)
//!   prepare        capabilities set, socket bound           migrate-incoming, then all RAM punched
//!   start_tracking userfaultfd taken, RAM protected
//!   pause          migrate … → pre-switchover  (vCPUs stopped, block I/O drained)
//!   save           migrate-continue → completed, stream read
//!   load                                                    stream written → completed, paused
//!   activate                                                cont → RESUME
//!   resume         migrate_cancel, or cont after completed
//!
//!   by itself (x-ignore-shared is off):
//!   prepare                                                 capabilities, migrate-incoming
//!   begin_native   capabilities, parameters, migrate …
//!   native_step    MIGRATION_PASS … → pre-switchover  (as above)
//!   finish_native  migrate-continue → completed
//!   await_native                                            → completed, paused
//! ```
//!
//! Within one host a guest can come to another QEMU in the same RAM and with the same taps
//! ([`QemuDestination::prepare_beside`]): all but RAM's way is the same.
//!
//! **Guarantee.** A QEMU process outlives the agent: it has its own session, holds its own RAM and
//! userfaultfd, and [`QemuGuest::reattach`] finds it by a small [`QemuRecord`]. [`QemuSource`] can
//! resume a guest that an earlier agent left in any state of a hand-over.
//!
//! **A user of its own.** A QEMU that is started with a [`UserId`] has that user's rights from its first instruction
//! on. What it needs beyond them it inherits open (`inherited`), and it reaches no path but the folder in which it begins
//! (`folder`).
//!
//! **A cgroup of its own.** Where the host has one to give, QEMU is in it from its first instruction on, and can have no more
//! than so many threads (`cgroup`).
//!
//! **Not here.** Nothing in this driver guards disks against two writers: QEMU's image locks do
//! that on one host, the commit rules of a move between hosts. The folder of a guest must be the
//! agent's own; whoever can write there can control the guest.

mod balloon;
mod beside;
mod binary;
mod cgroup;
mod command_line;
mod destination;
mod folder;
#[doc(hidden)]
pub mod fuzzing;
mod images;
mod inherited;
mod instance;
mod log;
mod movable;
mod native;
pub mod probe;
mod qmp;
mod replies;
mod source;
mod start;
mod strays;
mod stream;
mod user;

pub use binary::QemuBinary;
pub use cgroup::cgroups_below;
pub use command_line::StartMode;
pub use destination::QemuDestination;
pub use instance::{Ending, QemuGuest, QemuRecord, QemuStatus};
pub use source::QemuSource;
pub use strays::end_strays;
pub use user::UserId;
