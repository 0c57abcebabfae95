//! LZ4 blocks: strings of bytes that are there again, at the speed of memory.

use super::{CodeError, Decode, Encode, PageBytes};
use lz4_flex::block::{CompressTable, DecompressError, compress_into_with_table, decompress_into};

/// Codes a run of pages as one LZ4 block.
#[derive(Debug, Default)]
pub struct Lz4 {
    table: Table,
}

/// Kept, as it need not be allocated for each run then.
struct Table(CompressTable);

impl Default for Table {
    fn default() -> Self {
        Self(CompressTable::large())
    }
}

impl std::fmt::Debug for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Table")
    }
}

impl Encode for Lz4 {
    fn encode(&mut self, pages: &[PageBytes], into: &mut [u8]) -> usize {
        compress_into_with_table(pages.as_flattened(), into, &mut self.table.0)
            .expect("there is room for the longest code")
    }
}

/// Restores what [`Lz4`] coded.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lz4Decoder;

impl Decode for Lz4Decoder {
    fn decode(&mut self, code: &[u8], pages: &mut [PageBytes]) -> Result<(), CodeError> {
        let bytes = pages.as_flattened_mut();
        match decompress_into(code, bytes) {
            Ok(written) if written == bytes.len() => Ok(()),
            Ok(_) => Err(CodeError::Short),
            Err(DecompressError::OutputTooSmall { .. }) => Err(CodeError::Long),
            Err(_) => Err(CodeError::Malformed),
        }
    }
}
