//! A move in sentences.

use crate::{codings, figures, moments};
use maud::{Markup, html};
use sterna_core::algorithm::AlgorithmName;
use sterna_core::limits::WhenStuck;
use sterna_core::receipt::{Ending, RamCheck, Receipt, Round};
use sterna_proto::message::Reason;

/// How an ending is marked: with a word, a sign and a style, so that colour is never needed.
pub(crate) struct Verdict {
    /// In one or two words.
    pub(crate) word: &'static str,
    /// A sign that tells good from bad.
    pub(crate) sign: &'static str,
    /// The style.
    pub(crate) class: &'static str,
}

/// The verdict on an ending.
pub(crate) fn verdict(ending: &Ending) -> Verdict {
    let (word, sign, class) = match ending {
        Ending::Moved => ("moved", "✓", "good"),
        Ending::Undone { .. } => ("undone", "↺", "warn"),
        Ending::GuestGone { .. } => ("guest gone", "✕", "bad"),
        Ending::Stuck { .. } => ("stuck", "✕", "bad"),
        Ending::Lost { .. } => ("lost", "✕", "bad"),
    };
    Verdict { word, sign, class }
}

/// What happened, in one or two sentences. Names stand apart from the direction of the text, so
/// that none can turn the words around it.
pub(crate) fn headline(receipt: &Receipt) -> Markup {
    let guest = name(&receipt.guest);
    let (from, to) = (name(&receipt.source), name(&receipt.destination));
    let total = figures::time(receipt.total);
    html! {
        @match &receipt.ending {
            Ending::Moved => {
                (guest) " moved from " (from) " to " (to) " in " (total) "; "
                (still(receipt)) "; " (ram(receipt.ram_digest)) "."
            }
            Ending::Undone { .. } => {
                (guest) " was not moved from " (from) " to " (to) ": after " (total)
                " it runs on at " (from) "; " (still(receipt)) "."
            }
            Ending::GuestGone { .. } => {
                (guest) " ended at " (from) " " (total) " after the request, before it was handed "
                "over to " (to) "; " (still(receipt)) "."
            }
            Ending::Stuck { .. } => {
                (guest) " was not moved to " (to) " and stays paused at " (from)
                ": it could not be made to run again."
            }
            Ending::Lost { .. } => {
                (to) " took " (guest) " over and lost it; the guest may have run there. It stays "
                "paused at " (from) " until an operator decides."
            }
        }
    }
}

/// Why the move did not succeed: who says so, and the reason.
pub(crate) fn reasons(ending: &Ending) -> Vec<(&'static str, &Reason)> {
    match ending {
        Ending::Moved => Vec::new(),
        Ending::Undone { reasons } => {
            reasons.iter().map(|reason| ("The move was undone", reason)).collect()
        }
        Ending::GuestGone { reason } => vec![("The guest ended", reason)],
        Ending::Stuck { cause, reason } => {
            vec![("The move ended", cause), ("The guest does not run", reason)]
        }
        Ending::Lost { reason } => {
            vec![("The guest stays paused, and may have run at the destination", reason)]
        }
    }
}

/// The stable code of a reason as it is written everywhere.
pub(crate) fn code(reason: &Reason) -> String {
    match serde_json::to_value(reason.code) {
        Ok(serde_json::Value::String(code)) => code,
        // Codes are written as text; were one not, its detail still says what happened.
        _ => "other".into(),
    }
}

/// Whether RAM was the same.
pub(crate) fn ram(check: RamCheck) -> &'static str {
    match check {
        RamCheck::Equal => "RAM digests equal",
        RamCheck::Different => "RAM digests differ",
        RamCheck::NotChecked => "RAM digests were not compared",
    }
}

/// What happens when rounds no longer help.
pub(crate) fn when_stuck(choice: Option<WhenStuck>, algorithm: AlgorithmName) -> &'static str {
    let Some(choice) = choice else {
        return match algorithm {
            AlgorithmName::Auto => "do what costs least",
            _ => "give the move up",
        };
    };
    match choice {
        WhenStuck::Abort => "give the move up",
        WhenStuck::PostCopy => "hand the guest over and let the rest follow",
        WhenStuck::Throttle => "slow the vCPUs down until they do",
        WhenStuck::StopAndCopy => "pause all the same and copy the rest",
    }
}

/// What the standstill was.
pub(crate) fn standstill(ending: &Ending) -> &'static str {
    match ending {
        Ending::Moved => "the guest stood still",
        Ending::Undone { .. } => "paused, then made to run again at the source",
        Ending::GuestGone { .. } => "paused until it ended",
        Ending::Stuck { .. } | Ending::Lost { .. } => "paused, and it still is",
    }
}

/// The mark at the end of the time line.
pub(crate) fn end_mark(ending: &Ending) -> &'static str {
    match ending {
        Ending::Moved => "released",
        Ending::Undone { .. } => "undone",
        Ending::GuestGone { .. } => "guest gone",
        Ending::Stuck { .. } => "stuck",
        Ending::Lost { .. } => "lost",
    }
}

/// A round with all its figures.
pub(crate) fn round(round: &Round) -> String {
    let pages: Vec<String> = codings::CODINGS
        .iter()
        .zip(codings::by_coding(&round.pages))
        .filter(|(_, count)| count.0 > 0)
        .map(|((coding, _), count)| format!("{} {coding}", figures::count(count.0)))
        .collect();
    let pages = if pages.is_empty() { "no pages".into() } else { pages.join(", ") };
    format!(
        "round {}: {} for {}, {} ({pages}); the guest wrote {} pages, {}",
        round.number,
        figures::time(round.took),
        figures::bytes(round.bytes),
        figures::rate(figures::per_second(round.bytes, round.took)),
        figures::count(round.dirtied.0),
        figures::rate(moments::dirty_rate(round)),
    )
}

/// A name, apart from the direction of the text around it.
pub(crate) fn name(name: &str) -> Markup {
    html! { bdi { @if name.is_empty() { "(no name)" } @else { (name) } } }
}

fn still(receipt: &Receipt) -> String {
    match receipt.downtime {
        Some(downtime) => format!("it stood still for {}", figures::time(downtime.total)),
        None => "it was never paused".into(),
    }
}
