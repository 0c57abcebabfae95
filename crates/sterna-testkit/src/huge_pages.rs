//! Huge pages for tests: taken from the machine for as long as a test needs them.

use std::fs;
use std::path::Path;

use sterna_guest::quantity::Bytes;

/// The kernel's pool of 2 MiB pages.
const POOL: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";
const HUGE_PAGE_BYTES: u64 = 2 << 20;

/// Huge pages that are free for a test; given back on drop.
///
/// The pool is the machine's: what others take of it meanwhile is missing here.
#[derive(Debug)]
pub struct HugePages {
    added: u64,
}

/// Why a test cannot have huge pages.
#[derive(Debug, thiserror::Error)]
pub enum NoHugePages {
    /// The pool cannot be read or enlarged.
    #[error("the pool of huge pages cannot be changed")]
    Pool(#[source] std::io::Error),
    /// There is not as much memory in one piece.
    #[error("{wanted} huge pages wanted, {free} are to be had")]
    TooFew {
        /// Pages asked for.
        wanted: u64,
        /// Pages that are free.
        free: u64,
    },
}

impl HugePages {
    /// Enlarges the pool until so many bytes of it are free.
    ///
    /// # Errors
    /// Why that cannot be done here, for a test to print when it skips itself.
    pub fn reserve(size: Bytes) -> Result<Self, NoHugePages> {
        let wanted = size.0.div_ceil(HUGE_PAGE_BYTES);
        let missing = wanted.saturating_sub(Self::free()?);
        let total = read("nr_hugepages")?;
        if missing > 0 {
            resize(total + missing).map_err(NoHugePages::Pool)?;
        }
        // The kernel gives what it has. If that is too little, dropping this gives it back.
        let pages = Self { added: read("nr_hugepages")?.saturating_sub(total) };
        let free = Self::free()?;
        if free < wanted { Err(NoHugePages::TooFew { wanted, free }) } else { Ok(pages) }
    }

    /// Pages of the pool that nobody has or was promised.
    ///
    /// # Errors
    /// When the kernel has no such pool.
    pub fn free() -> Result<u64, NoHugePages> {
        Ok(read("free_hugepages")?.saturating_sub(read("resv_hugepages")?))
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        let total = read("nr_hugepages").unwrap_or(0);
        if self.added > 0 {
            // What cannot be given back is only memory.
            let _given_back = resize(total.saturating_sub(self.added));
        }
    }
}

fn read(name: &str) -> Result<u64, NoHugePages> {
    let text = fs::read_to_string(Path::new(POOL).join(name)).map_err(NoHugePages::Pool)?;
    text.trim().parse().map_err(|error| NoHugePages::Pool(std::io::Error::other(error)))
}

fn resize(pages: u64) -> std::io::Result<()> {
    fs::write(Path::new(POOL).join("nr_hugepages"), pages.to_string())
}
