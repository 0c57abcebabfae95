//! What must hold, judged from outside: the checkers look only at the modelled hypervisors, and at
//! what the machines said at their end, and know nothing of the machines' states.

use crate::follower::Seen as SeenOfMove;
use crate::follower::{self, Place};
use crate::guest::{Hypervisor, Instance, PAGES, Snapshot};
use crate::model::{Commitment, DestinationSays, Guest, SourceSays};
use crate::plan::Climate;
use crate::world::{Attempt, Judges, World};
use sterna_core::destination;
use sterna_core::journal::{DestinationRecord, SourceRecord};
use sterna_core::receipt::Ending;
use sterna_core::speed::VcpuSpeed;

/// The rule of the commitment protocol.
pub(crate) const PROTOCOL: &str = "a move goes on as the protocol allows";

/// A rule that did not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Violation {
    pub(crate) rule: &'static str,
    /// Virtual time in microseconds.
    pub(crate) at: u64,
}

/// What was seen of one hypervisor after the last action.
#[derive(Clone, Copy, Debug)]
struct Seen {
    hypervisor: Hypervisor,
    has_run: bool,
    /// The guest when it was last paused.
    at_pause: Option<Snapshot>,
}

impl Seen {
    fn of(instance: &Instance) -> Self {
        Self { hypervisor: instance.hypervisor, has_run: instance.has_run, at_pause: None }
    }
}

/// The checkers and what they remember.
#[derive(Debug)]
pub(crate) struct Checkers {
    seen: Vec<Seen>,
    /// The hypervisor in which the guest ran last.
    ran_last: usize,
    source_endings: usize,
    /// The newest attempt, what was seen of it, and where the protocol may be.
    protocol: Option<(usize, SeenOfMove, Place)>,
    judges: Judges,
}

impl Checkers {
    pub(crate) fn new(world: &World, judges: Judges) -> Self {
        Self {
            seen: world.instances.iter().map(Seen::of).collect(),
            ran_last: 0,
            source_endings: 0,
            protocol: None,
            judges,
        }
    }

    /// Looks at the world after each action.
    pub(crate) fn after_action(&mut self, world: &mut World) {
        if self.judges == Judges::All {
            self.follow_protocol(world);
        }
        for index in self.seen.len()..world.instances.len() {
            self.seen.push(Seen::of(&world.instances[index]));
        }
        let mut running = 0;
        for index in 0..self.seen.len() {
            let (hypervisor, has_run) =
                (world.instances[index].hypervisor, world.instances[index].has_run);
            running += usize::from(hypervisor == Hypervisor::Running);
            let seen = self.seen[index];
            if (hypervisor, has_run) != (seen.hypervisor, seen.has_run) {
                self.changed(index, world);
            }
        }
        world.check(running <= 1, "the guest never runs twice");
        let endings = world.attempts.iter().filter(|a| a.source_ending.is_some()).count();
        if endings != self.source_endings {
            self.source_endings = endings;
            self.source_ended(world);
        }
    }

    /// Looks whether the newest attempt goes on as the protocol allows. Of older ones the guest is no longer theirs.
    fn follow_protocol(&mut self, world: &mut World) {
        let Some(newest) = world.attempts.len().checked_sub(1) else { return };
        let seen = seen_of_move(&world.attempts[newest], world);
        match self.protocol {
            Some((attempt, before, _)) if attempt == newest && before == seen => {}
            Some((attempt, _, place)) if attempt == newest => {
                let next = place.sees(seen);
                world.note(|| format!("attempt {newest} is seen as {seen:?}"));
                world.check(next.is_some(), PROTOCOL);
                self.protocol = next.map(|place| (newest, seen, place));
            }
            // It may have been lost before this attempt.
            _ if seen == follower::seen(&Commitment::begin()) => {
                self.protocol = Some((newest, seen, Place::begin()));
            }
            _ => {}
        }
    }

    fn changed(&mut self, index: usize, world: &mut World) {
        let now = world.instances[index].clone();
        let before = self.seen[index];
        self.seen[index].hypervisor = now.hypervisor;
        self.seen[index].has_run = now.has_run;
        if now.has_run && !before.has_run {
            self.first_run(index, &now, world);
        }
        match (before.hypervisor, now.hypervisor) {
            (Hypervisor::Running, Hypervisor::Paused) => {
                self.seen[index].at_pause = Some(now.guest);
            }
            (_, Hypervisor::Running) => self.runs(index, &now, world),
            (_, Hypervisor::Gone) if !now.killed && now.has_run => {
                let owed = world.attempts.iter().any(|a| {
                    let destination = destination(a, world);
                    a.source_instance == index
                        && destination.is_some_and(|i| i.has_run && i.missing != 0 && !i.killed)
                });
                world.check(!owed, "no guest is ended while pages of it are owed");
                let held = handed_over(index, world);
                world.check(held, "a guest is only ended where it ran once it ran elsewhere");
            }
            _ => {}
        }
    }

    /// The guest was let run in a hypervisor to which it was moved.
    fn first_run(&self, index: usize, now: &Instance, world: &mut World) {
        let arrived = world.attempts.iter().find(|a| a.destination_instance == Some(index));
        let Some(source) = arrived.map(|a| a.source_instance) else { return };
        let source_hypervisor = world.instances[source].hypervisor;
        let at_pause = self.seen[source].at_pause;
        let stopped = matches!(source_hypervisor, Hypervisor::Paused | Hypervisor::Gone);
        world.check(stopped, "the source stands still when the destination lets the guest run");
        let here = |page: usize| now.missing >> page & 1 == 0;
        let same_ram = at_pause.is_some_and(|paused| {
            (0..PAGES).all(|page| !here(page) || paused.ram[page] == now.guest.ram[page])
        });
        world.check(same_ram, "the guest begins with the RAM it was paused with");
        let same = at_pause.is_some_and(|paused| paused.registers == now.guest.registers);
        world.check(same, "the guest begins with the registers it was paused with");
    }

    fn runs(&mut self, index: usize, now: &Instance, world: &mut World) {
        self.ran_last = index;
        world.check(!handed_over(index, world), "a guest that ran elsewhere never runs here again");
        if let Some(paused) = self.seen[index].at_pause.take() {
            world.check(paused == now.guest, "a guest resumes as it was when it was paused");
        }
    }

    fn source_ended(&self, world: &mut World) {
        let Some(attempt) = world.attempts.iter().rfind(|a| a.source_ending.is_some()) else {
            return;
        };
        let source = &world.instances[attempt.source_instance];
        let has_run = destination(attempt, world).is_some_and(|i| i.has_run);
        let holds = match &attempt.source_ending {
            Some(Ending::Moved) => has_run && source.hypervisor == Hypervisor::Gone,
            Some(Ending::Undone { .. }) => {
                let runs = source.hypervisor == Hypervisor::Running;
                !has_run && (runs && source.speed == VcpuSpeed::FULL || source.killed)
            }
            Some(Ending::GuestGone { .. }) => !has_run && source.killed,
            Some(Ending::Stuck { .. }) => !has_run && (attempt.resume_failed || source.killed),
            Some(Ending::Lost { .. }) => explains_lost(attempt, world),
            None => true,
        };
        world.check(holds, "the source's ending is what happened");
    }

    /// Looks at what is left when nothing happens any more.
    pub(crate) fn at_end(&self, world: &mut World) {
        world.check(!world.any_machine(), "every machine ends");
        let running =
            world.instances.iter().filter(|i| i.hypervisor == Hypervisor::Running).count();
        let explained = world.instances[self.ran_last].killed
            || world
                .attempts
                .iter()
                .any(|a| a.resume_failed || matches!(a.source_ending, Some(Ending::Lost { .. })));
        world.check(running == 1 || explained, "the guest runs in the end, or it is said why not");
        for index in 0..world.attempts.len() {
            let attempt = &world.attempts[index];
            let instance = destination(attempt, world);
            let has_run = instance.is_some_and(|i| i.has_run);
            let here = instance.is_some_and(|i| i.hypervisor != Hypervisor::Gone);
            let holds = match &attempt.destination_ending {
                Some(destination::Ending::Active) => has_run && arrived_whole(attempt, world),
                Some(destination::Ending::Discarded(_)) => !has_run && !here,
                Some(destination::Ending::Lost(_)) => explains_lost(attempt, world),
                None => true,
            };
            let moved = matches!(attempt.source_ending, Some(Ending::Moved));
            world.check(holds, "the destination's ending is what happened");
            let calm = world.plan.climate == Climate::Calm;
            world.check(moved || !calm, "a move ends well when nothing goes wrong");
        }
    }
}

fn seen_of_move(attempt: &Attempt, world: &World) -> SeenOfMove {
    let guest = |instance: &Instance| match instance.hypervisor {
        Hypervisor::Running => Guest::Runs,
        Hypervisor::Gone if instance.killed => Guest::Died,
        Hypervisor::Gone => Guest::Gone,
        Hypervisor::Empty | Hypervisor::Loaded | Hypervisor::Paused if !instance.has_run => {
            Guest::Waits
        }
        Hypervisor::Empty | Hypervisor::Loaded | Hypervisor::Paused => Guest::Paused,
    };
    (
        guest(&world.instances[attempt.source_instance]),
        match attempt.source_record {
            None => SourceSays::Nothing,
            Some(SourceRecord::Moving { .. }) => SourceSays::Moving,
            Some(SourceRecord::Released) => SourceSays::Released,
            Some(SourceRecord::Undone) => SourceSays::Undone,
        },
        destination(attempt, world).map_or(Guest::None, guest),
        match attempt.destination_record {
            None => DestinationSays::Nothing,
            Some(DestinationRecord::Receiving) => DestinationSays::Receiving,
            Some(DestinationRecord::Owned) => DestinationSays::Owned,
            Some(DestinationRecord::Owing) => DestinationSays::Owing,
            Some(DestinationRecord::Active) => DestinationSays::Active,
            Some(DestinationRecord::Lost) => DestinationSays::Lost,
            Some(DestinationRecord::Refused) => DestinationSays::Refused,
        },
    )
}

fn destination<'a>(attempt: &Attempt, world: &'a World) -> Option<&'a Instance> {
    attempt.destination_instance.map(|index| &world.instances[index])
}

/// Whether the guest has run in a hypervisor to which it was moved from this one.
fn handed_over(index: usize, world: &World) -> bool {
    world
        .attempts
        .iter()
        .filter(|a| a.source_instance == index)
        .any(|a| destination(a, world).is_some_and(|i| i.has_run))
}

fn explains_lost(attempt: &Attempt, world: &World) -> bool {
    attempt.activation_doubtful
        || attempt.pages_lost && world.instances[attempt.source_instance].ram_lost
        || attempt.owned_record_failed
        || attempt.refusal_unrecorded
        || destination(attempt, world).is_some_and(|i| i.killed)
}

/// Whether every page that the guest has not written since it arrived is as it was at the pause.
fn arrived_whole(attempt: &Attempt, world: &World) -> bool {
    let source = &world.instances[attempt.source_instance];
    destination(attempt, world).is_some_and(|arrived| {
        arrived.killed
            || (0..PAGES).all(|page| {
                let touched = arrived.touched >> page & 1 == 1;
                touched || arrived.guest.ram[page] == source.guest.ram[page]
            })
    })
}
