//! The working set: which pages a guest is likely to write again soon.
//!
//! A page that is sent in a round and written again was sent in vain. A [`Predictor`] is shown which
//! pages the guest wrote, one sample a [`SAMPLING_PERIOD`], and names those that are the most likely
//! to be written again. A round leaves them out; they stay dirty, and go in a later round or at the
//! pause. So a wrong prediction never loses a page: it costs downtime, and [`allowance()`] says how much
//! of that there may be.
//!
//! A sample is what was written since the round began ([`Look::Peek`]). To know what was written in
//! the sampling period alone, pages would have to be protected anew each time, and the guest would
//! pay a fault for each that it writes. It is not worth that: a page that is written often is among
//! the first that are written in a round, so it is in more samples than others. `tests/working_set.rs`
//! compares both.
//!
//! [`Recording`] tells offline what part of the possible saving a predictor reaches.

mod aged;
mod allowance;
mod lru;
mod oracle;
mod splay;

pub use aged::Aged;
pub use allowance::{allowance, allowance_at};
pub use lru::Lru;
pub use oracle::{Look, Recording, Sent};

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;
use sterna_page::{PageCount, PageSet};

/// Time from one sample to the next. It is fixed, because rounds are not: what is written in ten
/// seconds says little about the next tenth of one.
pub const SAMPLING_PERIOD: Duration = Duration::from_millis(200);

/// Samples after which a page, or a group of pages, that was not written is forgotten: 1.6 s. Rounds
/// in which holding back pays are about as long.
const MEMORY_SAMPLES: u8 = 8;

/// Tells from samples which pages will be written again.
pub trait Predictor: fmt::Debug + Send {
    /// Takes note of the pages written by the end of one more sampling period. `sample` is of the
    /// guest for which the predictor was made.
    fn observe(&mut self, sample: &PageSet);

    /// The pages that are the most likely to be written again, at most `limit`. The same samples and
    /// the same limit give the same pages.
    fn hot(&self, limit: PageCount) -> PageSet;
}

/// Which pages rounds hold back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum HoldBack {
    /// None.
    #[default]
    None,
    /// Those that [`Lru`] names.
    Lru,
    /// Those that [`Aged`] names.
    Aged,
}

/// Every way of holding pages back.
pub const WAYS: [HoldBack; 3] = [HoldBack::None, HoldBack::Lru, HoldBack::Aged];

/// A word that is no way of holding pages back.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not none, lru or aged")]
pub struct UnknownHoldBack(pub String);

impl HoldBack {
    /// The predictor for a guest of `pages` pages; none if nothing is held back.
    #[must_use]
    pub fn start(self, pages: PageCount) -> Option<Box<dyn Predictor>> {
        match self {
            Self::None => None,
            Self::Lru => Some(Box::new(Lru::new(pages))),
            Self::Aged => Some(Box::new(Aged::new(pages))),
        }
    }

    /// The word as it is written.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Lru => "lru",
            Self::Aged => "aged",
        }
    }
}

impl fmt::Display for HoldBack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for HoldBack {
    type Err = UnknownHoldBack;
    fn from_str(text: &str) -> Result<Self, UnknownHoldBack> {
        WAYS.into_iter()
            .find(|way| way.as_str() == text)
            .ok_or_else(|| UnknownHoldBack(text.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use sterna_page::PageNumber;

    const PAGES: u64 = 100;

    fn sample(pages: &[u64]) -> PageSet {
        let mut set = PageSet::empty(PageCount(PAGES));
        for page in pages {
            set.insert(PageNumber(*page));
        }
        set
    }

    #[test]
    fn words_are_read_as_they_are_written() {
        for way in WAYS {
            assert_eq!(way.to_string().parse(), Ok(way));
        }
        assert_eq!("LRU".parse::<HoldBack>(), Err(UnknownHoldBack("LRU".into())));
    }

    #[test]
    fn what_is_written_all_the_time_is_hot_and_what_was_written_once_is_not() {
        for way in [HoldBack::Lru, HoldBack::Aged] {
            let mut predictor = way.start(PageCount(PAGES)).unwrap();
            for step in 0..6 {
                predictor.observe(&sample(&[7, 40, 41, 80 + step]));
            }
            let hot = predictor.hot(PageCount(PAGES));
            assert_eq!(hot, sample(&[7, 40, 41]), "{way}");
        }
    }

    #[test]
    fn what_is_no_longer_written_is_forgotten() {
        for way in [HoldBack::Lru, HoldBack::Aged] {
            let mut predictor = way.start(PageCount(PAGES)).unwrap();
            predictor.observe(&sample(&[1, 2, 3]));
            predictor.observe(&sample(&[1, 2, 3]));
            assert_eq!(predictor.hot(PageCount(PAGES)), sample(&[1, 2, 3]), "{way}");
            for _ in 0..MEMORY_SAMPLES {
                predictor.observe(&sample(&[]));
            }
            assert!(predictor.hot(PageCount(PAGES)).is_empty(), "{way}");
        }
    }

    proptest! {
        #[test]
        fn no_more_than_the_limit_and_nothing_that_was_not_written(
            samples in prop::collection::vec(prop::collection::vec(0..PAGES, 0..60), 0..20),
            limit in 0..=PAGES,
        ) {
            for way in [HoldBack::Lru, HoldBack::Aged] {
                let mut predictor = way.start(PageCount(PAGES)).unwrap();
                let mut again = way.start(PageCount(PAGES)).unwrap();
                let mut written = PageSet::empty(PageCount(PAGES));
                for pages in &samples {
                    predictor.observe(&sample(pages));
                    again.observe(&sample(pages));
                    written.union_with(&sample(pages));
                }
                let hot = predictor.hot(PageCount(limit));
                prop_assert!(hot.count().0 <= limit, "{way}");
                prop_assert_eq!(&hot, &again.hot(PageCount(limit)), "{} is deterministic", way);
                let all = predictor.hot(PageCount(PAGES));
                prop_assert_eq!(hot.count(), all.count().min(PageCount(limit)), "{}", way);
                let mut strange = all;
                strange.subtract(&written);
                prop_assert!(strange.is_empty(), "{way}: {strange:?} was never written");
            }
        }
    }
}
