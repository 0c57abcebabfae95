//! The blocks of one round, from the disk of a guest that runs.
//!
//! A round begins with what it has to copy: all that is allocated ([`allocated`]), then what was written during the round before
//! ([`written`]), by a bitmap that records no more. The guest goes on writing; what it writes to a block while that is
//! read is in the next round's bitmap, so nothing is missed, and what was read may be of no moment that ever was.

use crate::blocks::{BLOCK_BYTES, Blocks};
use crate::nbd::{Client, Extent, IN_BITMAP, NbdError, ZERO};
use std::io::{Read, Write};
use std::ops::Range;

/// Bytes that are read at once.
const PIECE_BYTES: u64 = 16 * BLOCK_BYTES;

/// Where blocks go.
pub trait Sink {
    /// Why it takes no more.
    type Error;

    /// These bytes of the disk have this content from now on.
    ///
    /// # Errors
    /// When it takes no more; the round is then given up.
    fn data(&mut self, offset: u64, content: &[u8]) -> Result<(), Self::Error>;

    /// They are zeroes.
    ///
    /// # Errors
    /// As [`Sink::data`].
    fn zeroes(&mut self, bytes: Range<u64>) -> Result<(), Self::Error>;
}

/// Why a round was given up.
#[derive(Debug, thiserror::Error)]
pub enum CopyError<E> {
    /// The disk cannot be read.
    #[error(transparent)]
    Source(#[from] NbdError),
    /// The blocks cannot be got rid of.
    #[error(transparent)]
    Sink(E),
}

/// What a round has copied, in bytes of the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Copied {
    /// With content.
    pub data: u64,
    /// As zeroes.
    pub zeroes: u64,
}

/// All blocks that have content: what a new image does not have by itself. `context` is where the disk was opened with
/// [`BASE_ALLOCATION`](crate::nbd::BASE_ALLOCATION).
///
/// # Errors
/// When the disk cannot be asked.
pub fn allocated<S: Read + Write>(
    source: &mut Client<S>,
    context: usize,
) -> Result<Blocks, NbdError> {
    blocks_with(source, context, |flags| flags & ZERO == 0)
}

/// All blocks in a dirty bitmap. `context` is where the disk was opened with it.
///
/// # Errors
/// As [`allocated`].
pub fn written<S: Read + Write>(
    source: &mut Client<S>,
    context: usize,
) -> Result<Blocks, NbdError> {
    blocks_with(source, context, |flags| flags & IN_BITMAP != 0)
}

fn blocks_with<S: Read + Write>(
    source: &mut Client<S>,
    context: usize,
    wanted: impl Fn(u32) -> bool,
) -> Result<Blocks, NbdError> {
    let size = source.export().size_bytes;
    let mut blocks = Blocks::none(size);
    source.status(context, 0..size, |extent| {
        if wanted(extent.flags) {
            blocks.insert(&extent.bytes);
        }
    })?;
    Ok(blocks)
}

/// Copies these blocks. What reads as zeroes by the context `allocation` is not read.
///
/// # Errors
/// When the disk cannot be read, or the sink takes no more.
pub fn copy<S: Read + Write, K: Sink>(
    source: &mut Client<S>,
    allocation: usize,
    blocks: &Blocks,
    sink: &mut K,
) -> Result<Copied, CopyError<K::Error>> {
    let mut copied = Copied::default();
    let mut buffer = vec![0; usize::try_from(PIECE_BYTES).unwrap_or(usize::MAX)];
    let mut extents = Vec::new();
    for piece in blocks.runs(PIECE_BYTES) {
        extents.clear();
        source.status(allocation, piece, |extent| join(&mut extents, extent))?;
        for Extent { bytes, flags } in extents.drain(..) {
            let length = bytes.end - bytes.start;
            let buffer = &mut buffer[..usize::try_from(length).unwrap_or(usize::MAX)];
            // A hole that does not say that it reads as zeroes may read as anything.
            if flags & ZERO != 0 {
                copied.zeroes += length;
                sink.zeroes(bytes).map_err(CopyError::Sink)?;
                continue;
            }
            source.read(bytes.start, buffer)?;
            send(bytes.start, buffer, sink, &mut copied).map_err(CopyError::Sink)?;
        }
    }
    Ok(copied)
}

/// Adds an extent to those before it, in one with the last if that is alike.
fn join(extents: &mut Vec<Extent>, extent: Extent) {
    match extents.last_mut() {
        Some(last) if last.flags == extent.flags => last.bytes.end = extent.bytes.end,
        _ => extents.push(extent),
    }
}

/// Sends what was read: as zeroes where whole blocks of it are.
fn send<K: Sink>(
    offset: u64,
    content: &[u8],
    sink: &mut K,
    copied: &mut Copied,
) -> Result<(), K::Error> {
    let block = usize::try_from(BLOCK_BYTES).unwrap_or(usize::MAX);
    let mut at = offset;
    for alike in content.chunks(block).collect::<Vec<_>>().chunk_by(|a, b| is_zero(a) == is_zero(b))
    {
        let length = alike.iter().map(|block| block.len() as u64).sum::<u64>();
        let begin = usize::try_from(at - offset).unwrap_or(usize::MAX);
        if is_zero(alike[0]) {
            sink.zeroes(at..at + length)?;
            copied.zeroes += length;
        } else {
            let end = begin + usize::try_from(length).unwrap_or(usize::MAX);
            sink.data(at, &content[begin..end])?;
            copied.data += length;
        }
        at += length;
    }
    Ok(())
}

fn is_zero(content: &[u8]) -> bool {
    content.iter().all(|byte| *byte == 0)
}
