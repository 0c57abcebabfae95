//! Has the guest give back, before the first page is copied, what it can do without.
//!
//! ```text
//!   how is memory used? ─▶ how much can be spared ─▶ ask for it ─▶ look until it is there
//!     │ no answer              │ little                              │ no more comes, or too slowly
//!     ▼                        ▼                                     ▼
//!   the move goes on       the move goes on                     ask for no more than came
//! ```
//!
//! Nothing here fails a move but a hypervisor that fails. What was asked for is taken back by whoever
//! pauses or resumes the guest: see [`Source::ask_for`] and [`Source::resume`].

use crate::pages::GivingUp;
use std::time::{Duration, Instant};
use sterna_core::balloon::{BalloonEnd, Ballooning};
use sterna_vmm::{MemoryUse, Source, VmmError};

/// How often the guest is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// Within this time a guest with a driver says how it uses its memory: it is asked each second.
const ANSWER_LIMIT: Duration = Duration::from_secs(3);

/// A guest that gave nothing back for so long has nothing left, or no driver. One that finds no page
/// at once tries again after 0.2 s.
const STALL_LIMIT: Duration = Duration::from_secs(2);

/// For how long a guest may go on giving back. Together with the wait for I/O in flight (30 s) it is
/// within what preparing a move may take (60 s).
const INFLATION_LIMIT: Duration = Duration::from_secs(20);

/// What a guest keeps at least beyond what it uses: what a program of some size needs to start.
const RESERVE_BYTES_MIN: u64 = 64 << 20;

/// Less than this is sent sooner than it is given back.
const WORTHWHILE_BYTES: u64 = 16 << 20;

/// Guests are asked for whole MiB.
const UNIT_BYTES: u64 = 1 << 20;

/// Asks the guest for what it can spare, and waits until it has given it, gives no more, or the move
/// is given up.
///
/// # Errors
/// When the hypervisor fails.
pub(super) fn inflate(
    guest: &mut dyn Source,
    giving_up: &GivingUp,
) -> Result<Ballooning, VmmError> {
    let began = Instant::now();
    let mut ballooning = Ballooning {
        asked_bytes: 0,
        given_bytes: 0,
        freed_bytes: 0,
        took: Duration::ZERO,
        end: BalloonEnd::Silent,
    };
    if let Some(memory) = memory_use(guest, giving_up)? {
        let existed = guest.populated()?.count().bytes();
        let spare = spare(guest.layout().pages().bytes(), existed, memory);
        ballooning.asked_bytes = spare;
        ballooning.end = match spare {
            0 => BalloonEnd::NothingToSpare,
            spare => fill(guest, spare, giving_up)?,
        };
        ballooning.given_bytes = guest.in_balloon()?;
        ballooning.freed_bytes = existed.saturating_sub(guest.populated()?.count().bytes());
    } else if giving_up.is_set() {
        ballooning.end = BalloonEnd::GivenUp;
    }
    ballooning.took = began.elapsed();
    tracing::info!(?ballooning, "asked the guest for memory");
    Ok(ballooning)
}

/// How the guest uses its memory, if it says so in time.
fn memory_use(guest: &mut dyn Source, giving_up: &GivingUp) -> Result<Option<MemoryUse>, VmmError> {
    let deadline = Instant::now() + ANSWER_LIMIT;
    loop {
        let answer = guest.memory_use()?;
        if answer.is_some() || Instant::now() > deadline || giving_up.is_set() {
            return Ok(answer);
        }
        giving_up.sleep_until(Instant::now() + LOOK_INTERVAL);
    }
}

/// How many bytes of its RAM, of which `existed` exist, a guest can do without.
///
/// It keeps what it uses, and as a reserve a quarter of that: what programs use grows in proportion
/// to what they are. But no less than a tenth of RAM, as a guest that uses next to nothing may be
/// about to begin something, nor less than [`RESERVE_BYTES_MIN`]. A guest that gave back all else
/// already by itself (free pages in large pieces) is asked for nothing.
fn spare(ram_bytes: u64, existed: u64, memory: MemoryUse) -> u64 {
    let used = memory.total_bytes.saturating_sub(memory.available_bytes);
    let reserve = (used / 4).max(ram_bytes / 10).max(RESERVE_BYTES_MIN);
    let spare = memory.available_bytes.min(ram_bytes).saturating_sub(reserve);
    let kept = ram_bytes - spare;
    if existed < kept.saturating_add(WORTHWHILE_BYTES) {
        return 0;
    }
    spare - spare % UNIT_BYTES
}

/// Asks the guest for so many bytes, and for no more than came when no more comes.
fn fill(guest: &mut dyn Source, wanted: u64, giving_up: &GivingUp) -> Result<BalloonEnd, VmmError> {
    let began = Instant::now();
    guest.ask_for(wanted)?;
    let (mut most, mut grew) = (0, began);
    let end = loop {
        let given = guest.in_balloon()?;
        if given >= wanted {
            return Ok(BalloonEnd::Reached);
        }
        if given > most {
            (most, grew) = (given, Instant::now());
        }
        if giving_up.is_set() {
            break BalloonEnd::GivenUp;
        }
        if grew.elapsed() > STALL_LIMIT {
            break BalloonEnd::Stalled;
        }
        if began.elapsed() > INFLATION_LIMIT {
            break BalloonEnd::TimeLimit;
        }
        giving_up.sleep_until(Instant::now() + LOOK_INTERVAL);
    };
    let given = guest.in_balloon()?;
    guest.ask_for(given)?;
    Ok(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;

    fn spare_of(ram_bytes: u64, existed: u64, used: u64) -> u64 {
        // Some of RAM is never the kernel's to give away.
        let total_bytes = ram_bytes - 32 * MIB;
        spare(ram_bytes, existed, MemoryUse { total_bytes, available_bytes: total_bytes - used })
    }

    #[test]
    fn a_guest_keeps_what_it_uses_and_a_reserve() {
        // A quarter of what it uses.
        assert_eq!(spare_of(8 * GIB, 8 * GIB, 4 * GIB), 3 * GIB - 32 * MIB);
        // A tenth of RAM.
        assert_eq!(spare_of(10 * GIB, 10 * GIB, GIB), 8 * GIB - 32 * MIB);
        // What a program needs to start.
        assert_eq!(spare_of(512 * MIB, 512 * MIB, 100 * MIB), (512 - 32 - 100 - 64) * MIB);
    }

    #[test]
    fn a_guest_without_memory_to_spare_is_asked_for_nothing() {
        assert_eq!(spare_of(512 * MIB, 512 * MIB, 420 * MIB), 0);
        assert_eq!(spare_of(64 * MIB, 64 * MIB, 8 * MIB), 0);
        // It uses 1 GiB and keeps 1 GiB in reserve: what else there was it gave back by itself.
        assert_eq!(spare_of(10 * GIB, 2 * GIB, GIB), 0);
        assert!(spare_of(10 * GIB, 3 * GIB, GIB) > 0);
    }

    #[test]
    fn whatever_a_guest_says_it_keeps_its_reserve() {
        for told in [0, 1, MIB, GIB, 1 << 40, u64::MAX] {
            for available_bytes in [0, 1, MIB, GIB, 1 << 40, u64::MAX] {
                let memory = MemoryUse { total_bytes: told, available_bytes };
                let spare = spare(GIB, GIB, memory);
                assert!(spare <= GIB - GIB / 10, "{memory:?}: {spare}");
            }
        }
    }
}
