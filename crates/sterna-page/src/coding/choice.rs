//! Which coder a stream uses for pages of a class, by what each was measured to do.
//!
//! With *c* the bytes of pages that the stream's thread codes in a second of the processor, *ρ* the bytes of code
//! for each of them, *e* the bytes that the thread encrypts and hands over in such a second, *s* how many seconds of
//! the clock such a second takes, as others want the processors too, and *b* the bytes that the link takes of this
//! stream in a second, a byte of a page takes
//!
//! ```text
//!   coded   T = max(s (1/c + ρ/e), ρ/b)        raw   T = max(s/e, 1/b)
//! ```
//!
//! as the link takes what was handed over while the thread codes what comes next. The coding with the
//! least *T* is used, and of equal ones the one of fewer bytes: so no coder slows a move down, and where
//! the link is the limit the coder of the fewest bytes is chosen that keeps up with it. (MECOM, Jin et
//! al., Cluster 2009, codes always; the rule is that of a pipeline's slowest stage.)
//!
//! What is not measured is not known: each coder of a class is tried on a few pages at first, and again
//! from time to time, for no more than a fiftieth of the stream's time and a sixteenth of its pages. None is tried that is
//! slower than one which takes too long already.

use super::{Coder, PageClass};
use crate::{PAGE_SIZE, PAGE_SIZE_BYTES};
use std::time::Duration;

/// Pages of a try: enough to see the ratio, and few enough that the strongest coder takes a millisecond.
const TRY_PAGES: usize = 16;

/// One of so many parts of the time may go into tries.
const TRY_SHARE: u32 = 50;

/// And one of so many pages: what was seen of a few says little of those that come later, as a guest's kernel lies
/// together and so do its programs' data.
const TRY_PAGES_SHARE: usize = 16;

/// A class of which none of so many pages was is not waited for.
const LOOKED_PAGES: usize = 4096;

/// Of so many pages what was measured is forgotten by two thirds.
const MEASURED_PAGES: f64 = 48.0;

/// Coding that takes this much less is worth it: what is measured is never exact.
const MARGIN: f64 = 0.98;

/// The same where the link could take more than the thread sends. What coding spares then is processor time only,
/// of which the receiver needs some to decode, and the guest's vCPUs have less.
const MARGIN_WITHOUT_LIMIT: f64 = 0.8;

/// How fast a stream's thread sends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace {
    /// *e*: bytes that the thread encrypts and hands over in a second of the processor.
    pub sent: f64,
    /// *s*: how many seconds of the clock that takes; 1 or more.
    pub slowed: f64,
    /// *b*: bytes a second that the link takes; infinite where it was never seen to be full.
    pub link: f64,
}

/// What coding some pages came to.
#[derive(Clone, Copy, Debug)]
pub struct Tried {
    /// How many there were.
    pub pages: usize,
    /// Bytes of code.
    pub code_bytes: usize,
    /// Time of the processor that it took: by the clock, a thread that had to wait for one would seem to be a
    /// slow coder.
    pub took: Duration,
}

/// What a coder does for a class.
#[derive(Clone, Copy, Debug)]
struct Measure {
    /// *1/c*: seconds of the processor a byte.
    seconds: f64,
    /// *ρ*
    ratio: f64,
}

/// What each coder did for each class, on one stream.
#[derive(Clone, Debug, Default)]
pub struct Choice {
    measures: [[Option<Measure>; Coder::ALL.len()]; PageClass::CODED.len()],
    next_try: [usize; PageClass::CODED.len()],
    seen: [bool; PageClass::CODED.len()],
    looked: Looked,
    spent: Duration,
    trying: Duration,
    pages: usize,
    tried_pages: usize,
    /// What comes next is a try.
    is_try: bool,
}

/// What looking at pages has shown: of each class how many there were, and what looking took. What is older than
/// [`LOOKED_PAGES`] counts for a third.
#[derive(Clone, Debug, Default)]
struct Looked {
    of_class: [f64; PageClass::CODED.len()],
    pages: f64,
    /// Seconds of the processor.
    took: f64,
}

/// What a byte takes that goes as it is, in seconds.
fn raw(pace: Pace) -> f64 {
    (pace.slowed / pace.sent).max(1.0 / pace.link)
}

fn index(class: PageClass) -> Option<usize> {
    PageClass::CODED.iter().position(|coded| *coded == class)
}

impl Choice {
    /// How the first of `pages` pages of a class are to be sent, and how many of them: by a coder, or as
    /// they are.
    pub fn next(&mut self, class: PageClass, pages: usize, pace: Pace) -> (Option<Coder>, usize) {
        let Some(index) = index(class) else { return (None, pages) };
        self.seen[index] = true;
        let trial = self.trial(class, index, pace);
        self.is_try = trial.is_some();
        let (coder, pages) = match trial {
            Some(coder) => (Some(coder), pages.min(TRY_PAGES)),
            None => (self.best(class, index, pace), pages),
        };
        self.pages += pages;
        (coder, pages)
    }

    /// Takes note of the classes of pages that were looked at, and of the processor's time that took.
    pub fn looked(&mut self, classes: impl Iterator<Item = PageClass>, took: Duration) {
        let (mut of_class, mut pages) = ([0.0; PageClass::CODED.len()], 0.0);
        for class in classes {
            pages += 1.0;
            if let Some(index) = index(class) {
                of_class[index] += 1.0;
            }
        }
        #[expect(clippy::cast_precision_loss, reason = "a small number")]
        let kept = (-pages / LOOKED_PAGES as f64).exp();
        let looked = &mut self.looked;
        for (old, new) in looked.of_class.iter_mut().zip(of_class) {
            *old = *old * kept + new;
        }
        looked.pages = looked.pages * kept + pages;
        looked.took = looked.took * kept + took.as_secs_f64();
    }

    /// Whether what coding spares is more than looking for the pages to be coded takes.
    fn looking_pays(&self, pace: Pace) -> bool {
        #[expect(clippy::cast_precision_loss, reason = "a small number")]
        if self.looked.pages < LOOKED_PAGES as f64 / 2.0 {
            let mut classes = PageClass::CODED.iter().zip(0..);
            return classes.any(|(class, index)| self.best(*class, index, pace).is_some());
        }
        let spared = PageClass::CODED.iter().zip(0..).map(|(class, index)| {
            let time = self.least(*class, index, pace).map_or(0.0, |(_, time)| raw(pace) - time);
            #[expect(clippy::cast_precision_loss, reason = "a small number")]
            let page = time * PAGE_SIZE as f64;
            page * self.looked.of_class[index]
        });
        let spared: f64 = spared.sum();
        spared > self.looked.took * pace.slowed
    }

    /// Whether any class would be coded, or is to be tried. If not, pages need not be looked at.
    #[must_use]
    pub fn may_code(&self, pace: Pace) -> bool {
        self.may_try()
            || self.looking_pays(pace)
            || PageClass::CODED.iter().zip(0..).any(|(class, index)| {
                let may_come = self.seen[index] || self.pages < LOOKED_PAGES;
                let is_new =
                    |coder: &Coder| !self.knows(index, *coder) && self.may_pay(index, *coder, pace);
                may_come && class.coders().iter().any(is_new)
            })
    }

    fn knows(&self, index: usize, coder: Coder) -> bool {
        self.measures[index][coder as usize].is_some()
    }

    fn may_try(&self) -> bool {
        self.trying * TRY_SHARE < self.spent && self.tried_pages * TRY_PAGES_SHARE <= self.pages
    }

    /// Whether a coder could pay, as far as can be told without trying it: not if a quicker one takes as long already as
    /// a page that goes as it is.
    fn may_pay(&self, index: usize, coder: Coder, pace: Pace) -> bool {
        let quicker: &[Coder] = match coder {
            Coder::Sparse | Coder::Words | Coder::Lz4 => &[],
            Coder::ZstdFast => &[Coder::Lz4],
            Coder::ZstdStrong => &[Coder::Lz4, Coder::ZstdFast],
        };
        let known = quicker.iter().filter_map(|coder| self.measures[index][*coder as usize]);
        known.into_iter().all(|measure| measure.seconds * pace.slowed < raw(pace))
    }

    /// A coder that nothing, or nothing new, is known of.
    fn trial(&mut self, class: PageClass, index: usize, pace: Pace) -> Option<Coder> {
        let coders = class.coders();
        let is_new =
            |coder: &&Coder| !self.knows(index, **coder) && self.may_pay(index, **coder, pace);
        if let Some(coder) = coders.iter().find(is_new) {
            return Some(*coder);
        }
        if !self.may_try() {
            return None;
        }
        let next = &mut self.next_try[index];
        *next = (*next + 1) % coders.len();
        let coder = coders[*next];
        self.may_pay(index, coder, pace).then_some(coder)
    }

    /// How many bytes the link could carry in the time that a byte of such a page takes: one or more
    /// if it goes as it is, fewer where coding pays.
    #[must_use]
    pub fn cost(&self, class: PageClass, pace: Pace) -> f64 {
        let best = index(class).and_then(|index| self.least(class, index, pace));
        best.map_or_else(|| raw(pace), |(_, time)| time) * pace.link
    }

    /// The coder by which a byte takes least, unless it takes least without.
    fn best(&self, class: PageClass, index: usize, pace: Pace) -> Option<Coder> {
        self.least(class, index, pace).map(|(coder, _)| coder)
    }

    /// The same, with the time in seconds.
    fn least(&self, class: PageClass, index: usize, pace: Pace) -> Option<(Coder, f64)> {
        let coded = class.coders().iter().filter_map(|coder| {
            let Measure { seconds, ratio } = self.measures[index][*coder as usize]?;
            let time = ((seconds + ratio / pace.sent) * pace.slowed).max(ratio / pace.link);
            Some((*coder, time, ratio))
        });
        let least = |a: &(Coder, f64, f64), b: &(Coder, f64, f64)| {
            a.1.total_cmp(&b.1).then(a.2.total_cmp(&b.2))
        };
        let (coder, time, _) = coded.min_by(least)?;
        let margin =
            if pace.link > pace.sent / pace.slowed { MARGIN_WITHOUT_LIMIT } else { MARGIN };
        (time < raw(pace) * margin).then_some((coder, time))
    }

    /// Takes note of what was coded.
    pub fn tried(&mut self, class: PageClass, coder: Coder, tried: Tried) {
        let Some(index) = index(class) else { return };
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let (pages, bytes) =
            (tried.pages as f64, (tried.pages.max(1) as u64 * PAGE_SIZE_BYTES) as f64);
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let ratio = tried.code_bytes as f64 / bytes;
        let newest = Measure { seconds: tried.took.as_secs_f64() / bytes, ratio };
        let measure = &mut self.measures[index][coder as usize];
        let weight = 1.0 - (-pages / MEASURED_PAGES).exp();
        let mix = |old: f64, new: f64| old + (new - old) * weight;
        *measure = Some(measure.map_or(newest, |old| Measure {
            seconds: mix(old.seconds, newest.seconds),
            ratio: mix(old.ratio, newest.ratio),
        }));
        if std::mem::take(&mut self.is_try) {
            self.trying += tried.took;
            self.tried_pages += tried.pages;
        }
    }

    /// Takes note of the stream's time, whatever it was spent on.
    pub fn spent(&mut self, time: Duration) {
        self.spent += time;
    }
}
