//! How a guest's RAM blocks follow one another in the line of page numbers.

use crate::{PAGE_SIZE_BYTES, PageCount, PageNumber, PageRun};
use serde::{Deserialize, Serialize};

/// Blocks a layout may have at most: a NUMA guest has one a node, so this is generous.
const BLOCKS_MAX: usize = 64;

/// Bytes of RAM a guest may have at most: 64 TiB, beyond any host that QEMU runs on.
const RAM_BYTES_MAX: u64 = 64 << 40;

/// One block of guest RAM, as the hypervisor names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RamBlock {
    /// The hypervisor's name of the block, equal on both sides of a move.
    pub name: String,
    /// Size in bytes, a multiple of the page size.
    pub size_bytes: u64,
    /// Size of the host pages that back it, in bytes (4096, or a huge page's size).
    pub host_page_bytes: u64,
}

/// Why a list of RAM blocks is no layout.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// No block, or more than any guest has.
    #[error("{0} RAM blocks, expected 1 to {BLOCKS_MAX}")]
    BlockCount(usize),
    /// A block is empty or not made of whole pages.
    #[error("RAM block {name} has {size_bytes} bytes, which is not a positive number of pages")]
    BlockSize {
        /// The block's name.
        name: String,
        /// Its size in bytes.
        size_bytes: u64,
    },
    /// More RAM than any guest has.
    #[error("more than {RAM_BYTES_MAX} bytes of RAM")]
    TooLarge,
}

/// The RAM blocks of a guest in order; checked, so that sums over it cannot overflow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<RamBlock>", into = "Vec<RamBlock>")]
pub struct RamLayout(Vec<RamBlock>);

impl RamLayout {
    /// Checks a list of blocks.
    ///
    /// # Errors
    /// When it has no or too many blocks, a block of a size that is not whole pages, or too much.
    pub fn new(blocks: Vec<RamBlock>) -> Result<Self, LayoutError> {
        if blocks.is_empty() || blocks.len() > BLOCKS_MAX {
            return Err(LayoutError::BlockCount(blocks.len()));
        }
        let mut total = 0u64;
        for block in &blocks {
            if block.size_bytes == 0 || block.size_bytes % PAGE_SIZE_BYTES != 0 {
                return Err(LayoutError::BlockSize {
                    name: block.name.clone(),
                    size_bytes: block.size_bytes,
                });
            }
            total = total.checked_add(block.size_bytes).ok_or(LayoutError::TooLarge)?;
        }
        if total > RAM_BYTES_MAX { Err(LayoutError::TooLarge) } else { Ok(Self(blocks)) }
    }

    /// The blocks in order.
    #[must_use]
    pub fn blocks(&self) -> &[RamBlock] {
        &self.0
    }

    /// Number of pages of all blocks.
    #[must_use]
    pub fn pages(&self) -> PageCount {
        PageCount(self.0.iter().map(|b| b.size_bytes / PAGE_SIZE_BYTES).sum())
    }

    /// Each block's pages in the line of page numbers, in order.
    pub fn block_runs(&self) -> impl Iterator<Item = PageRun> + '_ {
        self.0.iter().scan(0u64, |next, block| {
            let count = block.size_bytes / PAGE_SIZE_BYTES;
            let run = PageRun::new(*next, count);
            *next += count;
            Some(run)
        })
    }

    /// Whether all pages of `run` exist in this layout.
    #[must_use]
    pub fn holds(&self, run: PageRun) -> bool {
        run.end().is_some_and(|end| end <= PageNumber(self.pages().0))
    }
}

impl TryFrom<Vec<RamBlock>> for RamLayout {
    type Error = LayoutError;
    fn try_from(blocks: Vec<RamBlock>) -> Result<Self, LayoutError> {
        Self::new(blocks)
    }
}

impl From<RamLayout> for Vec<RamBlock> {
    fn from(layout: RamLayout) -> Self {
        layout.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(name: &str, size_bytes: u64) -> RamBlock {
        RamBlock { name: name.into(), size_bytes, host_page_bytes: 4096 }
    }

    #[test]
    fn blocks_follow_one_another() {
        let layout = RamLayout::new(vec![block("a", 8192), block("b", 4096)]).unwrap();
        let runs: Vec<_> = layout.block_runs().collect();
        assert_eq!(runs, [PageRun::new(0, 2), PageRun::new(2, 1)]);
        assert!(layout.holds(PageRun::new(2, 1)));
        assert!(!layout.holds(PageRun::new(2, 2)));
        assert!(!layout.holds(PageRun::new(u64::MAX, 2)), "an end that overflows is outside");
    }

    #[test]
    fn sizes_that_a_peer_made_up_are_refused() {
        assert_eq!(RamLayout::new(vec![]), Err(LayoutError::BlockCount(0)));
        assert!(matches!(
            RamLayout::new(vec![block("odd", 4097)]),
            Err(LayoutError::BlockSize { .. })
        ));
        let huge = u64::MAX - 4095;
        assert_eq!(
            RamLayout::new(vec![block("a", huge), block("b", huge)]),
            Err(LayoutError::TooLarge)
        );
        let json = r#"[{"name":"a","size_bytes":0,"host_page_bytes":4096}]"#;
        assert!(serde_json::from_str::<RamLayout>(json).is_err());
    }
}
