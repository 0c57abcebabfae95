//! Pages whose words are alike: pointers into the same region, small numbers, the same word again.
//!
//! After WKdm (Wilson, Kaplan and Smaragdakis, USENIX 1999), the coder that MECOM (Jin et al., Cluster
//! 2009) uses for its middle class. A page is 1024 words of 32 bits; a dictionary of 16 recent words,
//! each in the one place that its upper 22 bits lead to, tells of each word which of these it is:
//!
//! ```text
//!   tag 0  zero       nothing more
//!   tag 1  a word of the dictionary              its place: 4 bits
//!   tag 2  one but for its lower 10 bits         its place: 4 bits, the lower bits: 10
//!   tag 3  new, and takes its place              the word: 32 bits
//!
//!   256 bytes of tags | new words | places, two a byte | lower bits, three in four bytes
//! ```

use super::{Code, CodeError, Decode, Encode, PageBytes, decode_each, encode_each};

/// Words of a page.
const WORDS: usize = 1024;
const TAG_BYTES: usize = WORDS / 4;
const PLACES: usize = 16;
const LOW_BITS: u32 = 10;
const LOW_MASK: u32 = (1 << LOW_BITS) - 1;
const LOWS_PER_WORD: usize = 3;

const ZERO: u8 = 0;
const SAME: u8 = 1;
const ALIKE: u8 = 2;
const NEW: u8 = 3;

/// Where a word is in the dictionary if it is there.
fn place_of(word: u32) -> usize {
    // Fibonacci hashing: the upper four bits of the product depend on all of the bits that count.
    ((word >> LOW_BITS).wrapping_mul(0x9e37_79b1) >> 28) as usize
}

/// No word of the dictionary is zero, as that has a tag of its own.
const EMPTY: [u32; PLACES] = [1; PLACES];

/// Codes words by a dictionary that begins anew with each page.
#[derive(Clone, Copy, Debug, Default)]
pub struct Words;

impl Encode for Words {
    fn encode(&mut self, pages: &[PageBytes], into: &mut [u8]) -> usize {
        encode_each(pages, into, encode_page)
    }
}

fn encode_page(page: &PageBytes, code: &mut Code<'_>) {
    let mut dictionary = EMPTY;
    let mut tags = [0u8; TAG_BYTES];
    let mut new = [[0u8; 4]; WORDS];
    let mut places = [0u8; WORDS / 2];
    let mut lows = [0u32; WORDS.div_ceil(LOWS_PER_WORD)];
    let (mut new_count, mut place_count, mut low_count) = (0, 0, 0);
    for (index, bytes) in page.as_chunks::<4>().0.iter().enumerate() {
        let word = u32::from_le_bytes(*bytes);
        if word == 0 {
            continue;
        }
        let place = place_of(word);
        let known = std::mem::replace(&mut dictionary[place], word);
        let tag = if known == word {
            SAME
        } else if known >> LOW_BITS == word >> LOW_BITS {
            lows[low_count / LOWS_PER_WORD] |=
                (word & LOW_MASK) << (LOW_BITS as usize * (low_count % LOWS_PER_WORD));
            low_count += 1;
            ALIKE
        } else {
            new[new_count] = *bytes;
            new_count += 1;
            NEW
        };
        if tag != NEW {
            let place = u8::try_from(place).expect("one of 16");
            places[place_count / 2] |= place << (4 * (place_count % 2));
            place_count += 1;
        }
        tags[index / 4] |= tag << (2 * (index % 4));
    }
    code.push(&tags);
    code.push(new[..new_count].as_flattened());
    code.push(&places[..place_count.div_ceil(2)]);
    let lows = &lows[..low_count.div_ceil(LOWS_PER_WORD)];
    lows.iter().for_each(|three| code.push(&three.to_le_bytes()));
}

impl Decode for Words {
    fn decode(&mut self, code: &[u8], pages: &mut [PageBytes]) -> Result<(), CodeError> {
        decode_each(code, pages, decode_page)
    }
}

fn decode_page(code: &[u8], page: &mut PageBytes) -> Result<(), CodeError> {
    let (tags, rest) = code.split_first_chunk::<TAG_BYTES>().ok_or(CodeError::Short)?;
    let mut counts = [0; 4];
    for tags in tags {
        for shift in [0, 2, 4, 6] {
            counts[usize::from(tags >> shift & 3)] += 1;
        }
    }
    let [_, same, alike, new]: [usize; 4] = counts;
    let (new, rest) = rest.split_at_checked(new * 4).ok_or(CodeError::Short)?;
    let places = (same + alike).div_ceil(2);
    let (places, rest) = rest.split_at_checked(places).ok_or(CodeError::Short)?;
    let lows = alike.div_ceil(LOWS_PER_WORD) * 4;
    let (lows, rest) = rest.split_at_checked(lows).ok_or(CodeError::Short)?;
    if !rest.is_empty() {
        return Err(CodeError::Long);
    }
    let mut dictionary = EMPTY;
    let mut new = new.as_chunks::<4>().0.iter();
    let mut places = places.iter().flat_map(|pair| [pair & 15, pair >> 4]);
    let mut lows = lows.as_chunks::<4>().0.iter().flat_map(|three| {
        let three = u32::from_le_bytes(*three);
        [0, 1, 2].map(|which| three >> (LOW_BITS * which) & LOW_MASK)
    });
    for (index, word) in page.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        let value = match tags[index / 4] >> (2 * (index % 4)) & 3 {
            ZERO => 0,
            NEW => {
                let value = u32::from_le_bytes(*new.next().ok_or(CodeError::Short)?);
                dictionary[place_of(value)] = value;
                value
            }
            tag => {
                let place = usize::from(places.next().ok_or(CodeError::Short)?);
                if tag == ALIKE {
                    let low = lows.next().ok_or(CodeError::Short)?;
                    dictionary[place] = dictionary[place] & !LOW_MASK | low;
                }
                dictionary[place]
            }
        };
        *word = value.to_le_bytes();
    }
    Ok(())
}
