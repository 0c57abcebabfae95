//! The oracle: what holding back could have saved in a run that is over.
//!
//! A [`Recording`] is the run: which pages were written in each sampling period, and where its rounds
//! began. The rounds are those of a move that holds nothing back, and they stay where they are
//! whatever is held back, so that only the choice of pages differs. (In a live move a round that
//! sends less is also shorter; and pages written before their turn are passed over anyway. Neither is
//! counted here.)
//!
//! At the start of each round but the first the pages that are dirty are either sent or held back;
//! those that are held back stay dirty. At the pause all that is dirty is sent. Holding a page back
//! until it is written again saves one sending. So each dirty page is an interval, from this round to
//! the one in which it is next written, and holding back is to choose intervals of which at most
//! *limit* overlap. Keeping those that end first is the best choice there is (Faigle and Nawijn,
//! *Note on scheduling intervals on-line*, 1995), and that is what the oracle does, knowing the future.

use super::Predictor;
use sterna_page::{PageCount, PageNumber, PageSet};

/// A run that is over.
#[derive(Clone, Debug)]
pub struct Recording {
    pages: PageCount,
    samples: Vec<PageSet>,
    /// The sample with which each round after the first begins.
    rounds: Vec<usize>,
}

/// What a predictor is shown at the end of each sampling period.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// What was written since the round began, as a live move does it.
    Peek,
    /// What was written in the period alone, which would cost the guest a fault for each such page.
    Scan,
}

/// What a run sent after its first round.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Pages, in rounds and at the pause.
    pub pages: PageCount,
    /// Those at the pause, for which the guest waits.
    pub at_pause: PageCount,
}

impl Sent {
    /// What part of the saving that was possible this is, from 0 to 1, where `none` is the run that
    /// holds nothing back and `best` the oracle's; 1 if nothing could be saved.
    #[must_use]
    pub fn share(&self, none: &Self, best: &Self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a share")]
        let saved = |sent: &Self| none.pages.0.saturating_sub(sent.pages.0) as f64;
        if saved(best) > 0.0 { saved(self) / saved(best) } else { 1.0 }
    }
}

impl Recording {
    /// A run over a link that carries `rate` pages in a sampling period: the first round sends those
    /// of the guest's pages that are `existing`, each further round what was written in the one
    /// before, and the guest is paused after the last sample. A round takes a sampling period at
    /// least. All sets are of the same guest.
    #[must_use]
    pub fn over_link(existing: &PageSet, samples: Vec<PageSet>, rate: PageCount) -> Self {
        let mut recording = Self { pages: existing.capacity(), samples, rounds: Vec::new() };
        let mut to_send = existing.count();
        let mut began = 0;
        loop {
            let periods = to_send.0.div_ceil(rate.0.max(1)).max(1);
            let ends = usize::try_from(periods).map_or(usize::MAX, |n| n.saturating_add(began));
            if ends >= recording.samples.len() {
                return recording;
            }
            recording.rounds.push(ends);
            to_send = recording.written(began, ends).count();
            began = ends;
        }
    }

    /// Rounds after the first.
    #[must_use]
    pub fn rounds(&self) -> usize {
        self.rounds.len()
    }

    /// The run when nothing is held back.
    #[must_use]
    pub fn without(&self) -> Sent {
        self.replay(|_, _| PageSet::empty(self.pages))
    }

    /// The run when the predictor, which has seen nothing yet, chooses among at most `limit` pages.
    pub fn with(&self, predictor: &mut dyn Predictor, look: Look, limit: PageCount) -> Sent {
        let mut round_began = 0;
        self.replay(|round, _| {
            let round_ends = self.rounds[round];
            for now in round_began..round_ends {
                let since = match look {
                    Look::Peek => round_began,
                    Look::Scan => now,
                };
                predictor.observe(&self.written(since, now + 1));
            }
            round_began = round_ends;
            predictor.hot(limit)
        })
    }

    /// The best that any choice of at most `limit` pages at a time could have made of the run.
    #[must_use]
    pub fn best(&self, limit: PageCount) -> Sent {
        // What is written in each round after the first, and until the pause in the last.
        let written: Vec<PageSet> = (0..self.rounds.len()).map(|r| self.written_in(r)).collect();
        self.replay(|round, dirty| {
            let next = |page| (round..written.len()).find(|later| written[*later].contains(page));
            let mut again: Vec<(usize, PageNumber)> =
                dirty.iter().filter_map(|page| Some((next(page)?, page))).collect();
            again.sort_unstable();
            let mut held = PageSet::empty(self.pages);
            for (_, page) in again.into_iter().take(usize::try_from(limit.0).unwrap_or(usize::MAX))
            {
                held.insert(page);
            }
            held
        })
    }

    /// Goes through the rounds; `choose` is told the number of the round, from 0 for the second, and
    /// what is dirty, and says what of that is held back.
    fn replay(&self, mut choose: impl FnMut(usize, &PageSet) -> PageSet) -> Sent {
        let first_ends = self.rounds.first().copied().unwrap_or(self.samples.len());
        let mut dirty = self.written(0, first_ends);
        let mut sent = PageCount::ZERO;
        for round in 0..self.rounds.len() {
            let mut sends = dirty.clone();
            sends.subtract(&choose(round, &dirty));
            sent += sends.count();
            dirty.subtract(&sends);
            dirty.union_with(&self.written_in(round));
        }
        Sent { pages: sent + dirty.count(), at_pause: dirty.count() }
    }

    /// What was written in a round after the first.
    fn written_in(&self, round: usize) -> PageSet {
        let ends = self.rounds.get(round + 1).copied().unwrap_or(self.samples.len());
        self.written(self.rounds[round], ends)
    }

    fn written(&self, from: usize, until: usize) -> PageSet {
        let mut written = PageSet::empty(self.pages);
        for sample in &self.samples[from..until] {
            written.union_with(sample);
        }
        written
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PAGES: PageCount = PageCount(4);

    fn set(bits: u8) -> PageSet {
        let mut set = PageSet::empty(PAGES);
        for page in (0..PAGES.0).filter(|page| bits & (1 << page) != 0) {
            set.insert(PageNumber(page));
        }
        set
    }

    fn recording(first: u8, rounds: &[u8]) -> Recording {
        let samples = std::iter::once(&first).chain(rounds).map(|bits| set(*bits)).collect();
        Recording { pages: PAGES, samples, rounds: (1..=rounds.len()).collect() }
    }

    /// Sends of the best of all possible choices.
    fn best_of_all(dirty: u8, rounds: &[u8], limit: u32) -> u32 {
        let [written, rest @ ..] = rounds else { return dirty.count_ones() };
        let choices = (0..16u8).filter(|held| held & !dirty == 0 && held.count_ones() <= limit);
        let sent =
            |held: u8| (dirty & !held).count_ones() + best_of_all(held | written, rest, limit);
        choices.map(sent).min().unwrap()
    }

    proptest! {
        #[test]
        fn nothing_saves_more_than_the_oracle(
            first in 0u8..16,
            rounds in prop::collection::vec(0u8..16, 0..5),
            limit in 0u32..=4,
        ) {
            let best = recording(first, &rounds).best(PageCount(limit.into()));
            prop_assert_eq!(best.pages.0, u64::from(best_of_all(first, &rounds, limit)));
        }
    }

    #[test]
    fn a_page_that_is_held_back_and_not_written_again_is_sent_at_the_pause() {
        #[derive(Debug)]
        struct All;
        impl Predictor for All {
            fn observe(&mut self, _sample: &PageSet) {}
            fn hot(&self, _limit: PageCount) -> PageSet {
                PageSet::full(PAGES)
            }
        }
        let run = recording(0b1111, &[0b0001, 0b0001]);
        let (none, all) = (run.without(), run.with(&mut All, Look::Peek, PAGES));
        assert_eq!(none, Sent { pages: PageCount(6), at_pause: PageCount(1) });
        assert_eq!(all, Sent { pages: PageCount(4), at_pause: PageCount(4) });
        let best = run.best(PAGES);
        assert_eq!(best, Sent { pages: PageCount(4), at_pause: PageCount(1) });
        assert!((all.share(&none, &best) - 1.0).abs() < 1e-9);
        assert!(none.share(&none, &best).abs() < 1e-9);
    }

    #[test]
    fn rounds_take_as_long_as_the_link_needs() {
        // All of four pages in two periods, then two pages in one, then none in one.
        let samples = [0b0001, 0b0010, 0, 0, 0b1000].map(set).to_vec();
        let run = Recording::over_link(&set(0b1111), samples.clone(), PageCount(2));
        assert_eq!(run.rounds, [2, 3, 4]);
        assert_eq!(run.without(), Sent { pages: PageCount(3), at_pause: PageCount(1) });
        // Of a guest of which half exists the first round is half as long.
        assert_eq!(Recording::over_link(&set(0b0011), samples, PageCount(2)).rounds, [1, 2, 3, 4]);
    }
}
