//! The disks of a guest, which both hosts of a move reach.
//!
//! Much of a guest's RAM is its cache of its disks. The source finds out which blocks: it looks at those that
//! its own kernel has in memory, as they were read or written for the guest, and so asks no disk for anything.
//! The destination reads the blocks that it is told of from the disk itself, past its own cache: what is there
//! may be of an earlier stay, and nothing that is read now may be there when the guest comes. As its hypervisor
//! drops what is cached when the guest comes, it remembers where it has read ([`Places`]): when the guest goes
//! on, the blocks there are read again, and looked at as well.

use crate::index::{Effort, Index, Pieces};
use rustix::fs::OFlags;
use rustix::io::preadv;
use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSliceMut, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use sterna_page::coding::PageBytes;
use sterna_page::known::{DiskBlock, DiskBlocks, KnownPages};
use sterna_page::sent::{ContentHash, ContentHasher};
use sterna_page::{PAGE_SIZE, PAGE_SIZE_BYTES, PageCount, is_zero};
use sterna_sys::cached::{cached, read_cached};

/// What the kernel is asked about at once.
const PIECE_BYTES: u64 = 64 << 20;

/// Blocks that are read from the cache at once.
const BATCH_BLOCKS: usize = 64;

/// Blocks that are read from a disk at once: pages that lie together mostly are from blocks that do.
const CHUNK_BLOCKS: usize = 32;

/// Chunks that are kept for what is asked for next.
const CHUNKS: usize = 32;

/// Of a guest's pages, at most one of so many has a block in the index.
const PAGES_PER_BLOCK: u64 = 2;

/// What the kernel has of a guest's disks in memory, by content: 8 bytes a block, and so 4 for a page of the guest
/// at most. A part of each hash tells enough: one page of a thousand that is on no disk may be taken for a block,
/// if there are four million, and is sent after all when the destination has looked there.
#[derive(Debug)]
pub struct CachedBlocks {
    /// 32 bits of a hash, then as many of a block: its number where all disks are one.
    entries: Vec<u64>,
    /// The disks, and how many blocks lie before each.
    disks: Vec<(u16, u64)>,
}

/// Of a guest's pages, at most one of so many has a place that is remembered: a peer that names blocks all over a
/// disk must not fill memory.
const PAGES_PER_PLACE: u64 = 8;

/// Where on a guest's disks it has been read what the guest has cached: the disks' numbers, and numbers of pieces of
/// 128 KiB.
#[derive(Clone, Debug, Default)]
pub struct Places {
    known: Arc<Mutex<HashSet<(u16, u64)>>>,
    most: usize,
}

impl Places {
    /// None yet, of a guest of so many pages.
    fn of(pages: PageCount) -> Self {
        let most = usize::try_from(pages.0 / PAGES_PER_PLACE).unwrap_or(usize::MAX);
        Self { known: Arc::default(), most }
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<(u16, u64)>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, place: (u16, u64)) {
        let mut known = self.lock();
        if known.len() < self.most {
            known.insert(place);
        }
    }

    /// In the order of the disks.
    fn all(&self) -> Vec<(u16, u64)> {
        let mut all: Vec<_> = self.lock().iter().copied().collect();
        all.sort_unstable();
        all
    }
}

/// The disks while they are looked at.
struct Looked {
    hasher: ContentHasher,
    /// With their numbers, and how many blocks lie before each.
    disks: Vec<(u16, u64, Disk)>,
    /// The same, past the cache.
    direct: Vec<(u16, Disk)>,
    places: Vec<(u16, u64)>,
}

/// A file or device that is open, and how many whole blocks it has.
struct Disk {
    file: File,
    blocks: u64,
}

impl Disk {
    /// Opens what may be a disk; nothing else, as some devices do something when they are opened.
    fn open(path: &Path, flags: OFlags) -> io::Result<Self> {
        let kind = fs::metadata(path)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(io::Error::other("it is neither a file nor a block device"));
        }
        let flags = (flags | OFlags::NONBLOCK).bits().cast_signed();
        let mut file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
        let blocks = file.seek(SeekFrom::End(0))? / PAGE_SIZE_BYTES;
        Ok(Self { file, blocks })
    }

    /// Those of these disks that can be opened, with their numbers.
    fn open_all(paths: &[PathBuf], flags: OFlags) -> impl Iterator<Item = (u16, Self)> {
        (0..=u16::MAX).zip(paths).filter_map(move |(number, path)| {
            let opened = Self::open(path, flags);
            if let Err(error) = &opened {
                tracing::debug!(disk = %path.display(), %error, "no blocks of it are used");
            }
            Some((number, opened.ok()?))
        })
    }
}

impl CachedBlocks {
    /// Looks at the guest's disks, in the order of its definition: at what is cached, and at these places, as far
    /// as `effort` goes.
    #[must_use]
    pub fn look(disks: &[PathBuf], places: &Places, hasher: ContentHasher, effort: Effort) -> Self {
        let places = places.all();
        let direct = if places.is_empty() { &[] } else { disks };
        let direct = Disk::open_all(direct, OFlags::DIRECT).collect();
        let mut before = 0;
        let placed = Disk::open_all(disks, OFlags::empty()).map(|(number, disk)| {
            let first = before;
            before += disk.blocks;
            (number, first, disk)
        });
        let looked = Looked { hasher, disks: placed.collect(), direct, places };
        let pages = PageCount(effort.pages.0 / PAGES_PER_BLOCK);
        let index = Index::of(&looked, Effort { pages, ..effort });
        let entry = |(half, block): (u64, u32)| upper(half) | u64::from(block);
        let mut entries: Vec<u64> = index.into_entries().into_iter().map(entry).collect();
        entries.shrink_to_fit();
        let disks = looked.disks.iter().map(|(number, first, _)| (*number, *first)).collect();
        Self { entries, disks }
    }

    /// Bytes that this has.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.entries.capacity() * size_of::<u64>()
    }
}

/// The upper half of a number's bits.
fn upper(number: u64) -> u64 {
    number & !u64::from(u32::MAX)
}

impl DiskBlocks for CachedBlocks {
    fn find(&self, hash: ContentHash) -> Option<DiskBlock> {
        let wanted = upper(hash.half());
        let at = self.entries.partition_point(|entry| upper(*entry) < wanted);
        let entry = self.entries.get(at).filter(|entry| upper(**entry) == wanted)?;
        let block = entry & u64::from(u32::MAX);
        let (disk, first) = self.disks.iter().rfind(|(_, first)| *first <= block)?;
        Some(DiskBlock { disk: *disk, number: block - first })
    }

    fn len(&self) -> usize {
        self.entries.len()
    }
}

impl Pieces for Looked {
    type Place = u32;

    fn count(&self) -> u64 {
        let cached: u64 = self.disks.iter().map(|(.., disk)| pieces(disk)).sum();
        cached + self.places.len() as u64
    }

    /// What is cached comes first: it costs least.
    fn look_at(&self, mut piece: u64, found: &mut Vec<(u64, u32)>) {
        for (_, before, disk) in &self.disks {
            if piece < pieces(disk) {
                return self.look_at_piece((*before, disk), piece * PIECE_BYTES, found);
            }
            piece -= pieces(disk);
        }
        let place = usize::try_from(piece).ok().and_then(|piece| self.places.get(piece));
        if let Some(place) = place {
            self.look_at_place(*place, found);
        }
    }
}

impl Looked {
    /// What is there now, whatever it was.
    fn look_at_place(&self, place: (u16, u64), found: &mut Vec<(u64, u32)>) {
        let (number, chunk) = place;
        let before = self.disks.iter().find(|(other, ..)| *other == number);
        let direct = self.direct.iter().find(|(other, _)| *other == number);
        let (Some((_, before, _)), Some((_, disk))) = (before, direct) else { return };
        let mut read = Chunk::default();
        read.read(disk, place);
        let first = before + chunk * CHUNK_BLOCKS as u64;
        for (block, content) in (first..).zip(&read.blocks[..read.filled]) {
            let Ok(block) = u32::try_from(block) else { return };
            if !is_zero(&content.0) {
                found.push((self.hasher.hash(&content.0).half(), block));
            }
        }
    }

    fn look_at_piece(&self, disk: (u64, &Disk), start: u64, found: &mut Vec<(u64, u32)>) {
        let (before, Disk { file, blocks }) = disk;
        let end = (start + PIECE_BYTES).min(blocks * PAGE_SIZE_BYTES);
        // Of what the kernel does not tell it has nothing.
        let parts = cached(file, start..end).unwrap_or_default();
        let mut buffer = vec![0; BATCH_BLOCKS * PAGE_SIZE];
        for part in parts {
            let mut at = part.start;
            while at < part.end {
                let most = usize::try_from(part.end - at).unwrap_or(usize::MAX).min(buffer.len());
                // What has gone meanwhile is not waited for.
                let read = read_cached(file, &mut buffer[..most], at).unwrap_or(0);
                let whole = buffer[..read].as_chunks::<PAGE_SIZE>().0;
                for (block, content) in (at / PAGE_SIZE_BYTES..).zip(whole) {
                    // Beyond 16 TiB blocks have no number here.
                    let Ok(place) = u32::try_from(before + block) else { return };
                    if !is_zero(content) {
                        found.push((self.hasher.hash(content).half(), place));
                    }
                }
                if whole.is_empty() {
                    break;
                }
                at += whole.len() as u64 * PAGE_SIZE_BYTES;
            }
        }
    }
}

fn pieces(disk: &Disk) -> u64 {
    (disk.blocks * PAGE_SIZE_BYTES).div_ceil(PIECE_BYTES)
}

/// The disks of a guest that comes.
pub struct SharedDisks {
    hasher: ContentHasher,
    disks: Vec<(u16, Disk)>,
    chunks: Vec<Mutex<Chunk>>,
    places: Places,
}

/// Blocks that lie together, as they were when they were read.
#[derive(Default)]
struct Chunk {
    /// Disk, and number of the chunk.
    of: Option<(u16, u64)>,
    /// How many of the blocks there are.
    filled: usize,
    blocks: Vec<Block>,
}

/// Placed so that a disk can be read into it directly.
#[derive(Clone)]
#[repr(C, align(4096))]
struct Block(PageBytes);

impl SharedDisks {
    /// Those of the disks of a guest of `pages` pages, in the order of its definition, that can be read past the
    /// cache; `None` if there is none.
    #[must_use]
    pub fn open(disks: &[PathBuf], hasher: ContentHasher, pages: PageCount) -> Option<Self> {
        let disks: Vec<_> = Disk::open_all(disks, OFlags::DIRECT).collect();
        let chunks = (0..CHUNKS).map(|_| Mutex::default()).collect();
        let places = Places::of(pages);
        (!disks.is_empty()).then_some(Self { hasher, disks, chunks, places })
    }

    /// Where blocks have been read, also later.
    #[must_use]
    pub fn places(&self) -> Places {
        self.places.clone()
    }
}

impl Chunk {
    /// Reads a chunk of a disk. One that cannot be read has no blocks.
    fn read(&mut self, disk: &Disk, of: (u16, u64)) {
        let start = of.1 * CHUNK_BLOCKS as u64 * PAGE_SIZE_BYTES;
        self.blocks.resize(CHUNK_BLOCKS, Block([0; PAGE_SIZE]));
        let mut slices: Vec<IoSliceMut<'_>> =
            self.blocks.iter_mut().map(|block| IoSliceMut::new(&mut block.0)).collect();
        let read = preadv(&disk.file, &mut slices, start);
        (self.of, self.filled) = (Some(of), read.map_or(0, |bytes| bytes / PAGE_SIZE));
    }
}

impl KnownPages for SharedDisks {
    fn hasher(&self) -> ContentHasher {
        self.hasher
    }

    fn summary(&self) -> Vec<u64> {
        Vec::new()
    }

    fn read(&self, _hash: ContentHash, _page: &mut PageBytes) -> bool {
        false
    }

    fn has_disks(&self) -> bool {
        true
    }

    fn read_block(&self, block: DiskBlock, page: &mut PageBytes) -> bool {
        let found = self.disks.iter().find(|(number, _)| *number == block.disk);
        let Some((_, disk)) = found.filter(|(_, disk)| block.number < disk.blocks) else {
            return false;
        };
        let (number, place) =
            (block.number / CHUNK_BLOCKS as u64, block.number % CHUNK_BLOCKS as u64);
        let slot = usize::try_from(number % CHUNKS as u64).expect("there are few");
        let mut chunk = self.chunks[slot].lock().unwrap_or_else(PoisonError::into_inner);
        let of = (block.disk, number);
        if chunk.of != Some(of) {
            chunk.read(disk, of);
            self.places.add(of);
        }
        let place = usize::try_from(place).expect("a chunk is small");
        let read = chunk.blocks.get(place).filter(|_| place < chunk.filled);
        read.map(|block| *page = block.0).is_some()
    }
}
