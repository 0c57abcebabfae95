//! Frames of a page connection, and of the urgent one on which owed pages are asked for.
//!
//! ```text
//!  0      1         4       8                16
//!  | kind | length  | count | first page     |  then, for kind `raw`: count × 4096 bytes
//!                                               for kind `owed`: one bit a page, lowest first
//!                                               for kind `known`: count × 16 bytes
//!                                               for kind `on disk`: count × 24 bytes
//!                                               for kind `changed`: length bytes of deltas
//!                                               for a coder's kind: one bit a page, lowest first,
//!                                                 then length bytes of its code
//! ```
//!
//! The length is that of a code or of deltas, and zero for all other kinds.
//!
//! A page always travels on the same stream, and a stream is in order, so the last frame that
//! names a page tells its content.

use crate::limits::RUN_PAGES_MAX;
use sterna_page::coding::{Coder, code_bytes_max};
use sterna_page::known::{DISK_BLOCK_BYTES, DiskBlock};
use sterna_page::sent::{CONTENT_HASH_BYTES, ContentHash};
use sterna_page::{PAGE_SIZE, PageNumber, PageRun};
use thiserror::Error;

/// Length of a frame's header, in bytes.
pub const HEADER_BYTES: usize = 16;

/// One frame, without its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageFrame {
    /// The pages' bytes follow.
    Raw(PageRun),
    /// The pages are all zero, but exist.
    Zero(PageRun),
    /// The pages do not exist: the guest gave them back, or never used them.
    Absent(PageRun),
    /// Everything this stream has for round `round` has been sent.
    Mark {
        /// Number of the round, from 0.
        round: u32,
    },
    /// Bits follow: the pages whose bit is set are not here, and will come later. From the source,
    /// what it owes; from the destination, on the urgent connection, what it still lacks.
    Owed(PageRun),
    /// Somebody waits for this page; from the destination, on the urgent connection.
    Wanted(PageNumber),
    /// References follow: the pages have the content of others; see [`Reference`].
    Same(PageRun),
    /// Hashes follow, of 16 bytes each: the destination gets the pages by itself, or says that it cannot.
    Known(PageRun),
    /// Hashes follow, and blocks of the guest's disks: 24 bytes each, see [`OnDisk`]. The destination reads
    /// the pages there, or says that they are not there.
    OnDisk(PageRun),
    /// What has changed of the pages follows; see [`sterna_page::delta`].
    Changed {
        /// The pages.
        run: PageRun,
        /// Bytes of all deltas.
        length: u32,
    },
    /// Bits follow, and the code of the pages whose bit is set: pages that look alike seldom lie side by side.
    Coded {
        /// The first of these pages, the last of them, and all between.
        run: PageRun,
        /// Whose code it is. It is the next of this connection's codes for that decoder.
        coder: Coder,
        /// Bytes of code.
        length: u32,
    },
}

/// Bytes of a [`Reference`].
pub const REFERENCE_BYTES: usize = 8;

/// The page whose content another has: on the wire its number, with the highest bit set if it comes in
/// the same round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reference {
    /// The page.
    pub page: PageNumber,
    /// Whether it is sent in this round, maybe on another stream and later. If not, the destination has it.
    pub comes: bool,
}

impl Reference {
    const COMES: u64 = 1 << 63;

    /// The reference's bytes.
    #[must_use]
    pub fn encode(self) -> [u8; REFERENCE_BYTES] {
        let comes = if self.comes { Self::COMES } else { 0 };
        (self.page.0 & !Self::COMES | comes).to_le_bytes()
    }

    /// Reads a reference. Whether the page is the guest's is for the receiver to check.
    #[must_use]
    pub fn decode(bytes: [u8; REFERENCE_BYTES]) -> Self {
        let number = u64::from_le_bytes(bytes);
        Self { page: PageNumber(number & !Self::COMES), comes: number & Self::COMES != 0 }
    }
}

/// Bytes of an [`OnDisk`].
pub const ON_DISK_BYTES: usize = CONTENT_HASH_BYTES + DISK_BLOCK_BYTES;

/// A page that the destination can read from a disk: on the wire its hash, then the block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OnDisk {
    /// Of the page.
    pub hash: ContentHash,
    /// Where it should be. Nothing is trusted by this.
    pub block: DiskBlock,
}

impl OnDisk {
    /// Its bytes.
    #[must_use]
    pub fn encode(self) -> [u8; ON_DISK_BYTES] {
        let mut bytes = [0; ON_DISK_BYTES];
        let (hash, block) = bytes.split_at_mut(CONTENT_HASH_BYTES);
        hash.copy_from_slice(&self.hash.encode());
        block.copy_from_slice(&self.block.encode());
        bytes
    }

    /// Reads its bytes.
    #[must_use]
    pub fn decode(bytes: [u8; ON_DISK_BYTES]) -> Self {
        let hash = *bytes.first_chunk().expect("longer than a hash");
        let block = *bytes.last_chunk().expect("longer than a block");
        Self { hash: ContentHash::decode(hash), block: DiskBlock::decode(block) }
    }
}

/// The kind of deltas.
const CHANGED: u8 = 9;

/// The kind of a coder's code is this and its place among all coders.
const CODED: u8 = 16;

/// Why a frame header is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum FrameError {
    /// A kind that this version does not have.
    #[error("unknown page frame kind {0}")]
    Kind(u8),
    /// Bytes that must be zero are not.
    #[error("reserved bytes of a page frame are not zero")]
    Reserved,
    /// No pages, or more than a frame may hold.
    #[error("{0} pages in one frame, expected 1 to {RUN_PAGES_MAX}")]
    Count(u32),
    /// A code of no bytes, or of more than so many pages can have.
    #[error("{length} bytes of code for {pages} pages")]
    Length {
        /// Bytes.
        length: u32,
        /// How many pages they would be for.
        pages: u32,
    },
    /// The run ends beyond the last possible page number.
    #[error("a run of pages leaves the number space")]
    Overflow,
}

impl PageFrame {
    /// Bytes that follow the header.
    #[must_use]
    pub fn payload_bytes(&self) -> usize {
        match self {
            Self::Raw(run) => usize::try_from(run.count.0)
                .expect("a frame has at most RUN_PAGES_MAX pages")
                .saturating_mul(PAGE_SIZE),
            Self::Owed(run) => bits_bytes(*run),
            Self::Same(run) => usize::try_from(run.count.0)
                .expect("a frame has at most RUN_PAGES_MAX pages")
                .saturating_mul(REFERENCE_BYTES),
            Self::Known(run) => usize::try_from(run.count.0)
                .expect("a frame has at most RUN_PAGES_MAX pages")
                .saturating_mul(CONTENT_HASH_BYTES),
            Self::OnDisk(run) => usize::try_from(run.count.0)
                .expect("a frame has at most RUN_PAGES_MAX pages")
                .saturating_mul(ON_DISK_BYTES),
            Self::Changed { length, .. } => *length as usize,
            Self::Coded { run, length, .. } => bits_bytes(*run) + *length as usize,
            Self::Zero(_) | Self::Absent(_) | Self::Mark { .. } | Self::Wanted(_) => 0,
        }
    }

    /// The header's bytes. A run must have 1 to [`RUN_PAGES_MAX`] pages.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let (kind, count, first) = match self {
            Self::Raw(run) => (1, Self::count(*run), run.first.0),
            Self::Zero(run) => (2, Self::count(*run), run.first.0),
            Self::Absent(run) => (3, Self::count(*run), run.first.0),
            Self::Mark { round } => (4, *round, 0),
            Self::Owed(run) => (5, Self::count(*run), run.first.0),
            Self::Wanted(page) => (6, 1, page.0),
            Self::Same(run) => (7, Self::count(*run), run.first.0),
            Self::Known(run) => (8, Self::count(*run), run.first.0),
            Self::Changed { run, .. } => (CHANGED, Self::count(*run), run.first.0),
            Self::OnDisk(run) => (10, Self::count(*run), run.first.0),
            Self::Coded { run, coder, .. } => {
                (CODED + *coder as u8, Self::count(*run), run.first.0)
            }
        };
        let mut bytes = [0; HEADER_BYTES];
        if let Self::Coded { run, length, .. } | Self::Changed { run, length } = self {
            let fits = (1..=length_max(Self::count(*run))).contains(length);
            assert!(fits, "{length} bytes for {run:?} cannot be sent");
            bytes[..4].copy_from_slice(&(length << 8).to_le_bytes());
        }
        bytes[0] = kind;
        bytes[4..8].copy_from_slice(&count.to_le_bytes());
        bytes[8..16].copy_from_slice(&first.to_le_bytes());
        bytes
    }

    fn count(run: PageRun) -> u32 {
        let count = u32::try_from(run.count.0).unwrap_or(u32::MAX);
        assert!((1..=RUN_PAGES_MAX).contains(&count), "a frame of {count} pages cannot be sent");
        count
    }

    /// Reads a header.
    ///
    /// # Errors
    /// When it is none of this version's. Whether the pages are the guest's is for the receiver
    /// to check: only it knows the layout.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, FrameError> {
        let length = u32::from_le_bytes([bytes[1], bytes[2], bytes[3], 0]);
        let coder =
            bytes[0].checked_sub(CODED).and_then(|place| Coder::ALL.get(usize::from(place)));
        let is_changed = bytes[0] == CHANGED;
        if length != 0 && coder.is_none() && !is_changed {
            return Err(FrameError::Reserved);
        }
        let count = u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
        let mut first = [0; 8];
        first.copy_from_slice(&bytes[8..16]);
        let first = u64::from_le_bytes(first);
        let run = || {
            let run = PageRun::new(first, count.into());
            match (count, run.end()) {
                (1..=RUN_PAGES_MAX, Some(_)) => Ok(run),
                (1..=RUN_PAGES_MAX, None) => Err(FrameError::Overflow),
                _ => Err(FrameError::Count(count)),
            }
        };
        if coder.is_some() || is_changed {
            let run = run()?;
            if length == 0 || length > length_max(count) {
                return Err(FrameError::Length { length, pages: count });
            }
            return Ok(match coder {
                Some(coder) => Self::Coded { run, coder: *coder, length },
                None => Self::Changed { run, length },
            });
        }
        match bytes[0] {
            1 => run().map(Self::Raw),
            2 => run().map(Self::Zero),
            3 => run().map(Self::Absent),
            4 if first != 0 => Err(FrameError::Reserved),
            4 => Ok(Self::Mark { round: count }),
            5 => run().map(Self::Owed),
            6 if count != 1 => Err(FrameError::Count(count)),
            6 => run().map(|run| Self::Wanted(run.first)),
            7 => run().map(Self::Same),
            8 => run().map(Self::Known),
            10 => run().map(Self::OnDisk),
            kind => Err(FrameError::Kind(kind)),
        }
    }
}

/// Bytes of one bit for each page.
fn bits_bytes(run: PageRun) -> usize {
    usize::try_from(run.count.0.div_ceil(8)).expect("a frame has at most RUN_PAGES_MAX pages")
}

/// The longest code of so many pages; deltas are shorter.
fn length_max(pages: u32) -> u32 {
    u32::try_from(code_bytes_max(pages as usize)).unwrap_or(u32::MAX).min(0xff_ffff)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn frames_survive_the_wire() {
        let run = PageRun::new(1 << 40, u64::from(RUN_PAGES_MAX));
        for frame in [
            PageFrame::Raw(run),
            PageFrame::Zero(run),
            PageFrame::Absent(run),
            PageFrame::Mark { round: u32::MAX },
            PageFrame::Owed(run),
            PageFrame::Wanted(PageNumber(1 << 40)),
            PageFrame::Same(run),
            PageFrame::Known(run),
            PageFrame::OnDisk(run),
            PageFrame::Changed { run, length: 1 },
            PageFrame::Changed { run, length: length_max(RUN_PAGES_MAX) },
            PageFrame::Coded { run, coder: Coder::Sparse, length: 1 },
            PageFrame::Coded { run, coder: Coder::ZstdStrong, length: length_max(RUN_PAGES_MAX) },
        ] {
            assert_eq!(PageFrame::decode(&frame.encode()), Ok(frame));
        }
        assert_eq!(PageFrame::Raw(PageRun::new(0, 3)).payload_bytes(), 3 * PAGE_SIZE);
        assert_eq!(PageFrame::Zero(run).payload_bytes(), 0);
        assert_eq!(PageFrame::Owed(PageRun::new(0, 9)).payload_bytes(), 2);
        let coded = PageFrame::Coded { run: PageRun::new(0, 9), coder: Coder::Lz4, length: 5 };
        assert_eq!(coded.payload_bytes(), 7);
        assert_eq!(PageFrame::Same(PageRun::new(0, 9)).payload_bytes(), 72);
        assert_eq!(PageFrame::Known(PageRun::new(0, 9)).payload_bytes(), 144);
        assert_eq!(PageFrame::OnDisk(PageRun::new(0, 9)).payload_bytes(), 216);
        let hash = ContentHash::decode([5; CONTENT_HASH_BYTES]);
        let on_disk = OnDisk { hash, block: DiskBlock { disk: 3, number: 1 << 40 } };
        assert_eq!(OnDisk::decode(on_disk.encode()), on_disk);
        for comes in [false, true] {
            let reference = Reference { page: PageNumber(1 << 40), comes };
            assert_eq!(Reference::decode(reference.encode()), reference);
        }
    }

    #[test]
    fn sizes_that_a_peer_made_up_are_refused() {
        let mut bytes = PageFrame::Raw(PageRun::new(0, 1)).encode();
        bytes[4..8].copy_from_slice(&0u32.to_le_bytes());
        assert_eq!(PageFrame::decode(&bytes), Err(FrameError::Count(0)));
        bytes[4..8].copy_from_slice(&(RUN_PAGES_MAX + 1).to_le_bytes());
        assert_eq!(PageFrame::decode(&bytes), Err(FrameError::Count(RUN_PAGES_MAX + 1)));
        bytes[4..8].copy_from_slice(&1u32.to_le_bytes());
        bytes[0] = CODED;
        assert_eq!(PageFrame::decode(&bytes), Err(FrameError::Length { length: 0, pages: 1 }));
        bytes[1..4].copy_from_slice(&[0xff; 3]);
        let long = FrameError::Length { length: 0xff_ffff, pages: 1 };
        assert_eq!(PageFrame::decode(&bytes), Err(long));
        bytes[0] = 1;
        assert_eq!(PageFrame::decode(&bytes), Err(FrameError::Reserved));
        bytes[1..4].fill(0);
        bytes[4..8].copy_from_slice(&2u32.to_le_bytes());
        bytes[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
        assert_eq!(PageFrame::decode(&bytes), Err(FrameError::Overflow));
    }

    #[test]
    fn kind_zero_is_no_frame() {
        assert_eq!(PageFrame::decode(&[0; HEADER_BYTES]), Err(FrameError::Kind(0)));
    }

    proptest! {
        #[test]
        fn what_is_decoded_is_what_was_encoded(bytes in any::<[u8; HEADER_BYTES]>()) {
            if let Ok(frame) = PageFrame::decode(&bytes) {
                prop_assert_eq!(frame.encode(), bytes);
            }
        }
    }
}
