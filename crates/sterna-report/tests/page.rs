//! What a page says, for each way in which a move can end, and for receipts that cannot be true.
#![forbid(unsafe_code)]

mod markup;
mod samples;

use markup::Element;
use proptest::prelude::*;
use proptest::sample::select;
use samples::{about, us};
use std::time::Duration;
use sterna_core::algorithm::AlgorithmName;
use sterna_core::balloon::{BalloonEnd, Ballooning};
use sterna_core::prediction::{Band, Basis, Choice, Experience, Forecast, Foreseen, Look, Method};
use sterna_core::receipt::{Downtime, Ending, PagesByCoding, Receipt, Round, StopReason};
use sterna_page::PageCount;
use sterna_proto::message::{ActivationTimes, Reason, ReasonCode};
use sterna_report::{Measured, MoveReport, html};

fn page(report: MoveReport) -> String {
    html(&[report], &about())
}

/// The text between the tags, as it is read.
fn words(html: &str) -> String {
    markup::elements(html).iter().map(|element| element.text.as_str()).collect()
}

#[test]
fn every_ending_has_its_sentence() {
    let elements = markup::elements(&html(&samples::all(), &about()));
    let sentences: Vec<String> = elements
        .iter()
        .filter(|element| element.name == "h2" && element.path.contains("article"))
        .map(|element| element.inner.clone())
        .collect();
    assert_eq!(
        sentences,
        [
            "demo moved from a to b in 5.31 s; it stood still for 14.2 ms; RAM digests were not \
             compared.",
            "demo moved from a to b in 5.80 s; it stood still for 503 ms; RAM digests equal.",
            "db-7 moved from a to b in 2.59 s; it stood still for 2.31 s; RAM digests were not \
             compared.",
            "builder was not moved from a to b: after 19.4 s it runs on at a; it was never paused.",
            "demo was not moved from a to b: after 38.0 ms it runs on at a; it was never paused.",
            "demo ended at a 1.21 s after the request, before it was handed over to b; it was \
             never paused.",
            "demo was not moved to b and stays paused at a: it could not be made to run again.",
            "b took demo over and lost it; the guest may have run there. It stays paused at a \
             until an operator decides.",
        ]
    );
}

#[test]
fn what_was_foreseen_of_each_method_stands_beside_what_happened() {
    let band = |expected| Band { low: expected / 2, expected, high: expected * 2 };
    let forecast = |method, foreseen| Forecast {
        method,
        foreseen,
        total_us: band(6_000_000),
        downtime_us: band(20_000),
        bytes: band(1 << 30),
        lost_work_us: band(40_000),
        rounds: 3,
    };
    let gives_up = Foreseen::GivesUp { reason: StopReason::NoProgress };
    let mut report = samples::moved();
    report.receipt.choices = vec![Choice {
        after: us(900_000),
        method: Method::ALL[3],
        reason: "40 ms of lost work".into(),
        basis: Basis {
            link_bytes_per_second: 117e6,
            residue: PageCount(70_000),
            looks: vec![Look { after: us(500_000), pages: PageCount(2560) }],
            experience: Experience::default(),
        },
        forecasts: vec![
            forecast(Method::ALL[0], gives_up),
            forecast(Method::ALL[3], Foreseen::Moves),
        ],
    }];
    let text = words(&page(report));
    for said in [
        "After 900 ms: hybrid",
        "40 ms of lost work",
        "a link of 112 MiB/s, 273 MiB still to be sent, and a guest that had written 10.0 MiB within 500 ms",
        "would give up: rounds no longer made",
        "6.00 s (3.00 s to 12.0 s)",
        "what happened5.31 s",
    ] {
        assert!(text.contains(said), "{said} is not in {text}");
    }
}

#[test]
fn every_reason_is_in_prominent_words() {
    for report in samples::all() {
        let ending = report.receipt.ending.clone();
        let elements = markup::elements(&page(report));
        let shown: String = elements
            .iter()
            .filter(|element| element.class.contains("reasons"))
            .map(|element| element.inner.as_str())
            .collect();
        let reasons = match ending {
            Ending::Moved => {
                assert_eq!(shown, "");
                continue;
            }
            Ending::Undone { reasons } => reasons,
            Ending::Stuck { cause, reason } => vec![cause, reason],
            Ending::GuestGone { reason } | Ending::Lost { reason } => vec![reason],
        };
        assert!(reasons.iter().all(|reason| shown.contains(&reason.detail)), "{shown}");
    }
}

#[test]
fn figures_are_there_with_their_units() {
    let html = page(samples::moved());
    let text = words(&html);
    for figure in [
        "5.31 s",
        "14.2 ms",
        "UDP gap 15.9 ms",
        "tick gap 14.6 ms",
        "566 MiB",
        "1.00 GiB",
        "128\u{202f}412",
        "114 MiB/s",
        "4.38 ms",
        "300 ms",
        "2025-11-21 10:00:00 UTC",
        "what was left fitted the downtime goal",
        "give the move up",
        "305 KiB",
    ] {
        assert!(text.contains(figure), "{figure}");
    }
}

#[test]
fn memory_that_the_guest_gave_back_is_told_with_why_it_was_not_more() {
    let mut report = samples::moved();
    assert!(!words(&page(report.clone())).contains("Given back"));
    report.receipt.ballooning = Some(Ballooning {
        asked_bytes: 300 << 20,
        given_bytes: 180 << 20,
        freed_bytes: 121 << 20,
        took: Duration::from_millis(2410),
        end: BalloonEnd::Stalled,
    });
    let text = words(&page(report));
    for figure in ["300 MiB", "180 MiB", "121 MiB", "2.41 s", "the guest gave back no more"] {
        assert!(text.contains(figure), "{figure}");
    }
}

#[test]
fn a_long_round_and_its_short_end_are_drawn_twice() {
    let pictures = |report| page(report).matches("<svg").count();
    assert_eq!(pictures(samples::moved()), 3);
    assert_eq!(pictures(samples::not_converging()), 1);
    assert_eq!(pictures(samples::stop_and_copy()), 2);
    assert_eq!(pictures(samples::refused()), 0);
}

#[test]
fn only_the_round_after_the_pause_is_marked_as_such() {
    let marked = |report| words(&page(report)).matches("after the pause").count();
    assert_eq!(marked(samples::moved()), 1);
    assert_eq!(marked(samples::stop_and_copy()), 1);
    assert_eq!(marked(samples::stuck()), 1);
    assert_eq!(marked(samples::not_converging()), 0);
    assert_eq!(marked(samples::guest_gone()), 0);
}

#[test]
fn a_name_cannot_become_markup() {
    let evil = r#"<script>alert("1")</script>&'<img src=x onerror=y>"#;
    let mut report = samples::moved();
    report.receipt.guest = evil.into();
    report.receipt.source = evil.into();
    report.receipt.destination = evil.into();
    let reason = Reason::new(ReasonCode::Other, evil);
    report.receipt.ending = Ending::Stuck { cause: reason.clone(), reason };
    let mut about = about();
    about.title = format!("</title>{evil}");
    about.host.push(format!("</dl>{evil}"));
    about.link = evil.into();
    about.generated = evil.into();
    let html = html(&[report.clone(), report], &about);
    let lower = html.to_lowercase();
    assert!(!lower.contains("<script") && !lower.contains("<img"));
    // Escaped, not dropped: a reader sees the name as it is.
    let elements = markup::elements(&html);
    assert!(elements.iter().any(|element| element.name == "h2" && element.inner.contains(evil)));
    assert!(elements.iter().all(|element| !element.attributes.contains_key("onerror")));
}

#[test]
fn a_page_needs_nothing_from_outside() {
    let html = html(&samples::all(), &about());
    for outside in ["http:", "https:", "url(", "@import", " src=", "<script", "<link"] {
        assert!(!html.contains(outside), "{outside}");
    }
    assert!(html.contains("default-src 'none'"));
}

#[test]
fn labels_of_usual_moves_do_not_overlap() {
    for element in markup::elements(&html(&samples::all(), &about())) {
        if element.name == "svg" {
            assert_labels_apart(&element);
        }
    }
}

/// No two texts of one height share a place.
fn assert_labels_apart(svg: &Element) {
    let mut taken: Vec<(f64, f64, f64)> = Vec::new();
    for text in svg.texts() {
        let width = 5.8 * text.inner.chars().count() as f64;
        let (x, y) = (text.number("x"), text.number("y"));
        let from = match text.attributes["text-anchor"].as_str() {
            "middle" => x - width / 2.0,
            _ => x - width,
        };
        let apart = |other: &(f64, f64, f64)| {
            (other.0 - y).abs() > 9.0 || from + width <= other.1 || other.2 <= from
        };
        assert!(taken.iter().all(apart), "{:?} at {x} {y}", text.inner);
        taken.push((y, from, from + width));
    }
}

#[test]
fn no_moves_make_a_page_as_well() {
    assert!(words(&html(&[], &about())).contains("No moves."));
}

/// Every coordinate is a number within reach, and every element is closed (`elements` checks).
fn assert_drawable(html: &str) {
    for element in markup::elements(html) {
        if !element.path.contains("svg") {
            continue;
        }
        for name in ["x", "y", "x1", "x2", "y1", "y2", "width", "height"] {
            if element.attributes.contains_key(name) {
                let value = element.number(name);
                assert!((-1.0..=1000.0).contains(&value), "{name}={value}");
                assert!(value >= 0.0 || !name.ends_with('h'), "{name}={value}");
            }
        }
        for name in ["d", "viewBox"] {
            let path = element.attributes.get(name).map_or("", String::as_str);
            assert!(!path.contains("NaN") && !path.contains("inf"), "{path}");
        }
        assert!(!element.text.contains("NaN") && !element.text.contains("inf"), "{}", element.text);
    }
}

#[test]
fn usual_moves_are_drawable() {
    assert_drawable(&html(&samples::all(), &about()));
}

/// Numbers at which arithmetic goes wrong, and some that are usual.
fn number() -> impl Strategy<Value = u64> {
    select(vec![0, 0, 1, 999, 4_096, 1 << 20, 5_000_000, 1 << 53, u64::MAX - 1, u64::MAX])
}

fn time() -> impl Strategy<Value = Duration> {
    let extreme = select(vec![Duration::MAX, Duration::from_nanos(1)]);
    prop_oneof![4 => number().prop_map(us), 1 => extreme]
}

prop_compose! {
    fn round()(
        number_of in number(), started in time(), took in time(), bytes in number(),
        pages in proptest::array::uniform8(number()),
    ) -> Round {
        let [raw, zero, absent, unchanged, dirtied, withheld, unsent, owed] = pages.map(PageCount);
        let postponed = dirtied;
        let (coded, same, known, on_disk, changed) = (absent, zero, raw, owed, unsent);
        let pages = PagesByCoding {
            raw, zero, absent, unchanged, postponed, withheld, unsent, owed, coded, changed, same,
            known, on_disk,
        };
        let number = u32::try_from(number_of).unwrap_or(u32::MAX);
        Round { number, started, took, pages, bytes, dirtied, ..Round::default() }
    }
}

prop_compose! {
    fn downtime()(
        times in proptest::array::uniform8(time()), there in proptest::array::uniform5(number()),
    ) -> Downtime {
        let [total, pause_lead, pause, copy, save, digest, ready, commit] = times;
        let [load_us, digest_us, record_us, activate_us, state_bytes] = there;
        let destination = ActivationTimes { load_us, digest_us, record_us, activate_us };
        Downtime { total, pause_lead, pause, copy, save, digest, ready, commit, destination,
            state_bytes }
    }
}

prop_compose! {
    fn report()(
        index in 0..8usize, algorithm in select(vec![AlgorithmName::PreCopy,
            AlgorithmName::StopAndCopy]),
        rounds in proptest::collection::vec(round(), 0..5), downtime in proptest::option::of(
            downtime()),
        times in [time(), time(), time(), time()], numbers in proptest::array::uniform5(number()),
        gaps in proptest::collection::vec((time(), time()), 0..3),
    ) -> MoveReport {
        let [total, negotiation, udp, tick] = times;
        let mut receipt = Receipt { algorithm, rounds, downtime, total, negotiation,
            ..samples::all()[index].receipt.clone() };
        receipt.ram_bytes = numbers[0];
        receipt.started_unix_ms = numbers[1];
        receipt.wire.payload = numbers[2];
        receipt.wire.interface = Some(numbers[3]);
        let measured = Measured { gap_udp: Some(udp), gap_tick: Some(tick),
            wire_bytes: Some(numbers[4]), udp_gaps: gaps };
        MoveReport { receipt, measured: Some(measured) }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_a_receipt_says_can_be_drawn(report in report()) {
        assert_drawable(&page(report));
    }
}
