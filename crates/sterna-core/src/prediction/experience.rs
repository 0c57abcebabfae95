//! What moves take apart from copying, learnt from the receipts of those before.

use crate::algorithm::AlgorithmName;
use crate::limits::FIXED_DOWNTIME;
use crate::receipt::{Downtime, Ending, Receipt};
use serde::{Deserialize, Serialize};
use std::time::Duration;
use sterna_page::PageCount;

/// Moves that are learnt from: the newest. Hosts and networks change.
const RECEIPTS_MAX: usize = 15;

/// Bytes of a round from which on its time tells the link's rate.
const RATE_SAMPLE_BYTES_MIN: u64 = 16 << 20;

/// What moves take apart from copying.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Experience {
    /// Moves that this was learnt from; zero where it is assumed.
    pub moves: u32,
    /// Request until the first page: the destination starts a hypervisor meanwhile.
    #[serde(with = "crate::time::Micros", rename = "setup_us")]
    pub setup: Duration,
    /// The downtime apart from copying.
    #[serde(with = "crate::time::Micros", rename = "fixed_downtime_us")]
    pub fixed_downtime: Duration,
    /// The downtime apart from copying where pages follow.
    #[serde(with = "crate::time::Micros", rename = "hand_over_us")]
    pub hand_over: Duration,
    /// From when the guest runs at the destination, with all its pages, until the source is released.
    #[serde(with = "crate::time::Micros", rename = "release_us")]
    pub release: Duration,
    /// How long threads of the guest wait for pages that follow, for each second in which they follow.
    pub waits_per_second: f64,
}

impl Default for Experience {
    /// What is assumed before the first move: measured between two quiet hosts of the test bed.
    fn default() -> Self {
        Self {
            moves: 0,
            setup: Duration::from_millis(400),
            fixed_downtime: FIXED_DOWNTIME * 2,
            hand_over: FIXED_DOWNTIME * 4,
            release: Duration::from_millis(50),
            waits_per_second: 0.5,
        }
    }
}

impl Experience {
    /// Learns from receipts, the newest first. Those of moves that did not go well are passed over, and
    /// those of moves whose pages the hypervisor copied: its rounds tell nothing of ours. What none of
    /// them tells is assumed.
    pub fn of<'a>(receipts: impl IntoIterator<Item = &'a Receipt>) -> Self {
        let tells = |receipt: &&Receipt| {
            receipt.ending == Ending::Moved && receipt.algorithm != AlgorithmName::Native
        };
        let moved = receipts.into_iter().filter(tells);
        let told: Vec<Told> = moved.filter_map(Told::by).take(RECEIPTS_MAX).collect();
        let assumed = Self::default();
        let time = |of: fn(&Told) -> Option<Duration>| median(told.iter().filter_map(of));
        Self {
            moves: u32::try_from(told.len()).unwrap_or(u32::MAX),
            setup: time(|told| Some(told.setup)).unwrap_or(assumed.setup),
            fixed_downtime: time(|told| told.fixed_downtime).unwrap_or(assumed.fixed_downtime),
            hand_over: time(|told| told.hand_over).unwrap_or(assumed.hand_over),
            release: time(|told| Some(told.release)).unwrap_or(assumed.release),
            waits_per_second: median(told.iter().filter_map(|told| told.waits))
                .unwrap_or(assumed.waits_per_second),
        }
    }
}

/// What one receipt tells.
#[derive(Clone, Copy, Debug)]
struct Told {
    setup: Duration,
    fixed_downtime: Option<Duration>,
    hand_over: Option<Duration>,
    release: Duration,
    waits: Option<f64>,
}

impl Told {
    fn by(receipt: &Receipt) -> Option<Self> {
        let Downtime { total: downtime, pause, copy, .. } = receipt.downtime?;
        let (first, rest) = (receipt.rounds.first()?, receipt.rounds.last()?);
        let owes = rest.pages.owed > PageCount::ZERO;
        let followed = receipt.following.map_or(Duration::ZERO, |following| following.took);
        let stopped = rest.started.saturating_sub(pause);
        let complete = stopped + downtime + followed;
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let rate = |bytes: u64, took: Duration| {
            let tells = bytes >= RATE_SAMPLE_BYTES_MIN && !took.is_zero();
            tells.then(|| bytes as f64 / took.as_secs_f64())
        };
        let rounds = receipt.rounds.iter().map(|round| rate(round.bytes, round.took));
        let behind = receipt.following.map(|following| rate(following.bytes, following.took));
        let fastest = rounds.chain(behind).flatten().max_by(f64::total_cmp);
        let copying = fastest.map_or(copy, |rate| {
            #[expect(clippy::cast_precision_loss, reason = "an estimate")]
            let seconds = rest.bytes as f64 / rate;
            Duration::try_from_secs_f64(seconds).unwrap_or(copy)
        });
        let fixed = receipt.downtime_uncompared().saturating_sub(copying);
        let waits = receipt.following.filter(|following| following.took > Duration::ZERO);
        let asked_for_memory = receipt.ballooning.map_or(Duration::ZERO, |balloon| balloon.took);
        Some(Self {
            setup: first.started.saturating_sub(asked_for_memory),
            fixed_downtime: (!owes).then_some(fixed),
            hand_over: owes.then_some(fixed),
            release: receipt.total.saturating_sub(complete),
            waits: waits.map(|following| {
                Duration::from_micros(following.waits.total_us).as_secs_f64()
                    / following.took.as_secs_f64()
            }),
        })
    }
}

/// The median; of an even number the lower one.
fn median<T: PartialOrd + Copy>(values: impl Iterator<Item = T>) -> Option<T> {
    let mut values: Vec<T> = values.collect();
    values.sort_by(|a, b| a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal));
    values.get(values.len().checked_sub(1)? / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::Limits;
    use crate::receipt::{Coded, Following, PagesByCoding, RamCheck, Round, Tracking, WireBytes};
    use sterna_proto::message::{AttemptId, Epoch, GuestId, PageWaits};

    const fn ms(time: u64) -> Duration {
        Duration::from_millis(time)
    }

    /// A move of 100 MB at 100 MB/s after 300 ms, with 1 MB at the pause, which is 10 ms, and `fixed`
    /// besides; released 40 ms later.
    fn moved(fixed: Duration) -> Receipt {
        let round = |number, started, took, bytes| Round {
            number,
            started,
            took,
            bytes,
            ..Round::default()
        };
        let pause = ms(2);
        let stopped = ms(1310);
        let total = fixed + ms(10);
        Receipt {
            guest: "web".into(),
            attempt: AttemptId { guest: GuestId(uuid::Uuid::nil()), epoch: Epoch(1) },
            source: "a".into(),
            destination: "b".into(),
            ending: Ending::Moved,
            algorithm: AlgorithmName::PreCopy,
            choices: Vec::new(),
            native_mode: None,
            stopped: None,
            limits: Limits::default(),
            streams: 1,
            vcpus: 1,
            ram_bytes: 1 << 30,
            started_unix_ms: 0,
            total: stopped + total + ms(40),
            negotiation: ms(200),
            downtime: Some(Downtime { total, pause, copy: ms(15), ..Downtime::default() }),
            rounds: vec![
                round(0, ms(300), ms(1000), 100_000_000),
                round(1, stopped + pause, ms(12), 1_000_000),
            ],
            following: None,
            ballooning: None,
            coders: Coded::default(),
            tracking: Tracking::default(),
            wire: WireBytes::default(),
            ram_digest: RamCheck::NotChecked,
        }
    }

    #[test]
    fn what_moves_take_apart_from_copying_is_told_by_their_receipts() {
        let receipts = [moved(ms(20)), moved(ms(90)), moved(ms(30))];
        let learnt = Experience::of(&receipts);
        assert_eq!((learnt.moves, learnt.setup, learnt.release), (3, ms(300), ms(40)));
        assert_eq!(learnt.fixed_downtime, ms(30));
        // Nothing followed.
        assert_eq!(learnt.hand_over, Experience::default().hand_over);
    }

    #[test]
    fn a_guest_that_waited_tells_how_long_guests_wait() {
        let mut receipt = moved(ms(70));
        receipt.rounds[1].pages =
            PagesByCoding { owed: PageCount(5000), ..PagesByCoding::default() };
        let waits = PageWaits { total_us: 600_000, ..PageWaits::default() };
        receipt.following = Some(Following { took: ms(2000), waits, ..Following::default() });
        receipt.total += ms(2000);
        let learnt = Experience::of([&receipt]);
        assert!((learnt.waits_per_second - 0.3).abs() < 1e-9, "{learnt:?}");
        assert_eq!((learnt.hand_over, learnt.release), (ms(70), ms(40)));
        assert_eq!(learnt.fixed_downtime, Experience::default().fixed_downtime);
    }

    #[test]
    fn moves_that_failed_and_moves_of_the_hypervisor_teach_nothing() {
        let undone = Receipt { ending: Ending::Undone { reasons: vec![] }, ..moved(ms(500)) };
        let native = Receipt { algorithm: AlgorithmName::Native, ..moved(ms(500)) };
        assert_eq!(Experience::of([&undone, &native]), Experience::default());
    }
}
