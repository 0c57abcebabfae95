//! What is where on a disk, and what was written of it.

use super::transmission::{Operation, Part, u32_of};
use super::{Client, NbdError};
use std::io::{Read, Write};
use std::ops::Range;

/// The context of what is allocated: flags [`HOLE`] and [`ZERO`].
pub const BASE_ALLOCATION: &str = "base:allocation";

/// Nothing is kept for it.
pub const HOLE: u32 = 1;
/// It reads as zeroes.
pub const ZERO: u32 = 1 << 1;
/// It is in the dirty bitmap.
pub const IN_BITMAP: u32 = 1;

/// Bytes that are asked about at once.
const PIECE_BYTES: u64 = 1 << 30;

/// The context of one of QEMU's dirty bitmaps: flag [`IN_BITMAP`].
#[must_use]
pub fn dirty_bitmap(name: &str) -> String {
    format!("qemu:dirty-bitmap:{name}")
}

/// A part of the disk of which all is alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extent {
    /// In bytes of the disk.
    pub bytes: Range<u64>,
    /// By its context.
    pub flags: u32,
}

impl<S: Read + Write> Client<S> {
    /// Tells all extents of `bytes` in order, by the context that was the `context`th when the disk was opened.
    /// Neighbours may have the same flags.
    ///
    /// # Errors
    /// As [`Client::read`]. `each` has then been told of some.
    ///
    /// # Panics
    /// When there is no such context.
    pub fn status(
        &mut self,
        context: usize,
        bytes: Range<u64>,
        mut each: impl FnMut(Extent),
    ) -> Result<(), NbdError> {
        self.check(bytes.start, bytes.end.saturating_sub(bytes.start))?;
        let wanted = self.contexts[context];
        let mut at = bytes.start;
        while at < bytes.end {
            let end = bytes.end.min(at + PIECE_BYTES);
            self.ask(Operation::Status, at, u32_of(end - at)?, &[])?;
            let mut told = at;
            self.answer(Operation::Status, at, |_, part| match part {
                Part::Status { context, .. } if context != wanted => Ok(()),
                Part::Status { extents, .. } => tell(&extents, &mut told, end, &mut each),
                _ => Err(NbdError::Protocol("content as a status")),
            })?;
            if told == at {
                return Err(NbdError::Protocol("a status that tells of nothing"));
            }
            at = told;
        }
        Ok(())
    }
}

/// Reads lengths and flags from `told` on, which is moved on; the last may reach beyond `end`.
fn tell(
    extents: &[u8],
    told: &mut u64,
    end: u64,
    each: &mut impl FnMut(Extent),
) -> Result<(), NbdError> {
    let (extents, _) = extents.as_chunks::<8>();
    for [a, b, c, d, flags @ ..] in extents {
        let length = u64::from(u32::from_be_bytes([*a, *b, *c, *d]));
        if length == 0 || *told >= end {
            return Err(NbdError::Protocol("a status of what was not asked for"));
        }
        let bytes = *told..end.min(*told + length);
        *told = bytes.end;
        each(Extent { bytes, flags: u32::from_be_bytes(*flags) });
    }
    Ok(())
}
