//! Guest RAM as this process reads and writes it.
//!
//! The memory is shared with a hypervisor whose vCPUs may write it at any moment, so no reference
//! into it is ever handed out: pages are copied in and out by `memory::copy`, which says why
//! that is sound. A copy that races with a writer may be torn; the caller must have arranged that
//! such a page is copied again (that is what dirty tracking is for).
//!
//! Each RAM block is a file (a memfd, or one on tmpfs or hugetlbfs). It is used in one of two ways:
//!
//! - [`GuestMemory::open`] reads and writes the file (`pread`, `pwrite`). That is for whoever passes
//!   over memory once, as an agent does: no fault for each page, no page zeroed before it is
//!   overwritten, and none of the guest's RAM counted as this process's own. Huge pages have no
//!   `write`: they are read as a file and written through a mapping.
//! - [`GuestMemory::map`] maps it. That is for threads that *are* a guest: only writes through a
//!   mapping are seen by a userfaultfd.
//!
//! A page that does not exist reads as zeroes, but reading it through a mapping makes it exist:
//! ask [`GuestMemory::populated`] first and leave the rest alone.
//!
//! Not guarded against: a file that is truncated while mapped (the access then raises SIGBUS).
//! Files from [`create_shared`] are sealed against it. Mappings of huge pages reserve their share
//! of the pool when they are made, so that running out of huge pages fails there and not later.

mod copy;
mod mapping;
mod shared;

pub use shared::{HugePages, create_shared};

use crate::AddressRange;
use mapping::Mapping;
use rustix::fs::{FallocateFlags, SeekFrom, fallocate, fstat, seek};
use rustix::io::{Errno, pread, pwrite};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use sterna_page::{PAGE_SIZE_BYTES, PageCount, PageNumber, PageRun, PageSet, RamBlock, RamLayout};

/// What a mapping of guest RAM may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// [`GuestMemory::read`] only.
    ReadOnly,
    /// Reads, writes and punches.
    ReadWrite,
}

/// Why guest RAM could not be opened, read or written.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The number of files is not the number of blocks.
    #[error("{files} files for {blocks} RAM blocks")]
    FileCount {
        /// Files given.
        files: usize,
        /// Blocks of the layout.
        blocks: usize,
    },
    /// A file is shorter than its block.
    #[error("RAM block {block} has {expected} bytes but its file only {actual}")]
    FileTooShort {
        /// The block's name.
        block: String,
        /// The block's size in bytes.
        expected: u64,
        /// The file's size in bytes.
        actual: u64,
    },
    /// A block larger than this process can address.
    #[error("{0} bytes cannot be mapped into this process")]
    TooLarge(u64),
    /// The kernel would not map or punch.
    #[error("{operation} of guest RAM failed")]
    System {
        /// What was tried.
        operation: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A buffer that is not whole pages.
    #[error("{0} bytes are not whole pages")]
    NotWholePages(usize),
    /// Pages that the guest does not have.
    #[error("{count} pages from {first} on leave the guest's RAM")]
    OutOfBounds {
        /// The first page asked for.
        first: PageNumber,
        /// How many.
        count: u64,
    },
    /// A write to memory that was mapped for reading.
    #[error("guest RAM is mapped read-only")]
    ReadOnly,
}

/// How a block is read and written.
#[derive(Debug)]
enum Way {
    /// Both as a file.
    File,
    /// Both through a mapping.
    Mapping(Mapping),
    /// Written through a mapping, for want of a `write`, but read as a file: to read a huge page
    /// that does not exist through a mapping takes 2 MiB from the pool.
    ReadFile(Mapping),
}

/// One RAM block: its place in the line of pages, its file, and how that is used.
#[derive(Debug)]
struct Block {
    run: PageRun,
    file: OwnedFd,
    way: Way,
}

impl Block {
    fn mapping(&self) -> Option<&Mapping> {
        match &self.way {
            Way::File => None,
            Way::Mapping(mapping) | Way::ReadFile(mapping) => Some(mapping),
        }
    }

    /// Reserves the huge pages that were freed: with the page goes its reservation, and a write
    /// that finds the pool empty is no error but ends the process. Mapping a file reserves what it
    /// lacks, and the reservation stays with the file.
    fn reserve(&self) -> Result<(), MemoryError> {
        Mapping::new(self.file.as_fd(), self.run.count.bytes(), Access::ReadWrite).map(drop)
    }

    fn read(&self, offset: usize, buffer: &mut [u8]) -> Result<(), MemoryError> {
        if let Way::Mapping(mapping) = &self.way {
            mapping.read(offset, buffer);
            return Ok(());
        }
        let mut done = 0;
        while done < buffer.len() {
            match pread(&self.file, &mut buffer[done..], (offset + done) as u64) {
                Ok(0) => return Err(system("reading")(io::ErrorKind::UnexpectedEof.into())),
                Ok(count) => done += count,
                Err(Errno::INTR) => {}
                Err(error) => return Err(system("reading")(error.into())),
            }
        }
        Ok(())
    }

    fn write(&self, offset: usize, bytes: &[u8]) -> Result<(), MemoryError> {
        if let Some(mapping) = self.mapping() {
            mapping.write(offset, bytes);
            return Ok(());
        }
        let mut done = 0;
        while done < bytes.len() {
            match pwrite(&self.file, &bytes[done..], (offset + done) as u64) {
                Ok(0) => return Err(system("writing")(io::ErrorKind::WriteZero.into())),
                Ok(count) => done += count,
                Err(Errno::INTR) => {}
                Err(error) => return Err(system("writing")(error.into())),
            }
        }
        Ok(())
    }
}

fn system(operation: &'static str) -> impl Fn(io::Error) -> MemoryError {
    move |source| MemoryError::System { operation, source }
}

/// All RAM blocks of a guest.
#[derive(Debug)]
pub struct GuestMemory {
    layout: RamLayout,
    blocks: Vec<Block>,
    access: Access,
}

/// A part of one block: where it starts in the block and in the caller's buffer.
struct Piece<'a> {
    block: &'a Block,
    offset: usize,
    buffer: std::ops::Range<usize>,
}

impl GuestMemory {
    /// Uses `files`, one for each block of `layout` in its order, by reading and writing them; those
    /// of huge pages are written through a mapping.
    ///
    /// # Errors
    /// When a file is missing or too short, or the kernel refuses.
    pub fn open(layout: RamLayout, files: Vec<OwnedFd>) -> Result<Self, MemoryError> {
        Self::build(layout, files, Access::ReadWrite, |block, map| {
            let huge = block.host_page_bytes > PAGE_SIZE_BYTES;
            if huge { map().map(Way::ReadFile) } else { Ok(Way::File) }
        })
    }

    /// Maps `files`, one for each block of `layout` in its order.
    ///
    /// # Errors
    /// When a file is missing or too short, or the kernel refuses.
    pub fn map(
        layout: RamLayout,
        files: Vec<OwnedFd>,
        access: Access,
    ) -> Result<Self, MemoryError> {
        Self::build(layout, files, access, |_, map| map().map(Way::Mapping))
    }

    fn build(
        layout: RamLayout,
        files: Vec<OwnedFd>,
        access: Access,
        way: impl Fn(&RamBlock, &dyn Fn() -> Result<Mapping, MemoryError>) -> Result<Way, MemoryError>,
    ) -> Result<Self, MemoryError> {
        if files.len() != layout.blocks().len() {
            let blocks = layout.blocks().len();
            return Err(MemoryError::FileCount { files: files.len(), blocks });
        }
        let mut blocks = Vec::with_capacity(files.len());
        for ((block, run), file) in layout.blocks().iter().zip(layout.block_runs()).zip(files) {
            check_size(&file, &block.name, block.size_bytes)?;
            let map = || Mapping::new(file.as_fd(), block.size_bytes, access);
            let way = way(block, &map)?;
            blocks.push(Block { run, file, way });
        }
        Ok(Self { layout, blocks, access })
    }

    /// The blocks.
    #[must_use]
    pub fn layout(&self) -> &RamLayout {
        &self.layout
    }

    /// Number of pages of all blocks.
    #[must_use]
    pub fn pages(&self) -> PageCount {
        self.layout.pages()
    }

    /// The files of the blocks, in their order.
    pub fn files(&self) -> impl Iterator<Item = BorrowedFd<'_>> + '_ {
        self.blocks.iter().map(|block| block.file.as_fd())
    }

    /// Where the blocks that are mapped lie in this process, in their order.
    pub fn addresses(&self) -> impl Iterator<Item = AddressRange> + '_ {
        self.blocks.iter().filter_map(|block| Some(block.mapping()?.addresses()))
    }

    /// Copies pages from `first` on into `buffer`, which may span blocks.
    ///
    /// # Errors
    /// When `buffer` is not whole pages, the guest has no such pages, or the kernel refuses.
    pub fn read(&self, first: PageNumber, buffer: &mut [u8]) -> Result<(), MemoryError> {
        self.for_pieces(first, buffer.len(), |piece| {
            piece.block.read(piece.offset, &mut buffer[piece.buffer])
        })
    }

    /// Copies `bytes` into the guest's pages from `first` on, which may span blocks.
    ///
    /// # Errors
    /// When `bytes` is not whole pages, the guest has no such pages, may only be read, or the kernel
    /// refuses (there is no memory left).
    pub fn write(&self, first: PageNumber, bytes: &[u8]) -> Result<(), MemoryError> {
        self.check_writable()?;
        self.for_pieces(first, bytes.len(), |piece| {
            piece.block.write(piece.offset, &bytes[piece.buffer])
        })
    }

    /// Frees pages: they no longer exist, and read as zeroes.
    ///
    /// Of a huge page that is not freed whole, the part is zeroed. Those that are freed stay
    /// reserved for this memory.
    ///
    /// # Errors
    /// When the guest has no such pages, may only be read, or the kernel refuses.
    pub fn punch(&self, run: PageRun) -> Result<(), MemoryError> {
        self.check_writable()?;
        self.check_bounds(run)?;
        for (block, shape) in self.blocks.iter().zip(self.layout.blocks()) {
            let Some(part) = intersection(block.run, run) else { continue };
            let offset = PageCount(part.first.0 - block.run.first.0).bytes();
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            fallocate(&block.file, flags, offset, part.count.bytes()).map_err(|error| {
                MemoryError::System { operation: "punching a hole", source: error.into() }
            })?;
            let huge = shape.host_page_bytes > PAGE_SIZE_BYTES;
            if huge && part.count.bytes() >= shape.host_page_bytes {
                block.reserve()?;
            }
        }
        Ok(())
    }

    /// Frees every page.
    ///
    /// # Errors
    /// As [`GuestMemory::punch`].
    pub fn punch_all(&self) -> Result<(), MemoryError> {
        self.punch(PageRun::new(0, self.pages().0))
    }

    /// The pages that exist, as the file system knows them; allocates none.
    ///
    /// hugetlbfs does not tell: of huge pages all count as existing. Reading one that does not
    /// costs no memory where the block was opened with [`GuestMemory::open`].
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn populated(&self) -> io::Result<PageSet> {
        let mut pages = PageSet::empty(self.pages());
        for block in &self.blocks {
            add_data_runs(block, &mut pages)?;
        }
        Ok(pages)
    }

    /// Whether none of `run`'s pages exist. Of huge pages all count as existing.
    ///
    /// # Errors
    /// When the guest has no such pages or the kernel refuses.
    pub fn is_hole(&self, run: PageRun) -> Result<bool, MemoryError> {
        self.check_bounds(run)?;
        for block in &self.blocks {
            let Some(part) = intersection(block.run, run) else { continue };
            let start = PageCount(part.first.0 - block.run.first.0).bytes();
            match seek(&block.file, SeekFrom::Data(start)) {
                Ok(data) if data < start + part.count.bytes() => return Ok(false),
                Ok(_) | Err(Errno::NXIO) => {}
                Err(error) => return Err(system("asking which pages exist")(error.into())),
            }
        }
        Ok(true)
    }

    fn check_writable(&self) -> Result<(), MemoryError> {
        match self.access {
            Access::ReadWrite => Ok(()),
            Access::ReadOnly => Err(MemoryError::ReadOnly),
        }
    }

    fn check_bounds(&self, run: PageRun) -> Result<(), MemoryError> {
        if self.layout.holds(run) {
            return Ok(());
        }
        Err(MemoryError::OutOfBounds { first: run.first, count: run.count.0 })
    }

    /// Cuts `length` bytes from page `first` on along the blocks.
    fn for_pieces(
        &self,
        first: PageNumber,
        length: usize,
        mut visit: impl FnMut(Piece<'_>) -> Result<(), MemoryError>,
    ) -> Result<(), MemoryError> {
        let bytes = u64::try_from(length).map_err(|_| MemoryError::NotWholePages(length))?;
        if !bytes.is_multiple_of(PAGE_SIZE_BYTES) {
            return Err(MemoryError::NotWholePages(length));
        }
        let wanted = PageRun { first, count: PageCount(bytes / PAGE_SIZE_BYTES) };
        self.check_bounds(wanted)?;
        for block in &self.blocks {
            let Some(part) = intersection(block.run, wanted) else { continue };
            let from = address_space(PageCount(part.first.0 - first.0).bytes());
            let offset = address_space(PageCount(part.first.0 - block.run.first.0).bytes());
            let buffer = from..from + address_space(part.count.bytes());
            visit(Piece { block, offset, buffer })?;
        }
        Ok(())
    }
}

fn address_space(bytes: u64) -> usize {
    usize::try_from(bytes).expect("offsets into a mapped block fit the address space")
}

fn check_size(file: &OwnedFd, block: &str, expected: u64) -> Result<(), MemoryError> {
    let stat = fstat(file).map_err(|error| MemoryError::System {
        operation: "asking for the size",
        source: error.into(),
    })?;
    let actual = u64::try_from(stat.st_size).unwrap_or(0);
    if actual < expected {
        return Err(MemoryError::FileTooShort { block: block.to_owned(), expected, actual });
    }
    Ok(())
}

/// The pages that both runs hold. Both must lie within a checked layout.
fn intersection(a: PageRun, b: PageRun) -> Option<PageRun> {
    let first = a.first.0.max(b.first.0);
    let end = a.end()?.0.min(b.end()?.0);
    (first < end).then(|| PageRun::new(first, end - first))
}

/// Adds the parts of a block's file that hold data.
fn add_data_runs(block: &Block, pages: &mut PageSet) -> io::Result<()> {
    let size = block.run.count.bytes();
    let mut position = 0;
    while position < size {
        let start = match seek(&block.file, SeekFrom::Data(position)) {
            Ok(start) => start,
            Err(rustix::io::Errno::NXIO) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let end = match seek(&block.file, SeekFrom::Hole(start)) {
            Ok(end) => end.min(size),
            // Punched between the two calls, at the end of the file.
            Err(rustix::io::Errno::NXIO) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let first = start / PAGE_SIZE_BYTES;
        let last = end.div_ceil(PAGE_SIZE_BYTES);
        if first < last {
            pages.insert_run(PageRun::new(block.run.first.0 + first, last - first));
        }
        // A hole punched between the calls may make `end` equal `start`: go on all the same.
        position = end.max(start + PAGE_SIZE_BYTES);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
