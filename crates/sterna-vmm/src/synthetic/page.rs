//! What a page of a synthetic guest holds: it all follows from the seed, its number and version.
//!
//! ```text
//!   0        8         16      24                                            4096
//!   | number | version | seal  | body                                          |
//! ```
//!
//! Version 0 is a page that was never written or was discarded: all zeroes.

use super::config::{Content, Rewrite, SyntheticConfig};
use sterna_page::{PAGE_SIZE, PageNumber, is_zero};

/// Number of times a page was written; 0 for a page that is all zeroes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Version(pub(super) u64);

const HEADER: usize = 24;

const WORDS: [&[u8; 8]; 16] = [
    b"migrate ",
    b"the arct",
    b"ic tern ",
    b"flies fa",
    b"r and re",
    b"turns to",
    b" its own",
    b" nesting",
    b" ground ",
    b"each and",
    b" every y",
    b"ear of l",
    b"ife, fro",
    b"m pole t",
    b"o pole. ",
    b"Sterna..",
];

/// A small, fast generator (SplitMix64); a page's body must cost less than its copy.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mixer(pub(super) u64);

impl Mixer {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

/// One number for a page's number and version: what registers sum up. Zero for version zero.
pub(super) fn seal(seed: u64, page: PageNumber, version: Version) -> u64 {
    if version.0 == 0 {
        return 0;
    }
    let mut mixer = Mixer(seed ^ page.0.rotate_left(32));
    mixer.0 = mixer.next() ^ version.0;
    mixer.next()
}

/// What page `page` holds in `version`.
pub(super) fn render(config: &SyntheticConfig, page: PageNumber, version: Version) -> Box<[u8]> {
    let mut bytes = vec![0; PAGE_SIZE].into_boxed_slice();
    render_into(config, page, version, &mut bytes);
    bytes
}

/// As [`render`], into a buffer of one page.
pub(super) fn render_into(
    config: &SyntheticConfig,
    page: PageNumber,
    version: Version,
    bytes: &mut [u8],
) {
    bytes.fill(0);
    if version.0 == 0 {
        return;
    }
    let (header, body) = bytes.split_at_mut(HEADER);
    header[..8].copy_from_slice(&page.0.to_le_bytes());
    header[8..16].copy_from_slice(&version.0.to_le_bytes());
    header[16..].copy_from_slice(&seal(config.seed, page, version).to_le_bytes());
    let body_version = match config.rewrite {
        Rewrite::Header => Version(1),
        Rewrite::Whole => version,
    };
    let mut mixer = Mixer(seal(config.seed, page, body_version));
    let words = body.as_chunks_mut::<8>().0;
    match config.content {
        Content::Zero => {}
        Content::Random => words.iter_mut().for_each(|word| *word = mixer.next().to_le_bytes()),
        Content::Text => words.chunks_mut(16).for_each(|line| {
            let mut choice = mixer.next();
            for word in line {
                *word = *WORDS[usize::from(choice.to_le_bytes()[0] & 15)];
                choice >>= 4;
            }
        }),
    }
}

/// What is wrong with one page by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unsound {
    /// It is whole, but of another place.
    Foreign { number: u64 },
    /// It is no page that was ever written.
    Torn,
}

/// The version of a page, judged by its header alone.
pub(super) fn header_version(
    seed: u64,
    page: PageNumber,
    bytes: &[u8],
) -> Result<Version, Unsound> {
    let field = |i: usize| {
        let word = bytes.get(i * 8..i * 8 + 8).and_then(|word| word.try_into().ok());
        u64::from_le_bytes(word.unwrap_or_default())
    };
    let (number, version) = (PageNumber(field(0)), Version(field(1)));
    if seal(seed, number, version) != field(2) {
        return Err(Unsound::Torn);
    }
    if version.0 != 0 && number != page {
        return Err(Unsound::Foreign { number: number.0 });
    }
    Ok(version)
}

/// The version of a page, every byte of which is checked.
pub(super) fn verify(
    config: &SyntheticConfig,
    page: PageNumber,
    bytes: &[u8; PAGE_SIZE],
) -> Result<Version, Unsound> {
    let version = header_version(config.seed, page, bytes)?;
    let sound = match version {
        Version(0) => is_zero(bytes),
        version => *render(config, page, version) == bytes[..],
    };
    if sound { Ok(version) } else { Err(Unsound::Torn) }
}
