//! What an agent has done and has, for Prometheus.
//!
//! Moves are counted from their receipts since the agent began; what there is now is looked up when it is asked for.
//! A histogram's sum and count give the mean, its buckets the share of moves below a bound.

use crate::agent::Agent;
use crate::guest::Request;
use futures_util::future::join_all;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use std::fmt;
use std::time::Duration;
use sterna_api::Direction;
use sterna_core::destination;
use sterna_core::receipt::{Ending, Receipt};

/// Labels by name. All values are words of this release, so that there are few.
type Labels<const N: usize> = [(&'static str, &'static str); N];

/// What the counts are written as.
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// All counts of one agent.
pub(crate) struct Metrics {
    registry: Registry,
    ended: Family<Labels<2>, Counter>,
    sent_bytes: Counter,
    pages: Family<Labels<1>, Counter>,
    total: Histogram,
    downtime: Histogram,
    lost_work: Histogram,
    scanned: Counter<f64, std::sync::atomic::AtomicU64>,
    tracking_faults: Counter,
    waits: Counter,
    waited: Counter<f64, std::sync::atomic::AtomicU64>,
    forecast_error: Family<Labels<1>, Histogram, fn() -> Histogram>,
    relays: Counter,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

impl Default for Metrics {
    fn default() -> Self {
        // From a tenth of a second to an hour, and from a millisecond to a minute.
        let total = Histogram::new(exponential_buckets(0.1, 2.0, 16));
        let downtime = Histogram::new(exponential_buckets(0.001, 2.0, 17));
        let lost_work = Histogram::new(exponential_buckets(0.001, 2.0, 20));
        let errors: fn() -> Histogram = || Histogram::new([0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0]);
        let mut this = Self {
            registry: Registry::default(),
            ended: Family::default(),
            sent_bytes: Counter::default(),
            pages: Family::default(),
            total,
            downtime,
            lost_work,
            scanned: Counter::default(),
            tracking_faults: Counter::default(),
            waits: Counter::default(),
            waited: Counter::default(),
            forecast_error: Family::new_with_constructor(errors),
            relays: Counter::default(),
        };
        this.register();
        this
    }
}

impl Metrics {
    fn register(&mut self) {
        let registry = &mut self.registry;
        let moves = "Moves that have ended, by direction and ending";
        registry.register("sterna_moves", moves, self.ended.clone());
        let bytes = "Bytes that moves to other hosts have sent, TLS included";
        registry.register("sterna_move_sent_bytes", bytes, self.sent_bytes.clone());
        let pages = "Pages of moves to other hosts, by the way they went";
        registry.register("sterna_move_pages", pages, self.pages.clone());
        let total = "Time that a guest's move to another host took";
        registry.register("sterna_move_seconds", total, self.total.clone());
        let downtime = "Time for which a guest stood still at its hand-over";
        registry.register("sterna_move_downtime_seconds", downtime, self.downtime.clone());
        let lost_work = "Time that a move took from a guest's vCPUs, all of them together";
        registry.register("sterna_move_lost_work_seconds", lost_work, self.lost_work.clone());
        let scanned = "Time that moves took to look which pages guests had written";
        registry.register("sterna_move_tracking_seconds", scanned, self.scanned.clone());
        let faults = "Faults that guests had because their writes were tracked, at most";
        registry.register("sterna_move_tracking_faults", faults, self.tracking_faults.clone());
        let waits = "Pages that guests have waited for after their hand-over";
        registry.register("sterna_move_page_waits", waits, self.waits.clone());
        let waited = "Time for which they did";
        registry.register("sterna_move_page_wait_seconds", waited, self.waited.clone());
        let errors = "By what part forecasts of moves were off, by what was foreseen";
        registry.register("sterna_move_forecast_error_ratio", errors, self.forecast_error.clone());
        let relays = "Connections of users that were passed on to other hosts";
        registry.register("sterna_relays", relays, self.relays.clone());
    }

    /// A move to another host has ended.
    pub(crate) fn left(&self, receipt: &Receipt) {
        let ending = match &receipt.ending {
            Ending::Moved => "moved",
            Ending::Undone { .. } => "undone",
            Ending::GuestGone { .. } => "guest-gone",
            Ending::Stuck { .. } => "stuck",
            Ending::Lost { .. } => "lost",
        };
        self.ended(Direction::Outgoing, ending);
        self.sent_bytes.inc_by(receipt.wire.sockets);
        let pages = receipt.pages();
        for (way, count) in [
            ("content", pages.sent_with_content()),
            ("zero", pages.zero),
            ("same", pages.same),
            ("known-there", pages.got_there()),
            ("unchanged", pages.unchanged),
        ] {
            self.pages.get_or_create(&[("way", way)]).inc_by(count.0);
        }
        self.scanned.inc_by(receipt.tracking.took.as_secs_f64());
        self.tracking_faults.inc_by(receipt.dirtied().0);
        if let Some(following) = &receipt.following {
            self.waits.inc_by(following.waits.pages);
            self.waited.inc_by(Duration::from_micros(following.waits.total_us).as_secs_f64());
        }
        if receipt.ending == Ending::Moved {
            self.moved(receipt);
        }
    }

    /// What a move took that went well.
    fn moved(&self, receipt: &Receipt) {
        let (total, downtime) = (receipt.total, receipt.downtime_uncompared());
        self.total.observe(total.as_secs_f64());
        self.downtime.observe(downtime.as_secs_f64());
        self.lost_work.observe(receipt.lost_work().as_secs_f64());
        let Some(forecast) = receipt.foreseen() else { return };
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let total = micros(total.saturating_sub(receipt.compared_for()));
        for (what, error) in [
            ("total", forecast.total_us.error(total)),
            ("downtime", forecast.downtime_us.error(micros(downtime))),
        ] {
            if let Some(error) = error {
                self.forecast_error.get_or_create(&[("of", what)]).observe(error.abs());
            }
        }
    }

    /// A user is passed on to another host.
    pub(crate) fn passed_on(&self) {
        self.relays.inc();
    }

    /// A move to this host has ended.
    pub(crate) fn arrived(&self, ending: &destination::Ending) {
        let ending = match ending {
            destination::Ending::Active => "moved",
            destination::Ending::Discarded(_) => "undone",
            destination::Ending::Lost(_) => "lost",
        };
        self.ended(Direction::Incoming, ending);
    }

    fn ended(&self, direction: Direction, ending: &'static str) {
        self.ended.get_or_create(&[("direction", word(direction)), ("ending", ending)]).inc();
    }
}

fn word(direction: Direction) -> &'static str {
    match direction {
        Direction::Incoming => "in",
        Direction::Outgoing => "out",
    }
}

/// All counts, and what there is now.
pub(crate) async fn text(agent: &Agent) -> Result<String, fmt::Error> {
    let guests = Family::<Labels<1>, Gauge>::default();
    let all = agent.guests.all();
    for view in join_all(all.iter().map(|guest| guest.ask(Request::View))).await {
        // One that has just gone is none.
        let Ok(view) = view else { continue };
        guests.get_or_create(&[("state", view.state.word())]).inc();
    }
    let under_way = Family::<Labels<1>, Gauge>::default();
    for direction in [Direction::Incoming, Direction::Outgoing] {
        under_way.get_or_create(&[("direction", word(direction))]).set(0);
    }
    let waiting = Gauge::<i64>::default();
    for entry in agent.moves.all().iter().filter(|entry| !entry.has_ended()) {
        if entry.watch.waits() {
            waiting.inc();
        } else {
            under_way.get_or_create(&[("direction", word(entry.direction))]).inc();
        }
    }
    let mut now = Registry::default();
    now.register("sterna_guests", "Guests of this host, by state", guests);
    now.register("sterna_moves_under_way", "Moves that have not ended, by direction", under_way);
    now.register("sterna_moves_waiting", "Moves from this host that wait for their turn", waiting);
    let mut text = String::new();
    encode_registry(&mut text, &agent.metrics.registry)?;
    encode_registry(&mut text, &now)?;
    encode_eof(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::agent;
    use sterna_core::limits::Limits;
    use sterna_proto::message::{Reason, ReasonCode};

    /// A receipt of a move in which 5 pages went with their content and 3 as zeroes, in two rounds.
    const RECEIPT: &str = r#"{
        "guest": "web-1",
        "attempt": { "guest": "00000000-0000-0000-0000-000000000007", "epoch": 3 },
        "source": "a", "destination": "b", "result": "moved", "algorithm": "pre-copy",
        "stopped": "goal-reached", "tracking": { "scans": 4, "took_us": 500000 }, "streams": 2, "ram_bytes": 32768, "vcpus": 2,
        "started_unix_ms": 1763679662000, "total_us": 5000000, "negotiation_us": 1000,
        "downtime": { "total_us": 20000, "pause_lead_us": 0, "pause_us": 0, "copy_us": 0, "save_us": 0,
            "digest_us": 0, "ready_us": 0, "commit_us": 0, "state_bytes": 0,
            "destination": { "load_us": 0, "digest_us": 0, "record_us": 0, "activate_us": 0 } },
        "rounds": [
            { "number": 0, "started_us": 0, "took_us": 1, "bytes": 1, "dirtied": 1,
                "pages": { "raw": 4, "zero": 3, "absent": 0, "unchanged": 0 } },
            { "number": 1, "started_us": 1, "took_us": 1, "bytes": 1, "dirtied": 0,
                "pages": { "raw": 1, "zero": 0, "absent": 0, "unchanged": 0 } }
        ],
        "wire": { "payload": 20000, "sockets": 20480, "interface": null },
        "ram_digest": "not checked"
    }"#;

    #[tokio::test]
    async fn what_moves_came_to_is_counted() {
        let folder = tempfile::tempdir().unwrap();
        let (agent, _) = agent(folder.path());
        let mut moved: serde_json::Value = serde_json::from_str(RECEIPT).unwrap();
        moved["limits"] = serde_json::to_value(Limits::default()).unwrap();
        let moved: Receipt = serde_json::from_value(moved).unwrap();
        let reasons = vec![Reason::new(ReasonCode::LinkLost, "cut")];
        let undone = Receipt { ending: Ending::Undone { reasons }, ..moved.clone() };
        for receipt in [&moved, &moved, &undone] {
            agent.metrics.left(receipt);
        }
        agent.metrics.arrived(&destination::Ending::Active);
        let text = text(&agent).await.unwrap();
        for line in [
            r#"sterna_moves_total{direction="out",ending="moved"} 2"#,
            r#"sterna_moves_total{direction="out",ending="undone"} 1"#,
            r#"sterna_moves_total{direction="in",ending="moved"} 1"#,
            "sterna_move_sent_bytes_total 61440",
            r#"sterna_move_pages_total{way="content"} 15"#,
            r#"sterna_move_pages_total{way="zero"} 9"#,
            "sterna_move_seconds_sum 10.0",
            "sterna_move_tracking_seconds_total 1.5",
            "sterna_move_tracking_faults_total 3",
            "sterna_move_downtime_seconds_count 2",
            // Two vCPUs, twice 20 ms.
            "sterna_move_lost_work_seconds_sum 0.08",
            r#"sterna_moves_under_way{direction="out"} 0"#,
            "sterna_moves_waiting 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"), "{text}");
    }
}
