//! What a synthetic guest is like.

use crate::VmmError;
use serde::{Deserialize, Serialize};
use sterna_page::{PAGE_SIZE_BYTES, PageCount, RamBlock, RamLayout};

/// Writers a guest may have at most: each is a thread.
const WRITERS_MAX: u32 = 64;

/// RAM blocks a guest may have at most, as many as a layout. Registers come from a peer, so the list
/// must not be made before its length was checked.
const BLOCKS_MAX: u32 = 64;

/// What fills a page after its header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Content {
    /// Zeroes.
    Zero,
    /// Words of a small vocabulary: compresses about as well as real text.
    Text,
    /// Bytes no coding can shrink.
    Random,
}

/// How much of a page a write changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rewrite {
    /// Only the header: 16 changed bytes.
    Header,
    /// All of it.
    Whole,
}

/// How fast all writers together write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WriteRate {
    /// Not at all.
    Idle,
    /// So many bytes a second, counted in whole pages.
    BytesPerSecond(u64),
    /// As fast as the processor can.
    Unlimited,
}

/// What a synthetic guest is like. Travels with its registers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyntheticConfig {
    /// Size of RAM.
    pub pages: PageCount,
    /// RAM blocks into which that is cut.
    pub blocks: u32,
    /// Pages that exist from the start, from page zero on.
    pub populated: PageCount,
    /// What fills the pages.
    pub content: Content,
    /// How much of a page a write changes.
    pub rewrite: Rewrite,
    /// Number of writer threads.
    pub writers: u32,
    /// How fast they write.
    pub rate: WriteRate,
    /// Pages that are written, from page zero on; chosen uniformly.
    pub working_set: PageCount,
    /// From which everything random follows.
    pub seed: u64,
}

impl Default for SyntheticConfig {
    /// 16 MiB, half of it populated with text, of which one writer rewrites 1 MiB at 20 MB/s.
    fn default() -> Self {
        Self {
            pages: PageCount(4096),
            blocks: 1,
            populated: PageCount(2048),
            content: Content::Text,
            rewrite: Rewrite::Whole,
            writers: 1,
            rate: WriteRate::BytesPerSecond(20_000_000),
            working_set: PageCount(256),
            seed: 1,
        }
    }
}

impl SyntheticConfig {
    /// The RAM blocks; the last takes what is left over.
    ///
    /// # Errors
    /// When the numbers do not make a guest.
    pub fn layout(&self) -> Result<RamLayout, VmmError> {
        let refused =
            |detail: String| VmmError::Refused { operation: "starting a synthetic guest", detail };
        let fits = self.populated <= self.pages && self.working_set <= self.pages;
        let few = self.writers <= WRITERS_MAX && self.blocks <= BLOCKS_MAX;
        if !fits || !few || u64::from(self.writers) > self.working_set.0 {
            return Err(refused(format!("{self:?} is no guest")));
        }
        let blocks = u64::from(self.blocks).max(1);
        let each = self.pages.0 / blocks;
        let sizes =
            (0..blocks).map(|i| if i + 1 < blocks { each } else { self.pages.0 - each * i });
        let blocks = sizes.enumerate().map(|(number, pages)| RamBlock {
            name: format!("ram{number}"),
            size_bytes: pages.saturating_mul(PAGE_SIZE_BYTES),
            host_page_bytes: PAGE_SIZE_BYTES,
        });
        RamLayout::new(blocks.collect()).map_err(|error| refused(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_that_a_peer_made_up_are_refused_before_anything_is_allocated() {
        let config = SyntheticConfig { blocks: u32::MAX, ..SyntheticConfig::default() };
        assert!(config.layout().is_err());
        let config = SyntheticConfig { blocks: BLOCKS_MAX, ..SyntheticConfig::default() };
        assert_eq!(config.layout().unwrap().pages(), config.pages);
    }
}
