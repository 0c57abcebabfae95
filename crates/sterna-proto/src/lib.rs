//! The wire format of a move, without any I/O.
//!
//! A move uses one control connection and N page connections, all from the source to the
//! destination, all TLS 1.3 with both sides authenticated (the engine does that). Each connection
//! begins with a [`preamble`], which carries the versions and what the connection is for. After it
//!
//! - the control connection carries [`control`] frames in both directions: numbered JSON messages
//!   and binary blobs. A number seen before is a duplicate and dropped; a number left out is a lost
//!   message and breaks the link;
//! - a page connection carries [`pages`] frames towards the destination: fixed little-endian
//!   headers, then the pages of the run.
//!
//! Everything that is decoded here came from a peer: sizes are checked against [`limits`] before
//! anything is allocated, and every refusal is a typed error. `docs/protocol.md` draws the bytes.

#![forbid(unsafe_code)]

pub mod control;
pub mod inquiry;
pub mod known;
pub mod limits;
pub mod message;
pub mod pages;
pub mod preamble;
