//! One run, watched from outside.

use std::time::{Duration, Instant};

use anyhow::Result;
use serde::Serialize;
use sterna_core::receipt::Receipt;
use sterna_testkit::net::Topology;
use sterna_testkit::probe::{ConsoleLog, EchoLog, UdpEcho, Window};
use sterna_testkit::recorder::{Line, Workload};

/// How long an emulated guest may take to boot and to fill its memory.
pub(crate) const BOOT_LIMIT: Duration = Duration::from_secs(120);
/// How long the guest is watched before the move: its normal speed.
const BASELINE: Duration = Duration::from_secs(4);
/// How long it is watched after the move.
const AFTERWARDS: Duration = Duration::from_secs(2);
/// Bytes of a page of the guest.
const PAGE_BYTES: f64 = 4096.0;

/// How a run ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(tag = "result", content = "why", rename_all = "kebab-case")]
pub(crate) enum End {
    /// The guest was moved.
    Moved,
    /// Whoever moved it says why it was not, or not wholly.
    NotMoved(String),
    /// It had not ended within the limit.
    #[default]
    GivenUp,
    /// Nothing was measured, or the guest was not well: this must not happen.
    Broken(String),
}

/// What one run showed; what could not be measured is missing.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Run {
    #[serde(flatten)]
    pub(crate) end: End,
    pub(crate) verified: bool,
    pub(crate) total_ms: Option<f64>,
    pub(crate) downtime_ms: Option<f64>,
    pub(crate) gap_udp_ms: Option<f64>,
    pub(crate) gap_tick_ms: Option<f64>,
    pub(crate) wire_bytes: Option<f64>,
    /// What it had to be at least.
    pub(crate) bound_bytes: Option<f64>,
    pub(crate) lost_work_ms: Option<f64>,
    pub(crate) agent_cpu_s: Option<f64>,
    pub(crate) agent_rss_bytes: Option<f64>,
    /// What the guest wrote before the move, in pages counted whole.
    pub(crate) written_bytes_per_s: Option<f64>,
    /// The same during the move.
    pub(crate) written_meanwhile_bytes_per_s: Option<f64>,
    /// By how many percent the vCPUs were slowed down at most.
    pub(crate) throttle_percent: Option<f64>,
    /// For how long the kernel held them back for that.
    pub(crate) held_back_ms: Option<f64>,
    /// The guest ran at the destination until its last page was there.
    pub(crate) following_ms: Option<f64>,
    /// Pages that it waited for: in ours as the destination saw it, in QEMU's those asked for.
    pub(crate) waited_pages: Option<f64>,
    pub(crate) wait_median_ms: Option<f64>,
    pub(crate) wait_p99_ms: Option<f64>,
    pub(crate) wait_longest_ms: Option<f64>,
    /// By how many percent more than foreseen the move took, and the guest stood still.
    pub(crate) total_error_percent: Option<f64>,
    pub(crate) downtime_error_percent: Option<f64>,
    /// What was chosen, the last choice last.
    pub(crate) chosen: Vec<String>,
    /// Load of the machine (average of a minute) just before.
    pub(crate) load: Option<f64>,
    pub(crate) receipt: Option<Receipt>,
}

/// Watches a guest: its console and its answers over the network.
pub(crate) struct Watcher {
    pub(crate) console: ConsoleLog,
    echo: UdpEcho,
}

impl Watcher {
    /// Waits until the guest works, and learns its normal speed.
    pub(crate) fn start(
        console: ConsoleLog,
        topology: &Topology,
        workload: &Workload,
    ) -> Result<(Self, Window)> {
        console.wait_for(0, BOOT_LIMIT, |line| matches!(line, Line::Ready { .. }))?;
        console.wait_for_ticks(100, BOOT_LIMIT)?;
        // Asking more often than the guest ticks would take processor time that it leaves.
        let echo = UdpEcho::start(topology.client(), Topology::GUEST, workload.tick())?;
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
        let written = |window| ticks.written_per_second(window).map(|pages| pages * PAGE_BYTES);
        run.written_bytes_per_s = written(baseline);
        run.written_meanwhile_bytes_per_s = written(window);
        if run.end == End::Moved {
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
    /// A run that measured nothing.
    pub(crate) fn broken(error: &anyhow::Error) -> Self {
        Self { end: End::Broken(format!("{error:#}")), ..Self::default() }
    }

    /// The run in one line.
    pub(crate) fn line(&self) -> String {
        let show =
            |value: Option<f64>, unit| value.map_or("-".into(), |v| format!("{v:.1} {unit}"));
        let mib = |value: Option<f64>| show(value.map(|v| v / 1_048_576.0), "MiB");
        let end = match &self.end {
            End::Moved => "moved",
            End::GivenUp => "given up",
            End::NotMoved(why) => return format!("not moved: {why}"),
            End::Broken(why) => return format!("BROKEN: {why}"),
        };
        format!(
            "{end:8} total {:>11} downtime {:>10} gap udp {:>10} tick {:>10} wire {:>11} lost {:>10} \
             agents {:>6} {:>9}",
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
