//! A set of pages of one guest, as a bitmap.

use crate::{PageCount, PageNumber, PageRun};
use fixedbitset::FixedBitSet;

/// Pages of a guest of a fixed number of pages; one bit a page (32 KiB for each GiB of RAM).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageSet {
    bits: FixedBitSet,
}

fn index(page: u64) -> usize {
    usize::try_from(page).expect("page numbers of a layout fit the address space")
}

impl PageSet {
    /// The empty set for a guest of `pages` pages.
    #[must_use]
    pub fn empty(pages: PageCount) -> Self {
        Self { bits: FixedBitSet::with_capacity(index(pages.0)) }
    }

    /// The set of all pages of a guest of `pages` pages.
    #[must_use]
    pub fn full(pages: PageCount) -> Self {
        let mut set = Self::empty(pages);
        set.bits.insert_range(..);
        set
    }

    /// Number of pages of the guest, in the set or not.
    #[must_use]
    pub fn capacity(&self) -> PageCount {
        PageCount(self.bits.len() as u64)
    }

    /// Bytes that this has.
    #[must_use]
    pub fn bytes(&self) -> usize {
        size_of_val(self.bits.as_slice())
    }

    /// Number of pages in the set.
    #[must_use]
    pub fn count(&self) -> PageCount {
        PageCount(self.bits.count_ones(..) as u64)
    }

    /// Whether no page is in the set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bits.is_clear()
    }

    /// Whether `page` is in the set; a page beyond the guest's RAM is not.
    #[must_use]
    pub fn contains(&self, page: PageNumber) -> bool {
        usize::try_from(page.0).is_ok_and(|i| self.bits.contains(i))
    }

    /// Adds one page, which must be one of the guest's.
    pub fn insert(&mut self, page: PageNumber) {
        self.bits.insert(index(page.0));
    }

    /// Takes one page, which must be one of the guest's, out of the set.
    pub fn remove(&mut self, page: PageNumber) {
        self.bits.set(index(page.0), false);
    }

    /// Adds a run of pages, which must all be the guest's.
    pub fn insert_run(&mut self, run: PageRun) {
        let first = index(run.first.0);
        self.bits.insert_range(first..first + index(run.count.0));
    }

    /// Takes a run of pages, which must all be the guest's, out of the set.
    pub fn remove_run(&mut self, run: PageRun) {
        let first = index(run.first.0);
        self.bits.remove_range(first..first + index(run.count.0));
    }

    /// Adds every page of `other`, a set for the same guest.
    pub fn union_with(&mut self, other: &Self) {
        self.bits.union_with(&other.bits);
    }

    /// Takes every page of `other`, a set for the same guest, out of this set.
    pub fn subtract(&mut self, other: &Self) {
        self.bits.difference_with(&other.bits);
    }

    /// Empties the set.
    pub fn clear(&mut self) {
        self.bits.clear();
    }

    /// The pages in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = PageNumber> + '_ {
        self.bits.ones().map(|i| PageNumber(i as u64))
    }

    /// The maximal runs of pages in ascending order.
    #[must_use]
    pub fn runs(&self) -> Runs<'_> {
        self.runs_from(PageNumber(0))
    }

    /// The maximal runs of the pages from `first` on, in ascending order.
    #[must_use]
    pub fn runs_from(&self, first: PageNumber) -> Runs<'_> {
        let len = self.bits.len();
        let position = usize::try_from(first.0).map_or(len, |first| first.min(len));
        Runs { words: self.bits.as_slice(), len, position }
    }
}

/// Iterator over the maximal runs of a [`PageSet`]; walks whole words where they are all alike.
#[derive(Debug)]
pub struct Runs<'a> {
    words: &'a [usize],
    len: usize,
    position: usize,
}

const WORD_BITS: usize = usize::BITS as usize;

impl Runs<'_> {
    /// First position from `from` on whose bit is `value`, or the end.
    fn seek(&self, from: usize, value: bool) -> usize {
        let mut position = from;
        while position < self.len {
            let word = self.words[position / WORD_BITS];
            let wanted = if value { word } else { !word } >> (position % WORD_BITS);
            if wanted != 0 {
                return (position + wanted.trailing_zeros() as usize).min(self.len);
            }
            position = (position / WORD_BITS + 1) * WORD_BITS;
        }
        self.len
    }
}

impl Iterator for Runs<'_> {
    type Item = PageRun;
    fn next(&mut self) -> Option<PageRun> {
        let first = self.seek(self.position, true);
        if first == self.len {
            self.position = self.len;
            return None;
        }
        self.position = self.seek(first, false);
        Some(PageRun::new(first as u64, (self.position - first) as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[derive(Clone, Debug)]
    enum Op {
        Insert(u64),
        Remove(u64),
        InsertRun(u64, u64),
        RemoveRun(u64, u64),
        Union(Vec<u64>),
        Subtract(Vec<u64>),
        Clear,
    }

    const PAGES: u64 = 200;

    fn op() -> impl Strategy<Value = Op> {
        let page = 0..PAGES;
        let run = (0..PAGES).prop_flat_map(|first| (Just(first), 0..=PAGES - first));
        let some = prop::collection::vec(0..PAGES, 0..40);
        prop_oneof![
            page.clone().prop_map(Op::Insert),
            page.prop_map(Op::Remove),
            run.clone().prop_map(|(f, n)| Op::InsertRun(f, n)),
            run.prop_map(|(f, n)| Op::RemoveRun(f, n)),
            some.clone().prop_map(Op::Union),
            some.prop_map(Op::Subtract),
            Just(Op::Clear),
        ]
    }

    fn set_of(pages: &[u64]) -> PageSet {
        let mut set = PageSet::empty(PageCount(PAGES));
        for page in pages {
            set.insert(PageNumber(*page));
        }
        set
    }

    fn apply(set: &mut PageSet, model: &mut BTreeSet<u64>, op: &Op) {
        match op {
            Op::Insert(p) => {
                set.insert(PageNumber(*p));
                model.insert(*p);
            }
            Op::Remove(p) => {
                set.remove(PageNumber(*p));
                model.remove(p);
            }
            Op::InsertRun(f, n) => {
                set.insert_run(PageRun::new(*f, *n));
                model.extend(*f..f + n);
            }
            Op::RemoveRun(f, n) => {
                set.remove_run(PageRun::new(*f, *n));
                model.retain(|p| !(*f..f + n).contains(p));
            }
            Op::Union(pages) => {
                set.union_with(&set_of(pages));
                model.extend(pages);
            }
            Op::Subtract(pages) => {
                set.subtract(&set_of(pages));
                model.retain(|p| !pages.contains(p));
            }
            Op::Clear => {
                set.clear();
                model.clear();
            }
        }
    }

    proptest! {
        #[test]
        fn behaves_like_an_ordered_set(ops in prop::collection::vec(op(), 0..30)) {
            let mut set = PageSet::empty(PageCount(PAGES));
            let mut model = BTreeSet::new();
            for op in &ops {
                apply(&mut set, &mut model, op);
                prop_assert_eq!(set.count().0, model.len() as u64);
                prop_assert!(set.iter().map(|p| p.0).eq(model.iter().copied()));
                let from_runs: Vec<u64> = set
                    .runs()
                    .flat_map(|run| run.first.0..run.first.0 + run.count.0)
                    .collect();
                prop_assert!(from_runs.iter().eq(model.iter()));
            }
            let runs: Vec<_> = set.runs().collect();
            for pair in runs.windows(2) {
                prop_assert!(pair[0].end().unwrap() < pair[1].first, "runs are maximal");
            }
        }
    }

    #[test]
    fn a_full_set_is_one_run() {
        let set = PageSet::full(PageCount(130));
        assert_eq!(set.runs().collect::<Vec<_>>(), [PageRun::new(0, 130)]);
        assert!(!set.contains(PageNumber(130)));
        assert!(!set.contains(PageNumber(u64::MAX)));
    }
}
