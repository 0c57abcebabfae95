//! Whether a guest lived one life, by all that was heard of it: or was in two places, or was reset.
//!
//! The recorder says `READY` once, when it begins to work. A guest that says it again has begun
//! anew:
//!
//! ```text
//! READY t1 t2 … t900                      one life, on one console or, moved, on several
//! READY t1 … t900 │ t850 t851 …           a life in two places: times that were lived twice
//! READY t1 … t900   READY t1 t2 …         a reset: two lives, each of them whole
//! ```
//!
//! A reset can be the fault of a move: a vCPU that was loaded wrongly, a page that arrived late. And
//! it can be the host's: a KVM that is itself emulated loses guests that nobody touched. What tells
//! one from the other is when the guest was heard last. [`NotOneLife::ResetByItself`] is said only
//! where all of this holds; everything else is [`NotOneLife::Reset`] with what speaks against it:
//!
//! 1. It is the only reset, and both lives are whole: no tick twice, none of the first after the
//!    second began.
//! 2. Between its last tick and `READY` the guest said nothing that it did not say when it first
//!    booted: no kernel's panic.
//! 3. If it had been moved: RAM was compared and equal, and it then ticked for [`AWAY`] of its own
//!    time where it had arrived.
//! 4. From its last tick to `READY` no move was under way, and both were heard on one console. Or
//!    one was that came to its switchover only [`AWAY`] after the last tick, and RAM was equal.
//!
//! What it does not show: that a move did no harm that resets a guest only after [`AWAY`].

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::{Duration, Instant};

use sterna_core::receipt::RamCheck;
use sterna_guest::line::{Line, Tick};
use thiserror::Error;

use super::KnownMove;
use super::reset::{Reset, Suspicion, events};

/// What a test says of a guest that was reset while no move can have done it; other words are used
/// for every other end of a guest.
pub const RESET_BY_ITSELF: &str = "the guest was reset by itself";

/// How long a guest must have run after a switchover, and be silent before one. A reader of a
/// console is dropped by the agent when it lags two seconds, so what was heard is not older.
pub const AWAY: Duration = Duration::from_secs(3);

/// A line, with when and where it was heard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heard {
    /// When the host read it.
    pub at: Instant,
    /// The number of the console, in the order in which they were attached.
    pub console: usize,
    /// What was said.
    pub line: Line,
}

/// A guest did not live one life, in one place at a time.
#[derive(Debug, Error)]
pub enum NotOneLife {
    /// Two consoles told of the same time.
    #[error("{ticks} ticks were seen twice: the guest ran in two places{told}")]
    SeenTwice {
        /// How many ticks are of such a time.
        ticks: usize,
        /// What was heard.
        told: Told,
    },
    /// A guest that had begun anew was still heard as the one it was before.
    #[error("{ticks} ticks came after the guest had begun anew: it ran in two places{told}")]
    RanOn {
        /// How many.
        ticks: usize,
        /// What was heard.
        told: Told,
    },
    /// It began anew, and no move can have done that.
    #[error("{RESET_BY_ITSELF}: {reset}{told}")]
    ResetByItself {
        /// The reset.
        reset: Reset,
        /// What was heard.
        told: Told,
    },
    /// It began anew.
    #[error("the guest was reset, and that may be a move's fault ({suspicion}): {reset}{told}")]
    Reset {
        /// The reset; of several, the first.
        reset: Reset,
        /// What speaks against the host.
        suspicion: Suspicion,
        /// What was heard.
        told: Told,
    },
}

/// What was heard, for people: one line for each stretch of a life on a console.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told(Vec<String>);

impl fmt::Display for Told {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|line| write!(formatter, "\n    {line}"))
    }
}

/// A tick, with when and where it was heard.
#[derive(Debug, Clone, Copy)]
struct HeardTick {
    at: Instant,
    console: usize,
    tick: Tick,
}

/// From one `READY` to the next, as far as it was heard.
#[derive(Debug, Default)]
struct Life {
    /// `READY`: where and when; nothing if nobody listened then.
    begun: Option<(Instant, usize)>,
    ticks: Vec<HeardTick>,
}

/// Looks at all that was heard of a guest, in the order of arrival, and at all moves of it.
///
/// # Errors
/// If it did not live one life, in one place at a time.
pub fn examine(heard: &[Heard], moves: &[KnownMove]) -> Result<(), NotOneLife> {
    let lives = lives(heard);
    let told = || told(&lives, moves);
    let ticks = lives.iter().map(Life::lived_twice).sum();
    if ticks > 0 {
        return Err(NotOneLife::SeenTwice { ticks, told: told() });
    }
    let ticks = lives.windows(2).map(|pair| pair[0].ticks_after(pair[1].begun)).sum();
    if ticks > 0 {
        return Err(NotOneLife::RanOn { ticks, told: told() });
    }
    let [old, new, ..] = &lives[..] else { return Ok(()) };
    let reset = Reset::between(old, new, moves);
    let resets = lives.len() - 1;
    let again = (resets > 1).then_some(Suspicion::Again(resets));
    match again.or_else(|| spoke(heard, old, new)).or_else(|| suspicion(old, new, moves)) {
        None => Err(NotOneLife::ResetByItself { reset, told: told() }),
        Some(suspicion) => Err(NotOneLife::Reset { reset, suspicion, told: told() }),
    }
}

/// What was heard of a guest, and its moves, for people.
#[must_use]
pub fn tell(heard: &[Heard], moves: &[KnownMove]) -> Told {
    told(&lives(heard), moves)
}

/// Sorts ticks into lives. On one console, which is one hypervisor's, the order of lines is that in
/// which they were said; of a console that was attached later the first line counts as said in the
/// newest life.
fn lives(heard: &[Heard]) -> Vec<Life> {
    let mut lives: Vec<Life> = Vec::new();
    let mut on_console = BTreeMap::new();
    for Heard { at, console, line } in heard {
        match line {
            Line::Ready { .. } => {
                on_console.insert(*console, lives.len());
                lives.push(Life { begun: Some((*at, *console)), ticks: Vec::new() });
            }
            Line::Tick(tick) => {
                if lives.is_empty() {
                    lives.push(Life::default());
                }
                let life = *on_console.entry(*console).or_insert(lives.len() - 1);
                lives[life].ticks.push(HeardTick { at: *at, console: *console, tick: *tick });
            }
            Line::Checked { .. }
            | Line::Taken { .. }
            | Line::Given { .. }
            | Line::Disk { .. }
            | Line::Wrong(_)
            | Line::Error(_)
            | Line::Other(_) => {}
        }
    }
    lives
}

impl Life {
    /// The first and the last tick on each console, by arrival.
    fn stretches(&self) -> BTreeMap<usize, (HeardTick, HeardTick)> {
        let mut stretches = BTreeMap::new();
        for tick in &self.ticks {
            stretches.entry(tick.console).or_insert((*tick, *tick)).1 = *tick;
        }
        stretches
    }

    /// How many ticks came more than once, or are of a time that another console tells of too.
    fn lived_twice(&self) -> usize {
        let stretches = self.stretches();
        let mut numbers = BTreeSet::new();
        let mut twice = |tick: &&HeardTick| {
            let number = tick.tick.number;
            let is_elsewhere = stretches.iter().any(|(console, (first, last))| {
                *console != tick.console && (first.tick.number..=last.tick.number).contains(&number)
            });
            !numbers.insert(number) || is_elsewhere
        };
        self.ticks.iter().filter(|tick| twice(tick)).count()
    }

    /// How many ticks were heard after the next life began.
    fn ticks_after(&self, next: Option<(Instant, usize)>) -> usize {
        let is_after = |tick: &&HeardTick| next.is_some_and(|(begun, _)| tick.at > begun);
        self.ticks.iter().filter(is_after).count()
    }

    fn last(&self) -> Option<HeardTick> {
        self.ticks.iter().max_by_key(|tick| tick.at).copied()
    }

    /// How much of its own time the guest told of on a console.
    fn time_on(&self, console: usize) -> Duration {
        let (first, last) = match self.stretches().get(&console) {
            Some((first, last)) => (first.tick.number, last.tick.number),
            None => (0, 0),
        };
        Duration::from_millis(last.saturating_sub(first))
    }
}

impl Reset {
    fn between(old: &Life, new: &Life, moves: &[KnownMove]) -> Self {
        let last = old.last();
        let silent_since = last.map(|tick| tick.at).or(old.begun.map(|(at, _)| at));
        let begun = new.begun.map(|(at, _)| at);
        let silent = begun.zip(silent_since).map_or(Duration::ZERO, |(to, from)| to - from);
        let before = |at: &Instant| silent_since.is_some_and(|since| *at <= since);
        let newest = events(moves).filter(|(at, _)| before(at)).max();
        let after = newest.zip(silent_since).map(|((at, event), since)| (event, since - at));
        Self { after, last_tick: last.map(|tick| tick.tick.number), silent }
    }
}

/// What the guest said while it changed lives, if it is not what every boot of it says.
fn spoke(heard: &[Heard], old: &Life, new: &Life) -> Option<Suspicion> {
    let others = |from: Option<Instant>, to: Option<(Instant, usize)>| {
        heard.iter().filter_map(move |heard| {
            let within =
                from.is_none_or(|from| heard.at > from) && to.is_some_and(|(to, _)| heard.at < to);
            match &heard.line {
                // What it says of itself, and answers that tell of nothing wrong.
                Line::Tick(_)
                | Line::Ready { .. }
                | Line::Checked { wrong: 0, .. }
                | Line::Disk { wrong: 0, .. } => None,
                line => within.then(|| without_time(&line.to_string()).to_owned()),
            }
        })
    };
    let boot: BTreeSet<String> = others(None, old.begun).collect();
    let silent_since = old.last().map(|tick| tick.at).or(old.begun.map(|(at, _)| at));
    let said: Vec<String> = others(silent_since, new.begun)
        .filter(|text| !boot.contains(text) && !is_cut_tick(text))
        .collect();
    (!said.is_empty()).then_some(Suspicion::Spoke(said))
}

/// A kernel's line without the time that stands before it.
fn without_time(text: &str) -> &str {
    let time = text.strip_prefix('[').and_then(|rest| rest.split_once("] "));
    match time {
        Some((time, rest)) if time.trim().parse::<f64>().is_ok() => rest,
        _ => text,
    }
}

/// Whether this is the beginning of a tick, which a reset cut off.
fn is_cut_tick(text: &str) -> bool {
    let digits = |rest: &str| rest.chars().all(|c| c.is_ascii_digit() || c == ' ');
    text.is_empty() || text.strip_prefix('t').is_some_and(digits)
}

/// Why a move may have done it.
fn suspicion(old: &Life, new: &Life, moves: &[KnownMove]) -> Option<Suspicion> {
    let (Some(last), Some((begun, place))) = (old.last(), new.begun) else {
        return Some(Suspicion::NeverRan);
    };
    let is_over = |known: &&KnownMove| known.ended.is_some_and(|ended| ended < last.at);
    if let Some(before) = moves.iter().rfind(is_over) {
        if before.ram != RamCheck::Equal {
            return Some(Suspicion::RamNotEqual);
        }
        let ran = old.time_on(last.console);
        if ran < AWAY {
            return Some(Suspicion::JustArrived(ran));
        }
    }
    let mut under_way = moves.iter().filter(|known| !is_over(known) && known.asked <= begun);
    match (under_way.next(), under_way.next()) {
        (None, _) => (place != last.console).then_some(Suspicion::Elsewhere),
        (Some(known), None) => match known.switchover {
            Some(switchover) if last.at + AWAY <= switchover.from => {
                (known.ram != RamCheck::Equal).then_some(Suspicion::RamNotEqual)
            }
            _ => Some(Suspicion::UnderWay),
        },
        (Some(_), Some(_)) => Some(Suspicion::UnderWay),
    }
}

/// All of it in the order in which it began, in seconds since the first.
fn told(lives: &[Life], moves: &[KnownMove]) -> Told {
    let mut lines: Vec<(Instant, String)> = Vec::new();
    for life in lives {
        if let Some((at, console)) = life.begun {
            lines.push((at, format!("READY on console {console}")));
        }
        for (console, (first, last)) in life.stretches() {
            let (from, to) = (first.tick.number, last.tick.number);
            let took = (last.at - first.at).as_secs_f64();
            lines.push((
                first.at,
                format!("ticks {from} to {to} on console {console}, {took:.3} s"),
            ));
        }
    }
    lines.extend(events(moves).map(|(at, event)| (at, event.to_string())));
    lines.sort();
    let start = lines.first().map(|(at, _)| *at);
    let since = |at: Instant| start.map_or(0.0, |start| (at - start).as_secs_f64());
    Told(lines.iter().map(|(at, text)| format!("{:9.3} s  {text}", since(*at))).collect())
}

#[cfg(test)]
mod tests;
