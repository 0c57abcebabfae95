//! What the runs came by, so that the test cannot silently stop testing something.

use crate::plan::{DESTINATION_STAGES, FAULT_KINDS, FaultKind, Role, SOURCE_STAGES};
use std::collections::BTreeMap;
use std::fmt;

/// Endings and notices that must have occurred.
const ENDINGS: [&str; 22] = [
    "source moved",
    "source undone",
    "source guest-gone",
    "source stuck",
    "source lost",
    "destination active",
    "destination discarded",
    "destination lost",
    "refused",
    "cancel too late",
    "in doubt",
    "digests differ",
    "slowed down",
    "held pages back",
    "cut a round short",
    "handed over with pages owed",
    "a guest waited for a page",
    "streams were made anew",
    "cut off, seen from the source",
    "cut off, seen from the destination",
    "hypervisors copied the guest",
    "a hypervisor resumed by itself",
];

/// How often what occurred.
#[derive(Clone, Debug, Default)]
pub(crate) struct Coverage {
    pub(crate) runs: u64,
    pub(crate) events: u64,
    pub(crate) steps: u64,
    outcomes: BTreeMap<&'static str, u64>,
    faults: BTreeMap<(Role, &'static str, FaultKind), u64>,
}

impl Coverage {
    pub(crate) fn outcome(&mut self, name: &'static str) {
        *self.outcomes.entry(name).or_default() += 1;
    }

    pub(crate) fn fault(&mut self, role: Role, stage: &'static str, kind: FaultKind) {
        *self.faults.entry((role, stage, kind)).or_default() += 1;
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        self.runs += other.runs;
        self.events += other.events;
        self.steps += other.steps;
        for (name, count) in &other.outcomes {
            *self.outcomes.entry(name).or_default() += count;
        }
        for (at, count) in &other.faults {
            *self.faults.entry(*at).or_default() += count;
        }
    }

    /// What should have occurred and has not.
    pub(crate) fn missing(&self) -> Vec<String> {
        let mut missing: Vec<String> = ENDINGS
            .iter()
            .filter(|name| !self.outcomes.contains_key(*name))
            .map(|name| (*name).to_owned())
            .collect();
        for (role, stages) in
            [(Role::Source, &SOURCE_STAGES), (Role::Destination, &DESTINATION_STAGES)]
        {
            for stage in stages {
                for kind in FAULT_KINDS {
                    if !self.faults.contains_key(&(role, stage, kind)) {
                        missing.push(format!("{kind:?} while the {role:?} was {stage}"));
                    }
                }
            }
        }
        missing
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} runs, {} events, {} machine steps", self.runs, self.events, self.steps)?;
        for (name, count) in &self.outcomes {
            writeln!(f, "{count:9}  {name}")?;
        }
        for ((role, stage, kind), count) in &self.faults {
            writeln!(f, "{count:9}  {kind:?} while the {role:?} was {stage}")?;
        }
        Ok(())
    }
}
