//! What holding back could save of real guests, and what part of it each predictor reaches.
//!
//! A guest boots, works, and is tracked as if it were moved, but no byte of it is sent: at the end of
//! each sampling period the pages written in it are read, and protected anew. What a move over the
//! link would have sent is then computed from these bitmaps ([`Recording`]), so the oracle and all
//! predictors choose for the same life of the same guest. Of each recording there is a row:
//!
//! ```text
//! target/bench/NAME.json   all rows
//!              NAME.md     the same as a table
//! ```
//!
//! The link carries nothing but pages here, and the guest has its processors for itself; it pays a
//! fault for each page that it writes in a period, where in a move it pays one a round.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use serde_json::json;
use sterna_core::limits::{FIXED_DOWNTIME, Limits};
use sterna_core::working_set::{HoldBack, Look, Recording, SAMPLING_PERIOD, allowance_at};
use sterna_page::{PAGE_SIZE_BYTES, PageCount, PageSet};
use sterna_testkit::image::GuestImage;
use sterna_testkit::net::LinkRate;
use sterna_testkit::probe::ConsoleLog;
use sterna_testkit::recorder::Line;
use sterna_vmm::qemu::{QemuBinary, QemuGuest, QemuSource, StartMode};
use sterna_vmm::{GuestDefinition, Source};

use super::Case;
use super::measure::{BOOT_LIMIT, millis};
use super::monitor::connect;
use super::scenario::Scenario;
use super::usage::as_float;

const QEMU: &str = "/usr/bin/qemu-system-x86_64";

/// A link, as holding back sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Link {
    /// Pages that it carries in a sampling period.
    rate: PageCount,
    /// Pages that may be held back at most.
    limit: PageCount,
}

/// What was seen of a guest.
struct Seen {
    /// Pages that existed at the beginning.
    existing: PageSet,
    /// Pages written in each sampling period.
    samples: Vec<PageSet>,
    /// The longest time from one sample to the next.
    longest_period: Duration,
}

/// What a predictor reached.
#[derive(Clone, Copy, Debug, Serialize)]
struct Reached {
    /// Part of the saving that was possible, from 0 to 1, by the looks of a live move.
    share: f64,
    /// The same had it known what was written in each period alone.
    share_by_scan: f64,
    /// Pages more at the pause than without it, by the looks of a live move.
    more_at_pause: u64,
}

/// What a recording tells.
#[derive(Debug, Serialize)]
struct Told {
    /// Pages that the first round sends.
    existing: u64,
    /// Pages written in a sampling period, on average.
    written_in_period: f64,
    /// Pages that the link carries in one.
    carried_in_period: u64,
    /// Pages that may be held back.
    limit: u64,
    /// Rounds after the first.
    rounds: usize,
    /// Pages sent after the first round when nothing is held back, and those of them at the pause.
    sent: u64,
    at_pause: u64,
    /// Pages of them that the oracle saves.
    oracle_saves: u64,
    lru: Reached,
    aged: Reached,
}

/// A recording with its place in the whole.
#[derive(Debug, Serialize)]
struct Row<'a> {
    scenario: &'a str,
    link: &'a str,
    number: u32,
    longest_period_ms: f64,
    #[serde(flatten)]
    told: Told,
}

/// Records guests for `record_for` each, and leaves what their bitmaps tell in `folder`.
///
/// # Errors
/// If a guest could not be recorded; the others are all the same.
pub(crate) fn measure(
    cases: &[Case],
    runs: u32,
    record_for: Duration,
    folder: &Path,
    name: &str,
) -> Result<()> {
    fs::create_dir_all(folder)?;
    let file = |extension: &str| folder.join(format!("{name}.{extension}"));
    let (mut rows, mut broken) = (Vec::new(), 0);
    for number in 1..=runs {
        for Case { scenario, rate, link } in cases {
            println!("{number} {} over {link}", scenario.name);
            match record(scenario, record_for) {
                Ok(seen) => rows.push(Row {
                    scenario: &scenario.name,
                    link,
                    number,
                    longest_period_ms: millis(seen.longest_period),
                    told: Told::of(seen, Link::of(*rate)?),
                }),
                Err(error) => {
                    println!("  BROKEN: {error:#}");
                    broken += 1;
                }
            }
            fs::write(file("json"), serde_json::to_vec_pretty(&rows)?)?;
            fs::write(file("md"), table(&rows))?;
        }
    }
    println!("\n{}\n{} rows in {}", table(&rows), rows.len(), file("json").display());
    ensure!(broken == 0, "{broken} guests could not be recorded");
    Ok(())
}

/// A guest that is ended however its recording ends.
struct Ended(QemuGuest);

impl Drop for Ended {
    fn drop(&mut self) {
        // One that has ended already is as good.
        let _killed = self.0.kill();
    }
}

/// Boots a guest and records what it writes.
fn record(scenario: &Scenario, length: Duration) -> Result<Seen> {
    let folder = tempfile::tempdir()?;
    let guest = start(scenario, &folder.path().join("guest"))?;
    let console = ConsoleLog::new();
    console.attach(connect(&guest.0.console_path())?);
    console.wait_for(0, BOOT_LIMIT, |line| matches!(line, Line::Ready { .. }))?;
    console.wait_for_ticks(100, BOOT_LIMIT)?;
    let mut source = QemuSource::new(&guest.0)?;
    source.start_tracking()?;
    let seen = sample(&mut source, length)?;
    source.stop_tracking()?;
    let complaints = console.complaints();
    ensure!(complaints.is_empty(), "the guest complains: {complaints:?}");
    Ok(seen)
}

fn start(scenario: &Scenario, folder: &Path) -> Result<Ended> {
    let image = GuestImage::find()?;
    let definition: GuestDefinition = serde_json::from_value(json!({
        "name": "recorded",
        "memory_bytes": scenario.memory.0,
        "kernel": image.kernel,
        "initrd": image.initramfs,
        "append": scenario.workload.command_line()?,
        "console": "virtio",
        "accelerator": "tcg",
    }))?;
    let binary = QemuBinary::ask(Path::new(QEMU)).context("QEMU does not answer")?;
    Ok(Ended(QemuGuest::start(&binary, &definition, folder.to_path_buf(), StartMode::Run)?))
}

/// Looks at a guest whose tracking has just begun, once each sampling period.
fn sample(source: &mut dyn Source, length: Duration) -> Result<Seen> {
    let begin = Instant::now();
    let existing = source.populated()?;
    let mut seen = Seen { existing, samples: Vec::new(), longest_period: Duration::ZERO };
    let (mut last, mut due) = (begin, begin + SAMPLING_PERIOD);
    while due <= begin + length {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        let mut written = PageSet::empty(seen.existing.capacity());
        source.scan(&mut written)?;
        seen.samples.push(written);
        let now = Instant::now();
        seen.longest_period = seen.longest_period.max(now - last);
        (last, due) = (now, due + SAMPLING_PERIOD);
    }
    Ok(seen)
}

impl Link {
    /// # Errors
    /// If nothing limits the link.
    fn of(rate: LinkRate) -> Result<Self> {
        let LinkRate::BitsPerSecond(bits) = rate else {
            anyhow::bail!("rounds over a link without a rate take no time: it needs a rate");
        };
        let bytes_per_second = as_float(bits) / 8.0;
        let copying = Limits::default().downtime_max.saturating_sub(FIXED_DOWNTIME);
        let in_period = bytes_per_second * SAMPLING_PERIOD.as_secs_f64();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it saturates")]
        let rate = PageCount((in_period / as_float(PAGE_SIZE_BYTES)) as u64);
        Ok(Self { rate, limit: allowance_at(bytes_per_second, copying) })
    }
}

impl Told {
    fn of(seen: Seen, link: Link) -> Self {
        let written: u64 = seen.samples.iter().map(|sample| sample.count().0).sum();
        let written_in_period = as_float(written) / seen.samples.len().max(1) as f64;
        let recording = Recording::over_link(&seen.existing, seen.samples, link.rate);
        let (none, best) = (recording.without(), recording.best(link.limit));
        let reached = |way: HoldBack| {
            let with = |look| {
                let predictor = way.start(seen.existing.capacity());
                predictor.map_or(none, |mut one| recording.with(one.as_mut(), look, link.limit))
            };
            let (peek, scan) = (with(Look::Peek), with(Look::Scan));
            Reached {
                share: peek.share(&none, &best),
                share_by_scan: scan.share(&none, &best),
                more_at_pause: peek.at_pause.0.saturating_sub(none.at_pause.0),
            }
        };
        Self {
            existing: seen.existing.count().0,
            written_in_period,
            carried_in_period: link.rate.0,
            limit: link.limit.0,
            rounds: recording.rounds(),
            sent: none.pages.0,
            at_pause: none.at_pause.0,
            oracle_saves: none.pages.0 - best.pages.0,
            lru: reached(HoldBack::Lru),
            aged: reached(HoldBack::Aged),
        }
    }
}

fn table(rows: &[Row<'_>]) -> String {
    let mut text = String::from(
        "| guest, link | written in 200 ms | rounds | sent | oracle saves | lru reaches (by scan) \
         | aged reaches (by scan) | at the pause | more, lru, aged |\n\
         |---|---|---|---|---|---|---|---|---|\n",
    );
    for Row { scenario, link, told, .. } in rows {
        let Told { written_in_period, rounds, sent, oracle_saves, at_pause, lru, aged, .. } = told;
        let share = |one: &Reached| match oracle_saves {
            0 => "–".into(),
            _ => format!("{:.0} % ({:.0} %)", one.share * 100.0, one.share_by_scan * 100.0),
        };
        let _ = writeln!(
            text,
            "| {scenario}, {link} | {written_in_period:.0} | {rounds} | {sent} | {oracle_saves} \
             | {} | {} | {at_pause} | {}, {} |",
            share(lru),
            share(aged),
            lru.more_at_pause,
            aged.more_at_pause,
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use sterna_page::PageNumber;

    const PAGES: PageCount = PageCount(100);

    fn set(pages: impl IntoIterator<Item = u64>) -> PageSet {
        let mut set = PageSet::empty(PAGES);
        pages.into_iter().for_each(|page| set.insert(PageNumber(page)));
        set
    }

    #[test]
    fn a_link_carries_what_its_rate_says_and_half_the_accepted_downtime_may_be_held_back() {
        // 4096 bytes in a tenth of a millisecond; 300 ms are accepted, of which 15 are fixed.
        let link = Link::of(LinkRate::BitsPerSecond(8 * 40_960_000)).unwrap();
        assert_eq!(link.rate, PageCount(2000));
        assert!((1424..=1425).contains(&link.limit.0), "{link:?}");
        assert!(Link::of(LinkRate::Unshaped).is_err());
    }

    #[test]
    fn a_page_that_is_written_all_the_time_is_held_back_from_each_round_but_the_first() {
        // 40 existing pages in two periods, then rounds of one period each.
        let samples = (0..10).map(|period| set([7, 50 + period])).collect();
        let seen = Seen { existing: set(0..40), samples, longest_period: Duration::ZERO };
        let told = Told::of(seen, Link { rate: PageCount(20), limit: PageCount(2) });
        assert_eq!((told.existing, told.rounds, told.at_pause), (40, 8, 2));
        // Of the first two periods three pages, then two in each round, the last of them at the pause.
        assert_eq!((told.sent, told.oracle_saves), (3 + 2 * 8, 8));
        for reached in [told.lru, told.aged] {
            // The other page that is allowed is held in vain.
            assert!((reached.share - 1.0).abs() < 1e-9, "{reached:?}");
            assert!(reached.more_at_pause <= 1, "{reached:?}");
        }
    }

    #[test]
    fn where_nothing_could_be_saved_the_table_tells_no_share() {
        let samples = (0..10).map(|period| set([50 + period])).collect();
        let seen = Seen { existing: set(0..40), samples, longest_period: Duration::ZERO };
        let told = Told::of(seen, Link { rate: PageCount(20), limit: PageCount(1) });
        let row = Row { scenario: "busy", link: "l", number: 1, longest_period_ms: 200.0, told };
        let table = table(&[row]);
        let last = table.lines().last().unwrap();
        assert_eq!(last.matches('|').count(), table.lines().next().unwrap().matches('|').count());
        assert!(last.contains("| – | – |"), "{last}");
    }
}
