//! The ways a run of pages can travel in fewer bytes than it has.
//!
//! | coding | for pages that | bytes a page |
//! |---|---|---|
//! | [`Sparse`] | are mostly zero | 2 + 6 for each word that is not |
//! | [`Words`] | hold few different words, or words that are alike | 256 + what is new |
//! | [`Lz4`] | repeat strings of bytes | |
//! | [`Zstd`] | repeat strings, or use some bytes more than others | |
//!
//! An encoder gives what its decoder restores bit for bit. Codes come from a peer: a decoder answers
//! anything else with an error, writes nothing but the pages it was given, and needs no more memory
//! for it. Which coding is used is for [`Choice`] to say.

mod choice;
mod class;
mod coders;
mod lz4;
mod sparse;
mod words;
mod zstd;

pub use choice::{Choice, Pace, Tried};
pub use class::{PageClass, classify, is_zero};
pub use coders::{Decoders, Encoders};
pub use lz4::{Lz4, Lz4Decoder};
pub use sparse::Sparse;
pub use words::Words;
pub use zstd::{Strength, Zstd, ZstdDecoder};

use crate::PAGE_SIZE;
use thiserror::Error;

/// The bytes of one page.
pub type PageBytes = [u8; PAGE_SIZE];

/// The codings that have an encoder, weakest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Coder {
    /// [`Sparse`].
    Sparse,
    /// [`Words`].
    Words,
    /// [`Lz4`].
    Lz4,
    /// [`Zstd`], fast.
    ZstdFast,
    /// [`Zstd`], strong.
    ZstdStrong,
}

impl Coder {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Sparse, Self::Words, Self::Lz4, Self::ZstdFast, Self::ZstdStrong];
}

/// Codes pages.
pub trait Encode {
    /// Writes the code of `pages` to the beginning of `into`, and returns its length in bytes. The
    /// decoder must be given it, in order with all others of this encoder.
    ///
    /// # Panics
    /// When `into` has fewer bytes than [`code_bytes_max`].
    fn encode(&mut self, pages: &[PageBytes], into: &mut [u8]) -> usize;
}

/// Restores pages.
pub trait Decode {
    /// Restores all of `pages` from the code of just as many.
    ///
    /// # Errors
    /// When `code` is not the code of so many pages. What `pages` hold then is anything.
    fn decode(&mut self, code: &[u8], pages: &mut [PageBytes]) -> Result<(), CodeError>;
}

/// Why a code was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum CodeError {
    /// It ends too early.
    #[error("a page's code ends too early")]
    Short,
    /// There is more of it than its pages need.
    #[error("a page's code is longer than its pages need")]
    Long,
    /// It is none at all, or that of more bytes than its pages have.
    #[error("a page's code is none")]
    Malformed,
}

/// How many bytes coding so many pages needs. A code that is longer than its pages is worth nothing, but a
/// coder may find that out only at the end.
#[must_use]
pub fn code_bytes_max(pages: usize) -> usize {
    // What the library for LZ4 wants, of all here the most: a tenth more.
    pages * (PAGE_SIZE + PAGE_SIZE / 8) + 64
}

/// Marks a page whose own code would be no shorter: it follows as it is.
const AS_IT_IS: u16 = 0xffff;

/// Where a code is written.
struct Code<'a> {
    bytes: &'a mut [u8],
    length: usize,
}

impl Code<'_> {
    fn push(&mut self, bytes: &[u8]) {
        self.bytes[self.length..self.length + bytes.len()].copy_from_slice(bytes);
        self.length += bytes.len();
    }
}

/// Writes the codes of pages, one by one, each after its length. `one` writes a page's code; one that is
/// no shorter than the page is given up for the page itself.
fn encode_each(
    pages: &[PageBytes],
    into: &mut [u8],
    mut one: impl FnMut(&PageBytes, &mut Code<'_>),
) -> usize {
    let mut code = Code { bytes: into, length: 0 };
    for page in pages {
        let start = code.length;
        code.push(&[0; 2]);
        one(page, &mut code);
        let mut length = u16::try_from(code.length - start - 2).unwrap_or(AS_IT_IS);
        if usize::from(length) >= PAGE_SIZE {
            code.length = start + 2;
            code.push(page);
            length = AS_IT_IS;
        }
        code.bytes[start..start + 2].copy_from_slice(&length.to_le_bytes());
    }
    code.length
}

/// The reverse of [`encode_each`].
fn decode_each(
    mut code: &[u8],
    pages: &mut [PageBytes],
    mut one: impl FnMut(&[u8], &mut PageBytes) -> Result<(), CodeError>,
) -> Result<(), CodeError> {
    for page in pages {
        let (length, rest) = code.split_first_chunk().ok_or(CodeError::Short)?;
        let length = u16::from_le_bytes(*length);
        let plain = length == AS_IT_IS;
        let bytes = if plain { PAGE_SIZE } else { length.into() };
        let (of_page, rest) = rest.split_at_checked(bytes).ok_or(CodeError::Short)?;
        if plain {
            page.copy_from_slice(of_page);
        } else {
            one(of_page, page)?;
        }
        code = rest;
    }
    if code.is_empty() { Ok(()) } else { Err(CodeError::Long) }
}

#[cfg(test)]
mod tests;
