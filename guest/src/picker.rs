//! Which page of the working set is rewritten next.

use crate::content::{Seed, next_random};
use crate::quantity::PageNumber;
use crate::settings::{Order, Share};

/// The hot part of the working set is one of so many.
const HOT_PART: u32 = 10;

/// Draws pages from a working set, which begins at page 0 with its hot part.
#[derive(Debug)]
pub struct Picker {
    order: Order,
    locality: Share,
    state: u64,
    next: u32,
}

impl Picker {
    /// Starts drawing in an order; `locality` counts in uniform order only.
    #[must_use]
    pub fn new(order: Order, locality: Share, seed: Seed) -> Self {
        Self { order, locality, state: seed.0, next: 0 }
    }

    /// Returns the next page of a working set of `pages`, or nothing if that is empty.
    pub fn pick(&mut self, pages: u32) -> Option<PageNumber> {
        if pages == 0 {
            return None;
        }
        Some(PageNumber(match self.order {
            Order::Sequential => {
                let page = self.next % pages;
                self.next = page + 1;
                page
            }
            Order::Uniform => {
                let hot = pages.div_ceil(HOT_PART);
                if self.locality.takes(self.draw()) { self.below(hot) } else { self.below(pages) }
            }
        }))
    }

    fn below(&mut self, bound: u32) -> u32 {
        let scaled = (u64::from(self.draw()) * u64::from(bound)) >> 32;
        u32::try_from(scaled).expect("less than the bound")
    }

    fn draw(&mut self) -> u32 {
        u32::try_from(next_random(&mut self.state) >> 32).expect("32 bits are left")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picks(order: Order, locality: f64, pages: u32, count: u32) -> Vec<u32> {
        let mut picker = Picker::new(order, Share::new(locality).unwrap(), Seed(1));
        (0..count).map(|_| picker.pick(pages).unwrap().0).collect()
    }

    fn hot(picks: &[u32], pages: u32) -> usize {
        picks.iter().filter(|&&page| page < pages / 10).count()
    }

    #[test]
    fn without_locality_every_page_has_the_same_chance() {
        let picks = picks(Order::Uniform, 0.0, 1000, 20_000);
        assert!(picks.iter().all(|&page| page < 1000));
        assert!((1800..2200).contains(&hot(&picks, 1000)), "{}", hot(&picks, 1000));
    }

    #[test]
    fn locality_sends_its_share_to_the_first_tenth() {
        // The rest is spread over all pages, so a tenth of it is hot too.
        let picks = picks(Order::Uniform, 0.9, 1000, 20_000);
        assert!((18_000..18_400).contains(&hot(&picks, 1000)), "{}", hot(&picks, 1000));
    }

    #[test]
    fn sequential_order_goes_round_and_follows_a_shrinking_working_set() {
        assert_eq!(picks(Order::Sequential, 0.9, 3, 7), [0, 1, 2, 0, 1, 2, 0]);
        let mut picker = Picker::new(Order::Sequential, Share::new(0.0).unwrap(), Seed(1));
        let mut pick = |pages| picker.pick(pages).map(|page| page.0);
        assert_eq!(
            [pick(10), pick(10), pick(10), pick(2), pick(2)].map(Option::unwrap),
            [0, 1, 2, 1, 0]
        );
    }

    #[test]
    fn an_empty_working_set_has_no_page() {
        let mut picker = Picker::new(Order::Uniform, Share::new(1.0).unwrap(), Seed(1));
        assert_eq!(picker.pick(0), None);
        assert_eq!(picker.pick(1), Some(PageNumber(0)));
    }
}
