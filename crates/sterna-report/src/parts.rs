//! The parts of a standstill, each at its place: which ran one after the other, and which at once.
//!
//! A receipt says how long each part took, not when it began. The order is known (see
//! [`sterna_core::receipt::Downtime`]), so parts are laid from both ends: the pause at the
//! beginning; commit, ready and copy backwards from the end. The source hashes RAM while it waits
//! for the destination, which does the same, and commits when both are done. What is left between is the
//! time in which one thread told another. The destination's parts lie in the middle of the waits
//! that contain them: one message goes before, one comes after.

use std::time::Duration;
use sterna_core::receipt::Downtime;

/// Who did it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lane {
    /// The source, in its order.
    Source,
    /// The source, meanwhile.
    Meanwhile,
    /// The destination.
    Destination,
}

/// What it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Drain I/O.
    Pause,
    /// Final scan and copy.
    Copy,
    /// Save the device state.
    Save,
    /// Hash RAM on the source.
    Digest,
    /// Wait for the destination to be ready.
    Ready,
    /// Wait for the destination to run the guest.
    Commit,
    /// Load the device state.
    Load,
    /// Hash RAM on the destination.
    DigestThere,
    /// Record who owns the guest.
    Record,
    /// Let the vCPUs run.
    Activate,
}

impl Kind {
    /// In full.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Pause => "drain I/O after the vCPUs stopped",
            Self::Copy => "final scan and copy",
            Self::Save => "save device state",
            Self::Digest => "RAM digest at the source",
            Self::Ready => "wait until the destination is ready",
            Self::Commit => "commit until the guest runs there",
            Self::Load => "load device state",
            Self::DigestThere => "RAM digest at the destination",
            Self::Record => "record the new owner durably",
            Self::Activate => "let the vCPUs run",
        }
    }

    /// In one word; it is the part's style as well.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Copy => "copy",
            Self::Save => "save",
            Self::Digest | Self::DigestThere => "digest",
            Self::Ready => "ready",
            Self::Commit => "commit",
            Self::Load => "load",
            Self::Record => "record",
            Self::Activate => "activate",
        }
    }
}

/// One part and its place, counted from the moment at which the vCPUs stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    /// Whose.
    pub(crate) lane: Lane,
    /// What.
    pub(crate) kind: Kind,
    /// Where it is drawn from.
    pub(crate) from: Duration,
    /// Where it is drawn to; within the standstill.
    pub(crate) to: Duration,
    /// What it took, as it was reported.
    pub(crate) took: Duration,
}

/// The parts that took any time, in the order of lanes and time.
pub(crate) fn parts(downtime: &Downtime) -> Vec<Part> {
    let sequence = sequence(downtime);
    let [_, copy, ready, commit] = sequence;
    let there = downtime.destination;
    let micros = Duration::from_micros;
    let save = Part {
        lane: Lane::Meanwhile,
        kind: Kind::Save,
        from: copy.from,
        to: copy.from.saturating_add(downtime.save),
        took: downtime.save,
    };
    let digest = Part {
        lane: Lane::Meanwhile,
        kind: Kind::Digest,
        from: ready.from,
        to: ready.from.saturating_add(downtime.digest),
        took: downtime.digest,
    };
    let before = within(
        ready,
        [(Kind::Load, micros(there.load_us)), (Kind::DigestThere, micros(there.digest_us))],
    );
    let after = within(
        commit,
        [(Kind::Record, micros(there.record_us)), (Kind::Activate, micros(there.activate_us))],
    );
    let all = sequence.into_iter().chain([save, digest]).chain(before).chain(after);
    all.filter(|part| !part.took.is_zero())
        .map(|part| Part {
            from: part.from.min(downtime.total),
            to: part.to.min(downtime.total),
            ..part
        })
        .collect()
}

/// The source's parts one after the other.
fn sequence(downtime: &Downtime) -> [Part; 4] {
    let waits = downtime.digest.max(downtime.ready).saturating_add(downtime.commit);
    let backwards = downtime.total.saturating_sub(waits).saturating_sub(downtime.copy);
    let mut at = Duration::ZERO;
    let mut next = |kind, took: Duration| {
        // Without a commit the end is that of another story: the guest was made to run again.
        if kind == Kind::Copy && !downtime.commit.is_zero() {
            at = at.max(backwards);
        }
        if kind == Kind::Commit {
            at = at.saturating_add(downtime.digest.saturating_sub(downtime.ready));
        }
        let from = at;
        at = at.saturating_add(took);
        Part { lane: Lane::Source, kind, from, to: at, took }
    };
    [
        next(Kind::Pause, downtime.pause),
        next(Kind::Copy, downtime.copy),
        next(Kind::Ready, downtime.ready),
        next(Kind::Commit, downtime.commit),
    ]
}

/// The destination's two parts in the middle of the wait that contains them.
fn within(wait: Part, parts: [(Kind, Duration); 2]) -> [Part; 2] {
    let [first, second] = parts;
    let slack = wait.took.saturating_sub(first.1.saturating_add(second.1));
    let from = wait.from.saturating_add(slack / 2);
    let middle = from.saturating_add(first.1);
    let place = |kind, from, took: Duration| Part {
        lane: Lane::Destination,
        kind,
        from,
        to: from.saturating_add(took).min(wait.to.max(from)),
        took,
    };
    [place(first.0, from, first.1), place(second.0, middle.min(wait.to), second.1)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use sterna_proto::message::ActivationTimes;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn downtime() -> Downtime {
        Downtime {
            total: ms(20),
            pause: ms(2),
            copy: ms(6),
            save: ms(3),
            ready: ms(5),
            commit: ms(4),
            destination: ActivationTimes {
                load_us: 3_000,
                activate_us: 2_000,
                ..Default::default()
            },
            ..Downtime::default()
        }
    }

    fn find(parts: &[Part], kind: Kind) -> Part {
        *parts.iter().find(|part| part.kind == kind).unwrap()
    }

    #[test]
    fn a_hand_over_is_laid_out_backwards_from_its_end() {
        let parts = parts(&downtime());
        assert_eq!(find(&parts, Kind::Pause).to, ms(2));
        assert_eq!((find(&parts, Kind::Copy).from, find(&parts, Kind::Copy).to), (ms(5), ms(11)));
        assert_eq!(find(&parts, Kind::Commit).to, ms(20));
        assert_eq!((find(&parts, Kind::Load).from, find(&parts, Kind::Load).to), (ms(12), ms(15)));
    }

    #[test]
    fn a_move_that_was_undone_is_laid_out_from_its_begin() {
        let parts = parts(&Downtime { commit: ms(0), ready: ms(0), ..downtime() });
        assert_eq!(find(&parts, Kind::Copy).from, ms(2));
    }

    #[test]
    fn saving_lies_beside_copying() {
        let parts = parts(&downtime());
        assert_eq!(find(&parts, Kind::Save).from, find(&parts, Kind::Copy).from);
        assert_eq!(find(&parts, Kind::Save).lane, Lane::Meanwhile);
    }

    #[test]
    fn parts_that_took_no_time_are_left_out() {
        assert!(parts(&downtime()).iter().all(|part| part.kind != Kind::Digest));
        assert_eq!(parts(&Downtime::default()), []);
    }

    #[test]
    fn times_that_cannot_be_true_stay_within_the_standstill() {
        let forever = u64::MAX;
        let wrong = Downtime {
            total: ms(1),
            copy: Duration::MAX,
            save: Duration::MAX,
            commit: Duration::MAX,
            destination: ActivationTimes {
                load_us: forever,
                digest_us: forever,
                record_us: forever,
                activate_us: forever,
            },
            ..downtime()
        };
        assert!(parts(&wrong).iter().all(|part| part.from <= part.to && part.to <= ms(1)));
    }
}
