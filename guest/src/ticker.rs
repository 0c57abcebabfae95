//! The tick lines: one each slot, by default of a millisecond, with the worker's counters.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use crate::command::TickLines;
use crate::console::Console;
use crate::line::{Line, Tick};
use crate::schedule::Grid;

/// What the worker has done since the start; read by the ticker at any time.
#[derive(Debug, Default)]
pub struct Counters {
    /// Pages compared.
    pub checked: AtomicU64,
    /// Pages rewritten.
    pub written: AtomicU64,
    quiet: AtomicBool,
}

impl Counters {
    /// Says whether tick lines are to be written.
    pub fn set_tick_lines(&self, lines: TickLines) {
        self.quiet.store(lines == TickLines::Quiet, Ordering::Relaxed);
    }
}

/// Writes `t <tick> <pages checked> <pages written>` each slot, forever. The tick is the
/// number of milliseconds since the start of the guest's program: one that was missed is left
/// out, not written late.
pub fn run(console: &Console, counters: &Counters, grid: Grid, start: Instant) {
    loop {
        thread::sleep(grid.until_next_slot(start.elapsed()));
        if !counters.quiet.load(Ordering::Relaxed) {
            let number = grid.slot(start.elapsed());
            let checked = counters.checked.load(Ordering::Relaxed);
            let written = counters.written.load(Ordering::Relaxed);
            console.line(Line::Tick(Tick { number, checked, written }));
        }
    }
}
