//! Hashes all of a guest's RAM on all cores; memory that does not exist is not touched.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use sterna_page::{
    ChunkDigest, DIGEST_CHUNK_PAGES, PAGE_SIZE, PageNumber, PageRun, PageSet, PageSum, RamDigest,
    chunk_digest, ram_digest,
};
use sterna_sys::memory::GuestMemory;

/// The digest of `memory`, which must not change meanwhile.
///
/// # Errors
/// When it cannot be read.
pub fn of(memory: &GuestMemory) -> io::Result<RamDigest> {
    let populated = memory.populated()?;
    let chunks = memory.pages().0.div_ceil(DIGEST_CHUNK_PAGES);
    let next = AtomicU64::new(0);
    let workers = thread::available_parallelism().map_or(1, usize::from);
    let parts = thread::scope(|scope| {
        let hash = || hash_chunks(memory, &populated, &next, chunks);
        let threads: Vec<_> = (0..workers).map(|_| scope.spawn(hash)).collect();
        let join = |thread: thread::ScopedJoinHandle<'_, io::Result<Vec<_>>>| {
            thread.join().unwrap_or_else(|_| Err(io::Error::other("a hashing thread panicked")))
        };
        threads.into_iter().map(join).collect::<io::Result<Vec<_>>>()
    })?;
    let count = usize::try_from(chunks).map_err(io::Error::other)?;
    let mut digests: Vec<ChunkDigest> = vec![None; count];
    for (number, digest) in parts.into_iter().flatten() {
        digests[number] = Some(digest);
    }
    Ok(ram_digest(digests))
}

/// The digest of `memory` by pages, in no order: what [`sum_of_pages`] adds up to.
pub(crate) fn of_pages(memory: &GuestMemory) -> io::Result<RamDigest> {
    Ok(sum_of_pages(memory, None)?.digest())
}

/// The sum of all pages of `memory` but those of `except`, which must not change meanwhile.
pub(crate) fn sum_of_pages(memory: &GuestMemory, except: Option<&PageSet>) -> io::Result<PageSum> {
    let mut pages = memory.populated()?;
    if let Some(except) = except {
        pages.subtract(except);
    }
    let chunks = memory.pages().0.div_ceil(DIGEST_CHUNK_PAGES);
    let next = AtomicU64::new(0);
    let workers = thread::available_parallelism().map_or(1, usize::from);
    let sum_chunks = || -> io::Result<PageSum> {
        let mut sum = PageSum::default();
        let mut bytes = [0; PAGE_SIZE];
        loop {
            let chunk = next.fetch_add(1, Ordering::Relaxed);
            if chunk >= chunks {
                return Ok(sum);
            }
            let first = chunk * DIGEST_CHUNK_PAGES;
            let end = (first + DIGEST_CHUNK_PAGES).min(memory.pages().0);
            for page in (first..end).map(PageNumber).filter(|page| pages.contains(*page)) {
                memory.read(page, &mut bytes).map_err(io::Error::other)?;
                sum.add(page, &bytes);
            }
        }
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..workers).map(|_| scope.spawn(sum_chunks)).collect();
        let mut total = PageSum::default();
        for thread in threads {
            let panicked = |_| Err(io::Error::other("a hashing thread panicked"));
            total.join(thread.join().unwrap_or_else(panicked)?);
        }
        Ok(total)
    })
}

/// Takes chunks until none is left; returns those that are not zero.
fn hash_chunks(
    memory: &GuestMemory,
    populated: &PageSet,
    next: &AtomicU64,
    chunks: u64,
) -> io::Result<Vec<(usize, [u8; 32])>> {
    let mut digests = Vec::new();
    let mut buffer = Vec::new();
    loop {
        let chunk = next.fetch_add(1, Ordering::Relaxed);
        if chunk >= chunks {
            return Ok(digests);
        }
        let first = chunk * DIGEST_CHUNK_PAGES;
        let count = DIGEST_CHUNK_PAGES.min(memory.pages().0 - first);
        if !(first..first + count).any(|page| populated.contains(PageNumber(page))) {
            continue;
        }
        read_chunk(memory, populated, PageRun::new(first, count), &mut buffer)?;
        if let Some(digest) = chunk_digest(&buffer) {
            digests.push((usize::try_from(chunk).map_err(io::Error::other)?, digest));
        }
    }
}

/// Reads a chunk; pages that do not exist are zero without being touched.
fn read_chunk(
    memory: &GuestMemory,
    populated: &PageSet,
    chunk: PageRun,
    buffer: &mut Vec<u8>,
) -> io::Result<()> {
    let count = usize::try_from(chunk.count.0).map_err(io::Error::other)?;
    buffer.clear();
    buffer.resize(count * PAGE_SIZE, 0);
    let mut at = 0;
    while at < count {
        let page = |index: usize| PageNumber(chunk.first.0 + index as u64);
        let exists = populated.contains(page(at));
        let mut end = at + 1;
        while end < count && populated.contains(page(end)) == exists {
            end += 1;
        }
        if exists {
            let bytes = &mut buffer[at * PAGE_SIZE..end * PAGE_SIZE];
            memory.read(page(at), bytes).map_err(io::Error::other)?;
        }
        at = end;
    }
    Ok(())
}
