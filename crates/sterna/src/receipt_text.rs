//! The receipt of a move as text for people.

use crate::units::{rate, size, time};
use std::fmt::{self, Write as _};
use std::time::{Duration, UNIX_EPOCH};
use sterna_core::balloon::Ballooning;
use sterna_core::prediction::{Band, Forecast};
use sterna_core::receipt::{
    CodedPages, Downtime, Ending, Following, RamCheck, Receipt, Round, Tracking, WireBytes,
};
use sterna_core::speed::VcpuSpeed;

/// Writes a receipt: what became of the guest first, then the figures.
pub(crate) fn render(receipt: &Receipt) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write(&mut text, receipt);
    text
}

/// What it took to know which pages were written.
fn tracked(tracking: Tracking) -> String {
    let Tracking { scans, took, by, stopped, longest_stop } = tracking;
    let mut text = format!("{scans} scans of its pages, {} in all", time(took));
    if let Some(by) = by {
        text.push_str(&format!(", by {}", by.name()));
    }
    if !stopped.is_zero() {
        let (all, longest) = (time(stopped), time(longest_stop));
        text.push_str(&format!("; they stopped the guest for {all}, {longest} at once at most"));
    }
    text
}

fn write(text: &mut String, receipt: &Receipt) -> fmt::Result {
    ending(text, receipt)?;
    let started = UNIX_EPOCH.checked_add(Duration::from_millis(receipt.started_unix_ms));
    let started = started.unwrap_or(UNIX_EPOCH);
    writeln!(text)?;
    field(text, "attempt", &receipt.attempt)?;
    field(text, "started", &humantime::format_rfc3339_seconds(started))?;
    field(text, "RAM", &size(receipt.ram_bytes))?;
    field(text, "algorithm", &algorithm(receipt))?;
    for choice in &receipt.choices {
        let chosen = format!("{}: {} ({})", time(choice.after), choice.method, choice.reason);
        field(text, "chosen after", &chosen)?;
    }
    if let Some(stopped) = receipt.stopped {
        field(text, "paused when", &stopped.as_str())?;
    }
    let mut total = time(receipt.total);
    if !receipt.negotiation.is_zero() {
        write!(total, ", {} of it negotiation", time(receipt.negotiation))?;
    }
    field(text, "total", &total)?;
    if let Some(forecast) = receipt.foreseen().filter(|_| receipt.ending == Ending::Moved) {
        field(text, "foreseen", &foreseen(forecast, receipt))?;
    }
    field(text, "sent", &sent(&receipt.wire))?;
    for (name, coder) in receipt.coders.each() {
        if coder.pages.0 > 0 {
            field(text, "coded", &coded(name, coder))?;
        }
    }
    if receipt.tracking.scans > 0 {
        field(text, "tracked", &tracked(receipt.tracking))?;
    }
    field(text, "RAM check", &check(receipt.ram_digest))?;
    if let Some(ballooning) = &receipt.ballooning {
        field(text, "given back", &given_back(ballooning))?;
    }
    if let Some(following) = &receipt.following {
        field(text, "followed", &followed(following))?;
    }
    if let Some(slowed) = slowed(receipt) {
        field(text, "slowed down", &slowed)?;
    }
    if let Some(downtime) = &receipt.downtime {
        parts(text, downtime, receipt.downtime_allowed())?;
    }
    rounds(text, &receipt.rounds)
}

/// The algorithm, and over how many connections it sent pages.
fn algorithm(receipt: &Receipt) -> String {
    let streams = |count: u16| format!("{count} {}", if count == 1 { "stream" } else { "streams" });
    match receipt.native_mode {
        None => format!("{}, {}", receipt.algorithm, streams(receipt.streams)),
        Some(mode) => match mode.page_channels(receipt.streams) {
            0 => format!("{}, {}", receipt.algorithm, mode.as_str()),
            channels => {
                format!("{}, {}, {}", receipt.algorithm, mode.as_str(), streams(channels))
            }
        },
    }
}

/// What a coder did.
fn coded(name: &str, CodedPages { pages, bytes, took }: CodedPages) -> String {
    let (from, to) = (size(pages.bytes()), size(bytes));
    format!("{} pages by {name}: {from} in {to}, in {}", pages.0, time(took))
}

fn field(text: &mut String, name: &str, value: &dyn fmt::Display) -> fmt::Result {
    writeln!(text, "  {name:<12} {value}")
}

/// What became of the guest, and what to do if it does not run.
fn ending(text: &mut String, receipt: &Receipt) -> fmt::Result {
    let Receipt { guest, source, destination, .. } = receipt;
    match &receipt.ending {
        Ending::Moved => {
            let downtime = receipt.downtime.map_or(Duration::ZERO, |downtime| downtime.total);
            let (total, downtime) = (time(receipt.total), time(downtime));
            writeln!(text, "moved: {guest} runs at {destination}; {total}, downtime {downtime}")
        }
        Ending::Undone { reasons } => {
            writeln!(text, "not moved: {guest} runs on at {source}")?;
            reasons.iter().try_for_each(|reason| writeln!(text, "  because {reason}"))
        }
        Ending::GuestGone { reason } => {
            writeln!(text, "not moved: {guest} ended at {source} on the way")?;
            writeln!(text, "  because {reason}")
        }
        Ending::Stuck { cause, reason } => {
            writeln!(text, "not moved: {guest} STAYS PAUSED at {source}")?;
            writeln!(text, "  moved back because {cause}")?;
            writeln!(text, "  paused because {reason}")?;
            writeln!(text, "  next: sterna vm run {guest}")
        }
        Ending::Lost { reason } => {
            writeln!(text, "LOST: {destination} took {guest} over and lost it")?;
            writeln!(text, "  because {reason}")?;
            writeln!(text, "  its state of before the move stays paused at {source}")?;
            writeln!(text, "  next: make sure that {guest} runs nowhere else, then")?;
            writeln!(text, "        sterna vm run {guest} --runs-nowhere-else")
        }
    }
}

fn sent(wire: &WireBytes) -> String {
    let mut text =
        format!("{} of pages and state, {} with TLS", size(wire.payload), size(wire.sockets));
    if let Some(interface) = wire.interface {
        let _ = write!(text, ", {} by the interface's counter", size(interface));
    }
    text
}

/// What was foreseen, beside what happened.
fn foreseen(forecast: &Forecast, receipt: &Receipt) -> String {
    let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    let shown = |band: &Band, happened: u64| {
        let [low, expected, high] =
            [band.low, band.expected, band.high].map(|us| time(Duration::from_micros(us)));
        let off =
            band.error(happened).map_or(String::new(), |off| format!(", {:+.0} %", off * 100.0));
        format!("{expected} ({low} to {high}){off}")
    };
    let total = receipt.total.saturating_sub(receipt.compared_for());
    let total = shown(&forecast.total_us, micros(total));
    let downtime = shown(&forecast.downtime_us, micros(receipt.downtime_uncompared()));
    format!("{total}; downtime {downtime}")
}

/// What followed the guest, and what it waited for.
fn followed(following: &Following) -> String {
    let (bytes, took) = (size(following.bytes), time(following.took));
    let waits = &following.waits;
    let mut text = format!("{bytes} in {took} after the guest; ");
    if waits.pages == 0 {
        text += "it waited for none of it";
    } else {
        let micros = |micros| time(Duration::from_micros(micros));
        let (median, p99) = (micros(waits.median_us), micros(waits.p99_us));
        let longest = micros(waits.longest_us);
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "it waited for {} pages: {median} (median), {p99} (99 of 100), {longest} at most",
            waits.pages
        );
    }
    text
}

/// What the guest gave back for the move.
fn given_back(ballooning: &Ballooning) -> String {
    let Ballooning { asked_bytes, given_bytes, freed_bytes, took, end } = ballooning;
    let why = end.as_str();
    if *asked_bytes == 0 {
        return format!("nothing in {}; {why}", time(*took));
    }
    let (given, asked, freed) = (size(*given_bytes), size(*asked_bytes), size(*freed_bytes));
    format!("{given} of {asked} in {}, {freed} less to send; {why}", time(*took))
}

/// How slow the guest was made, and what that cost it.
fn slowed(receipt: &Receipt) -> Option<String> {
    let slowest = receipt.rounds.iter().map(|round| round.vcpus).min()?;
    let held_back = receipt.rounds.iter().map(|round| round.held_back).sum();
    if slowest == VcpuSpeed::FULL {
        return None;
    }
    Some(match receipt.native_mode {
        Some(_) => format!("to {slowest} of its speed, by its hypervisor, which does not say more"),
        None => format!("to {slowest} of its speed; vCPUs held back for {}", time(held_back)),
    })
}

fn check(check: RamCheck) -> &'static str {
    match check {
        RamCheck::Equal => "equal on both hosts, all of it hashed",
        RamCheck::Different => "DIFFERENT on the two hosts",
        RamCheck::NotChecked => "not made (--verify makes it)",
    }
}

fn parts(text: &mut String, downtime: &Downtime, limit: Duration) -> fmt::Result {
    let micros = Duration::from_micros;
    let there = &downtime.destination;
    writeln!(text, "\ndowntime {} of {} allowed", time(downtime.total), time(limit))?;
    let state = format!("save the device state, {}", size(downtime.state_bytes));
    let listed = [
        (downtime.pause, "pause: drain block I/O"),
        (downtime.copy, "scan and copy the rest"),
        (downtime.save, state.as_str()),
        (downtime.digest, "hash all RAM"),
        (downtime.ready, "wait until the destination is ready"),
        (micros(there.load_us), "  there: load the device state"),
        (micros(there.digest_us), "  there: hash all RAM"),
        (downtime.commit, "commit until it runs"),
        (micros(there.record_us), "  there: record who owns the guest"),
        (micros(there.activate_us), "  there: start the vCPUs"),
    ];
    for (took, what) in listed.iter().filter(|(took, _)| !took.is_zero()) {
        writeln!(text, "  {:>9}  {what}", time(*took))?;
    }
    if !downtime.pause_lead.is_zero() {
        let lead = time(downtime.pause_lead);
        writeln!(text, "  before it, the guest ran on for {lead} after it was told to pause")?;
    }
    Ok(())
}

fn rounds(text: &mut String, rounds: &[Round]) -> fmt::Result {
    if rounds.is_empty() {
        return Ok(());
    }
    let head = "round      took      sent        rate       raw      zero    absent unchanged \
                postponed   dirtied";
    writeln!(text, "\n{head}")?;
    for round in rounds {
        let pages = &round.pages;
        let slowed = round.vcpus < VcpuSpeed::FULL;
        let slowed = if slowed { format!("  vCPUs at {}", round.vcpus) } else { String::new() };
        let notes = [
            (pages.coded, "coded"),
            (pages.changed, "in part"),
            (pages.same, "same as others"),
            (pages.known, "known there"),
            (pages.on_disk, "on disk there"),
            (round.lacking, "lacking there"),
            (pages.withheld, "held back"),
            (pages.unsent, "left for later"),
        ];
        let notes: String = notes
            .iter()
            .filter(|(count, _)| count.0 > 0)
            .map(|(count, words)| format!("  {} {words}", count.0))
            .collect();
        writeln!(
            text,
            "{:>5} {:>9} {:>9} {:>11} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}{notes}{slowed}",
            round.number,
            time(round.took),
            size(round.bytes),
            speed(round),
            pages.raw.0,
            pages.zero.0,
            pages.absent.0,
            pages.unchanged.0,
            pages.postponed.0,
            round.dirtied.0,
        )?;
    }
    writeln!(text, "pages of 4 KiB; the last round is the one after the pause")
}

fn speed(round: &Round) -> String {
    let micros = round.took.as_micros().max(1);
    let bytes_per_second = u128::from(round.bytes) * 1_000_000 / micros;
    rate(u64::try_from(bytes_per_second).unwrap_or(u64::MAX))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use sterna_core::algorithm::AlgorithmName;
    use sterna_core::balloon::BalloonEnd;
    use sterna_core::limits::Limits;
    use sterna_core::receipt::{Coded, PagesByCoding, StopReason, TrackedBy};
    use sterna_page::PageCount;
    use sterna_proto::message::{ActivationTimes, AttemptId, Epoch, GuestId, Reason, ReasonCode};
    use uuid::Uuid;

    pub(crate) fn receipt() -> Receipt {
        let times =
            ActivationTimes { load_us: 3900, digest_us: 0, record_us: 900, activate_us: 400 };
        let pages = PagesByCoding { raw: PageCount(100_000), ..PagesByCoding::default() };
        let round = Round {
            number: 0,
            took: Duration::from_secs(4),
            pages,
            bytes: 409_600_000,
            dirtied: PageCount(12),
            ..Round::default()
        };
        Receipt {
            guest: "web-1".into(),
            attempt: AttemptId { guest: GuestId(Uuid::from_u128(7)), epoch: Epoch(3) },
            source: "a".into(),
            destination: "b:7401".into(),
            ending: Ending::Moved,
            algorithm: AlgorithmName::PreCopy,
            choices: Vec::new(),
            native_mode: None,
            stopped: Some(StopReason::GoalReached),
            limits: Limits::default(),
            streams: 2,
            vcpus: 2,
            ram_bytes: 512 << 20,
            started_unix_ms: 1_763_679_662_000,
            total: Duration::from_millis(5312),
            negotiation: Duration::from_millis(120),
            downtime: Some(Downtime {
                total: Duration::from_micros(18_440),
                copy: Duration::from_millis(3),
                ready: Duration::from_millis(5),
                commit: Duration::from_millis(2),
                destination: times,
                state_bytes: 300 << 10,
                ..Downtime::default()
            }),
            rounds: vec![round],
            ballooning: None,
            coders: Coded::default(),
            tracking: Tracking {
                scans: 3,
                took: Duration::from_micros(1500),
                by: Some(TrackedBy::SoftDirty),
                stopped: Duration::from_micros(900),
                longest_stop: Duration::from_micros(500),
            },
            following: None,
            wire: WireBytes { payload: 410 << 20, sockets: 411 << 20, interface: None },
            ram_digest: RamCheck::Equal,
        }
    }

    #[test]
    fn a_moved_guest_is_told_in_one_line_and_then_in_figures() {
        let expected = "\
moved: web-1 runs at b:7401; 5.31 s, downtime 18.4 ms

  attempt      00000000-0000-0000-0000-000000000007/3
  started      2025-11-20T23:01:02Z
  RAM          512.0 MiB
  algorithm    pre-copy, 2 streams
  paused when  what was left fitted the downtime goal
  total        5.31 s, 120 ms of it negotiation
  sent         410.0 MiB of pages and state, 411.0 MiB with TLS
  tracked      3 scans of its pages, 1.50 ms in all, by soft-dirty; they stopped the guest for 0.90 ms, 0.50 ms at once at most
  RAM check    equal on both hosts, all of it hashed

downtime 18.4 ms of 300 ms allowed
    3.00 ms  scan and copy the rest
    5.00 ms  wait until the destination is ready
    3.90 ms    there: load the device state
    2.00 ms  commit until it runs
    0.90 ms    there: record who owns the guest
    0.40 ms    there: start the vCPUs

round      took      sent        rate       raw      zero    absent unchanged postponed   dirtied
    0    4.00 s 390.6 MiB  102.4 MB/s    100000         0         0         0         0        12
pages of 4 KiB; the last round is the one after the pause
";
        let text = render(&receipt());
        assert_eq!(text, expected, "\n{text}");
    }

    #[test]
    fn what_coders_did_is_told() {
        let mut coded = receipt();
        assert!(!render(&coded).contains("coded"));
        coded.coders.zstd_fast = CodedPages {
            pages: PageCount(25_600),
            bytes: 20 << 20,
            took: Duration::from_millis(250),
        };
        coded.rounds[0].pages.coded = PageCount(25_600);
        let text = render(&coded);
        let line = "  coded        25600 pages by zstd-fast: 100.0 MiB in 20.0 MiB, in 250 ms\n";
        assert!(text.contains(line), "{text}");
        assert!(text.contains("  25600 coded\n"), "{text}");
    }

    #[test]
    fn a_guest_that_was_slowed_down_is_told_with_what_it_cost() {
        let mut slowed = receipt();
        assert!(!render(&slowed).contains("slowed"));
        let round = Round {
            vcpus: VcpuSpeed::percent(35),
            held_back: Duration::from_millis(650),
            ..Round::default()
        };
        slowed.rounds.push(round);
        let text = render(&slowed);
        assert!(
            text.contains("slowed down  to 35 % of its speed; vCPUs held back for 650 ms\n"),
            "{text}"
        );
        assert!(text.contains("0  vCPUs at 35 %\n"), "{text}");
    }

    #[test]
    fn memory_that_was_given_back_is_told_with_why_it_was_not_more() {
        let mut asked = receipt();
        assert!(!render(&asked).contains("given back"));
        let mut ballooning = Ballooning {
            asked_bytes: 300 << 20,
            given_bytes: 180 << 20,
            freed_bytes: 120 << 20,
            took: Duration::from_millis(2400),
            end: BalloonEnd::Stalled,
        };
        asked.ballooning = Some(ballooning);
        let text = render(&asked);
        let line = "given back   180.0 MiB of 300.0 MiB in 2.40 s, 120.0 MiB less to send; the \
                    guest gave back no more\n";
        assert!(text.contains(line), "{text}");
        (ballooning.asked_bytes, ballooning.end) = (0, BalloonEnd::Silent);
        asked.ballooning = Some(ballooning);
        let text = render(&asked);
        assert!(text.contains("given back   nothing in 2.40 s; the guest did not tell"), "{text}");
    }

    #[test]
    fn pages_that_a_round_held_back_are_told_with_it() {
        let mut held = receipt();
        assert!(!render(&held).contains("held back"));
        held.rounds[0].pages.withheld = PageCount(512);
        let text = render(&held);
        assert!(text.contains("12  512 held back\n"), "{text}");
    }

    #[test]
    fn an_undone_move_says_where_the_guest_runs_and_every_reason() {
        let reasons = vec![
            Reason::new(ReasonCode::NoRoom, "the guest needs 2 GiB, 1 GiB is free"),
            Reason::new(ReasonCode::Missing, "the disk /x is not there"),
        ];
        let undone = Receipt {
            ending: Ending::Undone { reasons },
            stopped: None,
            downtime: None,
            rounds: vec![],
            ..receipt()
        };
        let text = render(&undone);
        assert!(text.starts_with("not moved: web-1 runs on at a\n"), "{text}");
        assert!(text.contains("because the guest needs 2 GiB, 1 GiB is free\n"), "{text}");
        assert!(text.contains("because the disk /x is not there\n"), "{text}");
        assert!(!text.contains("downtime"), "{text}");
    }

    #[test]
    fn a_lost_guest_comes_with_what_to_do_next() {
        let reason = Reason::new(ReasonCode::Hypervisor, "its hypervisor ended");
        let text = render(&Receipt { ending: Ending::Lost { reason }, ..receipt() });
        assert!(text.contains("sterna vm run web-1 --runs-nowhere-else\n"), "{text}");
    }
}
