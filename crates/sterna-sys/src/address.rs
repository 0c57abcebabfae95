//! Addresses of another process, which are numbers to this one.

use sterna_page::PAGE_SIZE_BYTES;

/// Page-aligned virtual addresses of some process: from `start` up to, not including, `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressRange {
    start: u64,
    end: u64,
}

impl AddressRange {
    /// The range from `start` to `end`, or `None` if it is empty or not made of whole pages.
    #[must_use]
    pub fn new(start: u64, end: u64) -> Option<Self> {
        let aligned = start.is_multiple_of(PAGE_SIZE_BYTES) && end.is_multiple_of(PAGE_SIZE_BYTES);
        (aligned && start < end).then_some(Self { start, end })
    }

    /// The lowest address.
    #[must_use]
    pub fn start(self) -> u64 {
        self.start
    }

    /// The address after the highest.
    #[must_use]
    pub fn end(self) -> u64 {
        self.end
    }

    /// Length in bytes.
    #[must_use]
    pub fn bytes(self) -> u64 {
        self.end - self.start
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_pages_make_a_range() {
        assert!(AddressRange::new(4096, 8192).is_some());
        assert!(AddressRange::new(4096, 4096).is_none());
        assert!(AddressRange::new(8192, 4096).is_none());
        assert!(AddressRange::new(4097, 8192).is_none());
    }
}
