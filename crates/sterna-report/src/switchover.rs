//! The picture of the standstill: its parts, side by side where they ran side by side.

use crate::figures;
use crate::labels::{self, Row};
use crate::moments::Span;
use crate::parts::{Lane, Part, parts};
use crate::scale::{Scale, px};
use crate::{Measured, words};
use maud::{Markup, html};
use std::time::Duration;
use sterna_core::receipt::{Downtime, Ending};

const WIDTH: f64 = 900.0;
const LEFT: f64 = 112.0;
const RIGHT: f64 = WIDTH - 14.0;
const LANE_HEIGHT: f64 = 30.0;
const LANE_STEP: f64 = 38.0;
const TOP: f64 = 8.0;

/// Anything that took time is at least this wide.
const VISIBLE: f64 = 2.4;
/// From this width on a bar has an edge; on a narrower one it would hide the bar.
const EDGED: f64 = 7.0;

/// A gap beyond this many standstills is cut off: the standstill would not be seen any more.
const GAP_OVER_STANDSTILL_MAX: u32 = 2;

/// The edge of a bar that goes on beyond the picture, from its upper end.
const TORN: &str = "l-5 7.5 5 7.5-5 7.5 5 7.5";

/// One bar of the picture.
struct Bar {
    class: &'static str,
    span: Span,
    /// Labels from the longest to the shortest; the longest that fits is written.
    labels: Vec<String>,
    tip: String,
}

/// Draws the standstill, and the gaps that were seen outside below it.
pub(crate) fn switchover(
    downtime: &Downtime,
    ending: &Ending,
    measured: Option<&Measured>,
) -> Markup {
    let parts = parts(downtime);
    let lanes = lanes(downtime, ending, &parts, measured);
    let axis = TOP + LANE_STEP * lanes.iter().fold(0.0, |rows, _| rows + 1.0);
    let longest = longest(downtime, measured);
    let scale = Scale::new(0.0, longest.as_secs_f64(), LEFT, RIGHT);
    let described = format!(
        "The standstill of {} and its parts; the list below has the same figures.",
        figures::time(downtime.total)
    );
    html! {
        svg viewBox=(format!("0 0 {WIDTH} {}", px(axis + 42.0))) role="img"
            aria-label=(described) {
            (time_axis(&scale, longest, axis))
            @for (index, (name, bars)) in (0u32..).zip(&lanes) {
                @let top = TOP + LANE_STEP * f64::from(index);
                text class="lane" x=(px(LEFT - 10.0)) y=(px(top + LANE_HEIGHT / 2.0 + 4.0))
                    text-anchor="end" { (name) }
                @for bar in bars { (draw(bar, &scale, top)) }
            }
        }
        (key(&parts, downtime))
        @if lanes.iter().any(|(name, _)| OUTSIDE.iter().any(|outside| outside.0 == *name)) {
            p class="note" {
                "Gaps that were seen from outside are drawn from the left: how long they were is "
                "known, not when exactly they began."
            }
        }
    }
}

fn lanes(
    downtime: &Downtime,
    ending: &Ending,
    parts: &[Part],
    measured: Option<&Measured>,
) -> Vec<(&'static str, Vec<Bar>)> {
    let of = |lane| parts.iter().filter(|part| part.lane == lane).map(part_bar).collect();
    let still = words::standstill(ending);
    let mut lanes = vec![
        ("guest", vec![plain("guest", "standstill-bar", still, downtime.total)]),
        ("source", of(Lane::Source)),
        ("in parallel", of(Lane::Meanwhile)),
        ("destination", of(Lane::Destination)),
    ];
    let outside = measured.map(|measured| [measured.gap_udp, measured.gap_tick]);
    for (gap, (name, class)) in outside.unwrap_or_default().into_iter().zip(OUTSIDE) {
        if let Some(gap) = gap {
            lanes.push((name, vec![plain(name, class, "seen from outside", gap)]));
        }
    }
    lanes.retain(|(_, bars): &(_, Vec<Bar>)| !bars.is_empty());
    lanes
}

/// Lanes of what was measured outside: name and style.
const OUTSIDE: [(&str, &str); 2] = [("UDP gap", "outside"), ("in-guest tick", "outside")];

fn plain(name: &str, class: &'static str, what: &str, took: Duration) -> Bar {
    let time = figures::time(took);
    Bar {
        class,
        span: Span { from: Duration::ZERO, to: took },
        tip: format!("{name}: {what}, {time}"),
        labels: vec![format!("{what}: {time}"), time],
    }
}

fn part_bar(part: &Part) -> Bar {
    let time = figures::time(part.took);
    let (name, word) = (part.kind.name(), part.kind.word());
    Bar {
        class: word,
        span: Span { from: part.from, to: part.to },
        tip: format!("{name}: {time}"),
        labels: vec![format!("{name} {time}"), format!("{word} {time}"), time, word.into()],
    }
}

fn draw(bar: &Bar, scale: &Scale, top: f64) -> Markup {
    let left = scale.time(bar.span.from);
    let width = (scale.time(bar.span.to) - left).max(VISIBLE);
    let left = left.min(RIGHT - width);
    let fits = |text: &&String| labels::width(text) + 8.0 <= width;
    let edge = if width >= EDGED { " edged" } else { "" };
    let cut = !scale.holds(bar.span.to.as_secs_f64());
    html! {
        g {
            title { (bar.tip) }
            rect class=(format!("part {}{}", bar.class, edge)) x=(px(left)) y=(px(top))
                width=(px(width)) height=(px(LANE_HEIGHT)) rx="2" {}
            @if cut {
                path class="torn" d=(format!("M{} {}{TORN}", px(RIGHT - 8.0), px(top))) {}
            }
            @if let Some(text) = bar.labels.iter().find(fits) {
                text class=(format!("part-label on-{}", bar.class)) x=(px(left + width / 2.0))
                    y=(px(top + LANE_HEIGHT / 2.0 + 4.0)) text-anchor="middle" { (text) }
            }
        }
    }
}

fn time_axis(scale: &Scale, longest: Duration, axis: f64) -> Markup {
    let (unit, name) = figures::time_unit(longest);
    let (marks, decimals) = scale.marks(8, unit);
    let mut row = Row::new(LEFT - 30.0, WIDTH);
    html! {
        @for mark in marks {
            @let x = scale.at(mark);
            @let text = format!("{:.decimals$} {name}", mark / unit);
            line class="grid" x1=(px(x)) x2=(px(x)) y1=(px(TOP)) y2=(px(axis)) {}
            @if let Some(middle) = row.place(x, &text) {
                text class="axis" x=(px(middle)) y=(px(axis + 14.0)) text-anchor="middle" {
                    (text)
                }
            }
        }
        text class="axis" x=(px(f64::midpoint(LEFT, RIGHT))) y=(px(axis + 34.0))
            text-anchor="middle" { "time since the vCPUs stopped" }
    }
}

/// The longest time the picture holds.
fn longest(downtime: &Downtime, measured: Option<&Measured>) -> Duration {
    let gaps = measured.map(|measured| measured.gap_udp.max(measured.gap_tick));
    let bound = downtime.total.checked_mul(GAP_OVER_STANDSTILL_MAX).unwrap_or(downtime.total);
    let gap = gaps.flatten().unwrap_or_default().min(bound);
    downtime.total.max(gap)
}

/// Every part in full, for those whose labels did not fit.
fn key(parts: &[Part], downtime: &Downtime) -> Markup {
    html! {
        ul class="key" {
            @for part in parts {
                li {
                    i class=(format!("swatch {}", part.kind.word())) {}
                    span { (part.kind.name()) }
                    b { (figures::time(part.took)) }
                }
            }
        }
        @if !downtime.pause_lead.is_zero() {
            p class="note" {
                "Before this picture begins: " (figures::time(downtime.pause_lead))
                " from the request to pause until the vCPUs stopped; the guest still ran."
            }
        }
    }
}
