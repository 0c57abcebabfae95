//! The table of rounds, and the legend of the picture above it.

use crate::MoveReport;
use crate::codings::{CODINGS, by_coding};
use crate::figures::{bytes, count, per_second, rate, time};
use crate::moments;
use maud::{Markup, html};
use sterna_core::receipt::{PagesByCoding, Receipt};
use sterna_core::speed::VcpuSpeed;
use sterna_page::PageCount;

/// The table of rounds.
pub(crate) fn table(receipt: &Receipt) -> Markup {
    let live = moments::live_rounds(receipt);
    html! {
        div class="scroll" { table {
            thead { (head()) }
            tbody { @for (index, round) in receipt.rounds.iter().enumerate() {
                @let dirty = index < live;
                tr class=(if dirty { "live" } else { "final" }) {
                    th scope="row" {
                        (round.number) @if !dirty { small { " after the pause" } }
                    }
                    td { (time(round.started)) }
                    td { (time(round.took)) }
                    @for pages in by_coding(&round.pages) { (pages_cell(pages)) }
                    td { (bytes(round.bytes)) }
                    td { (rate(per_second(round.bytes, round.took))) }
                    @if dirty {
                        td { (count(round.dirtied.0)) }
                        td {
                            (rate(moments::dirty_rate(round)))
                            @if round.vcpus < VcpuSpeed::FULL {
                                small { " vCPUs at " (round.vcpus) }
                            }
                        }
                    } @else { td class="nil" { "–" } td class="nil" { "–" } }
                }
            } }
            tfoot { (sum(receipt)) }
        } }
    }
}

/// What the colours and lines of the time line mean.
pub(crate) fn legend(report: &MoveReport) -> Markup {
    let receipt = &report.receipt;
    let link = moments::link_rate(receipt);
    let gaps = report.measured.as_ref().is_some_and(|measured| !measured.udp_gaps.is_empty());
    html! {
        ul class="key legend" {
            @for (class, meaning) in CODINGS {
                li { i class=(format!("swatch {class}")) {} span { (meaning) } }
            }
            @if moments::live_rounds(receipt) > 0 {
                li { i class="stroke dirty-key" {} span { "rate at which the guest wrote" } }
            }
            @if link.is_some() {
                li { i class="stroke link-key" {} span { "the link" } b { (rate(link)) } }
            }
            li { i class="swatch negotiation" {} span { "negotiation" } }
            @if receipt.downtime.is_some() {
                li { i class="swatch standstill" {} span { "guest paused" } }
            }
            @if gaps { li { i class="swatch gap" {} span { "no answer over UDP" } } }
        }
    }
}

fn head() -> Markup {
    html! {
        tr {
            th rowspan="2" scope="col" { "Round" }
            th rowspan="2" scope="col" { "Started" }
            th rowspan="2" scope="col" { "Took" }
            th colspan=(CODINGS.len()) scope="colgroup" class="over" { "Pages" }
            th rowspan="2" scope="col" { "Bytes" }
            th rowspan="2" scope="col" { "Rate" }
            th colspan="2" scope="colgroup" class="over" { "The guest wrote" }
        }
        tr {
            @for (coding, meaning) in CODINGS { th scope="col" title=(meaning) { (coding) } }
            th scope="col" { "pages" }
            th scope="col" { "rate" }
        }
    }
}

fn sum(receipt: &Receipt) -> Markup {
    let mut pages = PagesByCoding::default();
    let mut sent = 0u64;
    let mut dirtied = PageCount::ZERO;
    for round in &receipt.rounds {
        pages += round.pages;
        sent = sent.saturating_add(round.bytes);
        dirtied += round.dirtied;
    }
    html! {
        tr {
            th scope="row" { "all" }
            td {} td {}
            @for pages in by_coding(&pages) { (pages_cell(pages)) }
            td { (bytes(sent)) }
            td {}
            td { (count(dirtied.0)) }
            td {}
        }
    }
}

fn pages_cell(pages: PageCount) -> Markup {
    html! {
        @if pages == PageCount::ZERO { td class="nil" { "–" } } @else { td { (count(pages.0)) } }
    }
}
