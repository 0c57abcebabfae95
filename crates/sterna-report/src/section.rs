//! All about one move: sentence, figures, pictures, tables.

use crate::MoveReport;
use crate::{choices, facts, moments, rounds, switchover, timeline, words};
use maud::{Markup, html};
use sterna_core::receipt::Ending;

/// The section of one move; `id` is unique on the page.
pub(crate) fn section(report: &MoveReport, id: &str) -> Markup {
    let receipt = &report.receipt;
    let verdict = words::verdict(&receipt.ending);
    html! {
        article id=(id) {
            header class="move" {
                span class=(format!("verdict {}", verdict.class)) {
                    span aria-hidden="true" { (verdict.sign) } " " (verdict.word)
                }
                h2 { (words::headline(receipt)) }
            }
            (reasons(&receipt.ending))
            (facts::cards(report))
            (pictures(report))
            @if !receipt.rounds.is_empty() {
                section { h3 { "Rounds" } (rounds::table(receipt)) }
            }
            @if !receipt.choices.is_empty() {
                section { h3 { "What was foreseen" } (choices::choices(receipt)) }
            }
            (facts::facts(report))
            (verbatim(report))
        }
    }
}

fn reasons(ending: &Ending) -> Markup {
    if *ending == Ending::Moved {
        return html! {};
    }
    let reasons = words::reasons(ending);
    html! {
        div class=(format!("reasons {}", words::verdict(ending).class)) role="note" {
            @for (what, reason) in &reasons {
                p {
                    strong { (what) ": " }
                    (words::name(&reason.detail)) " " code { (words::code(reason)) }
                }
            }
            @if reasons.is_empty() { p { "No reason was given." } }
        }
    }
}

fn pictures(report: &MoveReport) -> Markup {
    let receipt = &report.receipt;
    let measured = report.measured.as_ref();
    html! {
        @if receipt.rounds.is_empty() && receipt.downtime.is_none() {
            p class="note" { "Nothing was copied, so there is nothing to draw." }
        } @else { section {
            h3 { "Time line" }
            figure class="wide" {
                (timeline::timeline(report, moments::whole(receipt)))
                (rounds::legend(report))
                figcaption {
                    "One bar a round: as wide as it took, as high as bytes went through, coloured "
                    "by the share of pages in each coding."
                }
            }
            @if let Some(window) = moments::magnified(receipt) {
                h4 { "The end of it, magnified" }
                figure class="wide" { (timeline::timeline(report, window)) }
            }
        } }
        @if let Some(downtime) = &receipt.downtime {
            section class="switchover" {
                h3 { "Switchover" }
                figure class="wide" {
                    (switchover::switchover(downtime, &receipt.ending, measured))
                }
            }
        }
    }
}

/// The receipt itself, for those who want to compute with it.
fn verbatim(report: &MoveReport) -> Markup {
    let json = serde_json::to_string_pretty(&report.receipt);
    html! {
        @if let Ok(json) = json {
            details { summary { "The receipt, as JSON" } pre { (json) } }
        }
    }
}
