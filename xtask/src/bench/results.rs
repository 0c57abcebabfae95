//! What was measured, kept on disk run by run: a bench that is stopped keeps what it has.
//!
//! ```text
//! target/bench/NAME.runs.jsonl   every run, in the order in which they were made, with receipts
//!              NAME.json         a row for each scenario, link and method: medians and ranges
//!              NAME.md           the same as tables
//!              NAME.html         the page about one move of each of our rows, the middle one
//! ```

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use serde::Serialize;
use sterna_report::{About, Measured, MoveReport};

use super::measure::{End, Run};

/// A measure of runs.
struct Figure {
    /// In JSON.
    name: &'static str,
    /// In tables, with the unit; not there if empty.
    heading: &'static str,
    /// What one of the table's unit is in the measure's own.
    unit: f64,
    of: fn(&Run) -> Option<f64>,
}

const MIB: f64 = 1_048_576.0;

const fn figure(
    name: &'static str,
    heading: &'static str,
    unit: f64,
    of: fn(&Run) -> Option<f64>,
) -> Figure {
    Figure { name, heading, unit, of }
}

const FIGURES: [Figure; 21] = [
    figure("total_ms", "total s", 1e3, |run| run.total_ms),
    figure("downtime_ms", "downtime ms", 1.0, |run| run.downtime_ms),
    figure("gap_udp_ms", "UDP gap ms", 1.0, |run| run.gap_udp_ms),
    figure("gap_tick_ms", "tick gap ms", 1.0, |run| run.gap_tick_ms),
    figure("wire_bytes", "wire MiB", MIB, |run| run.wire_bytes),
    figure("bound_bytes", "at least MiB", MIB, |run| run.bound_bytes),
    figure("lost_work_ms", "lost work ms", 1.0, |run| run.lost_work_ms),
    figure("agent_cpu_s", "", 1.0, |run| run.agent_cpu_s),
    figure("agent_rss_bytes", "", MIB, |run| run.agent_rss_bytes),
    figure("written_bytes_per_s", "writes MiB/s", MIB, |run| run.written_bytes_per_s),
    figure("written_meanwhile_bytes_per_s", "meanwhile MiB/s", MIB, |run| {
        run.written_meanwhile_bytes_per_s
    }),
    figure("throttle_percent", "slowed by %", 1.0, |run| run.throttle_percent),
    figure("held_back_ms", "held back ms", 1.0, |run| run.held_back_ms),
    figure("following_ms", "following s", 1e3, |run| run.following_ms),
    figure("waited_pages", "pages waited for", 1.0, |run| run.waited_pages),
    figure("wait_median_ms", "wait p50 ms", 1.0, |run| run.wait_median_ms),
    figure("wait_p99_ms", "p99 ms", 1.0, |run| run.wait_p99_ms),
    figure("wait_longest_ms", "longest ms", 1.0, |run| run.wait_longest_ms),
    figure("total_error_percent", "total foreseen, off by %", 1.0, |run| run.total_error_percent),
    figure("downtime_error_percent", "downtime, off by %", 1.0, |run| run.downtime_error_percent),
    figure("load", "load", 1.0, |run| run.load),
];

/// Median, least and greatest of the runs that have a value.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Spread {
    median: f64,
    min: f64,
    max: f64,
}

/// The runs of one scenario on one link by one method.
#[derive(Debug)]
struct Cell {
    scenario: String,
    link: String,
    method: &'static str,
    runs: Vec<Run>,
}

/// A cell in short.
#[derive(Debug, Serialize)]
struct Row<'a> {
    scenario: &'a str,
    link: &'a str,
    method: &'static str,
    runs: usize,
    /// Runs in which the guest was moved.
    moved: usize,
    /// Runs whose RAM digests were compared and equal.
    verified: usize,
    /// How the others ended.
    others: Vec<&'a End>,
    #[serde(flatten)]
    figures: BTreeMap<&'static str, Option<Spread>>,
}

/// A run with its place in the whole.
#[derive(Serialize)]
struct Line<'a> {
    scenario: &'a str,
    link: &'a str,
    method: &'static str,
    number: u32,
    #[serde(flatten)]
    run: &'a Run,
}

/// All that was measured so far.
#[derive(Debug)]
pub(crate) struct Results {
    folder: PathBuf,
    name: String,
    lines: File,
    cells: Vec<Cell>,
}

/// Where a run belongs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place<'a> {
    pub(crate) scenario: &'a str,
    pub(crate) link: &'a str,
    pub(crate) method: &'static str,
}

impl Results {
    /// Begins results of this name in a folder; earlier ones of the same name go.
    pub(crate) fn begin(folder: PathBuf, name: &str) -> Result<Self> {
        fs::create_dir_all(&folder)?;
        let lines = File::create(folder.join(format!("{name}.runs.jsonl")))?;
        Ok(Self { folder, name: name.into(), lines, cells: Vec::new() })
    }

    /// Keeps a run, the `number`-th of its place, and prints it.
    pub(crate) fn add(&mut self, place: Place<'_>, number: u32, run: Run) -> Result<()> {
        let Place { scenario, link, method } = place;
        println!("  {number} {method:24} {}", run.line());
        let line = Line { scenario, link, method, number, run: &run };
        writeln!(self.lines, "{}", serde_json::to_string(&line)?)?;
        let same = |cell: &&mut Cell| {
            (cell.scenario.as_str(), cell.link.as_str(), cell.method) == (scenario, link, method)
        };
        match self.cells.iter_mut().find(same) {
            Some(cell) => cell.runs.push(run),
            None => self.cells.push(Cell {
                scenario: scenario.into(),
                link: link.into(),
                method,
                runs: vec![run],
            }),
        }
        let rows: Vec<Row<'_>> = self.cells.iter().map(Cell::row).collect();
        fs::write(self.path("json"), serde_json::to_vec_pretty(&rows)?)?;
        Ok(fs::write(self.path("md"), tables(&rows))?)
    }

    /// Writes the page about our moves, if there are any.
    pub(crate) fn write_page(&self) -> Result<()> {
        let moves: Vec<MoveReport> = self.cells.iter().filter_map(Cell::report).collect();
        if moves.is_empty() {
            return Ok(());
        }
        let about = About {
            title: format!("Sterna bench {}", self.name),
            host: vec!["Two hosts on one machine, emulated guests.".into()],
            generated: String::new(),
            link: String::new(),
        };
        Ok(fs::write(self.path("html"), sterna_report::html(&moves, &about))?)
    }

    /// Prints the tables, and says where all of it is.
    ///
    /// # Errors
    /// If a run broke.
    pub(crate) fn finish(&self) -> Result<()> {
        let rows: Vec<Row<'_>> = self.cells.iter().map(Cell::row).collect();
        println!("\n{}\n{} rows in {}", tables(&rows), rows.len(), self.path("json").display());
        let broken = |run: &&Run| matches!(run.end, End::Broken(_));
        let broken = self.cells.iter().flat_map(|cell| &cell.runs).filter(broken).count();
        anyhow::ensure!(broken == 0, "{broken} runs broke");
        Ok(())
    }

    fn path(&self, extension: &str) -> PathBuf {
        self.folder.join(format!("{}.{extension}", self.name))
    }
}

impl Cell {
    fn row(&self) -> Row<'_> {
        let spread =
            |figure: &Figure| (figure.name, spread(self.runs.iter().filter_map(figure.of)));
        let ends = || self.runs.iter().map(|run| &run.end);
        Row {
            scenario: &self.scenario,
            link: &self.link,
            method: self.method,
            runs: self.runs.len(),
            moved: ends().filter(|end| **end == End::Moved).count(),
            verified: self.runs.iter().filter(|run| run.verified).count(),
            others: ends().filter(|end| **end != End::Moved).collect(),
            figures: FIGURES.iter().map(spread).collect(),
        }
    }

    /// The run whose total is the middle one.
    fn report(&self) -> Option<MoveReport> {
        let mut runs: Vec<&Run> = self.runs.iter().filter(|run| run.receipt.is_some()).collect();
        let total = |run: &Run| run.total_ms.unwrap_or(f64::INFINITY);
        runs.sort_by(|one, other| total(one).total_cmp(&total(other)));
        let run = runs.get(runs.len() / 2)?;
        let mut receipt = run.receipt.clone()?;
        // All guests of a bench have one name; a reader wants to know which this was.
        receipt.guest = format!("{}, {}, {}", self.method, self.scenario, self.link);
        let time = |value: Option<f64>| Some(Duration::from_secs_f64(value? / 1e3));
        let measured = Measured {
            gap_udp: time(run.gap_udp_ms),
            gap_tick: time(run.gap_tick_ms),
            ..Measured::default()
        };
        Some(MoveReport { receipt, measured: Some(measured) })
    }
}

/// A table for each scenario and link.
fn tables(rows: &[Row<'_>]) -> String {
    let mut text = String::new();
    let same =
        |one: &Row<'_>, other: &Row<'_>| (one.scenario, one.link) == (other.scenario, other.link);
    for group in rows.chunk_by(same) {
        // Columns of which no row has a value are left out.
        let shown = |figure: &&Figure| {
            let known = |row: &Row<'_>| row.figures.get(figure.name).copied().flatten().is_some();
            !figure.heading.is_empty() && group.iter().any(known)
        };
        let figures: Vec<&Figure> = FIGURES.iter().filter(shown).collect();
        let headings: Vec<&str> = figures.iter().map(|figure| figure.heading).collect();
        let _ = writeln!(text, "\n{}, {}\n", group[0].scenario, group[0].link);
        let _ = writeln!(text, "| method | moved | {} |", headings.join(" | "));
        let _ = writeln!(text, "|---|---|{}", "---|".repeat(figures.len()));
        for row in group {
            let cells: Vec<String> = figures
                .iter()
                .map(|figure| shown_as(row.figures[figure.name], figure.unit))
                .collect();
            let Row { method, moved, runs, .. } = row;
            let _ = writeln!(text, "| {method} | {moved}/{runs} | {} |", cells.join(" | "));
        }
        for row in group {
            for end in &row.others {
                let _ = writeln!(text, "\n{}: {}", row.method, in_words(end));
            }
        }
    }
    text
}

fn in_words(end: &End) -> String {
    match end {
        End::Moved => "moved".into(),
        End::GivenUp => "given up".into(),
        End::NotMoved(why) => format!("not moved: {why}"),
        End::Broken(why) => format!("broken: {why}"),
    }
}

/// Median and range in a unit.
fn shown_as(spread: Option<Spread>, unit: f64) -> String {
    let Some(Spread { median, min, max }) = spread else { return "–".into() };
    let digits = |value: f64| match value / unit {
        large if large.abs() >= 100.0 => format!("{large:.0}"),
        middle if middle.abs() >= 10.0 => format!("{middle:.1}"),
        small => format!("{small:.2}"),
    };
    let (median, min, max) = (digits(median), digits(min), digits(max));
    if min == max { median } else { format!("{median} ({min} to {max})") }
}

fn spread(values: impl Iterator<Item = f64>) -> Option<Spread> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let median = match values.len() {
        0 => return None,
        odd if odd % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    };
    Some(Spread { median, min: *values.first()?, max: *values.last()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: Place<'static> = Place { scenario: "busy", link: "1 Gbit/s", method: "ours" };

    fn run(total_ms: f64) -> Run {
        Run { end: End::Moved, total_ms: Some(total_ms), ..Run::default() }
    }

    #[test]
    fn the_median_of_an_even_count_lies_between_the_middle_two() {
        let found = spread([4.0, 1.0, 3.0, 2.0].into_iter()).unwrap();
        assert!((found.median - 2.5).abs() < 1e-9 && found.min < 1.5 && found.max > 3.5);
        assert!((spread([7.0].into_iter()).unwrap().median - 7.0).abs() < 1e-9);
        assert!(spread([].into_iter()).is_none(), "no value is not zero");
    }

    #[test]
    fn results_that_are_never_finished_are_on_disk_run_by_run() {
        let folder = tempfile::tempdir().unwrap();
        let mut results = Results::begin(folder.path().into(), "some").unwrap();
        for (number, run) in [(1, run(5000.0)), (2, Run::default()), (3, run(7000.0))] {
            results.add(PLACE, number, run).unwrap();
            let lines = fs::read_to_string(folder.path().join("some.runs.jsonl")).unwrap();
            assert_eq!(lines.lines().count(), usize::try_from(number).unwrap());
        }
        let rows = fs::read(folder.path().join("some.json")).unwrap();
        let rows: serde_json::Value = serde_json::from_slice(&rows).unwrap();
        let row = &rows[0];
        assert_eq!((&row["runs"], &row["moved"]), (&3.into(), &2.into()), "{row}");
        assert_eq!(row["total_ms"]["median"], 6000.0);
        assert_eq!(row["others"][0]["result"], "given-up");
        assert!(row["gap_udp_ms"].is_null(), "what was not measured is not zero: {row}");
    }

    #[test]
    fn runs_that_did_not_move_the_guest_stand_below_the_table() {
        let why = End::NotMoved("undone: not converging".into());
        let failed = Run { end: why, ..Run::default() };
        let cell = |method, runs| Cell { scenario: "busy".into(), link: "l".into(), method, runs };
        let cells = [cell("ours", vec![run(5000.0), run(5400.0)]), cell("theirs", vec![failed])];
        let rows: Vec<Row<'_>> = cells.iter().map(Cell::row).collect();
        let expected = "\nbusy, l\n\n\
            | method | moved | total s |\n\
            |---|---|---|\n\
            | ours | 2/2 | 5.20 (5.00 to 5.40) |\n\
            | theirs | 0/1 | – |\n\n\
            theirs: not moved: undone: not converging\n";
        assert_eq!(tables(&rows), expected);
    }

    #[test]
    fn a_broken_run_is_kept_and_fails_the_bench_in_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let mut results = Results::begin(folder.path().into(), "some").unwrap();
        results.add(PLACE, 1, run(5000.0)).unwrap();
        assert!(results.finish().is_ok());
        results.add(PLACE, 2, Run::broken(&anyhow::anyhow!("no network"))).unwrap();
        assert!(results.finish().is_err());
    }
}
