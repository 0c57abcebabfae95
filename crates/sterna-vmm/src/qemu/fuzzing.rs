//! The decoders of this driver for the fuzz targets; no part of its interface.

use super::command_line::{self, StartMode};
use super::folder::Folder;
use super::qmp::{Message, parse};
use super::replies::{Capability, Machine, MemoryBackend, Migration, Property, RunStatus, Version};
use crate::{GuestDefinition, VmmError};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::ffi::OsString;

/// A line of QEMU's monitor that means something.
#[derive(Clone, Debug, PartialEq)]
pub enum MonitorLine {
    /// An event.
    Event {
        /// Its name.
        name: String,
        /// Its data.
        data: Value,
        /// The new state, if it is an event of a migration.
        migration_status: Option<String>,
    },
    /// A reply to a command.
    Reply {
        /// The command's number.
        id: Option<u64>,
        /// What it answers, or why it was refused.
        result: Result<Value, String>,
    },
}

/// Reads a line of QEMU's monitor.
#[must_use]
pub fn monitor_line(line: &[u8]) -> Option<MonitorLine> {
    Some(match parse(line)? {
        Message::Event(event) => {
            let migration_status = event.migration_status().map(str::to_owned);
            MonitorLine::Event { name: event.name, data: event.data, migration_status }
        }
        Message::Reply { id, result } => MonitorLine::Reply { id, result },
    })
}

/// How many of the replies that the driver asks for this could be.
#[must_use]
pub fn replies(value: &Value) -> usize {
    fn reads<T: DeserializeOwned>(value: &Value) -> bool {
        serde_json::from_value::<T>(value.clone()).is_ok()
    }
    let read = [
        reads::<RunStatus>(value),
        reads::<Migration>(value),
        reads::<Vec<Capability>>(value),
        reads::<Vec<MemoryBackend>>(value),
        reads::<Vec<Property>>(value),
        reads::<Vec<Machine>>(value),
        reads::<Version>(value),
    ];
    read.into_iter().filter(|read| *read).count()
}

/// The arguments with which QEMU is started for a definition.
///
/// # Errors
/// When it has more devices than there is room for.
pub fn arguments(definition: &GuestDefinition, mode: StartMode) -> Result<Vec<OsString>, VmmError> {
    let descriptors =
        command_line::Descriptors { ram: 9, first_monitor: 10, taps: Vec::new(), opened: None };
    command_line::arguments(definition, &Folder::existing("/run/guest".into()), &descriptors, mode)
}
