//! `sterna history`: how far what was foreseen was from what happened, over all moves.

use crate::cli::{Global, Output};
use crate::exit::Exit;
use crate::output;
use crate::units::time;
use serde::Serialize;
use std::time::{Duration, UNIX_EPOCH};
use sterna_api::{MoveView, paths};
use sterna_core::receipt::{Ending, Receipt};
use uuid::Uuid;

/// Options of `sterna history`.
#[derive(Debug, clap::Args)]
pub(crate) struct HistoryArgs {
    /// Only moves of this guest
    #[arg(value_name = "VM")]
    guest: Option<String>,
}

/// One move that went well and was foreseen.
#[derive(Debug, Serialize)]
struct Line {
    id: Uuid,
    guest: String,
    to: String,
    started_unix_ms: u64,
    method: String,
    total: Compared,
    downtime: Compared,
    bytes: Compared,
}

/// What was foreseen and what happened: microseconds or bytes.
#[derive(Clone, Copy, Debug, Serialize)]
struct Compared {
    foreseen: u64,
    happened: u64,
    /// By how much more happened, as a part of what was foreseen.
    error: f64,
    /// Whether it was within the band.
    within: bool,
}

/// All moves, and how wrong they were in the middle.
#[derive(Debug, Serialize)]
struct History {
    moves: Vec<Line>,
    /// Medians of the errors' sizes, as parts of what was foreseen.
    median_error: Option<Medians>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
struct Medians {
    total: f64,
    downtime: f64,
    bytes: f64,
}

/// Shows what was foreseen of moves from this host beside what happened.
pub(crate) async fn run(args: HistoryArgs, global: &Global) -> anyhow::Result<Exit> {
    let mut moves: Vec<MoveView> = global.connection.client()?.get(paths::MOVES).await?;
    moves.retain(|view| args.guest.as_ref().is_none_or(|guest| *guest == view.guest));
    let lines: Vec<Line> = moves.iter().filter_map(line).collect();
    let history = History { median_error: medians(&lines), moves: lines };
    match global.output {
        Output::Json => output::json(&history)?,
        Output::Text => show(&history),
    }
    Ok(Exit::Done)
}

fn line(view: &MoveView) -> Option<Line> {
    let receipt = view.receipt.as_ref().filter(|receipt| receipt.ending == Ending::Moved)?;
    let forecast = receipt.foreseen()?;
    let compared = |band: &sterna_core::prediction::Band, happened: u64| {
        let error = band.error(happened)?;
        Some(Compared { foreseen: band.expected, happened, error, within: band.holds(happened) })
    };
    let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    let total = receipt.total.saturating_sub(receipt.compared_for());
    Some(Line {
        id: view.id,
        guest: view.guest.clone(),
        to: view.peer.clone(),
        started_unix_ms: receipt.started_unix_ms,
        method: forecast.method.to_string(),
        total: compared(&forecast.total_us, micros(total))?,
        downtime: compared(&forecast.downtime_us, micros(receipt.downtime_uncompared()))?,
        bytes: compared(&forecast.bytes, page_bytes(receipt))?,
    })
}

/// Bytes of page frames, which is what is foreseen.
fn page_bytes(receipt: &Receipt) -> u64 {
    let state = receipt.downtime.map_or(0, |downtime| downtime.state_bytes);
    receipt.wire.payload.saturating_sub(state)
}

fn medians(lines: &[Line]) -> Option<Medians> {
    let median = |of: fn(&Line) -> Compared| {
        let mut errors: Vec<f64> = lines.iter().map(|line| of(line).error.abs()).collect();
        errors.sort_by(f64::total_cmp);
        let (low, high) = (errors.len().checked_sub(1)? / 2, errors.len() / 2);
        Some(f64::midpoint(errors[low], errors[high]))
    };
    Some(Medians {
        total: median(|line| line.total)?,
        downtime: median(|line| line.downtime)?,
        bytes: median(|line| line.bytes)?,
    })
}

fn show(history: &History) {
    let of_time = |compared: &Compared| {
        let foreseen = time(Duration::from_micros(compared.foreseen));
        let happened = time(Duration::from_micros(compared.happened));
        format!("{happened} for {foreseen}, {:+.0} %", compared.error * 100.0)
    };
    let rows: Vec<Vec<String>> = history
        .moves
        .iter()
        .map(|line| {
            let started = UNIX_EPOCH.checked_add(Duration::from_millis(line.started_unix_ms));
            let started = humantime::format_rfc3339_seconds(started.unwrap_or(UNIX_EPOCH));
            vec![
                started.to_string(),
                line.guest.clone(),
                line.to.clone(),
                line.method.clone(),
                of_time(&line.total),
                of_time(&line.downtime),
                format!("{:+.0} %", line.bytes.error * 100.0),
            ]
        })
        .collect();
    output::table(&["STARTED", "GUEST", "TO", "METHOD", "TOTAL", "DOWNTIME", "BYTES"], &rows);
    match history.median_error {
        Some(Medians { total, downtime, bytes }) => println!(
            "median error of {}: total {:.0} %, downtime {:.0} %, bytes {:.0} %",
            rows.len(),
            total * 100.0,
            downtime * 100.0,
            bytes * 100.0
        ),
        None => println!("no move from this host was foreseen and went well"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(total: f64, downtime: f64) -> Line {
        let compared = |error| Compared { foreseen: 100, happened: 100, error, within: true };
        Line {
            id: Uuid::nil(),
            guest: String::new(),
            to: String::new(),
            started_unix_ms: 0,
            method: String::new(),
            total: compared(total),
            downtime: compared(downtime),
            bytes: compared(0.0),
        }
    }

    #[test]
    fn the_median_error_is_that_of_sizes() {
        assert_eq!(medians(&[]), None);
        let lines = [line(-0.5, 0.1), line(0.1, -0.2), line(0.2, 0.4)];
        let median = medians(&lines).unwrap();
        assert_eq!((median.total, median.downtime), (0.2, 0.2));
        let even = medians(&lines[1..]).unwrap();
        assert!((even.total - 0.15).abs() < 1e-9);
    }
}
