//! A page about moves: one HTML file, whole in itself, with pictures drawn to scale.
//!
//! ```text
//!   receipts, outside measurements ──▶ moments (when was what) ──▶ timeline    picture
//!                                      parts   (of the downtime) ─▶ switchover  picture
//!                                      figures (digits and units) ▶ words, cards, rounds, facts
//!                                                                   page        the HTML file
//! ```
//!
//! The crate is pure: it takes values and returns text. The page loads nothing: style and pictures
//! are inside it, there is no script, and its content policy forbids both. It follows the reader's
//! preference for light or dark, and prints in light colours.
//!
//! What a receipt says is untrusted: names and reasons may come from a peer, and every number may
//! have any value. Text is escaped where it is written ([`maud`]); numbers are clamped on their way
//! into a picture, so that no picture holds a coordinate that is not finite. The page shows what a
//! receipt says; it does not check that the receipt is right.
#![forbid(unsafe_code)]

mod choices;
mod codings;
mod facts;
mod figures;
mod labels;
mod moments;
mod page;
mod parts;
mod rounds;
mod scale;
mod section;
mod switchover;
mod timeline;
mod words;

use std::time::Duration;
use sterna_core::receipt::Receipt;

/// One move and what was seen of it from outside.
#[derive(Clone, Debug, PartialEq)]
pub struct MoveReport {
    /// What the source says.
    pub receipt: Receipt,
    /// What was measured beside it, if anything was.
    pub measured: Option<Measured>,
}

/// What was measured of a move from outside: neither side of the move knows these figures.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Measured {
    /// The longest time without an answer from the guest over the network.
    pub gap_udp: Option<Duration>,
    /// The longest time without a tick of a clock in the guest.
    pub gap_tick: Option<Duration>,
    /// Bytes that the link's own counter saw during the move.
    pub wire_bytes: Option<u64>,
    /// Every notable gap between answers over the network: when it began, counted from the request
    /// to move, and how long it was.
    pub udp_gaps: Vec<(Duration, Duration)>,
}

/// What the page says about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct About {
    /// Its title.
    pub title: String,
    /// The hosts, one fact a line.
    pub host: Vec<String>,
    /// When it was made, as it shall be read.
    pub generated: String,
    /// The link between the hosts.
    pub link: String,
}

/// Writes the page about `moves`, in the order given.
#[must_use]
pub fn html(moves: &[MoveReport], about: &About) -> String {
    page::page(moves, about).into_string()
}
