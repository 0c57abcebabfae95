//! The progress of a move: a bar in a terminal, a line a second elsewhere; on stderr.

use crate::units;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};
use sterna_api::{MoveState, MoveView};
use sterna_core::speed::VcpuSpeed;

/// How often a line is printed where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(1);

/// Shows one move.
#[derive(Debug)]
pub(crate) enum Display {
    /// In a terminal.
    Bar(ProgressBar),
    /// Elsewhere; when the last line was printed.
    Lines(Option<Instant>),
}

impl Display {
    /// The kind that fits where stderr goes.
    pub(crate) fn new() -> Self {
        if !std::io::stderr().is_terminal() {
            return Self::Lines(None);
        }
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        let style = ProgressStyle::with_template("{bar:30} {percent:>3}% {msg}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        Self::Bar(bar)
    }

    /// Shows where the move stands.
    pub(crate) fn show(&mut self, view: &MoveView) {
        let text = line(view);
        match self {
            Self::Bar(bar) => {
                if let Some(progress) = &view.progress {
                    bar.set_length(progress.ram_total_bytes);
                    bar.set_position(progress.ram_done_bytes);
                }
                bar.set_message(text);
                bar.tick();
            }
            Self::Lines(last) => {
                if last.is_none_or(|last| last.elapsed() >= LINE_EVERY) {
                    eprintln!("{text}");
                    *last = Some(Instant::now());
                }
            }
        }
    }

    /// Shows something else once.
    pub(crate) fn note(&self, text: &str) {
        match self {
            Self::Bar(bar) => bar.println(text),
            Self::Lines(_) => eprintln!("{text}"),
        }
    }

    /// Takes the bar away.
    pub(crate) fn finish(&mut self) {
        if let Self::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}

/// Where a move stands, in one line.
pub(crate) fn line(view: &MoveView) -> String {
    if let MoveState::InDoubt { reason } = &view.state {
        return format!("in doubt; the guest stays paused: {reason}");
    }
    let Some(progress) = &view.progress else { return "on its way".into() };
    let mut parts = vec![progress.stage.clone()];
    // Rates and the time left mean nothing once copying is over.
    let copying = progress.stage == "copying";
    parts.extend(progress.method.clone());
    if copying {
        parts.push(format!("round {}", progress.round));
    }
    let (done, total) = (progress.ram_done_bytes, progress.ram_total_bytes);
    if total > 0 {
        parts.push(format!("{} of {}", units::size(done), units::size(total)));
    }
    if copying && progress.link_bytes_per_second > 0 {
        parts.push(format!("at {}", units::rate(progress.link_bytes_per_second)));
    }
    if copying && progress.dirty_bytes_per_second > 0 {
        let rate = units::rate(progress.dirty_bytes_per_second);
        parts.push(format!("guest writes {rate}"));
    }
    if copying && progress.vcpus < VcpuSpeed::FULL {
        parts.push(format!("vCPUs at {}", progress.vcpus));
    }
    if let Some(eta) = progress.eta.filter(|_| copying) {
        parts.push(format!("{} left", units::time(eta)));
    }
    parts.extend(progress.waiting.clone());
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use sterna_core::progress::Progress;

    #[test]
    fn a_line_says_what_is_known_and_no_more() {
        let text = r#"{"id":"00000000-0000-0000-0000-000000000001","guest":"web-1",
            "attempt":{"guest":"00000000-0000-0000-0000-000000000007","epoch":3},
            "direction":"outgoing","peer":"b","state":"moving","version":"x",
            "progress":null,"receipt":null}"#;
        let mut view: MoveView = serde_json::from_str(text).unwrap();
        view.progress = Some(Progress { stage: "negotiating".into(), ..Progress::default() });
        assert_eq!(line(&view), "negotiating");
        view.progress = Some(Progress {
            stage: "copying".into(),
            method: Some("hybrid".into()),
            round: 2,
            ram_done_bytes: 1 << 30,
            ram_total_bytes: 2 << 30,
            link_bytes_per_second: 117_000_000,
            eta: Some(Duration::from_secs(9)),
            ..Progress::default()
        });
        let expected = "copying, hybrid, round 2, 1.0 GiB of 2.0 GiB, at 117.0 MB/s, 9.00 s left";
        assert_eq!(line(&view), expected);
    }
}
