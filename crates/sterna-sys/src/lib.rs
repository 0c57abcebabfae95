//! The kernel's and the processor's side of Sterna: every `unsafe` line, behind safe types.
//!
//! Nothing here knows what a migration is.
//!
//! | module | what it owns |
//! |---|---|
//! | [`memory`] | guest RAM mapped into this process; which of its pages exist |
//! | [`uffd`] | userfaultfds: made here or taken from another process; write protection, missing pages |
//! | [`pagemap`] | which pages of a process were written since the last scan |
//! | [`soft_dirty`] | the same where the kernel cannot tell by itself: bits of page tables |
//! | [`process`] | other processes: pidfd, descriptors, mappings, detached start, threads stopped for a moment |
//! | [`cached`] | which parts of a file the kernel has in memory |
//! | [`tap`] | tap devices, opened for another process |
//! | [`tcp`] | what the kernel tells of a TCP connection |
//! | [`cgroup`] | groups of processes, and limits on the processor time of some threads |
//! | [`preload`] | the libraries that make a hypervisor create its userfaultfd, and leave taps alone |

mod address;
pub mod cached;
pub mod cgroup;
pub mod memory;
pub mod pagemap;
pub mod preload;
pub mod process;
pub mod soft_dirty;
pub mod tap;
pub mod tcp;
pub mod uffd;

pub use address::AddressRange;
