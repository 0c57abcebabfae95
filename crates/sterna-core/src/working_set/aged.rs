//! Aged bitmaps: one shift register a page, which holds in which of the newest samples it was
//! written (the time series of Hu et al., 2011, sampled at a fixed period as in Zhong et al., 2014).
//!
//! A page's score is the sum of the weights of the samples in which it was written, 8 for the newest
//! down to 1 for the oldest. Halving from sample to sample would be steeper: then the newest sample
//! counts more than all the others together, and a page that was written once, just now, looks
//! hotter than one that is written in most samples. A page that was written in one sample only has
//! no score at all: that is no sign that it will be written again.
//!
//! Memory: one byte a page (256 KiB for each GiB of RAM).

use super::{MEMORY_SAMPLES, Predictor};
use sterna_page::{PageCount, PageNumber, PageSet};

/// The bit of the newest sample.
const NEWEST: u8 = 1 << (MEMORY_SAMPLES - 1);

/// Scores go from 0 to the sum of all weights.
const SCORES: usize = 8 * 9 / 2 + 1;

/// The score of each content of a register.
const SCORE: [u8; 256] = {
    let mut scores = [0; 256];
    let mut register: u8 = 0;
    loop {
        let mut bit: u8 = 0;
        while bit < MEMORY_SAMPLES {
            if register & (1 << bit) != 0 && register.count_ones() > 1 {
                scores[register as usize] += bit + 1;
            }
            bit += 1;
        }
        if register == u8::MAX {
            break scores;
        }
        register += 1;
    }
};

/// Predicts by in how many of the newest samples a page was written, and how long ago.
#[derive(Clone, Debug)]
pub struct Aged {
    registers: Vec<u8>,
}

impl Aged {
    /// For a guest of `pages` pages.
    #[must_use]
    pub fn new(pages: PageCount) -> Self {
        Self { registers: vec![0; usize_of(pages.0)] }
    }

    fn score(register: u8) -> usize {
        usize::from(SCORE[usize::from(register)])
    }

    /// Pages of each score.
    fn histogram(&self) -> [u64; SCORES] {
        let mut pages = [0; SCORES];
        for register in &self.registers {
            pages[Self::score(*register)] += 1;
        }
        pages
    }
}

impl Predictor for Aged {
    fn observe(&mut self, sample: &PageSet) {
        for register in &mut self.registers {
            *register >>= 1;
        }
        for run in sample.runs() {
            let first = usize_of(run.first.0);
            for register in &mut self.registers[first..first + usize_of(run.count.0)] {
                *register |= NEWEST;
            }
        }
    }

    /// Pages by falling score; of those for which there is not room for all, the lowest.
    fn hot(&self, limit: PageCount) -> PageSet {
        // How many pages of each score there is room for.
        let mut room = self.histogram();
        room[0] = 0;
        let mut left = limit.0;
        for pages in room.iter_mut().rev() {
            *pages = (*pages).min(left);
            left -= *pages;
        }
        let mut hot = PageSet::empty(PageCount(self.registers.len() as u64));
        for (page, register) in (0..).zip(&self.registers) {
            let room = &mut room[Self::score(*register)];
            if *room > 0 {
                *room -= 1;
                hot.insert(PageNumber(page));
            }
        }
        hot
    }
}

fn usize_of(count: u64) -> usize {
    usize::try_from(count).expect("pages in memory are counted by usize")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn observe(predictor: &mut Aged, pages: &[u64]) {
        let mut sample = PageSet::empty(PageCount(predictor.registers.len() as u64));
        for page in pages {
            sample.insert(PageNumber(*page));
        }
        predictor.observe(&sample);
    }

    fn hot(predictor: &Aged, limit: u64) -> Vec<u64> {
        predictor.hot(PageCount(limit)).iter().map(|page| page.0).collect()
    }

    #[test]
    fn newer_samples_weigh_more_and_more_samples_weigh_more_than_newer_ones() {
        let mut predictor = Aged::new(PageCount(10));
        for pages in [&[1, 3][..], &[1, 3], &[1], &[1], &[2], &[2, 4]] {
            observe(&mut predictor, pages);
        }
        // 1: 6 + 5 + 4 + 3; 2: 8 + 7; 3: 4 + 3; 4 was written once.
        let best: Vec<_> = (1..=4).map(|limit| hot(&predictor, limit)).collect();
        assert_eq!(best, [vec![1], vec![1, 2], vec![1, 2, 3], vec![1, 2, 3]]);
    }

    #[test]
    fn it_takes_a_byte_a_page() {
        assert_eq!(size_of_val(&*Aged::new(PageCount(1 << 18)).registers), 256 << 10);
    }
}
