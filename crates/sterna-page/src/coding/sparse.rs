//! Pages that are mostly zero: where the other words are, and what they are.
//!
//! ```text
//!   count: u16 | count × index: u16, ascending | count × word: u32
//! ```
//!
//! Jin et al., MECOM (Cluster 2009) code such pages as pairs of offset and value.

use super::{Code, CodeError, Decode, Encode, PageBytes, decode_each, encode_each};
use crate::PAGE_SIZE;

/// Bytes of a word.
const WORD: usize = 4;

/// Bytes that a word takes which is not zero.
const ENTRY: usize = 2 + WORD;

/// Codes the words that are not zero.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sparse;

impl Encode for Sparse {
    fn encode(&mut self, pages: &[PageBytes], into: &mut [u8]) -> usize {
        encode_each(pages, into, encode_page)
    }
}

fn encode_page(page: &PageBytes, code: &mut Code<'_>) {
    let words = page.as_chunks::<WORD>().0;
    let filled = || (0u16..).zip(words).filter(|(_, word)| **word != [0; WORD]);
    let count = filled().count();
    if count * ENTRY >= PAGE_SIZE {
        // No shorter than the page, however long.
        return code.push(page);
    }
    code.push(&u16::try_from(count).expect("a page has 1024 words").to_le_bytes());
    filled().for_each(|(index, _)| code.push(&index.to_le_bytes()));
    filled().for_each(|(_, word)| code.push(word));
}

impl Decode for Sparse {
    fn decode(&mut self, code: &[u8], pages: &mut [PageBytes]) -> Result<(), CodeError> {
        decode_each(code, pages, decode_page)
    }
}

fn decode_page(code: &[u8], page: &mut PageBytes) -> Result<(), CodeError> {
    let (count, rest) = code.split_first_chunk().ok_or(CodeError::Short)?;
    let count = usize::from(u16::from_le_bytes(*count));
    match rest.len().cmp(&(count * ENTRY)) {
        std::cmp::Ordering::Less => return Err(CodeError::Short),
        std::cmp::Ordering::Greater => return Err(CodeError::Long),
        std::cmp::Ordering::Equal => {}
    }
    let (indexes, values) = rest.split_at(count * 2);
    page.fill(0);
    let words = page.as_chunks_mut::<WORD>().0;
    // Each place once, so that a code says one thing only.
    let mut next = 0;
    for (index, value) in indexes.as_chunks().0.iter().zip(values.as_chunks().0) {
        let index = usize::from(u16::from_le_bytes(*index));
        let word = words.get_mut(index).ok_or(CodeError::Malformed)?;
        if index < next {
            return Err(CodeError::Malformed);
        }
        next = index + 1;
        *word = *value;
    }
    Ok(())
}
