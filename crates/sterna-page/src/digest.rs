//! One digest over all of a guest's RAM, computed chunk by chunk on any number of threads.
//!
//! A chunk's digest is the BLAKE3 of its bytes, and `None` if they are all zero, so that memory
//! which does not exist costs nothing and equals memory that was zeroed. The RAM digest is the
//! BLAKE3 over the number and digest of every chunk that is not zero, in order.

use crate::{PAGE_SIZE, PageNumber, is_zero};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Pages in a chunk: 1 MiB, large enough for BLAKE3 to run at full speed.
pub const DIGEST_CHUNK_PAGES: u64 = 256;

/// Digest of one chunk, `None` if every byte of it is zero.
pub type ChunkDigest = Option<[u8; 32]>;

/// Digest of all of a guest's RAM.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RamDigest([u8; 32]);

/// Digest of one chunk's bytes, whole pages at most [`DIGEST_CHUNK_PAGES`].
#[must_use]
pub fn chunk_digest(bytes: &[u8]) -> ChunkDigest {
    let (pages, rest) = bytes.as_chunks::<PAGE_SIZE>();
    if rest.is_empty() && pages.iter().all(is_zero) {
        return None;
    }
    Some(*blake3::hash(bytes).as_bytes())
}

/// Digest over all chunks' digests, given in the order of the chunks from the first on.
pub fn ram_digest(chunks: impl IntoIterator<Item = ChunkDigest>) -> RamDigest {
    let mut hasher = blake3::Hasher::new();
    for (number, digest) in (0u64..).zip(chunks) {
        if let Some(digest) = digest {
            hasher.update(&number.to_le_bytes());
            hasher.update(&digest);
        }
    }
    RamDigest(*hasher.finalize().as_bytes())
}

/// A digest over pages in any order: for RAM that is complete at no moment, because the guest runs
/// while its pages arrive. The sum of the pages' BLAKE3 digests, each with its number; pages of zeroes
/// count nothing. Each page must be added once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageSum([u64; 4]);

impl PageSum {
    /// Adds one page.
    pub fn add(&mut self, page: PageNumber, bytes: &[u8; PAGE_SIZE]) {
        if is_zero(bytes) {
            return;
        }
        let mut hasher = blake3::Hasher::new();
        hasher.update(&page.0.to_le_bytes()).update(bytes);
        let digest = hasher.finalize();
        for (sum, bytes) in self.0.iter_mut().zip(digest.as_bytes().as_chunks().0) {
            *sum = sum.wrapping_add(u64::from_le_bytes(*bytes));
        }
    }

    /// Adds all that another sum has added.
    pub fn join(&mut self, other: Self) {
        for (sum, more) in self.0.iter_mut().zip(other.0) {
            *sum = sum.wrapping_add(more);
        }
    }

    /// The digest of all that was added.
    #[must_use]
    pub fn digest(&self) -> RamDigest {
        let mut bytes = [0; 32];
        for (part, sum) in bytes.as_chunks_mut().0.iter_mut().zip(self.0) {
            *part = sum.to_le_bytes();
        }
        RamDigest(bytes)
    }
}

impl fmt::Display for RamDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(blake3::Hash::from_bytes(self.0).to_hex().as_str())
    }
}

impl fmt::Debug for RamDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RamDigest({self})")
    }
}

impl From<RamDigest> for String {
    fn from(digest: RamDigest) -> Self {
        digest.to_string()
    }
}

impl TryFrom<String> for RamDigest {
    type Error = blake3::HexError;
    fn try_from(hex: String) -> Result<Self, blake3::HexError> {
        Ok(Self(*blake3::Hash::from_hex(hex)?.as_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_chunks_count_by_their_place_only() {
        let data = chunk_digest(&[1u8; PAGE_SIZE]);
        let zero = chunk_digest(&[0u8; PAGE_SIZE]);
        assert_eq!(zero, None);
        assert_eq!(ram_digest([data, zero]), ram_digest([data]), "absent is zero");
        assert_ne!(ram_digest([data, zero]), ram_digest([zero, data]), "the place counts");
    }

    #[test]
    fn one_bit_changes_the_digest() {
        let mut bytes = vec![3u8; PAGE_SIZE * 2];
        let before = ram_digest([chunk_digest(&bytes)]);
        bytes[5000] ^= 1;
        assert_ne!(before, ram_digest([chunk_digest(&bytes)]));
    }

    #[test]
    fn pages_are_summed_in_any_order_and_their_places_and_every_bit_count() {
        let sum = |pages: &[(u64, u8)]| {
            let mut sum = PageSum::default();
            for (page, byte) in pages {
                sum.add(PageNumber(*page), &[*byte; PAGE_SIZE]);
            }
            sum
        };
        assert_eq!(sum(&[(1, 7), (2, 8), (3, 0)]), sum(&[(2, 8), (1, 7)]));
        let mut joined = sum(&[(1, 7)]);
        joined.join(sum(&[(2, 8)]));
        assert_eq!(joined.digest(), sum(&[(1, 7), (2, 8)]).digest());
        assert_ne!(sum(&[(1, 7), (2, 8)]), sum(&[(1, 8), (2, 7)]));
        assert_ne!(sum(&[(1, 7)]), sum(&[(1, 6)]));
    }

    #[test]
    fn a_digest_survives_its_text() {
        let digest = ram_digest([chunk_digest(&[9u8; PAGE_SIZE])]);
        let json = serde_json::to_string(&digest).unwrap();
        assert_eq!(serde_json::from_str::<RamDigest>(&json).unwrap(), digest);
        assert!(serde_json::from_str::<RamDigest>("\"beef\"").is_err());
    }
}
