//! The recorder's lines from all consoles of one guest, with the host's time of arrival.

use std::io::{BufRead, BufReader, Read};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use sterna_guest::line::Line;

use super::{Heard, KnownMove, NotOneLife, Sample, TickLog, Told, examine, tell};

/// Everything that a guest has said so far, wherever it ran. Clones share one log.
#[derive(Debug, Clone, Default)]
pub struct ConsoleLog {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    record: Mutex<Record>,
    grown: Condvar,
}

#[derive(Debug, Default)]
struct Record {
    consoles: usize,
    /// In the order of arrival; the order on one console is that in which it was said.
    heard: Vec<Heard>,
    /// How many of these are ticks.
    ticks: usize,
    /// Which of these are none.
    lines: Vec<usize>,
}

impl Record {
    fn lines(&self) -> impl Iterator<Item = &Line> {
        self.lines.iter().map(|&index| &self.heard[index].line)
    }
}

impl ConsoleLog {
    /// Returns an empty log.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads a console until it ends, in a thread of its own. A guest that moves has two: the
    /// source's and the destination's.
    pub fn attach(&self, console: impl Read + Send + 'static) {
        let log = self.clone();
        let mut record = self.record();
        let number = record.consoles;
        record.consoles += 1;
        drop(record);
        thread::spawn(move || log.read(number, console));
    }

    fn read(&self, console: usize, input: impl Read) {
        let mut reader = BufReader::new(input);
        let mut bytes = Vec::new();
        // A line is bytes, not text: what a guest writes may be anything.
        while reader.read_until(b'\n', &mut bytes).is_ok_and(|size| size > 0) {
            let at = Instant::now();
            let text = String::from_utf8_lossy(&bytes);
            let line = match read_line(&text) {
                // The source's last line may end in the middle of a number.
                Line::Tick(_) if !text.ends_with('\n') => Line::Other(text.into_owned()),
                line => line,
            };
            self.add(Heard { at, console, line });
            bytes.clear();
        }
    }

    fn add(&self, heard: Heard) {
        let mut record = self.record();
        match heard.line {
            Line::Tick(_) => record.ticks += 1,
            _ => {
                let index = record.heard.len();
                record.lines.push(index);
            }
        }
        record.heard.push(heard);
        drop(record);
        self.shared.grown.notify_all();
    }

    /// Returns all lines but the ticks, in the order of arrival.
    #[must_use]
    pub fn lines(&self) -> Vec<Line> {
        self.record().lines().cloned().collect()
    }

    /// Returns the lines that tell of wrong memory, a wrong disk or the recorder's own failure.
    #[must_use]
    pub fn complaints(&self) -> Vec<Line> {
        let complaint = |line: &Line| match line {
            Line::Wrong(_) | Line::Error(_) => true,
            Line::Checked { wrong, .. } | Line::Given { wrong, .. } => *wrong > 0,
            Line::Disk { wrong, .. } => *wrong > 0,
            Line::Ready { .. } | Line::Taken { .. } | Line::Tick(_) | Line::Other(_) => false,
        };
        self.lines().into_iter().filter(complaint).collect()
    }

    /// Returns the ticks so far.
    #[must_use]
    pub fn ticks(&self) -> TickLog {
        let sample = |heard: &Heard| match heard.line {
            Line::Tick(tick) => Some(Sample { at: heard.at, tick }),
            _ => None,
        };
        TickLog::new(self.record().heard.iter().filter_map(sample).collect())
    }

    /// Whether the guest, which was moved so, lived one life so far, in one place at a time.
    ///
    /// # Errors
    /// If it ran in two places or began anew.
    pub fn lived_once(&self, moves: &[KnownMove]) -> Result<(), NotOneLife> {
        // Copied, so that whoever is still heard is not held up.
        let heard = self.record().heard.clone();
        examine(&heard, moves)
    }

    /// What was heard so far of the guest, which was moved so, for people.
    #[must_use]
    pub fn told(&self, moves: &[KnownMove]) -> Told {
        let heard = self.record().heard.clone();
        tell(&heard, moves)
    }

    /// Waits for a line that is no tick, counted from the `skip`-th on, and returns it. Use the
    /// length of [`Self::lines`] before a command to wait for its answer.
    ///
    /// # Errors
    /// If it has not come within the time limit; with the lines that did.
    pub fn wait_for(
        &self,
        skip: usize,
        limit: Duration,
        wanted: impl Fn(&Line) -> bool,
    ) -> Result<Line> {
        let found = |record: &Record| record.lines().skip(skip).find(|line| wanted(line)).cloned();
        let waited = self
            .shared
            .grown
            .wait_timeout_while(self.record(), limit, |record| found(record).is_none());
        let (record, _) = waited.unwrap_or_else(PoisonError::into_inner);
        match found(&record) {
            Some(line) => Ok(line),
            None => {
                let lines: Vec<&Line> = record.lines().collect();
                bail!("the guest did not say it within {limit:?}, but: {lines:?}")
            }
        }
    }

    /// Waits until at least so many ticks have arrived.
    ///
    /// # Errors
    /// If they have not within the time limit.
    pub fn wait_for_ticks(&self, count: usize, limit: Duration) -> Result<()> {
        let waited = self
            .shared
            .grown
            .wait_timeout_while(self.record(), limit, |record| record.ticks < count);
        let (record, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        if timeout.timed_out() {
            bail!("{} of {count} ticks came within {limit:?}", record.ticks);
        }
        Ok(())
    }

    /// A reader that panicked has added whole lines or none, so its record is good.
    fn record(&self) -> MutexGuard<'_, Record> {
        self.shared.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads a line. A guest that is reset leaves a line without its end, and what is said next stands
/// behind that: its beginning anew must not be missed.
fn read_line(text: &str) -> Line {
    match (Line::read(text), text.rfind("READY ")) {
        (Line::Other(_), Some(at)) => match Line::read(&text[at..]) {
            ready @ Line::Ready { .. } => ready,
            _ => Line::read(text),
        },
        (line, _) => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(20);

    #[test]
    fn lines_of_two_consoles_come_into_one_log() {
        let log = ConsoleLog::new();
        log.attach(&b"READY fill=1M ws=0\nt 1 10 0\nt 2 20 0\n"[..]);
        log.wait_for_ticks(2, SOON).unwrap();
        log.attach(&b"t 3 30 0\nCHECKED pages=256 wrong=0\n"[..]);
        log.wait_for_ticks(3, SOON).unwrap();
        log.wait_for(0, SOON, |line| matches!(line, Line::Checked { .. })).unwrap();
        let numbers: Vec<u64> =
            log.ticks().samples().iter().map(|sample| sample.tick.number).collect();
        assert_eq!(numbers, [1, 2, 3]);
        assert_eq!(log.complaints(), []);
    }

    #[test]
    fn bytes_that_are_no_text_do_no_harm() {
        let log = ConsoleLog::new();
        log.attach(&b"\xff\xfe\x00\nt 1 2\n\nWRONG page=1\n"[..]);
        log.wait_for(0, SOON, |line| matches!(line, Line::Wrong(_))).unwrap();
        assert_eq!(log.complaints(), [Line::Wrong("page=1".to_owned())]);
        assert_eq!(log.ticks().samples(), []);
    }

    #[test]
    fn a_tick_that_was_cut_off_in_the_middle_of_a_number_is_no_tick() {
        let log = ConsoleLog::new();
        log.attach(&b"t 1 100 10\nt 2 200 2"[..]);
        log.wait_for(0, SOON, |line| *line == Line::Other("t 2 200 2".to_owned())).unwrap();
        assert_eq!(log.ticks().samples().len(), 1);
    }

    #[test]
    fn waiting_for_the_second_answer_does_not_take_the_first() {
        let log = ConsoleLog::new();
        log.attach(&b"CHECKED pages=1 wrong=0\n"[..]);
        let checked = |line: &Line| matches!(line, Line::Checked { .. });
        log.wait_for(0, SOON, checked).unwrap();
        let error = log.wait_for(1, Duration::ZERO, checked).unwrap_err();
        assert!(error.to_string().contains("Checked"), "{error}");
    }

    #[test]
    fn a_guest_that_begins_anew_in_the_middle_of_a_line_is_heard() {
        let log = ConsoleLog::new();
        log.attach(&b"READY fill=1M ws=0\nt 1 10 0\nt 2 2READY fill=1M ws=0\n"[..]);
        log.wait_for(1, SOON, |line| matches!(line, Line::Ready { .. })).unwrap();
    }
}
