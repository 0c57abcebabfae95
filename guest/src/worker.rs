//! The one thread that owns the memory: rewrites what is due, checks what is due, over and over.
//!
//! It takes turns in small batches, so that neither a high rate of writes stops the checks nor a
//! whole pass of checks stops the writes. A turn is well below a millisecond even on an emulated
//! processor, so the pages of one slot are rewritten in that slot or not at all.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Receiver;
use std::thread;
use std::time::{Duration, Instant};

use crate::command::Command;
use crate::console::Console;
use crate::line::Line;
use crate::memory::Memory;
use crate::picker::Picker;
use crate::quantity::PageNumber;
use crate::schedule::{Grid, RateSchedule};
use crate::settings::{CheckRate, Settings};
use crate::ticker::Counters;

/// Pages per turn: some 100 µs on an emulated processor.
const BATCH: u64 = 8;
/// So many wrong pages are told one by one; a console full of them would stop the guest.
const WRONG_LINES_MAX: u32 = 64;

/// The worker with everything it owns.
#[derive(Debug)]
pub struct Worker {
    memory: Memory,
    picker: Picker,
    working_set: u32,
    grid: Grid,
    writes: RateSchedule,
    checks: Option<RateSchedule>,
    cursor: u32,
    pass: Option<Pass>,
    wrong_lines: u32,
    console: Arc<Console>,
    counters: Arc<Counters>,
}

/// A pass over all memory that was asked for and is under way.
#[derive(Debug)]
struct Pass {
    pages_left: u32,
    wrong: u32,
}

impl Worker {
    /// Takes the memory over.
    #[must_use]
    pub fn new(
        settings: &Settings,
        memory: Memory,
        console: Arc<Console>,
        counters: Arc<Counters>,
    ) -> Self {
        Self {
            working_set: settings.working_set.pages().min(memory.len()),
            memory,
            picker: Picker::new(settings.order, settings.locality, settings.seed),
            grid: settings.tick,
            writes: RateSchedule::new(settings.rate, settings.tick),
            checks: match settings.check {
                CheckRate::Unlimited => None,
                CheckRate::Limited(rate) => Some(RateSchedule::new(rate, settings.tick)),
            },
            cursor: 0,
            pass: None,
            wrong_lines: 0,
            console,
            counters,
        }
    }

    /// Works forever; commands are taken between turns.
    pub fn run(mut self, commands: &Receiver<Command>, start: Instant) {
        loop {
            while let Ok(command) = commands.try_recv() {
                self.obey(command);
            }
            let now = start.elapsed();
            if self.turn(now) == 0 {
                thread::sleep(self.grid.until_next_slot(now));
            }
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Rate(rate) => self.writes = RateSchedule::new(rate, self.grid),
            Command::WorkingSet(size) => self.working_set = size.pages().min(self.memory.len()),
            // Asked again, as by someone who thinks the command got lost, it does not begin anew: that
            // could go on for ever.
            Command::Check => {
                self.pass.get_or_insert(Pass { pages_left: self.memory.len(), wrong: 0 });
            }
            Command::Ticks(lines) => self.counters.set_tick_lines(lines),
            // The taker's.
            Command::Take(_) | Command::Give => {}
        }
    }

    /// Rewrites and checks one batch each, and returns how many pages that were.
    fn turn(&mut self, now: Duration) -> u64 {
        self.write_due(now) + self.check_due(now)
    }

    fn write_due(&mut self, now: Duration) -> u64 {
        let batch = self.writes.due(now).min(BATCH);
        for _ in 0..batch {
            let Some(page) = self.picker.pick(self.working_set) else { return 0 };
            self.memory.rewrite(page);
        }
        self.writes.done(batch);
        add(&self.counters.written, batch);
        batch
    }

    fn check_due(&mut self, now: Duration) -> u64 {
        let limited = match &mut self.checks {
            Some(schedule) if self.pass.is_none() => schedule.due(now),
            _ => BATCH,
        };
        let batch = limited.min(BATCH);
        for _ in 0..batch {
            self.check_next();
        }
        if let Some(schedule) = &mut self.checks {
            schedule.done(batch);
        }
        add(&self.counters.checked, batch);
        batch
    }

    fn check_next(&mut self) {
        let page = PageNumber(self.cursor);
        self.cursor = (self.cursor + 1) % self.memory.len();
        let outcome = self.memory.check(page);
        if let Err(wrong) = outcome
            && self.wrong_lines < WRONG_LINES_MAX
        {
            self.wrong_lines += 1;
            self.console.line(wrong);
        }
        let Some(pass) = &mut self.pass else { return };
        pass.wrong += u32::from(outcome.is_err());
        pass.pages_left -= 1;
        if pass.pages_left == 0 {
            let (pages, wrong) = (self.memory.len(), pass.wrong);
            self.console.line(Line::Checked { pages, wrong });
            self.pass = None;
        }
    }
}

/// Adds to a counter that only this thread writes.
fn add(counter: &AtomicU64, pages: u64) {
    counter.fetch_add(pages, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::content::Content;
    use crate::quantity::{Bytes, Rate};

    struct Bench {
        worker: Worker,
        counters: Arc<Counters>,
        console: std::path::PathBuf,
    }

    fn bench(name: &str, words: &str) -> Bench {
        let console = std::env::temp_dir().join(format!("recorder-{name}-{}", std::process::id()));
        fs::write(&console, "").unwrap();
        let settings =
            Settings::parse(&format!("sterna.fill=256K sterna.ws=128K {words}")).unwrap();
        let memory = Memory::fill(Content::new(&settings), settings.fill.pages()).unwrap();
        let counters = Arc::new(Counters::default());
        let device = Arc::new(Console::open(&console).unwrap());
        let worker = Worker::new(&settings, memory, device, Arc::clone(&counters));
        Bench { worker, counters, console }
    }

    impl Bench {
        fn lines(self) -> String {
            let text = fs::read_to_string(&self.console).unwrap();
            fs::remove_file(&self.console).unwrap();
            text
        }

        fn written(&self) -> u64 {
            self.counters.written.load(Ordering::Relaxed)
        }
    }

    fn at(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[test]
    fn a_commanded_pass_checks_every_page_once_and_says_so() {
        let mut bench = bench("pass", "");
        bench.worker.obey(Command::Check);
        for _ in 0..8 {
            bench.worker.turn(at(0));
        }
        assert_eq!(bench.lines(), "CHECKED pages=64 wrong=0\n");
    }

    #[test]
    fn a_wrong_page_is_told_at_once_and_counted_by_the_pass() {
        let mut bench = bench("wrong", "");
        let settings = Settings::parse("sterna.seed=2").unwrap();
        bench.worker.memory = Memory::fill(Content::new(&settings), 64).unwrap();
        bench.worker.memory.check(PageNumber(3)).unwrap();
        bench.worker.memory.spoil(PageNumber(3));
        bench.worker.turn(at(0));
        bench.worker.obey(Command::Check);
        for _ in 0..8 {
            bench.worker.turn(at(0));
        }
        let lines = bench.lines();
        assert!(lines.starts_with("WRONG page=3 "), "{lines}");
        assert!(lines.ends_with("CHECKED pages=64 wrong=1\n"), "{lines}");
    }

    #[test]
    fn memory_stays_right_while_rates_and_working_sets_change() {
        let mut bench = bench("change", "sterna.rate=100M sterna.ws_content=random");
        for millisecond in 0..200 {
            match millisecond {
                50 => bench.worker.obey(Command::WorkingSet(Bytes::mebibytes(1))),
                100 => bench.worker.obey(Command::Rate(Rate::mebibytes_per_second(500))),
                150 => bench.worker.obey(Command::WorkingSet(Bytes(8192))),
                _ => {}
            }
            for _ in 0..4 {
                bench.worker.turn(at(millisecond));
            }
        }
        assert!(bench.written() > 1000);
        assert_eq!(bench.lines(), "");
    }

    #[test]
    fn a_guest_that_stood_still_does_not_catch_up_its_writes() {
        let mut bench = bench("still", "sterna.rate=4M");
        for _ in 0..10 {
            bench.worker.turn(at(1));
        }
        let before = bench.written();
        for _ in 0..10 {
            bench.worker.turn(at(10_000));
        }
        assert!(bench.written() - before <= 2);
        bench.lines();
    }

    #[test]
    fn limited_checks_leave_the_worker_nothing_to_do() {
        let mut bench = bench("limited", "sterna.check=4M");
        let pages: u64 = (0..1000).map(|millisecond| bench.worker.turn(at(millisecond))).sum();
        assert_eq!(pages, 1024);
        assert_eq!(bench.worker.turn(at(999)), 0);
        bench.lines();
    }
}
