//! An image that can be read.
//!
//! ```text
//!   header   magic 8, image 16, guest 16, kept at (ms since 1970) 8, pages 8, tag 16
//!   pages    each sealed: 4096 + tag 16
//!   index    their hashes, 16 bytes each, sealed as one: + tag 16
//! ```
//!
//! Numbers are little endian. The parts' numbers for the seal: a page's place in the file, then the index,
//! then the header, which is beside its seal.

use crate::ImageError;
use crate::keys::{Keys, Seal, TAG_BYTES};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, SystemTime};
use sterna_page::coding::PageBytes;
use sterna_page::known::KnownPages;
use sterna_page::sent::{CONTENT_HASH_BYTES, ContentHash, ContentHasher};
use sterna_page::{PAGE_SIZE, PageCount};
use uuid::Uuid;

const MAGIC: &[u8; 8] = b"sternaI1";

/// Bytes of a header, without its tag.
const FIELDS_BYTES: usize = 56;

/// Bytes of a header.
pub(crate) const HEADER_BYTES: usize = FIELDS_BYTES + TAG_BYTES;

/// Bytes of a sealed page.
pub(crate) const SEALED_PAGE_BYTES: usize = PAGE_SIZE + TAG_BYTES;

/// Bytes of an image of as many pages.
pub(crate) fn bytes_of(pages: u32) -> u64 {
    let page = (SEALED_PAGE_BYTES + CONTENT_HASH_BYTES) as u64;
    (HEADER_BYTES + TAG_BYTES) as u64 + u64::from(pages) * page
}

/// What stands at the beginning of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) image: Uuid,
    pub(crate) guest: Uuid,
    pub(crate) kept_at: SystemTime,
    pub(crate) pages: u32,
}

impl Header {
    pub(crate) fn encode(&self, seal: &Seal) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let (fields, tag) = bytes.split_at_mut(FIELDS_BYTES);
        fields[..8].copy_from_slice(MAGIC);
        fields[8..24].copy_from_slice(self.image.as_bytes());
        fields[24..40].copy_from_slice(self.guest.as_bytes());
        let since = self.kept_at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let since = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        fields[40..48].copy_from_slice(&since.to_le_bytes());
        fields[48..].copy_from_slice(&u64::from(self.pages).to_le_bytes());
        seal.close(self.part(), fields, &mut [], tag);
        bytes
    }

    /// Reads and checks a header; the seal is that of its image.
    pub(crate) fn read(file: &File, keys: &Keys) -> Result<(Self, Seal), ImageError> {
        let mut bytes = [0; HEADER_BYTES];
        file.read_exact_at(&mut bytes, 0).map_err(|_| ImageError::Unreadable)?;
        let (fields, tag) = bytes.split_at_mut(FIELDS_BYTES);
        if &fields[..8] != MAGIC {
            return Err(ImageError::Unreadable);
        }
        let id = |at: usize| Uuid::from_slice(&fields[at..at + 16]).expect("16 bytes");
        let number =
            |at: usize| u64::from_le_bytes(fields[at..at + 8].try_into().expect("8 bytes"));
        let since = Duration::from_millis(number(40));
        let kept_at = SystemTime::UNIX_EPOCH.checked_add(since).ok_or(ImageError::Unreadable)?;
        let pages = u32::try_from(number(48)).map_err(|_| ImageError::Unreadable)?;
        let header = Self { image: id(8), guest: id(24), kept_at, pages };
        let seal = keys.seal_of(header.image);
        seal.open(header.part(), fields, tag)?;
        Ok((header, seal))
    }

    pub(crate) fn index_part(&self) -> u64 {
        u64::from(self.pages)
    }

    fn part(&self) -> u64 {
        self.index_part() + 1
    }

    /// Where the index stands, in bytes from the beginning of the file.
    pub(crate) fn index_at(&self) -> u64 {
        page_at(self.pages)
    }
}

/// Where the page of this place stands, in bytes from the beginning of the file.
fn page_at(place: u32) -> u64 {
    HEADER_BYTES as u64 + u64::from(place) * SEALED_PAGE_BYTES as u64
}

/// An image of a guest, open to be read. Its tables have 20 bytes a page.
pub struct Image {
    file: File,
    seal: Seal,
    hasher: ContentHasher,
    /// Of each page, in the order of the file.
    hashes: Vec<ContentHash>,
    /// The places of the pages, ascending by hash.
    places: Vec<u32>,
}

impl Image {
    /// Opens the image of `guest` in `path`.
    pub(crate) fn open(path: &Path, guest: Uuid, keys: &Keys) -> Result<Self, ImageError> {
        let file = File::open(path).map_err(ImageError::io("open a kept image"))?;
        let (header, seal) = Header::read(&file, keys)?;
        if header.guest != guest {
            return Err(ImageError::Unreadable);
        }
        let length = header.pages as usize * CONTENT_HASH_BYTES + TAG_BYTES;
        let mut index = vec![0; length];
        file.read_exact_at(&mut index, header.index_at()).map_err(|_| ImageError::Unreadable)?;
        let index = seal.open(header.index_part(), &[], &mut index)?;
        let hashes: Vec<ContentHash> =
            index.as_chunks().0.iter().copied().map(ContentHash::decode).collect();
        let mut places: Vec<u32> = (0..header.pages).collect();
        places.sort_unstable_by_key(|place| hashes[*place as usize]);
        Ok(Self { file, seal, hasher: keys.hasher, hashes, places })
    }

    /// Pages in it.
    #[must_use]
    pub fn pages(&self) -> PageCount {
        PageCount(self.places.len() as u64)
    }

    fn place_of(&self, hash: ContentHash) -> Option<u32> {
        let found = self.places.binary_search_by_key(&hash, |place| self.hashes[*place as usize]);
        found.ok().map(|at| self.places[at])
    }
}

impl KnownPages for Image {
    fn hasher(&self) -> ContentHasher {
        self.hasher
    }

    fn summary(&self) -> Vec<u64> {
        let mut halves: Vec<u64> = self.hashes.iter().map(|hash| hash.half()).collect();
        halves.sort_unstable();
        halves.dedup();
        halves
    }

    fn read(&self, hash: ContentHash, page: &mut PageBytes) -> bool {
        let Some(place) = self.place_of(hash) else { return false };
        let mut sealed = [0; SEALED_PAGE_BYTES];
        if self.file.read_exact_at(&mut sealed, page_at(place)).is_err() {
            return false;
        }
        match self.seal.open(u64::from(place), &[], &mut sealed) {
            Ok(opened) => page.copy_from_slice(opened),
            Err(_) => return false,
        }
        true
    }
}
