//! Pages by the way they travelled, in the one order in which they are listed and drawn.

use crate::figures;
use sterna_core::receipt::PagesByCoding;
use sterna_page::PageCount;

/// From the bottom of a bar to its top: a coding's name, which is its style as well, and its
/// meaning.
pub(crate) const CODINGS: [(&str, &str); 13] = [
    ("raw", "raw"),
    ("coded", "coded: in fewer bytes"),
    ("changed", "changed: only in part"),
    ("same", "same: as another page"),
    ("known", "known: the destination had it"),
    ("on-disk", "on disk: the destination read it there"),
    ("zero", "zero"),
    ("absent", "absent: no such page"),
    ("unchanged", "unchanged: compared again"),
    ("postponed", "postponed: written again before its turn"),
    ("withheld", "held back: likely to be written again"),
    ("unsent", "left: the round's time was over"),
    ("owed", "owed: follows the guest"),
];

/// Pages of a coding, in the order of [`CODINGS`].
pub(crate) fn by_coding(pages: &PagesByCoding) -> [PageCount; 13] {
    [
        pages.raw,
        pages.coded,
        pages.changed,
        pages.same,
        pages.known,
        pages.on_disk,
        pages.zero,
        pages.absent,
        pages.unchanged,
        pages.postponed,
        pages.withheld,
        pages.unsent,
        pages.owed,
    ]
}

/// The parts of a bar of this height: style, height of the lower edge, own height.
pub(crate) fn stack(pages: &PagesByCoding, height: f64) -> Vec<(&'static str, f64, f64)> {
    let counts = by_coding(pages).map(|count| figures::number(count.0));
    let all: f64 = counts.iter().sum();
    if all <= 0.0 {
        return vec![("nothing", 0.0, height)];
    }
    let mut bottom = 0.0;
    let mut parts = Vec::new();
    for ((class, _), count) in CODINGS.iter().zip(counts) {
        let part = height * count / all;
        if part > 0.0 {
            parts.push((*class, bottom, part));
        }
        bottom += part;
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shares_of_a_bar_fill_it() {
        let pages =
            PagesByCoding { raw: PageCount(3), unchanged: PageCount(1), ..Default::default() };
        assert_eq!(stack(&pages, 100.0), [("raw", 0.0, 75.0), ("unchanged", 75.0, 25.0)]);
    }

    #[test]
    fn a_round_without_pages_is_still_seen() {
        assert_eq!(stack(&PagesByCoding::default(), 2.0), [("nothing", 0.0, 2.0)]);
    }
}
