//! The picture of a move: every round as a bar as high as its speed, the rate at which the guest
//! wrote against the rate of the link, and the moments that matter.

use crate::figures;
use crate::labels::{Row, merge};
use crate::moments::{self, Span};
use crate::scale::{Scale, px};
use crate::{MoveReport, codings, words};
use maud::{Markup, html};
use std::fmt::Write;
use std::time::Duration;
use sterna_core::receipt::{Receipt, Round};

const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 320.0;
const LEFT: f64 = 58.0;
const RIGHT: f64 = WIDTH - 14.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 232.0;
const ROUND_LABELS: f64 = 249.0;
const GAPS_TOP: f64 = 259.0;
const GAPS_BOTTOM: f64 = 269.0;
const AXIS: f64 = 277.0;

/// Anything that happened is at least this wide and high.
const VISIBLE: f64 = 1.6;

/// Rounds of fewer bytes tell the round trip, not the link; they do not stretch the picture.
const TELLING_BYTES: u64 = 1 << 20;

/// A writing rate beyond this many times the fastest round is cut off.
const DIRTY_OVER_LINK_MAX: f64 = 3.0;

/// Draws the part of the move that lies in `window`.
pub(crate) fn timeline(report: &MoveReport, window: Span) -> Markup {
    let receipt = &report.receipt;
    let plot = Plot::new(receipt, window);
    let gaps = report.measured.as_ref().map_or(&[][..], |measured| &measured.udp_gaps);
    let described = format!(
        "Time line of the move from {} to {} after the request; the table of rounds below has \
         the same figures.",
        figures::time(window.from),
        figures::time(window.to)
    );
    html! {
        svg viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) role="img" aria-label=(described) {
            (plot.bands(receipt))
            (plot.rate_axis())
            (plot.time_axis())
            @for round in &receipt.rounds { (plot.bar(round)) }
            (plot.link(receipt))
            (plot.dirty(receipt))
            (plot.moments(receipt))
            (plot.round_labels(receipt))
            @if !gaps.is_empty() { (plot.gaps(gaps)) }
        }
    }
}

struct Plot {
    window: Span,
    x: Scale,
    y: Scale,
    rate_max: f64,
}

impl Plot {
    fn new(receipt: &Receipt, window: Span) -> Self {
        let rate_max = rate_max(receipt);
        let (from, to) = (window.from.as_secs_f64(), window.to.as_secs_f64());
        Self {
            window,
            x: Scale::new(from, to, LEFT, RIGHT),
            y: Scale::new(0.0, rate_max * 1.06, BOTTOM, TOP),
            rate_max,
        }
    }

    fn shows(&self, from: Duration, to: Duration) -> bool {
        to >= self.window.from && from <= self.window.to
    }

    fn rectangle(&self, class: &str, from: Duration, to: Duration, rows: (f64, f64)) -> Markup {
        let (left, width) = self.extent(from, to);
        html! {
            rect class=(class) x=(px(left)) y=(px(rows.0)) width=(px(width))
                height=(px(rows.1 - rows.0)) {}
        }
    }

    /// Left edge and width of a time that is never too short to be seen.
    fn extent(&self, from: Duration, to: Duration) -> (f64, f64) {
        let left = self.x.time(from);
        let width = (self.x.time(to) - left).max(VISIBLE);
        (left.min(RIGHT - width).max(LEFT), width)
    }

    fn bands(&self, receipt: &Receipt) -> Markup {
        let still = moments::standstill(receipt);
        html! {
            @if self.shows(Duration::ZERO, receipt.negotiation) && !receipt.negotiation.is_zero() {
                (self.rectangle("negotiation", Duration::ZERO, receipt.negotiation, (TOP, BOTTOM)))
            }
            @if let Some(Span { from, to }) = still.filter(|span| self.shows(span.from, span.to)) {
                (self.rectangle("standstill", from, to, (TOP, BOTTOM)))
            }
        }
    }

    fn rate_axis(&self) -> Markup {
        let (unit, name) = figures::byte_unit(self.rate_max);
        let (marks, decimals) = self.y.marks(5, unit);
        html! {
            text class="axis" x=(px(LEFT - 8.0)) y=(px(TOP - 16.0)) text-anchor="end" {
                (name) "/s"
            }
            @for mark in marks {
                @let y = self.y.at(mark);
                line class="grid" x1=(px(LEFT)) x2=(px(RIGHT)) y1=(px(y)) y2=(px(y)) {}
                text class="axis" x=(px(LEFT - 8.0)) y=(px(y + 4.0)) text-anchor="end" {
                    (format!("{:.decimals$}", mark / unit))
                }
            }
        }
    }

    fn time_axis(&self) -> Markup {
        let (unit, name) = figures::time_unit(self.window.to);
        let (marks, decimals) = self.x.marks(9, unit);
        let mut row = Row::new(LEFT - 20.0, WIDTH);
        html! {
            line class="axis-line" x1=(px(LEFT)) x2=(px(RIGHT)) y1=(px(AXIS)) y2=(px(AXIS)) {}
            @for mark in marks {
                @let text = format!("{:.decimals$} {name}", mark / unit);
                @let x = self.x.at(mark);
                line class="axis-line" x1=(px(x)) x2=(px(x)) y1=(px(AXIS)) y2=(px(AXIS + 5.0)) {}
                @if let Some(middle) = row.place(x, &text) {
                    text class="axis" x=(px(middle)) y=(px(AXIS + 18.0)) text-anchor="middle" {
                        (text)
                    }
                }
            }
            text class="axis" x=(px(f64::midpoint(LEFT, RIGHT))) y=(px(HEIGHT - 7.0))
                text-anchor="middle" { "time since the request to move" }
        }
    }

    fn bar(&self, round: &Round) -> Markup {
        let to = moments::end(round);
        if !self.shows(round.started, to) {
            return html! {};
        }
        let (left, width) = self.extent(round.started, to);
        // A hair of background between neighbours that are wide enough to be told apart.
        let width = if width > 6.0 { width - 1.0 } else { width };
        let rate = figures::per_second(round.bytes, round.took).unwrap_or_default();
        let height = (BOTTOM - self.y.at(rate)).max(VISIBLE);
        html! {
            g {
                title { (words::round(round)) }
                @for (class, bottom, part) in codings::stack(&round.pages, height) {
                    rect class=(class) x=(px(left)) y=(px(BOTTOM - bottom - part))
                        width=(px(width)) height=(px(part)) {}
                }
            }
        }
    }

    fn link(&self, receipt: &Receipt) -> Markup {
        let Some(rate) = moments::link_rate(receipt) else { return html! {} };
        let y = self.y.at(rate);
        html! {
            line class="link" x1=(px(LEFT)) x2=(px(RIGHT)) y1=(px(y)) y2=(px(y)) {
                title { "the link: " (figures::rate(Some(rate))) }
            }
        }
    }

    fn dirty(&self, receipt: &Receipt) -> Markup {
        let live = receipt.rounds.iter().take(moments::live_rounds(receipt));
        let seen = live.filter(|round| self.shows(round.started, moments::end(round)));
        let mut path = String::new();
        let mut cut = Vec::new();
        for round in seen {
            let Some(rate) = moments::dirty_rate(round) else { continue };
            let (from, to) = (self.x.time(round.started), self.x.time(moments::end(round)));
            let y = self.y.at(rate);
            // Writing to a String cannot fail.
            let _ = match path.is_empty() {
                true => write!(path, "M{} {}", px(from), px(y)),
                false => write!(path, "H{}V{}", px(from), px(y)),
            };
            let _ = write!(path, "H{}", px(to.max(from + VISIBLE)));
            if !self.y.holds(rate) {
                cut.push(f64::midpoint(from, to));
            }
        }
        html! {
            @if !path.is_empty() {
                path class="dirty-halo" d=(path) {}
                path class="dirty" d=(path) {}
            }
            @for x in cut {
                path class="cut" d=(format!("M{} {}l4 6h-8z", px(x), px(TOP - 2.0))) {
                    title { "the guest wrote faster than this picture is high" }
                }
            }
        }
    }

    fn moments(&self, receipt: &Receipt) -> Markup {
        let mut row = Row::new(LEFT, RIGHT);
        let still = moments::standstill(receipt).filter(|still| self.shows(still.from, still.to));
        html! {
            @if let Some(still) = still {
                @let x = self.x.time(still.from);
                line class="pause-mark" x1=(px(x)) x2=(px(x)) y1=(px(TOP - 8.0)) y2=(px(BOTTOM)) {}
                @let length = figures::time(still.to - still.from);
                (label(&mut row, x, &format!("paused for {length}"), "moment strong"))
            }
            @if !receipt.negotiation.is_zero() && self.shows(Duration::ZERO, receipt.negotiation) {
                @let middle = self.x.time(receipt.negotiation / 2);
                (label(&mut row, middle, "negotiation", "moment"))
            }
            @if self.shows(receipt.total, receipt.total) {
                @let x = self.x.time(receipt.total);
                line class="ended" x1=(px(x)) x2=(px(x)) y1=(px(TOP)) y2=(px(BOTTOM)) {}
                (label(&mut row, x, words::end_mark(&receipt.ending), "moment"))
            }
        }
    }

    fn round_labels(&self, receipt: &Receipt) -> Markup {
        let seen = receipt.rounds.iter().filter(|r| self.shows(r.started, moments::end(r)));
        let groups = merge(seen.map(|round| {
            let (left, width) = self.extent(round.started, moments::end(round));
            (round.number, left, left + width)
        }));
        let mut row = Row::new(0.0, WIDTH);
        html! {
            text class="axis" x=(px(LEFT - 8.0)) y=(px(ROUND_LABELS)) text-anchor="end" { "round" }
            @for group in groups {
                line class="bracket" x1=(px(group.from)) x2=(px(group.to))
                    y1=(px(BOTTOM + 3.0)) y2=(px(BOTTOM + 3.0)) {}
                @if let Some(middle) = row.place(group.middle(), &group.text()) {
                    text class="axis" x=(px(middle)) y=(px(ROUND_LABELS)) text-anchor="middle" {
                        (group.text())
                    }
                }
            }
        }
    }

    fn gaps(&self, gaps: &[(Duration, Duration)]) -> Markup {
        let spans = gaps.iter().map(|(from, length)| (*from, from.saturating_add(*length)));
        html! {
            text class="axis" x=(px(LEFT - 8.0)) y=(px(GAPS_BOTTOM)) text-anchor="end" { "gaps" }
            line class="grid" x1=(px(LEFT)) x2=(px(RIGHT)) y1=(px(GAPS_BOTTOM))
                y2=(px(GAPS_BOTTOM)) {}
            @for (from, to) in spans.filter(|(from, to)| self.shows(*from, *to)) {
                g {
                    title { "no answer for " (figures::time(to - from)) }
                    (self.rectangle("gap", from, to, (GAPS_TOP, GAPS_BOTTOM)))
                }
            }
        }
    }
}

fn label(row: &mut Row, middle: f64, text: &str, class: &str) -> Markup {
    let placed = row.place(middle, text);
    html! {
        @if let Some(middle) = placed {
            text class=(class) x=(px(middle)) y=(px(TOP - 16.0)) text-anchor="middle" { (text) }
        }
    }
}

/// The highest rate that the picture must hold.
fn rate_max(receipt: &Receipt) -> f64 {
    let rate = |round: &Round| figures::per_second(round.bytes, round.took);
    let telling = receipt.rounds.iter().filter(|round| round.bytes >= TELLING_BYTES);
    let fastest = telling.filter_map(rate).fold(0.0, f64::max);
    let fastest = match fastest {
        0.0 => receipt.rounds.iter().filter_map(rate).fold(0.0, f64::max),
        fastest => fastest,
    };
    let dirty = receipt.rounds.iter().filter_map(moments::dirty_rate).fold(0.0, f64::max);
    let bound = if fastest > 0.0 { fastest * DIRTY_OVER_LINK_MAX } else { f64::MAX };
    let highest = fastest.max(dirty.min(bound));
    if highest > 0.0 && highest < f64::MAX { highest } else { 1024.0 }
}
