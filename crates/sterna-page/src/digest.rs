//! One digest over all of a guest's RAM, computed chunk by chunk on any number of threads.
//!
//! A chunk's digest is the BLAKE3 of its bytes, and `None` if they are all zero, so that memory
//! which does not exist costs nothing and equals memory that was zeroed. The RAM digest is the
//! BLAKE3 over the number and digest of every chunk that is not zero, in order.

use crate::{PAGE_SIZE, is_zero};
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
    fn a_digest_survives_its_text() {
        let digest = ram_digest([chunk_digest(&[9u8; PAGE_SIZE])]);
        let json = serde_json::to_string(&digest).unwrap();
        assert_eq!(serde_json::from_str::<RamDigest>(&json).unwrap(), digest);
        assert!(serde_json::from_str::<RamDigest>("\"beef\"").is_err());
    }
}
