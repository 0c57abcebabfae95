//! What strikes, when, and for how long.

use std::fmt;
use std::time::Duration;

use rand::Rng as _;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;

/// A side of a move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Side {
    Source,
    Destination,
}

/// A fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fault {
    /// An agent is killed, and started again.
    KillAgent(Side),
    /// The hypervisor at the destination is killed. That at the source is the guest itself.
    KillHypervisor,
    /// The carrier of a host's link is gone, and comes back.
    Cut(Side),
    /// What a host sends hardly gets through, and then does again; what it receives does all the time.
    Choke(Side),
    /// The move is cancelled.
    Cancel(Side),
    /// Somebody moves the same guest to the third host.
    SecondMove,
    /// Somebody stops the guest where it leaves: refused while the move has it.
    Stop,
    /// Somebody starts the guest that leaves, or arrives.
    Start(Side),
    /// There is no space for a host's journal, and then there is.
    FullDisk(Side),
    /// A host's clock goes back by days, to before its certificates begin; and then it is right again.
    ClockBack(Side),
    /// A host's clock goes ahead by days, and then back.
    ClockAhead(Side),
}

const FAULTS: [Fault; 19] = [
    Fault::KillAgent(Side::Source),
    Fault::KillAgent(Side::Destination),
    Fault::KillHypervisor,
    Fault::Cut(Side::Source),
    Fault::Cut(Side::Destination),
    Fault::Choke(Side::Source),
    Fault::Choke(Side::Destination),
    Fault::Cancel(Side::Source),
    Fault::Cancel(Side::Destination),
    Fault::SecondMove,
    Fault::Stop,
    Fault::Start(Side::Source),
    Fault::Start(Side::Destination),
    Fault::FullDisk(Side::Source),
    Fault::FullDisk(Side::Destination),
    Fault::ClockBack(Side::Source),
    Fault::ClockBack(Side::Destination),
    Fault::ClockAhead(Side::Source),
    Fault::ClockAhead(Side::Destination),
];

/// When a fault begins and ends after the move has begun; without an end it is over at once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub(super) fault: Fault,
    pub(super) begins: Duration,
    pub(super) ends: Option<Duration>,
}

/// What happens at one moment.
#[derive(Clone, Copy, Debug)]
pub(super) enum Strike {
    Begin(Fault),
    End(Fault),
}

impl Fault {
    /// None, one or two faults.
    pub(super) fn plan(drawn: &mut StdRng, within: Duration, mended_within: Duration) -> Vec<Plan> {
        let count = [0, 1, 1, 1, 2, 2].choose(drawn).copied().unwrap_or(1);
        let mut plans: Vec<Plan> = Vec::new();
        for _ in 0..count {
            let Some(fault) = FAULTS.choose(drawn).copied() else { continue };
            let begins = within.mul_f64(drawn.random());
            // Mostly soon, at times only after the guest is in doubt.
            let lasts = mended_within.mul_f64(drawn.random::<f64>().powi(3));
            let ends = fault.lasts().then_some(begins + lasts);
            if plans.iter().all(|plan| plan.fault != fault) {
                plans.push(Plan { fault, begins, ends });
            }
        }
        plans
    }

    fn lasts(self) -> bool {
        match self {
            Self::KillAgent(_) | Self::Cut(_) | Self::Choke(_) | Self::FullDisk(_) => true,
            Self::ClockBack(_) | Self::ClockAhead(_) => true,
            Self::KillHypervisor | Self::Cancel(_) | Self::SecondMove => false,
            Self::Stop | Self::Start(_) => false,
        }
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Source => "source",
            Self::Destination => "destination",
        })
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::KillAgent(side) => write!(f, "agent killed, {side}"),
            Self::KillHypervisor => f.write_str("hypervisor killed, destination"),
            Self::Cut(side) => write!(f, "link cut, {side}"),
            Self::Choke(side) => write!(f, "link choked one way, from {side}"),
            Self::Cancel(side) => write!(f, "cancelled, {side}"),
            Self::SecondMove => f.write_str("moved by another"),
            Self::Stop => f.write_str("stopped by another"),
            Self::Start(side) => write!(f, "started by another, {side}"),
            Self::FullDisk(side) => write!(f, "disk full, {side}"),
            Self::ClockBack(side) => write!(f, "clock back, {side}"),
            Self::ClockAhead(side) => write!(f, "clock ahead, {side}"),
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {:.1?}", self.fault, self.begins)?;
        self.ends.map_or(Ok(()), |ends| write!(f, " until {ends:.1?}"))
    }
}
