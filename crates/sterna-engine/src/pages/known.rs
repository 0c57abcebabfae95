//! What the destination can get by itself, told to the source: one connection, before the first round.

use crate::link::Link;
use std::io::{self, Read, Write};
use std::time::Duration;
use sterna_page::PageCount;
use sterna_page::known::{Disorder, KnownPages, Summary};
use sterna_page::sent::ContentHasher;
use sterna_proto::known::{KNOWN_HEADER_BYTES, KnownHeader, TooMany};
use sterna_proto::message::ReasonCode;
use thiserror::Error;

/// How long the source waits for the destination to look up what it has.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Hashes that are read or written at once.
const PIECE: usize = 8192;

/// Tells the source of all pages that are to be had, or of the first of them where a guest of `pages` pages
/// may be told no more.
pub(crate) fn tell(mut link: Link, known: &dyn KnownPages, pages: PageCount) -> io::Result<()> {
    let halves = known.summary();
    let most = usize::try_from(pages.0).unwrap_or(usize::MAX);
    let halves = &halves[..halves.len().min(most)];
    let header = KnownHeader { key: known.hasher().key(), count: halves.len() as u64 };
    link.write_all(&header.encode())?;
    for piece in halves.chunks(PIECE) {
        let bytes: Vec<u8> = piece.iter().flat_map(|half| half.to_le_bytes()).collect();
        link.write_all(&bytes)?;
    }
    link.flush()?;
    // The source ends the connection once it has read all.
    link.read(&mut [0]).map(drop)
}

/// Why what the destination tells was not heard.
#[derive(Debug, Error)]
pub(crate) enum HearError {
    /// The connection.
    #[error("connection for known pages lost")]
    Io(#[from] io::Error),
    /// It tells of too many.
    #[error("bad summary of known pages")]
    TooMany(#[from] TooMany),
    /// It tells of them in no order.
    #[error("bad summary of known pages")]
    Disorder(#[from] Disorder),
}

impl HearError {
    /// Its stable code.
    pub(crate) fn code(&self) -> ReasonCode {
        match self {
            Self::Io(_) => ReasonCode::LinkLost,
            Self::TooMany(_) | Self::Disorder(_) => ReasonCode::Protocol,
        }
    }
}

/// Reads what the destination tells, of a guest of `pages` pages.
pub(crate) fn hear(
    mut link: impl Read,
    pages: PageCount,
) -> Result<(ContentHasher, Summary), HearError> {
    let mut header = [0; KNOWN_HEADER_BYTES];
    link.read_exact(&mut header)?;
    let header = KnownHeader::decode(&header, pages)?;
    let mut left = usize::try_from(header.count).map_err(io::Error::other)?;
    // Grows with what comes: an announcement costs nothing.
    let mut halves = Vec::new();
    let mut bytes = vec![0; PIECE * 8];
    while left > 0 {
        let piece = left.min(PIECE);
        link.read_exact(&mut bytes[..piece * 8])?;
        let read = bytes[..piece * 8].as_chunks().0.iter().copied();
        halves.extend(read.map(u64::from_le_bytes));
        left -= piece;
    }
    Ok((ContentHasher::new(header.key), Summary::new(halves)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(count: u64, halves: &[u64]) -> Vec<u8> {
        let mut bytes = KnownHeader { key: [5; 32], count }.encode().to_vec();
        bytes.extend(halves.iter().flat_map(|half| half.to_le_bytes()));
        bytes
    }

    #[test]
    fn a_destination_that_lies_about_what_it_has_is_refused() {
        let pages = PageCount(2);
        let (hasher, heard) = hear(summary(2, &[4, 9]).as_slice(), pages).unwrap();
        assert_eq!((hasher.key(), heard.len()), ([5; 32], 2));
        let cut = hear(summary(2, &[4]).as_slice(), pages).unwrap_err();
        assert!(matches!(cut, HearError::Io(_)), "{cut}");
        let disorder = hear(summary(2, &[9, 4]).as_slice(), pages).unwrap_err();
        assert!(matches!(disorder, HearError::Disorder(_)), "{disorder}");
        let many = hear(summary(u64::MAX, &[]).as_slice(), pages).unwrap_err();
        assert!(matches!(many, HearError::TooMany(_)), "{many}");
        assert_eq!(many.code(), ReasonCode::Protocol);
    }
}
