//! The filled memory: pages, their versions, and the comparison with what they must be.

use std::collections::TryReserveError;
use std::fmt;

use crate::content::{Content, PageWords, Version, WORDS};
use crate::quantity::PageNumber;

/// A page of memory, aligned so that it is one page of the processor too.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(4096))]
struct Page(PageWords);

/// Pages that know what they must hold.
#[derive(Debug)]
pub struct Memory {
    content: Content,
    pages: Vec<Page>,
    versions: Vec<Version>,
    expected: Box<Page>,
}

/// A page that does not hold what it must: the first byte that differs, in its word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wrong {
    /// The page.
    pub page: PageNumber,
    /// The place of the byte in the page.
    pub offset: usize,
    /// The word that should be there.
    pub expected: u64,
    /// The word that is there.
    pub found: u64,
}

impl Memory {
    /// Fills memory with the first version of every page. Every page is written, zero pages too,
    /// so that all of them exist in the guest and all of them are checked.
    ///
    /// # Errors
    /// If the address space has no room. That the machine has enough memory is the caller's care.
    pub fn fill(content: Content, pages: u32) -> Result<Self, TryReserveError> {
        let empty = Page([0; WORDS]);
        let mut memory = Self {
            content,
            pages: Vec::new(),
            versions: vec![Version(0); PageNumber(pages).index()],
            expected: Box::new(empty),
        };
        memory.pages.try_reserve_exact(PageNumber(pages).index())?;
        for number in 0..pages {
            memory.content.whole(PageNumber(number), Version(0), &mut memory.expected.0);
            memory.pages.push(*memory.expected);
        }
        Ok(memory)
    }

    /// Returns the number of pages.
    #[must_use]
    pub fn len(&self) -> u32 {
        u32::try_from(self.pages.len()).expect("filled by 32-bit page numbers")
    }

    /// Tells whether there is no page at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }

    /// Rewrites a page with its next version.
    pub fn rewrite(&mut self, page: PageNumber) {
        let version = &mut self.versions[page.index()];
        *version = Version(version.0.wrapping_add(1));
        self.content.rewrite(page, *version, &mut self.pages[page.index()].0);
    }

    /// Compares a page with what it must be.
    ///
    /// # Errors
    /// The first byte that is wrong.
    pub fn check(&mut self, page: PageNumber) -> Result<(), Wrong> {
        let found = &self.pages[page.index()].0;
        let expected = &mut self.expected.0;
        self.content.whole(page, self.versions[page.index()], expected);
        if found == expected {
            return Ok(());
        }
        let pairs = || expected.iter().zip(found);
        let word = pairs().position(|(expected, found)| expected != found);
        let word = word.expect("pages that differ have a word that differs");
        let (expected, found) = (expected[word], found[word]);
        let bits = (expected ^ found).trailing_zeros();
        let byte = usize::try_from(bits / 8).expect("a word has eight bytes");
        Err(Wrong { page, offset: word * 8 + byte, expected, found })
    }

    /// Makes one byte of a page wrong.
    #[cfg(test)]
    pub(crate) fn spoil(&mut self, page: PageNumber) {
        self.pages[page.index()].0[0] ^= 1;
    }
}

impl fmt::Display for Wrong {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { page, offset, expected, found } = self;
        write!(
            formatter,
            "WRONG page={} offset={offset} expected={expected:016x} found={found:016x}",
            page.0
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Settings;

    const PAGES: u32 = 64;

    fn memory(command_line: &str) -> Memory {
        let settings = Settings::parse(command_line).unwrap();
        Memory::fill(Content::new(&settings), PAGES).unwrap()
    }

    fn wrong_pages(memory: &mut Memory) -> Vec<u32> {
        (0..PAGES).filter(|&page| memory.check(PageNumber(page)).is_err()).collect()
    }

    #[test]
    fn memory_is_right_after_the_fill_and_after_any_rewrites() {
        for write in ["page", "word"] {
            let mix = "sterna.mix=zero:25,text:25,random:25,dup:25";
            let mut memory = memory(&format!("{mix} sterna.write={write}"));
            assert_eq!(wrong_pages(&mut memory), []);
            for round in 0..3 {
                for page in (0..PAGES).step_by(round + 1) {
                    memory.rewrite(PageNumber(page));
                }
                assert_eq!(wrong_pages(&mut memory), []);
            }
        }
    }

    #[test]
    fn one_wrong_byte_is_found_with_its_place() {
        let mut memory = memory("sterna.mix=zero:100");
        memory.pages[17].0[100] ^= 0xff << 24;
        let wrong = memory.check(PageNumber(17)).unwrap_err();
        let expected = Wrong { page: PageNumber(17), offset: 803, expected: 0, found: 0xff00_0000 };
        assert_eq!(wrong, expected);
        assert_eq!(wrong_pages(&mut memory), [17]);
        let line = "WRONG page=17 offset=803 expected=0000000000000000 found=00000000ff000000";
        assert_eq!(wrong.to_string(), line);
    }

    #[test]
    fn a_page_that_a_move_left_at_its_version_before_is_wrong() {
        for write in ["page", "word"] {
            let mut memory = memory(&format!("sterna.mix=text:100 sterna.write={write}"));
            let before = memory.pages[3];
            memory.rewrite(PageNumber(3));
            memory.pages[3] = before;
            assert_eq!(wrong_pages(&mut memory), [3], "{write}");
        }
    }

    #[test]
    fn two_pages_that_changed_places_are_both_wrong() {
        let mut memory = memory("sterna.mix=random:100");
        memory.pages.swap(1, 2);
        assert_eq!(wrong_pages(&mut memory), [1, 2]);
    }
}
