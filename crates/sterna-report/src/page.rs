//! The HTML file around the moves: head, style, what it is about, and an overview of many moves.

use crate::figures::{bytes, time};
use crate::section::section;
use crate::words;
use crate::{About, MoveReport};
use maud::{DOCTYPE, Markup, PreEscaped, html};

const STYLE: &str = include_str!("style.css");

/// Nothing is loaded and nothing runs, whatever a name may contain.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; \
                      form-action 'none'";

/// The whole page.
pub(crate) fn page(moves: &[MoveReport], about: &About) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="Content-Security-Policy" content=(POLICY);
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (about.title) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                main {
                    (head(about))
                    @if moves.is_empty() { p class="note" { "No moves." } }
                    @if moves.len() > 1 { (overview(moves)) }
                    @for (number, report) in (1u32..).zip(moves) {
                        (section(report, &anchor(number)))
                    }
                    footer {
                        "Times are the source's unless something else is said; sizes are binary \
                         (1 MiB = 1024 × 1024 bytes)."
                    }
                }
            }
        }
    }
}

fn anchor(number: u32) -> String {
    format!("move-{number}")
}

fn head(about: &About) -> Markup {
    html! {
        header class="page" {
            h1 { (about.title) }
            dl class="about" {
                @if !about.generated.is_empty() { dt { "Written" } dd { (about.generated) } }
                @if !about.link.is_empty() { dt { "Link" } dd { (about.link) } }
                @if !about.host.is_empty() {
                    dt { "Host" }
                    dd { @for (index, line) in about.host.iter().enumerate() {
                        @if index > 0 { br; }
                        (line)
                    } }
                }
            }
        }
    }
}

fn overview(moves: &[MoveReport]) -> Markup {
    html! {
        section class="overview" {
            h2 { (moves.len()) " moves" }
            div class="scroll" { table {
                thead { tr {
                    th scope="col" class="text" { "Guest" }
                    th scope="col" class="text" { "From" }
                    th scope="col" class="text" { "To" }
                    th scope="col" class="text" { "Result" }
                    th scope="col" class="text" { "Algorithm" }
                    th scope="col" { "Total" }
                    th scope="col" { "Downtime" }
                    th scope="col" { "Sent" }
                    th scope="col" { "Rounds" }
                } }
                tbody { @for (number, report) in (1u32..).zip(moves) {
                    (overview_row(report, &anchor(number)))
                } }
            } }
        }
    }
}

fn overview_row(report: &MoveReport, anchor: &str) -> Markup {
    let receipt = &report.receipt;
    let verdict = words::verdict(&receipt.ending);
    html! {
        tr {
            th scope="row" class="text" {
                a href=(format!("#{anchor}")) { (words::name(&receipt.guest)) }
            }
            td class="text" { (words::name(&receipt.source)) }
            td class="text" { (words::name(&receipt.destination)) }
            td class="text" {
                span class=(format!("mark {}", verdict.class)) { (verdict.sign) }
                " " (verdict.word)
            }
            td class="text" { (receipt.algorithm.as_str()) }
            td { (time(receipt.total)) }
            td { (receipt.downtime.map_or_else(|| "–".into(), |downtime| time(downtime.total))) }
            td { (bytes(receipt.wire.sockets)) }
            td { (receipt.rounds.len()) }
        }
    }
}
