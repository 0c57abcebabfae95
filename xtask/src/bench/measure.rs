//! One run, watched from outside.

use std::time::{Duration, Instant};

use anyhow::Result;
use sterna_testkit::net::Topology;
use sterna_testkit::probe::{ConsoleLog, EchoLog, UdpEcho, Window};
use sterna_testkit::recorder::Line;

/// How long an emulated guest may take to boot and to fill its memory.
const BOOT_LIMIT: Duration = Duration::from_secs(120);
/// How long the guest is watched before the move: its normal speed.
const BASELINE: Duration = Duration::from_secs(4);
/// How long it is watched after the move.
const AFTERWARDS: Duration = Duration::from_secs(2);

/// What one run showed; what could not be measured is missing.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Run {
    pub(crate) moved: bool,
    pub(crate) verified: bool,
    pub(crate) total_ms: Option<f64>,
    pub(crate) downtime_ms: Option<f64>,
    pub(crate) gap_udp_ms: Option<f64>,
    pub(crate) gap_tick_ms: Option<f64>,
    pub(crate) wire_bytes: Option<f64>,
    pub(crate) lost_work_ms: Option<f64>,
    pub(crate) agent_cpu_s: Option<f64>,
    pub(crate) agent_rss_bytes: Option<f64>,
}

/// Watches a guest: its console and its answers over the network.
pub(crate) struct Watcher {
    pub(crate) console: ConsoleLog,
    echo: UdpEcho,
}

impl Watcher {
    /// Waits until the guest works, and learns its normal speed.
    pub(crate) fn start(console: ConsoleLog, topology: &Topology) -> Result<(Self, Window)> {
        console.wait_for(0, BOOT_LIMIT, |line| matches!(line, Line::Ready { .. }))?;
        console.wait_for_ticks(100, BOOT_LIMIT)?;
        let echo = UdpEcho::start(topology.client(), Topology::GUEST)?;
        let begin = Instant::now();
        std::thread::sleep(BASELINE);
        Ok((Self { console, echo }, Window::new(begin, Instant::now())))
    }

    /// What was seen of a move that happened within `window`.
    pub(crate) fn finish(self, baseline: Window, window: Window, run: &mut Run) -> Result<()> {
        std::thread::sleep(AFTERWARDS);
        let watched = Window::new(window.from, window.to + AFTERWARDS);
        let echo: EchoLog = self.echo.finish()?;
        let complaints = self.console.complaints();
        anyhow::ensure!(complaints.is_empty(), "the guest complains: {complaints:?}");
        let ticks = self.console.ticks();
        if run.moved {
            run.gap_udp_ms = Some(millis(echo.longest_gap(watched)));
            run.gap_tick_ms = Some(millis(ticks.longest_gap(watched)));
        }
        run.lost_work_ms = ticks.lost_work(baseline, watched).map(|seconds| seconds * 1e3);
        Ok(())
    }
}

pub(crate) fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

impl Run {
    /// The run in one line.
    pub(crate) fn line(&self) -> String {
        let show =
            |value: Option<f64>, unit| value.map_or("-".into(), |v| format!("{v:.1} {unit}"));
        let mib = |value: Option<f64>| show(value.map(|v| v / 1_048_576.0), "MiB");
        format!(
            "{:9} total {:>11} downtime {:>10} gap udp {:>10} tick {:>10} wire {:>11} lost {:>10} \
             agents {:>6} {:>9}",
            if self.moved { "moved" } else { "not moved" },
            show(self.total_ms, "ms"),
            show(self.downtime_ms, "ms"),
            show(self.gap_udp_ms, "ms"),
            show(self.gap_tick_ms, "ms"),
            mib(self.wire_bytes),
            show(self.lost_work_ms, "ms"),
            show(self.agent_cpu_s, "s"),
            mib(self.agent_rss_bytes),
        )
    }
}
