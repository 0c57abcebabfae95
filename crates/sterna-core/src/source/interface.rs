//! What the source's machine is told, what it wants done, and what it is set up with.

use crate::algorithm::{Algorithm, Tracking};
use crate::journal::SourceRecord;
use crate::limits::{Limits, StageLimits};
use crate::prediction::{Choice, Look, Surroundings};
use crate::receipt::{Ending, PagesByCoding};
use crate::speed::VcpuSpeed;
use std::time::Duration;
use sterna_page::{PageCount, RamDigest};
use sterna_proto::message::{Accept, Offer, Reason, Rest, ToDestination, ToSource, Verify};
use sterna_proto::preamble::MoveToken;

/// What happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The machine's [`deadline`](super::Source::deadline) has passed.
    Deadline,
    /// A message came.
    Message(ToSource),
    /// The control connection is gone, or could not be made.
    LinkDown(Reason),
    /// A new control connection stands, after [`Effect::Reconnect`].
    LinkUp,
    /// The operator wants the move to end.
    Cancel,
    /// The operator has found out what became of a guest in doubt, so that the destination need not be asked any more.
    GiveUp,
    /// The record that was asked for is durable.
    Recorded,
    /// The record that was asked for could not be written.
    RecordFailed(Reason),
    /// The page connections stand, and pages are tracked if that was asked for.
    Prepared,
    /// Pages get through.
    Progress,
    /// What the guest has written since the round began.
    Looked(Look),
    /// All pages of the round were handed to the streams, with their marks, or all for which there was
    /// time.
    RoundSent(Box<RoundSent>),
    /// Pages written since the last scan, and those that were left over before.
    Scanned(PageCount),
    /// The hypervisor, which copies by itself, has ended a round.
    RoundPassed(Box<HypervisorRound>),
    /// The guest is paused. Also without having been asked for, by a hypervisor that copies by itself.
    Paused,
    /// All pages that the destination lacks were handed to the streams, with their marks.
    RestSent(Box<RoundSent>),
    /// The device state was saved and sent.
    StateSent,
    /// The page connections over which owed pages follow stand again, after [`Effect::Serve`].
    Serving,
    /// They are gone, or could not be made.
    ServingFailed(Reason),
    /// The RAM digest was computed.
    Digest(RamDigest),
    /// The guest runs as before the move, and all else the move had is given back.
    Resumed,
    /// The guest could not be made to run.
    ResumeFailed(Reason),
    /// The guest was ended after it was released.
    Released,
    /// An effect before commitment failed.
    Failed(Reason),
    /// The guest's hypervisor has ended.
    GuestGone(Reason),
}

/// What a round sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RoundSent {
    /// Pages by coding.
    pub pages: PagesByCoding,
    /// Bytes of page frames.
    pub bytes: u64,
    /// For how long vCPUs were held back since the round before.
    pub held_back: Duration,
}

/// What a hypervisor that copies by itself says of a round.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HypervisorRound {
    /// What it sent.
    pub sent: RoundSent,
    /// What it left: pages written since they were sent.
    pub left: PageCount,
    /// At which speed the guest runs from now on.
    pub vcpus: VcpuSpeed,
}

/// Which pages a round sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Selection {
    /// All pages that exist.
    Populated,
    /// All that scans have reported since they were last sent.
    Dirty,
}

/// What the engine shall do.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Send a message, if there is a link; a message that cannot be sent is dropped.
    Send(ToDestination),
    /// Make a new control connection; answered by `LinkUp` or `LinkDown`.
    Reconnect,
    /// Make the record durable; answered by `Recorded` or `RecordFailed`.
    Record(SourceRecord),
    /// Open the page connections and start tracking if `tracking` says so; `Prepared` or `Failed`.
    Prepare {
        /// What the destination granted.
        accept: Accept,
        /// Whether the guest's pages are to be tracked.
        tracking: Tracking,
    },
    /// Send a round of pages and its marks; `RoundSent` or `Failed`, and `Progress` and `Looked`
    /// meanwhile.
    CopyRound {
        /// Number of the round.
        round: u32,
        /// Which pages.
        selection: Selection,
        /// At which speed the guest runs from now on.
        vcpus: VcpuSpeed,
        /// How many pages may be left out because they are likely to be written again soon. They
        /// stay among those that scans have reported.
        may_withhold: PageCount,
        /// The round ends after this long, if not before; what was not sent stays among those pages,
        /// too.
        at_most: Option<Duration>,
    },
    /// Let the hypervisor copy by itself; `RoundPassed` at each of its round ends and `Progress`
    /// meanwhile, `Paused` when what is left fits the downtime, or `Failed`.
    Delegate {
        /// The longest downtime.
        downtime_max: Duration,
        /// Whether it shall slow the guest down where rounds do not help.
        slow_down: bool,
    },
    /// Read and clear the dirty pages; `Scanned` or `Failed`.
    Scan,
    /// Pause the guest, or have the hypervisor pause it that copies by itself, whatever is left;
    /// `Paused` or `Failed`.
    Pause,
    /// With the guest paused: send all the destination lacks or tell which pages that are, as `rest`
    /// says, and the marks (`RestSent`), save and send the device state (`StateSent`), and hash all
    /// RAM if `verify` says so (`Digest`), in any order and side by side; or `Failed`. From then on
    /// owed pages are sent as the destination wants them, until `ServingFailed`, `Resume` or
    /// `Release`. A hypervisor that copies by itself sends all of it.
    Finish {
        /// Number of the round.
        round: u32,
        /// Which pages.
        selection: Selection,
        /// Whether they are sent now or later.
        rest: Rest,
        /// Whether to hash all RAM.
        verify: Verify,
    },
    /// Make the page connections anew and go on sending owed pages; `Serving` or `ServingFailed`.
    Serve {
        /// Names the move.
        token: MoveToken,
        /// Page streams that the destination serves.
        streams: u16,
    },
    /// End the streams and tracking and let the guest run, at full speed; `Resumed` or `ResumeFailed`. Also when
    /// the guest was never paused.
    Resume,
    /// End the guest here; `Released`.
    Release,
    /// Tell the operator that a cancel comes too late.
    CancelTooLate,
    /// Tell the operator that the destination does not answer whether it runs the guest.
    InDoubt,
    /// Tell the operator that the destination runs the guest, is owed pages, and cannot be reached.
    CutOff,
    /// The move has ended; no further event is expected.
    End(Ending),
}

/// Settings of a move.
#[derive(Debug)]
pub struct Config {
    /// What is offered.
    pub offer: Offer,
    /// The algorithm.
    pub algorithm: Box<dyn Algorithm>,
    /// The operator's limits.
    pub limits: Limits,
    /// The stages' limits.
    pub stages: StageLimits,
    /// What a switchover costs with nothing left to copy, as far as known.
    pub fixed_downtime: Duration,
    /// What is known besides.
    pub surroundings: Surroundings,
    /// What was foreseen before the move was asked for, if it was.
    pub planned: Option<Choice>,
}

/// How a guest was found by an agent that was restarted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// It runs, so it was not committed.
    Running,
    /// It is paused by the move, so it may have been.
    Paused,
    /// Its hypervisor is gone.
    Gone,
}
