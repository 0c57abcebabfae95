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
use sterna_core::balloon::{BalloonEnd, Ballooning, Memory};
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
        let spare = Memory {
            ram_bytes: guest.layout().pages().bytes(),
            existing_bytes: existed,
            total_bytes: memory.total_bytes,
            available_bytes: memory.available_bytes,
        }
        .spare_bytes();
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
