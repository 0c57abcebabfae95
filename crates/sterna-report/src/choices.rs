//! What was foreseen of each method when one was chosen, beside what happened.

use crate::figures::{bytes, rate, time};
use maud::{Markup, html};
use std::time::Duration;
use sterna_core::prediction::{Band, Choice, Forecast, Foreseen};
use sterna_core::receipt::{Ending, Receipt};

/// A table for each choice, and what happened below the first.
pub(crate) fn choices(receipt: &Receipt) -> Markup {
    html! {
        @for (number, choice) in receipt.choices.iter().enumerate() {
            h4 { "After " (time(choice.after)) ": " (choice.method) }
            p { (choice.reason) ". " (basis(choice)) }
            (table(choice, receipt, number == 0))
        }
        p class="note" {
            "Expected (least to most). Lost work is that of all vCPUs together: paused, slowed down, or "
            "waiting for pages."
        }
    }
}

/// What it was concluded from.
fn basis(choice: &Choice) -> String {
    let link = rate(Some(choice.basis.link_bytes_per_second));
    let left = bytes(choice.basis.residue.bytes());
    let seen = choice.basis.looks.iter().max_by_key(|look| look.after).map_or_else(
        || "a guest that was not seen to write".to_owned(),
        |look| {
            let (written, within) = (bytes(look.pages.bytes()), time(look.after));
            format!("a guest that had written {written} within {within}")
        },
    );
    format!("That was concluded from a link of {link}, {left} still to be sent, and {seen}.")
}

fn table(choice: &Choice, receipt: &Receipt, with_what_happened: bool) -> Markup {
    let total = receipt.total.saturating_sub(receipt.compared_for());
    html! {
        div class="scroll" { table {
            thead { tr {
                th { "Method" } th { "Total" } th { "Downtime" } th { "Sent" } th { "Lost work" }
            } }
            tbody {
                @for forecast in &choice.forecasts { (row(forecast, forecast.method == choice.method)) }
                @if with_what_happened && receipt.ending == Ending::Moved { tr {
                    th scope="row" { "what happened" }
                    td { (time(total)) }
                    td { (time(receipt.downtime_uncompared())) }
                    td { (bytes(receipt.wire.payload)) }
                    td { (time(receipt.lost_work())) }
                } }
            }
        } }
    }
}

fn row(forecast: &Forecast, chosen: bool) -> Markup {
    let times = |band: &Band| shown(band, |us| time(Duration::from_micros(us)));
    let method = forecast.method.to_string();
    html! {
        tr {
            th scope="row" { @if chosen { strong { (method) } } @else { (method) } }
            @match forecast.foreseen {
                Foreseen::GivesUp { reason } => {
                    td colspan="4" { "would give up: " (reason.as_str()) }
                }
                Foreseen::Moves => {
                    td { (times(&forecast.total_us)) }
                    td { (times(&forecast.downtime_us)) }
                    td { (shown(&forecast.bytes, bytes)) }
                    td { (times(&forecast.lost_work_us)) }
                }
            }
        }
    }
}

fn shown(band: &Band, figure: impl Fn(u64) -> String) -> String {
    format!("{} ({} to {})", figure(band.expected), figure(band.low), figure(band.high))
}
