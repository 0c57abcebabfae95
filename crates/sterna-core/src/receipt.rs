//! The receipt of a move: what was done, why, what it took, and whether it was right.

mod tracking;

pub use tracking::{TrackedBy, Tracking};

use crate::algorithm::AlgorithmName;
use crate::balloon::Ballooning;
use crate::limits::Limits;
use crate::prediction::{Choice, Forecast};
use crate::speed::VcpuSpeed;
use serde::{Deserialize, Serialize};
use std::time::Duration;
use sterna_page::PageCount;
use sterna_page::coding::Coder;
use sterna_proto::message::{ActivationTimes, AttemptId, NativeMode, PageWaits, Reason};

/// Why an algorithm stopped making rounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum StopReason {
    /// What is left can be copied within the downtime goal.
    GoalReached,
    /// Rounds no longer make the residue smaller.
    NoProgress,
    /// The limit on rounds.
    RoundLimit,
    /// The limit on bytes.
    ByteLimit,
    /// The limit on time.
    TimeLimit,
    /// Another round would have sent more than it would have spared the guest to wait for.
    FollowingIsCheaper,
    /// The algorithm makes no rounds.
    ByDesign,
    /// The hypervisor, which copied by itself, found that what was left fitted the longest downtime.
    ByHypervisor,
}

impl StopReason {
    /// In words.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::GoalReached => "what was left fitted the downtime goal",
            Self::NoProgress => "rounds no longer made the residue smaller",
            Self::RoundLimit => "the limit on rounds was reached",
            Self::ByteLimit => "the limit on bytes was reached",
            Self::TimeLimit => "the limit on copying time was reached",
            Self::FollowingIsCheaper => {
                "the guest rewrote at least half of what the last round had sent"
            }
            Self::ByDesign => "the algorithm makes no rounds",
            Self::ByHypervisor => {
                "the hypervisor found that what was left fitted the downtime limit"
            }
        }
    }
}

/// Pages by the way they travelled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PagesByCoding {
    /// As they are.
    pub raw: PageCount,
    /// As zero pages.
    pub zero: PageCount,
    /// As pages that do not exist.
    pub absent: PageCount,
    /// Not at all: compared again and found unchanged.
    pub unchanged: PageCount,
    /// Not in this round: written again before their turn came, so a later round has them.
    #[serde(default)]
    pub postponed: PageCount,
    /// Not in this round: likely to be written again soon, so they were held back from it.
    #[serde(default)]
    pub withheld: PageCount,
    /// Not in this round: its time was over before their turn came.
    #[serde(default)]
    pub unsent: PageCount,
    /// Not before the guest runs at the destination: they follow it.
    #[serde(default)]
    pub owed: PageCount,
    /// As references to others with the same content.
    #[serde(default)]
    pub same: PageCount,
    /// As hashes: the destination got the content by itself.
    #[serde(default)]
    pub known: PageCount,
    /// As blocks of the guest's disks: the destination read them there.
    #[serde(default)]
    pub on_disk: PageCount,
    /// As what had changed of them.
    #[serde(default)]
    pub changed: PageCount,
    /// In fewer bytes than they have; see [`Receipt::coders`].
    #[serde(default)]
    pub coded: PageCount,
}

/// What each coder did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Coded {
    /// Words that are not zero.
    pub sparse: CodedPages,
    /// Words by a dictionary.
    pub words: CodedPages,
    /// LZ4.
    pub lz4: CodedPages,
    /// Zstandard, fast.
    pub zstd_fast: CodedPages,
    /// Zstandard, strong.
    pub zstd_strong: CodedPages,
}

impl Coded {
    /// Of one coder.
    pub fn by(&mut self, coder: Coder) -> &mut CodedPages {
        match coder {
            Coder::Sparse => &mut self.sparse,
            Coder::Words => &mut self.words,
            Coder::Lz4 => &mut self.lz4,
            Coder::ZstdFast => &mut self.zstd_fast,
            Coder::ZstdStrong => &mut self.zstd_strong,
        }
    }

    /// Each coder's by its name, in the order of [`Coder::ALL`].
    #[must_use]
    pub fn each(&self) -> [(&'static str, CodedPages); 5] {
        let Self { sparse, words, lz4, zstd_fast, zstd_strong } = *self;
        [
            ("sparse", sparse),
            ("words", words),
            ("lz4", lz4),
            ("zstd-fast", zstd_fast),
            ("zstd-strong", zstd_strong),
        ]
    }
}

/// What one coder did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct CodedPages {
    /// Pages.
    pub pages: PageCount,
    /// Bytes of code.
    pub bytes: u64,
    /// Time of the processor that coding took, all streams together.
    #[serde(with = "crate::time::Micros", rename = "took_us")]
    pub took: Duration,
}

impl std::ops::AddAssign for CodedPages {
    fn add_assign(&mut self, other: Self) {
        self.pages += other.pages;
        // A receipt may say anything.
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.took = self.took.saturating_add(other.took);
    }
}

impl PagesByCoding {
    /// Pages whose content went over the link, in whatever way.
    #[must_use]
    pub fn sent_with_content(&self) -> PageCount {
        self.raw + self.coded + self.changed
    }

    /// Pages whose content the destination got by itself.
    #[must_use]
    pub fn got_there(&self) -> PageCount {
        self.known + self.on_disk
    }
}

impl std::ops::AddAssign for PagesByCoding {
    fn add_assign(&mut self, other: Self) {
        self.raw += other.raw;
        self.zero += other.zero;
        self.absent += other.absent;
        self.unchanged += other.unchanged;
        self.postponed += other.postponed;
        self.withheld += other.withheld;
        self.unsent += other.unsent;
        self.owed += other.owed;
        self.same += other.same;
        self.known += other.known;
        self.on_disk += other.on_disk;
        self.changed += other.changed;
        self.coded += other.coded;
    }
}

/// One round of copying.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Round {
    /// Its number, from 0; the last is the one after the pause.
    pub number: u32,
    /// From the start of the move to the start of the round.
    #[serde(with = "crate::time::Micros", rename = "started_us")]
    pub started: Duration,
    /// Until the destination had received all of it.
    #[serde(with = "crate::time::Micros", rename = "took_us")]
    pub took: Duration,
    /// Pages by coding.
    pub pages: PagesByCoding,
    /// Bytes of page frames, before encryption.
    pub bytes: u64,
    /// Pages that the destination was to get by itself and could not, so that they are sent again; it may
    /// name some more beside them.
    #[serde(default)]
    pub lacking: PageCount,
    /// Pages that the guest wrote during the round, and those that were held back from it; without
    /// those whose turn did not come, and those that were lacking.
    pub dirtied: PageCount,
    /// The downtime that was accepted when the round began: the limit, as far as it was widened.
    #[serde(
        default,
        with = "crate::time::MicrosOption",
        rename = "downtime_limit_us",
        skip_serializing_if = "Option::is_none"
    )]
    pub downtime_limit: Option<Duration>,
    /// Speed of the vCPUs during the round; before the pause, in the last.
    #[serde(default, rename = "vcpu_percent")]
    pub vcpus: VcpuSpeed,
    /// For how long vCPUs were held back for the sake of the move while they had something to do,
    /// since the round before; all vCPUs together, counted by the kernel.
    #[serde(default, with = "crate::time::Micros", rename = "held_back_us")]
    pub held_back: Duration,
}

/// Pages that followed the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Following {
    /// The guest ran at the destination until its last page was there.
    #[serde(with = "crate::time::Micros", rename = "took_us")]
    pub took: Duration,
    /// Pages by coding.
    pub pages: PagesByCoding,
    /// Bytes of page frames, before encryption.
    pub bytes: u64,
    /// Pages that were asked for before their turn, because the guest waited for them.
    pub wanted: PageCount,
    /// What the guest waited for, as the destination saw it.
    pub waits: PageWaits,
}

/// The downtime and its parts, as the source saw them, in the order in which they happen. Parts
/// that run side by side (copying the rest, saving the device state) do not add up to the whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Downtime {
    /// vCPUs stopped until the destination said that it runs the guest.
    #[serde(with = "crate::time::Micros", rename = "total_us")]
    pub total: Duration,
    /// Request to pause until the vCPUs stood still; the guest still ran.
    #[serde(with = "crate::time::Micros", rename = "pause_lead_us")]
    pub pause_lead: Duration,
    /// vCPUs stopped until the hypervisor had drained I/O and said so.
    #[serde(with = "crate::time::Micros", rename = "pause_us")]
    pub pause: Duration,
    /// Final scan and copy of the rest.
    #[serde(with = "crate::time::Micros", rename = "copy_us")]
    pub copy: Duration,
    /// Saving the device state.
    #[serde(with = "crate::time::Micros", rename = "save_us")]
    pub save: Duration,
    /// Hashing all RAM on the source, at the same time as the destination gets ready.
    #[serde(with = "crate::time::Micros", rename = "digest_us")]
    pub digest: Duration,
    /// All sent until the destination was ready.
    #[serde(with = "crate::time::Micros", rename = "ready_us")]
    pub ready: Duration,
    /// Commit, which waits for both, until the destination said that it runs the guest.
    #[serde(with = "crate::time::Micros", rename = "commit_us")]
    pub commit: Duration,
    /// The destination's own times within the last two.
    pub destination: ActivationTimes,
    /// Bytes of device state.
    pub state_bytes: u64,
}

/// Whether the RAM was the same on both sides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum RamCheck {
    /// Both sides hashed all RAM between pause and resume, and agreed.
    #[serde(rename = "equal")]
    Equal,
    /// They differed; the move was undone.
    #[serde(rename = "different")]
    Different,
    /// Nobody asked for it, or the move did not come so far.
    #[default]
    #[serde(rename = "not checked")]
    NotChecked,
}

/// How a move ended, seen from the source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "result", rename_all = "kebab-case")]
pub enum Ending {
    /// The guest runs at the destination.
    Moved,
    /// The guest runs on at the source.
    Undone {
        /// Every reason; a refusal may have several.
        reasons: Vec<Reason>,
    },
    /// The guest ended at the source before it was committed.
    GuestGone {
        /// What is known.
        reason: Reason,
    },
    /// The guest stays paused at the source, because it could not be made to run again.
    Stuck {
        /// Why the move ended.
        cause: Reason,
        /// Why the guest does not run.
        reason: Reason,
    },
    /// The destination took the guest over and lost it; it may have run there. It stays paused at
    /// the source until an operator decides.
    Lost {
        /// What the destination said.
        reason: Reason,
    },
}

/// All about one move.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Receipt {
    /// Name of the guest.
    pub guest: String,
    /// The attempt.
    pub attempt: AttemptId,
    /// Name of the source.
    pub source: String,
    /// The destination as it was asked for.
    pub destination: String,
    /// How it ended.
    #[serde(flatten)]
    pub ending: Ending,
    /// The algorithm.
    pub algorithm: AlgorithmName,
    /// What was foreseen, and chosen where there was a choice; the newest last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub choices: Vec<Choice>,
    /// In which of its own ways the hypervisor copied, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub native_mode: Option<NativeMode>,
    /// Why it stopped making rounds, if it came so far.
    pub stopped: Option<StopReason>,
    /// The limits it was given.
    pub limits: Limits,
    /// Page streams.
    pub streams: u16,
    /// Bytes of the guest's RAM.
    pub ram_bytes: u64,
    /// Virtual processors of the guest; zero where it is not known.
    #[serde(default)]
    pub vcpus: u32,
    /// When it was asked for, in milliseconds since 1970.
    pub started_unix_ms: u64,
    /// Request until the source was released, or the guest ran on.
    #[serde(with = "crate::time::Micros", rename = "total_us")]
    pub total: Duration,
    /// Request until the destination had accepted.
    #[serde(with = "crate::time::Micros", rename = "negotiation_us")]
    pub negotiation: Duration,
    /// What came of asking the guest for memory, if it was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ballooning: Option<Ballooning>,
    /// What each coder did.
    #[serde(default)]
    pub coders: Coded,
    /// What it took to know which pages the guest writes.
    #[serde(default)]
    pub tracking: Tracking,
    /// The downtime, if the guest was paused.
    pub downtime: Option<Downtime>,
    /// Every round, the last after the pause.
    pub rounds: Vec<Round>,
    /// What followed the guest, if anything did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub following: Option<Following>,
    /// Bytes on the wire.
    pub wire: WireBytes,
    /// Whether RAM was the same.
    pub ram_digest: RamCheck,
}

impl Receipt {
    /// Pages of all rounds and of what followed the guest, by the way they travelled.
    #[must_use]
    pub fn pages(&self) -> PagesByCoding {
        let rounds = self.rounds.iter().map(|round| round.pages);
        let following = self.following.map(|following| following.pages);
        rounds.chain(following).fold(PagesByCoding::default(), |mut all, pages| {
            all += pages;
            all
        })
    }

    /// Pages that the guest has written anew during rounds, once for each round: so many faults has it had for being tracked,
    /// at most.
    #[must_use]
    pub fn dirtied(&self) -> PageCount {
        self.rounds.iter().fold(PageCount::ZERO, |all, round| all + round.dirtied)
    }

    /// The downtime that was accepted in the end: the limit, as far as it was widened.
    #[must_use]
    pub fn downtime_allowed(&self) -> Duration {
        let last = self.rounds.last().and_then(|round| round.downtime_limit);
        last.unwrap_or(self.limits.downtime_max)
    }

    /// What was foreseen of the move when that was first possible: of the method that was asked for or
    /// chosen then.
    #[must_use]
    pub fn foreseen(&self) -> Option<&Forecast> {
        self.choices.first().and_then(Choice::forecast)
    }

    /// For how long the guest stood still so that its RAM could be compared: nobody foresees that.
    #[must_use]
    pub fn compared_for(&self) -> Duration {
        let Some(downtime) = self.downtime.filter(|_| self.following.is_none()) else {
            return Duration::ZERO;
        };
        downtime.digest.max(Duration::from_micros(downtime.destination.digest_us))
    }

    /// The downtime but for [`Receipt::compared_for`].
    #[must_use]
    pub fn downtime_uncompared(&self) -> Duration {
        let downtime = self.downtime.map_or(Duration::ZERO, |downtime| downtime.total);
        downtime.saturating_sub(self.compared_for())
    }

    /// For how long vCPUs could not work because of the move, all together: while the guest was paused,
    /// slowed down, or waited for pages.
    #[must_use]
    pub fn lost_work(&self) -> Duration {
        let downtime = self.downtime.map_or(Duration::ZERO, |downtime| downtime.total);
        let held_back = self.rounds.iter().map(|round| round.held_back);
        let waits = self.following.map_or(0, |following| following.waits.total_us);
        let waits = Duration::from_micros(waits);
        let paused = downtime.saturating_mul(self.vcpus.max(1));
        held_back.chain([waits]).fold(paused, Duration::saturating_add)
    }
}

/// Bytes that the move sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct WireBytes {
    /// Page frames and device state, before encryption.
    pub payload: u64,
    /// What the sockets of the move sent, with TLS.
    pub sockets: u64,
    /// What the network interface counted meanwhile, all protocols and all users; `None` where the
    /// interface is not known.
    pub interface: Option<u64>,
}
