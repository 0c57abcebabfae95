//! What the destination tells the source of pages that it can get by itself, before the first round.
//!
//! ```text
//!  0            32       40
//!  | key        | count  |  count × 8 bytes: first halves of hashes, ascending
//! ```

use sterna_page::PageCount;
use thiserror::Error;

/// Length of a [`KnownHeader`] on the wire, in bytes.
pub const KNOWN_HEADER_BYTES: usize = 40;

/// What comes before the hashes. For a guest no more are told of than it has pages, so that they take 0.2 % of its RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownHeader {
    /// Under which the hashes are made.
    pub key: [u8; 32],
    /// How many there are.
    pub count: u64,
}

/// More hashes than may be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{count} known pages for a guest of {} pages: no more than it has", .pages.0)]
pub struct TooMany {
    /// So many were announced.
    pub count: u64,
    /// Pages of the guest.
    pub pages: PageCount,
}

impl KnownHeader {
    /// The bytes on the wire.
    #[must_use]
    pub fn encode(&self) -> [u8; KNOWN_HEADER_BYTES] {
        let mut bytes = [0; KNOWN_HEADER_BYTES];
        bytes[..32].copy_from_slice(&self.key);
        bytes[32..].copy_from_slice(&self.count.to_le_bytes());
        bytes
    }

    /// Reads the bytes on the wire, for a guest of `pages` pages.
    ///
    /// # Errors
    /// When more is announced than may be.
    pub fn decode(bytes: &[u8; KNOWN_HEADER_BYTES], pages: PageCount) -> Result<Self, TooMany> {
        let (mut key, mut count) = ([0; 32], [0; 8]);
        key.copy_from_slice(&bytes[..32]);
        count.copy_from_slice(&bytes[32..]);
        let count = u64::from_le_bytes(count);
        match count <= pages.0 {
            true => Ok(Self { key, count }),
            false => Err(TooMany { count, pages }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_survives_the_wire_and_no_guest_is_told_too_much() {
        let pages = PageCount(10);
        let header = KnownHeader { key: [3; 32], count: pages.0 };
        assert_eq!(KnownHeader::decode(&header.encode(), pages), Ok(header));
        let count = header.count + 1;
        let more = KnownHeader { count, ..header };
        assert_eq!(KnownHeader::decode(&more.encode(), pages), Err(TooMany { count, pages }));
    }
}
