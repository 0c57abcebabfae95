//! Key figures on cards, and the rest of a receipt as a list.

use crate::MoveReport;
use crate::figures::{self, bytes, count, date, time};
use crate::words;
use maud::{Markup, html};
use std::time::Duration;
use sterna_core::balloon::Ballooning;
use sterna_core::receipt::{Coded, Following, RamCheck, Receipt};
use sterna_page::PAGE_SIZE_BYTES;

/// The key figures.
pub(crate) fn cards(report: &MoveReport) -> Markup {
    let receipt = &report.receipt;
    html! {
        div class="cards" {
            (card("Total time", &time(receipt.total), &format!(
                "negotiation {}", time(receipt.negotiation)), ""))
            (downtime(report))
            (wire(report))
            (card("RAM", &bytes(receipt.ram_bytes), &format!(
                "{} pages", count(receipt.ram_bytes / PAGE_SIZE_BYTES)), ""))
            (card("Rounds", &count(receipt.rounds.len() as u64), receipt.algorithm.as_str(), ""))
            (digest(receipt.ram_digest))
        }
    }
}

/// Why rounds stopped, the limits, and what else the receipt says.
pub(crate) fn facts(report: &MoveReport) -> Markup {
    let receipt = &report.receipt;
    html! {
        div class="columns" {
            section { h4 { "How" } dl { (course(receipt)) } }
            section { h4 { "Limits" } dl { (limits(receipt)) } }
            section { h4 { "Bytes sent" } dl { (sent(report)) } }
            @if receipt.coders != Coded::default() {
                section { h4 { "Sent in fewer bytes" } dl { (coded(&receipt.coders)) } }
            }
            @if receipt.tracking.scans > 0 {
                section { h4 { "Tracking of writes" } dl {
                    (fact("Scans", &count(receipt.tracking.scans)))
                    (fact("Time", &time(receipt.tracking.took)))
                    @if let Some(by) = receipt.tracking.by {
                        (fact("By", by.name()))
                    }
                    @if !receipt.tracking.stopped.is_zero() {
                        (fact("Guest stopped by scans", &time(receipt.tracking.stopped)))
                        (fact("At once, at most", &time(receipt.tracking.longest_stop)))
                    }
                    (fact("Faults of the guest, at most", &count(receipt.dirtied().0)))
                } }
            }
            @if let Some(ballooning) = &receipt.ballooning {
                section { h4 { "Given back for the move" } dl { (given_back(ballooning)) } }
            }
            @if let Some(following) = &receipt.following {
                section { h4 { "Followed the guest" } dl { (followed(following)) } }
            }
        }
    }
}

fn given_back(ballooning: &Ballooning) -> Markup {
    html! {
        (fact("Bytes asked for", &bytes(ballooning.asked_bytes)))
        (fact("Bytes given", &bytes(ballooning.given_bytes)))
        (fact("of them in use until then", &bytes(ballooning.freed_bytes)))
        (fact("Time", &time(ballooning.took)))
        (fact("Not more because", ballooning.end.as_str()))
    }
}

fn coded(coders: &Coded) -> Markup {
    html! {
        @for (name, coder) in coders.each().iter().filter(|(_, coder)| coder.pages.0 > 0) {
            (fact(name, &format!("{} pages in {}, in {}",
                count(coder.pages.0), bytes(coder.bytes), time(coder.took))))
        }
    }
}

fn followed(following: &Following) -> Markup {
    let micros = |micros| time(Duration::from_micros(micros));
    let waits = &following.waits;
    html! {
        (fact("From the hand-over on", &time(following.took)))
        (fact("Bytes of pages", &bytes(following.bytes)))
        (fact("Pages", &count((following.pages.raw + following.pages.coded + following.pages.zero).0)))
        (fact("Pages the guest waited for", &count(waits.pages)))
        (fact("Waits, median", &micros(waits.median_us)))
        (fact("Waits, 99 of 100 at most", &micros(waits.p99_us)))
        (fact("Longest wait", &micros(waits.longest_us)))
    }
}

fn card(name: &str, figure: &str, below: &str, class: &str) -> Markup {
    html! {
        div class=(format!("card {class}")) {
            span class="name" { (name) }
            strong { (figure) }
            span class="below" { (below) }
        }
    }
}

fn downtime(report: &MoveReport) -> Markup {
    let Some(downtime) = report.receipt.downtime else {
        return card("Downtime", "none", "the guest was never paused", "");
    };
    let limit = report.receipt.downtime_allowed();
    let over = downtime.total > limit;
    let relation = if over { "over the limit of" } else { "limit" };
    let limit = format!("{relation} {}", time(limit));
    let outside = report
        .measured
        .iter()
        .flat_map(|measured| [("UDP", measured.gap_udp), ("tick", measured.gap_tick)])
        .filter_map(|(name, gap)| gap.map(|gap| format!("{name} gap {}", time(gap))));
    let below = outside.chain([limit]).collect::<Vec<_>>().join(", ");
    card("Downtime", &time(downtime.total), &below, if over { "bad" } else { "" })
}

fn wire(report: &MoveReport) -> Markup {
    let receipt = &report.receipt;
    let outside = report.measured.as_ref().and_then(|measured| measured.wire_bytes);
    let (sent, by) = match (outside, receipt.wire.interface) {
        (Some(sent), _) => (sent, "counted on the link"),
        (None, Some(sent)) => (sent, "counted by the interface"),
        (None, None) => (receipt.wire.sockets, "sent by the sockets"),
    };
    let below = match figures::share(sent, receipt.ram_bytes) {
        Some(share) => format!("{by}, {share} of RAM"),
        None => by.to_owned(),
    };
    card("Bytes on the wire", &bytes(sent), &below, "")
}

fn digest(check: RamCheck) -> Markup {
    match check {
        RamCheck::Equal => card("RAM digest", "✓ equal", "both sides hashed all RAM", "good"),
        RamCheck::Different => card("RAM digest", "✕ different", "so the move was undone", "bad"),
        RamCheck::NotChecked => card("RAM digest", "–", "not compared", ""),
    }
}

fn fact(name: &str, value: &str) -> Markup {
    html! { dt { (name) } dd { (value) } }
}

fn course(receipt: &Receipt) -> Markup {
    let stopped = receipt.stopped.map_or("the move did not come so far", |reason| reason.as_str());
    html! {
        (fact("Algorithm", receipt.algorithm.as_str()))
        @if let Some(mode) = receipt.native_mode {
            (fact("In the hypervisor's mode", mode.as_str()))
        }
        (fact("Rounds stopped because", stopped))
        (fact("Page streams", &receipt.streams.to_string()))
        (fact("Negotiation", &time(receipt.negotiation)))
        (fact("Asked for", &date(receipt.started_unix_ms)))
        (fact("Attempt", &receipt.attempt.to_string()))
    }
}

fn limits(receipt: &Receipt) -> Markup {
    let limits = &receipt.limits;
    let none = || "none".to_owned();
    html! {
        (fact("Downtime", &time(limits.downtime_max)))
        @if let Some(stretch) = limits.downtime_stretch {
            (fact("Downtime, stretched", &time(stretch)))
        }
        (fact("Copying while paused, as a goal", &time(limits.downtime_goal)))
        (fact("Rounds", &limits.rounds_max.to_string()))
        (fact("Time of copying", &limits.copy_time_max.map_or_else(none, time)))
        (fact("Bytes while the guest runs", &limits.bytes_max.map_or_else(none, bytes)))
        (fact("When rounds no longer help", words::when_stuck(limits.when_stuck, receipt.algorithm)))
    }
}

fn sent(report: &MoveReport) -> Markup {
    let receipt = &report.receipt;
    let wire = &receipt.wire;
    let measured = report.measured.as_ref().and_then(|measured| measured.wire_bytes);
    html! {
        (fact("Pages and device state", &bytes(wire.payload)))
        @if let Some(downtime) = receipt.downtime {
            (fact("of it device state", &bytes(downtime.state_bytes)))
        }
        (fact("By the move's sockets, with TLS", &bytes(wire.sockets)))
        @if let Some(interface) = wire.interface {
            (fact("By the interface, all users", &bytes(interface)))
        }
        @if let Some(measured) = measured {
            (fact("Counted on the link, outside", &bytes(measured)))
        }
    }
}
