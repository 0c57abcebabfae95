//! Guests as the engine sees them: one that leaves ([`Source`]) and one that arrives
//! ([`Destination`]), with a driver for each hypervisor behind these two traits.
//!
//! ```text
//!   Source:       start_tracking → scan* → pause → scan → save_device_state → release
//!                       any step but the last, on failure or cancel → resume
//!   asked for memory: memory_use* → ask_for → in_balloon* → … → ask_for(0) → pause → …
//!   Destination:  (prepared, RAM empty) → memory() filled → load_device_state → activate
//!                       any step but the last, on failure or cancel → discard
//!   by themselves: begin_native → native_step* → finish_native on one side, await_native on the other
//!   with pages to come: … → serve_faults → load_device_state → activate → end_faults
//!                       the pages are lost → halt
//! ```
//!
//! **Guarantee.** After `resume` returned `Ok`, the source's guest runs as if nothing had
//! happened. Until `activate` is called no vCPU of the destination has executed an instruction.
//! Dropping a `Source` or a `Destination` neither ends nor starts a guest: guests outlive agents.
//!
//! **Not here.** Nothing in this crate knows the wire, decides when to pause, or who owns a guest.

#![forbid(unsafe_code)]

mod definition;
mod faults;
mod guest;
mod native;
pub mod qemu;
pub mod synthetic;
mod tracking;

pub use definition::{
    Accelerator, ConsoleKind, DefinitionError, DiskCache, DiskDefinition, GuestDefinition,
    NetworkDefinition, Wishes,
};
pub use faults::{Begin, Faults};
pub use guest::{
    Destination, DeviceState, DeviceStateKind, Discarding, Immovable, InFlightIo, MemoryUse, Pause,
    Source, VmmError,
};
pub use native::{
    Compared, Compression, NativeListener, NativePlan, NativeSent, NativeStep, NativeWay,
};
pub use tracking::{Tracked, Tracker};
