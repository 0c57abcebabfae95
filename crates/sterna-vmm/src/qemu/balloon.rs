//! The guest's balloon, as QEMU's monitor shows it.
//!
//! What the guest is asked for is part of the device's state: it travels with the guest and outlives
//! the agent. QEMU does not tell it, only how far the guest has come, so whoever wants an empty
//! balloon asks for one, whether or not anybody has asked for anything else.

use super::qmp::{Qmp, REPLY_LIMIT};
use crate::{GuestDefinition, MemoryUse, VmmError};
use qapi::qmp::{balloon, qom_get, qom_set, query_balloon};
use serde::Deserialize;

/// Name of the device.
pub(super) const NAME: &str = "balloon";

/// Its place among QEMU's objects.
const PATH: &str = "/machine/peripheral/balloon";

/// How often a guest is asked how it uses its memory, in seconds; it cannot be more often.
const EVERY: i64 = 1;
const NEVER: i64 = 0;

/// A guest's balloon.
#[derive(Debug)]
pub(super) struct QemuBalloon {
    ram_bytes: u64,
    asked: Asked,
}

/// Whether the guest is asked how it uses its memory.
#[derive(Clone, Copy, Debug)]
enum Asked {
    No,
    /// Since the time of its last answer, as QEMU wrote it down.
    Since(i64),
}

impl QemuBalloon {
    /// The balloon that Sterna gave the guest. One that its operator did is not ours to inflate.
    pub(super) fn of(definition: &GuestDefinition) -> Option<Self> {
        let ram_bytes = definition.memory_bytes;
        definition.has_balloon().then_some(Self { ram_bytes, asked: Asked::No })
    }

    /// See [`crate::Source::memory_use`].
    pub(super) fn memory_use(&mut self, qmp: &mut Qmp) -> Result<Option<MemoryUse>, VmmError> {
        let question = qom_get { path: PATH.into(), property: "guest-stats".into() };
        let answer: Answer = qmp.query(&question)?;
        match self.asked {
            Asked::No => {
                poll(qmp, EVERY)?;
                self.asked = Asked::Since(answer.last_update);
                Ok(None)
            }
            Asked::Since(before) if answer.last_update == before => Ok(None),
            Asked::Since(_) => {
                self.ask_no_more(qmp)?;
                Ok(answer.stats.memory_use())
            }
        }
    }

    fn ask_no_more(&mut self, qmp: &mut Qmp) -> Result<(), VmmError> {
        if let Asked::Since(_) = self.asked {
            poll(qmp, NEVER)?;
            self.asked = Asked::No;
        }
        Ok(())
    }

    /// See [`crate::Source::ask_for`].
    pub(super) fn ask_for(&mut self, bytes: u64, qmp: &mut Qmp) -> Result<(), VmmError> {
        self.ask_no_more(qmp)?;
        let left = self.ram_bytes.saturating_sub(bytes);
        let value = i64::try_from(left).unwrap_or(i64::MAX);
        qmp.execute(&balloon { value }, REPLY_LIMIT)
    }

    /// See [`crate::Source::in_balloon`].
    pub(super) fn holds(&self, qmp: &mut Qmp) -> Result<u64, VmmError> {
        let size: Size = qmp.query(&query_balloon {})?;
        // The guest says it, so it may be anything.
        Ok(self.ram_bytes.saturating_sub(u64::try_from(size.actual).unwrap_or(0)))
    }
}

fn poll(qmp: &mut Qmp, seconds: i64) -> Result<(), VmmError> {
    let property = "guest-stats-polling-interval".into();
    qmp.execute(&qom_set { path: PATH.into(), property, value: seconds.into() }, REPLY_LIMIT)
}

/// `query-balloon`
#[derive(Clone, Debug, Deserialize)]
struct Size {
    actual: i64,
}

/// `guest-stats`
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Answer {
    last_update: i64,
    stats: Stats,
}

/// What is used of it. A number that the guest does not tell is the largest there is.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Stats {
    stat_total_memory: u64,
    stat_available_memory: u64,
}

impl Stats {
    fn memory_use(&self) -> Option<MemoryUse> {
        let Self { stat_total_memory: total_bytes, stat_available_memory: available_bytes } = *self;
        let told = total_bytes < u64::MAX && available_bytes < u64::MAX;
        told.then_some(MemoryUse { total_bytes, available_bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_the_guest_does_not_tell_is_not_taken_for_one() {
        let told = |available: &str| {
            let text = format!(
                r#"{{"last-update":9,"stats":{{"stat-total-memory":80,"stat-swap-in":0,
                "stat-available-memory":{available}}}}}"#
            );
            serde_json::from_str::<Answer>(&text).unwrap().stats.memory_use()
        };
        assert_eq!(told("30"), Some(MemoryUse { total_bytes: 80, available_bytes: 30 }));
        assert_eq!(told("18446744073709551615"), None);
    }
}
