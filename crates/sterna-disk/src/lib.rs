//! Disks that move with their guests; see `docs/design/0005-disks-and-networks.md`.
//!
//! So far only what reads and writes a disk that a hypervisor serves: [`nbd`].

#![forbid(unsafe_code)]

pub mod nbd;
