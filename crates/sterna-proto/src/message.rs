//! What the two sides of a move tell each other.
//!
//! The order of a move that goes well:
//!
//! ```text
//!   source                                             destination
//!   Offer            ────────────────────────────────▶  starts an empty guest
//!                    ◀────────────────────────────────  Accept (or Refuse, with every reason)
//!   pages, Mark n    ════════ page connections ═══════▶
//!                    ◀────────────────────────────────  RoundReceived n
//!   (pauses)
//!   pages, Mark m    ════════ page connections ═══════▶
//!   DeviceState      ────────────────────────────────▶
//!   Switchover m     ────────────────────────────────▶  loads the device state
//!                    ◀────────────────────────────────  Ready
//!   Commit           ────────────────────────────────▶  records that it owns the guest; lets it run
//!                    ◀────────────────────────────────  Active
//!   Farewell         ────────────────────────────────▶
//! ```
//!
//! Before Commit either side may end the move by Abort or Never. After Commit the source asks
//! (Commit again, or Query by an agent that was restarted) until it knows.
//!
//! Where the hypervisors copy the guest among themselves, their connections stand in for pages, marks
//! and device state.
//!
//! Where pages follow the guest, the last marks tell which are owed, the destination says Owing as
//! soon as the guest runs, and Active when the last page is there.

use crate::limits::REASONS_MAX;
use crate::preamble::MoveToken;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;
use sterna_page::{RamDigest, RamLayout};
use uuid::Uuid;

/// Identity of a guest, the same on every host and for all its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(transparent)]
pub struct GuestId(pub Uuid);

impl fmt::Display for GuestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Counts the attempts to move a guest; an ownership record with a higher epoch is the newer one.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(transparent)]
pub struct Epoch(pub u64);

impl Epoch {
    /// The epoch of the next attempt.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

/// One attempt to move one guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct AttemptId {
    /// The guest.
    pub guest: GuestId,
    /// The attempt's epoch.
    pub epoch: Epoch,
}

impl fmt::Display for AttemptId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.guest, self.epoch.0)
    }
}

/// Identity of an agent's journal; changes when the journal is lost. An agent whose journal is
/// not the one that accepted a move cannot know how the move ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JournalId(pub Uuid);

/// Page codings by their names on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Coding {
    /// Pages that do not exist.
    Absent,
    /// Pages of zeroes.
    Zero,
    /// Pages as they are.
    Raw,
    /// Pages by the codes of `sterna_page::coding`, whichever of them the source chooses, several together
    /// wherever they lie. (`coded` was of pages that lie side by side.)
    #[serde(rename = "coded-apart")]
    Coded,
    /// Pages that have the content of others, as references to these.
    Same,
    /// Pages of which a few lines have changed, as these; only with `same`.
    Changed,
    /// Pages that the destination can get by itself, as hashes. Granted only where it has some.
    Known,
    /// Pages that blocks of the guest's disks hold, as their hashes and these blocks; only with `known`. Granted
    /// only where some of the disks can be read.
    OnDisk,
    /// Pages that follow the guest after it has been handed over.
    Owed,
    /// None: the hypervisors copy the guest among themselves.
    Native,
    /// One that a newer release has.
    #[serde(other)]
    Unknown,
}

/// Whether both sides hash all RAM before the guest resumes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Verify {
    /// No digest.
    #[default]
    No,
    /// Both hash; a difference undoes the move.
    RamDigest,
}

/// What becomes of the pages that the destination lacks when the guest is handed over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rest {
    /// They were sent before.
    #[default]
    Sent,
    /// They follow: whoever touches one of them there waits for it.
    Owed,
    /// The hypervisors have copied the guest among themselves: all its pages and the device state.
    Native,
}

/// By which of its own ways a hypervisor copies a guest to another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum NativeMode {
    /// Rounds of dirty pages.
    #[default]
    PreCopy,
    /// The same, and of pages that were sent before only what differs.
    Xbzrle,
    /// Rounds over several connections at once.
    Multifd,
    /// The same, compressed by zstd.
    MultifdZstd,
    /// One that a newer release has.
    #[serde(other)]
    Unknown,
}

impl NativeMode {
    /// The mode as it is written.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::PreCopy => "pre-copy",
            Self::Xbzrle => "xbzrle",
            Self::Multifd => "multifd",
            Self::MultifdZstd => "multifd-zstd",
            Self::Unknown => "unknown",
        }
    }

    /// Channels that carry pages besides the one that carries everything else, of `streams` that
    /// were agreed upon.
    #[must_use]
    pub fn page_channels(self, streams: u16) -> u16 {
        match self {
            Self::PreCopy | Self::Xbzrle | Self::Unknown => 0,
            Self::Multifd | Self::MultifdZstd => streams,
        }
    }
}

/// The processor of a host, as far as a guest may come to rely on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostCpu {
    /// Who made it, such as `AuthenticAMD`.
    pub vendor: String,
    /// Its name, for people.
    pub model: String,
    /// Features, by the kernel's names.
    pub flags: BTreeSet<String>,
}

/// What the source wants to move.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Offer {
    /// Name of the guest, for people.
    pub name: String,
    /// RAM blocks.
    pub layout: RamLayout,
    /// The hypervisor that runs it, such as `qemu`.
    pub hypervisor: String,
    /// How the hypervisor is to prepare it: the driver's own data.
    pub definition: serde_json::Value,
    /// What its operator wants of what each start of it chooses, as told to the driver; without it, what was
    /// chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wishes: Option<serde_json::Value>,
    /// Algorithm the source will use.
    pub algorithm: String,
    /// Codings the source can send.
    pub codings: Vec<Coding>,
    /// Page streams the source wants.
    pub streams: u16,
    /// Whether RAM digests are compared.
    pub verify: Verify,
    /// The source's processor, if the guest sees it as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_cpu: Option<HostCpu>,
    /// How the hypervisors shall copy the guest among themselves, if they shall.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub native: Option<NativeMode>,
}

/// What the destination grants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accept {
    /// The journal in which the destination will record how the move ended.
    pub journal: JournalId,
    /// Names the move on its page connections.
    pub token: MoveToken,
    /// Page streams it serves, at most as many as were wanted.
    pub streams: u16,
    /// Codings it can read, of those that were offered.
    pub codings: Vec<Coding>,
}

/// Why a side ended a move, or refused it: a stable code, and words for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Reason {
    /// Stable code.
    pub code: ReasonCode,
    /// Words for people.
    pub detail: String,
}

/// Stable codes of [`Reason`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum ReasonCode {
    /// An operator asked for it.
    Cancelled,
    /// A stage took longer than its limit.
    TimedOut,
    /// The connection was lost.
    LinkLost,
    /// The peer broke the protocol.
    Protocol,
    /// Not enough memory on the destination.
    NoRoom,
    /// A guest of that name or identity is already there.
    AlreadyHere,
    /// The destination has a newer record of this guest.
    StaleEpoch,
    /// The hypervisor, machine type, CPU or accelerator does not fit.
    Incompatible,
    /// Something the guest needs is missing there: a disk, a network.
    Missing,
    /// The hypervisor failed.
    Hypervisor,
    /// The agent failed, or was restarted.
    Agent,
    /// The RAM digests differ.
    DigestMismatch,
    /// The move would not end within the limits it was given.
    NotConverging,
    /// The peer may not do this.
    Forbidden,
    /// One that a newer release has.
    #[serde(other)]
    Other,
}

impl Reason {
    /// A reason from its code and words.
    pub fn new(code: ReasonCode, detail: impl Into<String>) -> Self {
        Self { code, detail: detail.into() }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)
    }
}

/// How long the destination's part of the switchover took, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ActivationTimes {
    /// Loading the device state.
    pub load_us: u64,
    /// Hashing all RAM.
    pub digest_us: u64,
    /// Recording ownership durably.
    pub record_us: u64,
    /// Letting the vCPUs run.
    pub activate_us: u64,
}

/// How pages arrived that followed the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Arrival {
    /// The digest of the RAM as it arrived, if both hash.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<RamDigest>,
    /// What the guest waited for.
    pub waits: PageWaits,
}

/// How long threads of a guest waited for pages: from the fault until the page was there, in
/// microseconds. Of pages that several threads waited for, the first one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PageWaits {
    /// Pages that somebody waited for.
    pub pages: u64,
    /// All waits together.
    pub total_us: u64,
    /// Half of the waits were at most this long.
    pub median_us: u64,
    /// 99 of 100 waits were at most this long.
    pub p99_us: u64,
    /// The longest wait.
    pub longest_us: u64,
}

/// A message to the destination.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "kebab-case")]
pub enum ToDestination {
    /// Asks to reserve a place for a guest.
    Offer(Box<Offer>),
    /// All pages have been sent; the last marks on the page connections carry `round`.
    Switchover {
        /// The round whose marks end the RAM, or tell which pages are owed.
        round: u32,
        /// What becomes of the rest of the RAM.
        #[serde(default)]
        rest: Rest,
    },
    /// The destination shall own the guest. Repeated until answered.
    Commit,
    /// The source ends the move and has not committed it.
    Abort {
        /// Why.
        reason: Reason,
    },
    /// The source does not know whether it has committed and asks how it stands. A destination
    /// that does not own the guest answers Never, and keeps to it.
    Query,
    /// The pages that are owed no longer exist: they were lost with the source's hypervisor and
    /// agent.
    PagesLost {
        /// What happened.
        reason: Reason,
    },
    /// The source has recorded that it no longer owns the guest.
    Farewell,
    /// Nothing; shows that the source is alive.
    KeepAlive,
}

/// A message to the source.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "kebab-case")]
pub enum ToSource {
    /// The place is reserved.
    Accept(Accept),
    /// The guest cannot come, for all of these reasons.
    Refuse {
        /// Every reason, at least one; of more than [`REASONS_MAX`] the first.
        #[serde(with = "first_reasons")]
        reasons: Vec<Reason>,
    },
    /// All streams have delivered round `round`.
    RoundReceived {
        /// The round.
        round: u32,
        /// Pages that it was to get by itself and could not, or that are like such pages; others among
        /// them if they are many: first page and count. They must be sent again.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        lacking: Vec<(u64, u64)>,
    },
    /// All has arrived and is loaded; the guest could run.
    Ready {
        /// The destination's RAM digest, if both hash.
        digest: Option<RamDigest>,
    },
    /// The destination owns the guest, and pages are still owed. In answer to every question until
    /// the last of them is here.
    Owing {
        /// What the switchover took there.
        times: ActivationTimes,
        /// Names the move on page connections that are made anew.
        token: MoveToken,
        /// Page streams it serves.
        streams: u16,
    },
    /// The destination owns the guest, it runs, and nothing is owed.
    Active {
        /// What the switchover took there.
        times: ActivationTimes,
        /// How the pages arrived that followed the guest, if any did.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        arrival: Option<Arrival>,
    },
    /// The destination does not own the guest and never will by this attempt.
    Never {
        /// Why.
        reason: Reason,
    },
    /// The destination owns the guest but lost it: it may have run.
    Lost {
        /// What happened.
        reason: Reason,
    },
    /// Nothing; shows that the destination is alive.
    KeepAlive,
}

/// Reasons on the wire: no more than [`REASONS_MAX`] are sent, or kept of what a peer sends. The
/// rest is passed over, as a refusal is one whatever its length.
pub(crate) mod first_reasons {
    use super::{REASONS_MAX, Reason};
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(crate) fn serialize<S: Serializer>(reasons: &[Reason], to: S) -> Result<S::Ok, S::Error> {
        reasons[..reasons.len().min(REASONS_MAX)].serialize(to)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Reason>, D::Error> {
        let mut reasons = Vec::deserialize(from)?;
        reasons.truncate(REASONS_MAX);
        Ok(reasons)
    }
}

/// A message and the attempt it belongs to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Envelope<M> {
    /// The attempt.
    pub attempt: AttemptId,
    /// The journal that accepted the attempt, in questions to a destination.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked_of: Option<JournalId>,
    /// The message.
    #[serde(flatten)]
    pub body: M,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{decode_message, encode_message};

    fn attempt() -> AttemptId {
        AttemptId { guest: GuestId(Uuid::from_u128(7)), epoch: Epoch(3) }
    }

    #[test]
    fn messages_survive_the_wire() {
        let reason = Reason::new(ReasonCode::NoRoom, "1 GiB wanted");
        for body in [
            ToSource::Refuse { reasons: vec![reason.clone()] },
            ToSource::Never { reason },
            ToSource::Ready { digest: None },
        ] {
            let envelope = Envelope { attempt: attempt(), asked_of: None, body };
            let bytes = encode_message(&envelope).unwrap();
            assert_eq!(decode_message::<Envelope<ToSource>>(&bytes).unwrap(), envelope);
        }
    }

    #[test]
    fn a_newer_peers_codes_and_fields_are_passed_over() {
        let text = r#"{"attempt":{"guest":"00000000-0000-0000-0000-000000000007","epoch":3},
            "later":1,"message":"never","reason":{"code":"solar-flare","detail":"x","k":2}}"#;
        let envelope: Envelope<ToSource> = decode_message(text.as_bytes()).unwrap();
        let ToSource::Never { reason } = envelope.body else { panic!("{envelope:?}") };
        assert_eq!(reason.code, ReasonCode::Other);
        assert_eq!(serde_json::from_str::<Coding>("\"zstd-9\"").unwrap(), Coding::Unknown);
        let mode = serde_json::from_str::<NativeMode>("\"mapped-ram\"").unwrap();
        assert_eq!(mode, NativeMode::Unknown);
    }

    #[test]
    fn no_more_reasons_are_sent_or_kept_than_the_limit() {
        let refuse = |count| {
            let reasons = vec![Reason::new(ReasonCode::Missing, "a disk"); count];
            Envelope { attempt: attempt(), asked_of: None, body: ToSource::Refuse { reasons } }
        };
        let sent = encode_message(&refuse(REASONS_MAX + 1)).unwrap();
        assert_eq!(sent, encode_message(&refuse(REASONS_MAX)).unwrap());
        let text = String::from_utf8(sent).unwrap();
        let more = text.replace("\"reasons\":[", r#""reasons":[{"code":"missing","detail":""},"#);
        let kept: Envelope<ToSource> = decode_message(more.as_bytes()).unwrap();
        let ToSource::Refuse { reasons } = kept.body else { panic!("{kept:?}") };
        assert_eq!(reasons.len(), REASONS_MAX);
    }

    #[test]
    fn an_unknown_message_is_an_error() {
        let text = r#"{"attempt":{"guest":"00000000-0000-0000-0000-000000000007","epoch":3},
            "message":"teleport"}"#;
        assert!(decode_message::<Envelope<ToSource>>(text.as_bytes()).is_err());
    }
}
