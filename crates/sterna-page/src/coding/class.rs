//! What a page looks like, by a cheap sample, and so which codings are worth a try.

use super::{Coder, PageBytes};
use crate::PAGE_SIZE;

/// What a page looks like (Jin et al., MECOM, Cluster 2009: by the likeness of its words).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PageClass {
    /// All bytes are zero; sent as a number.
    Zero,
    /// Three of four words are zero.
    Sparse,
    /// Half of the words are zero, or like one of the last sixteen different ones.
    Words,
    /// Some bytes are more frequent than others.
    Bytes,
    /// Neither: encrypted, compressed, or random.
    Noise,
}

impl PageClass {
    /// Those that are coded, if it pays.
    pub const CODED: [Self; 4] = [Self::Sparse, Self::Words, Self::Bytes, Self::Noise];

    /// The coders that may do something for such pages.
    #[must_use]
    pub fn coders(self) -> &'static [Coder] {
        match self {
            Self::Zero => &[],
            Self::Sparse => &Coder::ALL,
            Self::Words => &Coder::ALL[1..],
            Self::Bytes => &Coder::ALL[2..],
            // What the sample does not show: strings that repeat at a distance.
            Self::Noise => &[Coder::ZstdFast],
        }
    }
}

/// A page is looked at in lines of this length.
const LINE: usize = 64;

/// One line is looked at of so many that follow one another: 1 KiB of a page.
const LINES_A_SAMPLE: usize = 4;

/// Words of the sample.
const WORDS: usize = PAGE_SIZE / LINES_A_SAMPLE / 4;

/// Σ count² over the values of the sample's bytes, if all are equally likely: n²/256 + n.
const EVEN: usize = (WORDS * 4) * (WORDS * 4) / 256 + WORDS * 4;

/// Tells what `page` looks like: whether it is zero by all of its bytes, all else by a quarter.
#[must_use]
pub fn classify(page: &PageBytes) -> PageClass {
    if is_zero(page) {
        return PageClass::Zero;
    }
    let lines = page.as_chunks::<LINE>().0;
    let sample = || {
        let groups = lines.as_chunks::<LINES_A_SAMPLE>().0.iter().enumerate();
        // Another line of each group, so that what repeats at a power of two is not seen as all.
        groups.map(|(index, group)| &group[index % LINES_A_SAMPLE])
    };
    let (mut zero, mut known) = (0, 0);
    let mut dictionary = [0u32; 16];
    for bytes in sample().flat_map(|line| line.as_chunks::<4>().0) {
        let word = u32::from_le_bytes(*bytes);
        let place = &mut dictionary[((word >> 10).wrapping_mul(0x9e37_79b1) >> 28) as usize];
        if word == 0 {
            zero += 1;
        } else if *place >> 10 == word >> 10 {
            known += 1;
        }
        *place = word;
    }
    if zero >= WORDS * 3 / 4 {
        return PageClass::Sparse;
    }
    if zero + known >= WORDS / 2 {
        return PageClass::Words;
    }
    let mut counts = [0usize; 256];
    sample().flatten().for_each(|byte| counts[usize::from(*byte)] += 1);
    let unevenness: usize = counts.iter().map(|count| count * count).sum();
    if unevenness > EVEN + EVEN / 2 { PageClass::Bytes } else { PageClass::Noise }
}

/// Whether every byte of `page` is zero. Ends at the first 64 bytes that are not.
#[must_use]
pub fn is_zero(page: &PageBytes) -> bool {
    let (lines, rest) = page.as_chunks::<LINE>();
    debug_assert!(rest.is_empty());
    lines.iter().all(|line| line.iter().fold(0, |all, byte| all | byte) == 0)
}
