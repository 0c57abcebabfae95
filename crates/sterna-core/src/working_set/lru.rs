//! Least recently used, over groups of pages (after Zaw and Thein, IJCST 3(3), 2012: their LRU list
//! of recent entries, found through a splay tree; the working set is the top of the list).
//!
//! A *group* is 16 pages (64 KiB) side by side, so that what lies together is kept together and the
//! tree stays small. Groups that are written go to the top, and keep their order among each other: of
//! two that were written in the same sample, the one that was above before stays above. One that was
//! not written for [`MEMORY_SAMPLES`] samples drops out at the bottom.
//!
//! Here it goes beyond the paper: not all pages of a group at the top are hot, for a scattered
//! working set would then be hidden in sixteen times as many pages. Hot are those that were written
//! in at least two of the last three samples in which their group was.
//!
//! The order is the list's alone, however often a group was written: that is where LRU is weaker than
//! [`super::Aged`].
//!
//! Memory: 32 bytes a group that was written lately, so at most two bytes a page (512 KiB for each
//! GiB of RAM), and twice that while a table grows; four bytes more for each group of a sample while
//! that is noted.

use super::splay::{NONE, Place, Splay};
use super::{MEMORY_SAMPLES, Predictor};
use sterna_page::{PageCount, PageNumber, PageSet};

/// Pages of a group: the bits of a mask.
const GROUP_PAGES: u64 = 16;

/// Predicts that what was written last will be written next.
#[derive(Clone, Debug)]
pub struct Lru {
    pages: PageCount,
    index: Splay,
    /// By slot of the index. The first is nobody's: it ties the ends of the list together.
    groups: Vec<Group>,
    /// Samples so far.
    samples: u32,
}

#[derive(Clone, Copy, Debug, Default)]
struct Group {
    newer: u32,
    older: u32,
    /// The sample in which it was last written.
    written: u32,
    /// Which pages were written then, and in the two samples before in which any was.
    masks: [u16; 3],
}

impl Group {
    /// Pages that were written in at least two of the last three samples.
    fn hot(&self) -> u16 {
        let [a, b, c] = self.masks;
        a & b | a & c | b & c
    }
}

impl Lru {
    /// For a guest of `pages` pages.
    #[must_use]
    pub fn new(pages: PageCount) -> Self {
        Self { pages, index: Splay::new(), groups: vec![Group::default()], samples: 0 }
    }

    /// Takes note that these pages of a group were written. A group that was not there yet goes to
    /// the top.
    fn written(&mut self, group: u32, mask: u16) -> Place {
        let place = self.index.find_or_insert(group);
        if let Place::New(slot) = place {
            if slot as usize == self.groups.len() {
                self.groups.push(Group::default());
            }
            self.groups[slot as usize] = Group::default();
            self.put_on_top(slot);
        }
        let (Place::New(slot) | Place::Old(slot)) = place;
        let group = &mut self.groups[slot as usize];
        let [last, before, _] = group.masks;
        group.masks = [mask, last, before];
        group.written = self.samples;
        place
    }

    /// Moves the groups of this sample to the top, but for the `new` ones that are there already.
    fn lift(&mut self, new: usize) {
        let written = self.list().skip(new).filter(|slot| {
            let group = &self.groups[*slot as usize];
            group.written == self.samples
        });
        let written: Vec<u32> = written.collect();
        for slot in written.into_iter().rev() {
            self.unlink(slot);
            self.put_on_top(slot);
        }
    }

    /// The groups from the top on.
    fn list(&self) -> impl Iterator<Item = u32> + '_ {
        let below = |slot: u32| Some(self.groups[slot as usize].older).filter(|slot| *slot != NONE);
        std::iter::successors(below(NONE), move |slot| below(*slot))
    }

    fn put_on_top(&mut self, slot: u32) {
        let top = std::mem::replace(&mut self.groups[0].older, slot);
        self.groups[top as usize].newer = slot;
        let group = &mut self.groups[slot as usize];
        (group.newer, group.older) = (NONE, top);
    }

    fn unlink(&mut self, slot: u32) {
        let Group { newer, older, .. } = self.groups[slot as usize];
        self.groups[newer as usize].older = older;
        self.groups[older as usize].newer = newer;
    }

    /// Drops what was not written for too long.
    fn forget(&mut self) {
        loop {
            let oldest = self.groups[0].newer;
            let age = self.samples.wrapping_sub(self.groups[oldest as usize].written);
            if oldest == NONE || age < u32::from(MEMORY_SAMPLES) {
                return;
            }
            self.unlink(oldest);
            self.index.remove(self.index.key(oldest));
        }
    }
}

impl Predictor for Lru {
    fn observe(&mut self, sample: &PageSet) {
        self.samples = self.samples.wrapping_add(1);
        let mut new = 0;
        let mut pages = sample.iter().peekable();
        while let Some(first) = pages.next() {
            let group = first.0 / GROUP_PAGES;
            let mut mask = 1 << (first.0 % GROUP_PAGES);
            while let Some(page) = pages.next_if(|page| page.0 / GROUP_PAGES == group) {
                mask |= 1 << (page.0 % GROUP_PAGES);
            }
            let group = u32::try_from(group).expect("RAM has less than 2³⁶ pages");
            if let Place::New(_) = self.written(group, mask) {
                new += 1;
            }
        }
        self.lift(new);
        self.forget();
    }

    /// Pages of the list from its top on.
    fn hot(&self, limit: PageCount) -> PageSet {
        let mut hot = PageSet::empty(self.pages);
        let mut left = limit.0;
        for slot in self.list() {
            let first = u64::from(self.index.key(slot)) * GROUP_PAGES;
            let pages = self.groups[slot as usize].hot();
            for bit in (0..GROUP_PAGES).filter(|bit| pages & (1 << bit) != 0) {
                if left == 0 {
                    return hot;
                }
                left -= 1;
                hot.insert(PageNumber(first + bit));
            }
        }
        hot
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sterna_page::PageRun;

    const PAGES: PageCount = PageCount(1 << 12);

    fn observe(predictor: &mut Lru, runs: &[(u64, u64)]) {
        let mut sample = PageSet::empty(PAGES);
        for (first, count) in runs {
            sample.insert_run(PageRun::new(*first, *count));
        }
        predictor.observe(&sample);
    }

    fn hot(predictor: &Lru, limit: u64) -> Vec<u64> {
        predictor.hot(PageCount(limit)).iter().map(|page| page.0).collect()
    }

    #[test]
    fn the_newest_groups_come_first_and_keep_their_order() {
        let mut predictor = Lru::new(PAGES);
        for runs in [&[(100, 2)][..], &[(100, 2), (900, 1)], &[(500, 1)], &[(500, 1), (900, 1)]] {
            observe(&mut predictor, runs);
        }
        let best: Vec<_> = (1..=4).map(|limit| hot(&predictor, limit)).collect();
        assert_eq!(
            best,
            [vec![500], vec![500, 900], vec![100, 500, 900], vec![100, 101, 500, 900]]
        );
    }

    #[test]
    fn of_a_group_only_what_is_written_again_is_hot() {
        let mut predictor = Lru::new(PAGES);
        for page in [32, 33, 34, 35] {
            observe(&mut predictor, &[(page, 1), (40, 1)]);
        }
        assert_eq!(hot(&predictor, 16), [40]);
    }

    #[test]
    fn it_takes_two_bytes_a_page_at_most() {
        assert_eq!(size_of::<Group>() + Splay::SLOT_BYTES, 32);
        let mut predictor = Lru::new(PAGES);
        for _ in 0..20 {
            observe(&mut predictor, &[(0, PAGES.0)]);
            observe(&mut predictor, &[]);
        }
        assert_eq!(predictor.groups.len() as u64, PAGES.0 / GROUP_PAGES + 1);
        for _ in 0..MEMORY_SAMPLES {
            observe(&mut predictor, &[]);
        }
        observe(&mut predictor, &[(64, 4)]);
        assert_eq!(
            predictor.groups.len() as u64,
            PAGES.0 / GROUP_PAGES + 1,
            "slots are used again"
        );
        assert_eq!(predictor.groups[0].older, predictor.groups[0].newer, "only one is in the list");
    }
}
