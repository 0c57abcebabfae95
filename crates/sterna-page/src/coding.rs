//! What kind of page it is, and so how it is sent.

use crate::PAGE_SIZE;

/// The ways a page travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageClass {
    /// All bytes are zero; sent as a number.
    Zero,
    /// Sent as it is.
    Raw,
}

/// Tells how `page` is sent.
#[must_use]
pub fn classify(page: &[u8; PAGE_SIZE]) -> PageClass {
    if is_zero(page) { PageClass::Zero } else { PageClass::Raw }
}

/// Whether every byte of `page` is zero. Ends at the first 64 bytes that are not.
#[must_use]
pub fn is_zero(page: &[u8; PAGE_SIZE]) -> bool {
    let (lines, rest) = page.as_chunks::<64>();
    debug_assert!(rest.is_empty());
    lines.iter().all(|line| line.iter().fold(0, |all, byte| all | byte) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_byte_anywhere_makes_a_page_raw() {
        let mut page = [0u8; PAGE_SIZE];
        assert_eq!(classify(&page), PageClass::Zero);
        for position in 0..PAGE_SIZE {
            page[position] = 1;
            assert_eq!(classify(&page), PageClass::Raw, "byte {position}");
            page[position] = 0;
        }
    }
}
