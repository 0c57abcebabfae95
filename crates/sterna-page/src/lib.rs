//! Pages of guest memory as values: numbers, sets, hashes, digests and codings.
//!
//! Everything here is pure. A guest's RAM is one line of 4 KiB pages numbered from zero: its RAM
//! blocks follow one another in the order of the [`RamLayout`], so that every other part of Sterna
//! can speak of a page by one number.

#![forbid(unsafe_code)]

pub mod coding;
pub mod delta;
mod digest;
mod hash;
pub mod known;
mod layout;
mod number;
pub mod sent;
mod set;

pub use coding::is_zero;
pub use digest::{ChunkDigest, DIGEST_CHUNK_PAGES, PageSum, RamDigest, chunk_digest, ram_digest};
pub use hash::{PageHash, PageHasher};
pub use layout::{LayoutError, RamBlock, RamLayout};
pub use number::{PAGE_SIZE, PAGE_SIZE_BYTES, PageCount, PageNumber, PageRun};
pub use set::PageSet;
