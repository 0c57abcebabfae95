//! Disks that move with their guests; see `docs/design/0005-disks-and-networks.md`.
//!
//! - [`nbd`]: a client of the disks that hypervisors serve;
//! - [`blocks`]: sets of blocks;
//! - [`copy`]: the blocks of one round.
//!
//! What connects two hosts by them is to come.

#![forbid(unsafe_code)]

pub mod blocks;
pub mod copy;
pub mod nbd;
