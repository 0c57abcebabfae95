//! What a page must hold: a pure function of seed, page, kind and version.
//!
//! The version counts a page's rewrites; version 0 is the first fill. A rewrite of the whole
//! page gives content of the new version's own; a rewrite of some words leaves the page as it was
//! filled, but for these words, which always lie in the same place of the page. All of it is cheap
//! to compute: the recorder mostly runs on an emulated processor.

use std::fmt;
use std::str::FromStr;

use crate::quantity::{PAGE_SIZE, PageNumber};
use crate::settings::{Settings, Share, WorkingSetContent, WriteSize};
use crate::text::Prose;

/// 8-byte words in a page.
pub const WORDS: usize = PAGE_SIZE / 8;
/// How many different pages all duplicates are copies of.
pub const TEMPLATES: usize = 64;

/// The words of a page.
pub type PageWords = [u64; WORDS];

/// What makes one guest's pages differ from another's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seed(pub u64);

/// How often a page has been rewritten.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32);

/// What a page looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only zeroes, really written, so that the page exists in the guest.
    Zero,
    /// Prose: compresses as text does.
    Text,
    /// Does not compress.
    Random,
    /// A copy of one of [`TEMPLATES`] pages of prose.
    Duplicate,
    /// Small objects with headers, references near by and small numbers, as a Java heap has them.
    Heap,
}

const KINDS: [Kind; 5] = [Kind::Zero, Kind::Text, Kind::Random, Kind::Duplicate, Kind::Heap];

/// How many percent of the pages are of each kind; together 100.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mix {
    percents: [u8; 5],
}

/// A mix or kind that cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("kinds are zero, text, random, dup and heap; their percents add up to 100")]
pub struct BadMix;

/// All of a guest's pages, as they must be.
#[derive(Debug)]
pub struct Content {
    seed: Seed,
    own: Share,
    own_seed: Seed,
    mix: Mix,
    working_set: u32,
    working_set_content: WorkingSetContent,
    write: WriteSize,
    prose: Prose,
    templates: Vec<PageWords>,
}

impl Content {
    /// Prepares the content that these settings describe.
    #[must_use]
    pub fn new(settings: &Settings) -> Self {
        let prose = Prose::new();
        let mut templates = vec![[0; WORDS]; TEMPLATES];
        for (number, template) in (0_u64..).zip(&mut templates) {
            prose.fill(scramble(settings.seed.0 ^ scramble(!number)), template);
        }
        Self {
            seed: settings.seed,
            own: settings.own,
            own_seed: settings.own_seed,
            mix: settings.mix,
            working_set: settings.working_set.pages(),
            working_set_content: settings.working_set_content,
            write: settings.write,
            prose,
            templates,
        }
    }

    /// Returns what a page looks like. A page that has been rewritten is of the working set, even
    /// if the working set has grown over it only later.
    #[must_use]
    pub fn kind(&self, page: PageNumber, version: Version) -> Kind {
        let working = page.0 < self.working_set || version > Version(0);
        match self.working_set_content {
            WorkingSetContent::Only(kind) if working => kind,
            WorkingSetContent::Only(_) | WorkingSetContent::AsMixed => {
                self.mix.kind(self.key(page, Version(0)))
            }
        }
    }

    /// Writes all of a page as it must be at a version.
    pub fn whole(&self, page: PageNumber, version: Version, into: &mut PageWords) {
        match self.write {
            WriteSize::Page => self.base(page, version, into),
            WriteSize::Words(words) => {
                self.base(page, Version(0), into);
                self.overlay(page, version, words, into);
            }
        }
    }

    /// Turns a page of the version before into one of `version`, writing no more than the setting
    /// `write` says.
    pub fn rewrite(&self, page: PageNumber, version: Version, into: &mut PageWords) {
        match self.write {
            WriteSize::Page => self.base(page, version, into),
            WriteSize::Words(words) => self.overlay(page, version, words, into),
        }
    }

    fn base(&self, page: PageNumber, version: Version, into: &mut PageWords) {
        let key = self.key(page, version);
        // With `write=word` the kind stays that of the first fill, as does the rest of the page.
        match self.kind(page, version) {
            Kind::Zero => into.fill(0),
            Kind::Text => self.prose.fill(key, into),
            Kind::Random => fill_random(key, into),
            Kind::Duplicate => {
                into.copy_from_slice(&self.templates[bounded(key, TEMPLATES)]);
            }
            Kind::Heap => fill_heap(key, page, into),
        }
    }

    fn overlay(&self, page: PageNumber, version: Version, words: u16, into: &mut PageWords) {
        if version > Version(0) {
            let words = usize::from(words);
            let start = bounded(self.key(page, Version(0)), WORDS - words + 1);
            fill_random(self.key(page, version), &mut into[start..start + words]);
        }
    }

    fn key(&self, page: PageNumber, version: Version) -> u64 {
        let place = u64::from(version.0) << 32 | u64::from(page.0);
        let key = scramble(self.seed.0 ^ scramble(place));
        if self.is_own(page) { scramble(key ^ scramble(self.own_seed.0)) } else { key }
    }

    /// Whether a page is one in which this guest differs from others of its seed.
    fn is_own(&self, page: PageNumber) -> bool {
        // Half of the bits are as good as all.
        self.own != Share::NONE && self.own.takes((scramble(!u64::from(page.0)) >> 32) as u32)
    }
}

impl Mix {
    /// Returns the mix in which all pages are of one kind.
    #[must_use]
    pub fn only(kind: Kind) -> Self {
        Self { percents: KINDS.map(|other| if other == kind { 100 } else { 0 }) }
    }

    fn kind(self, key: u64) -> Kind {
        let mut draw = bounded(key, 100);
        for (kind, percent) in KINDS.into_iter().zip(self.percents) {
            if draw < usize::from(percent) {
                return kind;
            }
            draw -= usize::from(percent);
        }
        unreachable!("the percents of a mix add up to 100")
    }
}

impl FromStr for Mix {
    type Err = BadMix;

    fn from_str(text: &str) -> Result<Self, BadMix> {
        let mut percents = [0; 5];
        for part in text.split(',') {
            let (kind, percent) = part.split_once(':').ok_or(BadMix)?;
            let kind: Kind = kind.parse()?;
            let percent: u8 = percent.parse().map_err(|_| BadMix)?;
            for (other, slot) in KINDS.into_iter().zip(&mut percents) {
                if other == kind {
                    *slot = percent;
                }
            }
        }
        let sum: u32 = percents.into_iter().map(u32::from).sum();
        if sum == 100 { Ok(Self { percents }) } else { Err(BadMix) }
    }
}

impl fmt::Display for Mix {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut gap = "";
        for (kind, percent) in KINDS.into_iter().zip(self.percents) {
            if percent > 0 {
                write!(formatter, "{gap}{kind}:{percent}")?;
                gap = ",";
            }
        }
        Ok(())
    }
}

impl FromStr for Kind {
    type Err = BadMix;

    fn from_str(text: &str) -> Result<Self, BadMix> {
        KINDS.into_iter().find(|kind| kind.name() == text).ok_or(BadMix)
    }
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Zero => "zero",
            Self::Text => "text",
            Self::Random => "random",
            Self::Duplicate => "dup",
            Self::Heap => "heap",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// Spreads a number over all 64 bits (the finalizer of `splitmix64`).
#[must_use]
pub(crate) fn scramble(number: u64) -> u64 {
    let mixed = (number ^ number >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ mixed >> 31
}

/// Draws the next number of a `splitmix64` sequence.
pub(crate) fn next_random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    scramble(*state)
}

/// Fills words with numbers that do not compress; one multiplication each.
pub(crate) fn fill_random(key: u64, words: &mut [u64]) {
    let mut state = key;
    for word in words {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ state >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
        *word = mixed ^ mixed >> 29;
    }
}

/// Fills a page with objects of four words: lock and hash, class and length, two references of 32
/// bits, and a small number.
fn fill_heap(key: u64, page: PageNumber, words: &mut PageWords) {
    const CLASSES: u64 = 0x0080_0000;
    let here = 0x8000_0000 + (u64::from(page.0) & 0x3f_ffff) * 512;
    let mut state = key;
    for object in words.chunks_exact_mut(4) {
        let random = next_random(&mut state);
        let bits = |from: u32, count: u32| random >> from & ((1 << count) - 1);
        let is_hashed = bits(0, 3) == 0;
        object[0] = 1 | if is_hashed { bits(3, 31) << 8 } else { 0 };
        object[1] = (CLASSES + bits(34, 6) * 0x1a8) | (bits(40, 4) << 32);
        let second = if bits(0, 1) == 0 { 0 } else { here + bits(44, 9) };
        object[2] = (here + bits(51, 9)) | (second << 32);
        object[3] = if bits(1, 1) == 0 { 0 } else { bits(12, 8) };
    }
}

/// Maps a number evenly to `0..bound`.
fn bounded(number: u64, bound: usize) -> usize {
    let bound = u64::try_from(bound).expect("a usize fits");
    usize::try_from(number % bound).expect("less than a usize")
}

#[cfg(test)]
mod tests;
