//! Some of a guest's pages, to learn what they would come to on the wire.

use std::time::Instant;
use sterna_core::compress::Compress;
use sterna_page::PAGE_SIZE;
use sterna_page::coding::{
    Choice, Encoders, Pace, PageBytes, PageClass, Tried, classify, code_bytes_max,
};

/// Pages of a class that are coded at most: as many as each coder is tried on during a move, four times.
const CODED_PAGES: usize = 64;

/// Bytes a page of a frame's header, at least.
const FRAMING_BYTES: f64 = 2.0;

/// What a thread encrypts and sends in a second, as long as nothing was sent.
const SENT: f64 = 1e9;

/// Pages that were looked at.
#[derive(Clone, Debug)]
pub struct Sample {
    seen: u64,
    zero: u64,
    /// How many there were of each class that can be coded.
    classes: [u64; PageClass::CODED.len()],
    choice: Choice,
}

impl Sample {
    /// Looks at these pages, and tries all coders on some.
    pub(crate) fn of<E>(pages: impl Iterator<Item = Result<PageBytes, E>>) -> Result<Self, E> {
        let classes = [0; PageClass::CODED.len()];
        let mut this = Self { seen: 0, zero: 0, classes, choice: Choice::default() };
        let mut kept: [Vec<PageBytes>; PageClass::CODED.len()] = Default::default();
        for page in pages {
            let page = page?;
            this.seen += 1;
            let class = classify(&page);
            match PageClass::CODED.iter().position(|coded| *coded == class) {
                None => this.zero += 1,
                Some(index) => {
                    this.classes[index] += 1;
                    if kept[index].len() < CODED_PAGES {
                        kept[index].push(page);
                    }
                }
            }
        }
        for (class, pages) in PageClass::CODED.into_iter().zip(&kept) {
            this.try_coders(class, pages);
        }
        Ok(this)
    }

    fn try_coders(&mut self, class: PageClass, pages: &[PageBytes]) {
        if pages.is_empty() {
            return;
        }
        let mut code = vec![0; code_bytes_max(pages.len())];
        for coder in class.coders() {
            // Its own each, as the code of one says nothing of another's.
            let mut encoders = Encoders::default();
            encoders.prepare(*coder);
            let began = Instant::now();
            let code_bytes = encoders.encode(*coder, pages, &mut code);
            let tried = Tried { pages: pages.len(), code_bytes, took: began.elapsed() };
            self.choice.tried(class, *coder, tried);
        }
    }

    /// Of pages that exist, how many in a thousand are all zero.
    #[must_use]
    pub fn zero_permille(&self) -> u16 {
        u16::try_from(self.zero * 1000 / self.seen.max(1)).unwrap_or(1000)
    }

    /// Bytes on the wire of a page that is not zero, where each of `streams` streams has its share of a
    /// link that carries so many bytes a second. If coding is what takes longest, it counts as the bytes
    /// that the link would carry meanwhile.
    #[must_use]
    pub fn page_bytes(&self, compress: Compress, bytes_per_second: f64, streams: u16) -> f64 {
        let link = bytes_per_second / f64::from(streams.max(1));
        let pace = Pace { sent: SENT, slowed: 1.0, link };
        let cost = |class| match compress {
            Compress::None => 1.0,
            Compress::Auto => self.choice.cost(class, pace),
        };
        let filled = self.seen - self.zero;
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let share = |count: u64| count as f64 / filled.max(1) as f64;
        let classes = PageClass::CODED.into_iter().zip(self.classes);
        let bytes: f64 = classes.map(|(class, count)| share(count) * cost(class)).sum();
        let whole = if filled == 0 { 1.0 } else { bytes };
        whole * PAGE_SIZE as f64 + FRAMING_BYTES
    }

    /// The same of a page that is sent for the first time, which may be zero.
    #[must_use]
    pub fn first_page_bytes(&self, compress: Compress, bytes_per_second: f64, streams: u16) -> f64 {
        let filled = 1.0 - f64::from(self.zero_permille()) / 1000.0;
        let page = self.page_bytes(compress, bytes_per_second, streams) - FRAMING_BYTES;
        filled * page + FRAMING_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(number: u32, word: impl Fn(u32) -> u32) -> PageBytes {
        let mut page = [0; PAGE_SIZE];
        for (index, bytes) in (0..).zip(page.as_chunks_mut::<4>().0) {
            *bytes = word(number * 1024 + index).to_le_bytes();
        }
        page
    }

    fn noise(index: u32) -> u32 {
        let mixed = u64::from(index).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        ((mixed ^ mixed >> 32).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 32) as u32
    }

    fn sample(pages: impl Iterator<Item = PageBytes>) -> Sample {
        Sample::of::<()>(pages.map(Ok)).unwrap()
    }

    #[test]
    fn what_can_be_coded_counts_as_less_if_it_is_coded() {
        let half_zero = |number: u32| match number % 2 {
            0 => [0; PAGE_SIZE],
            _ => page(number, |index| noise(index % 700) & 0x0f0f_0f0f),
        };
        let sample = sample((0..100).map(half_zero));
        assert_eq!(sample.zero_permille(), 500);
        let slow = 5e6;
        assert_eq!(sample.page_bytes(Compress::None, slow, 2), 4098.0);
        assert_eq!(sample.first_page_bytes(Compress::None, slow, 2), 2050.0);
        let coded = sample.page_bytes(Compress::Auto, slow, 2);
        assert!(coded < 3000.0, "{coded}");
        assert!(sample.first_page_bytes(Compress::Auto, slow, 2) < coded);
        // Nobody keeps up with such a link: a page takes what a thread needs to send it, or less.
        let fast = 1e12;
        let sent_alone = fast / 2.0 / SENT * PAGE_SIZE as f64 + FRAMING_BYTES;
        let cost = sample.page_bytes(Compress::Auto, fast, 2);
        assert!(cost > 4098.0 && cost <= sent_alone, "{cost}");
    }

    #[test]
    fn noise_counts_as_it_is() {
        let sample = sample((0..20).map(|number| page(number, noise)));
        let bytes = sample.page_bytes(Compress::Auto, 5e6, 1);
        assert!((4090.0..4110.0).contains(&bytes), "{bytes}");
        assert_eq!(sample.zero_permille(), 0);
    }

    #[test]
    fn a_guest_without_pages_is_no_puzzle() {
        let sample = sample(std::iter::empty());
        assert_eq!(sample.page_bytes(Compress::Auto, 1e8, 0), 4098.0);
        assert_eq!(sample.first_page_bytes(Compress::Auto, 1e8, 0), 4098.0);
    }
}
