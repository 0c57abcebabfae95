//! What describes a guest, and what its hypervisor says.

use crate::Verdict;
use crate::text::reread;
use serde_json::{Value, json};
use std::ffi::OsString;
use std::path::{Component, Path};
use sterna_vmm::GuestDefinition;
use sterna_vmm::qemu::StartMode;
use sterna_vmm::qemu::fuzzing::{MonitorLine, arguments, monitor_line as read_line, replies};
use sterna_vmm::synthetic::Registers;

/// A definition as it comes over the wire and from the interface.
pub(crate) fn definition_json(data: &[u8]) -> Verdict {
    match reread::<GuestDefinition>(data) {
        Some(definition) => check_definition(&definition),
        None => Verdict::Refused,
    }
}

/// A definition as an operator writes it.
pub(crate) fn definition_toml(data: &[u8]) -> Verdict {
    let Ok(text) = std::str::from_utf8(data) else { return Verdict::Refused };
    let Ok(definition) = toml::from_str::<GuestDefinition>(text) else { return Verdict::Refused };
    let written = toml::to_string(&definition).expect("what was read can be written");
    let again: GuestDefinition = toml::from_str(&written)
        .unwrap_or_else(|error| panic!("{written} is not read again: {error}"));
    assert_eq!(again, definition);
    check_definition(&definition)
}

/// A definition that is valid has a name that is safe as part of a path, and no text of it that
/// the hypervisor would take for further options.
pub(crate) fn check_definition(definition: &GuestDefinition) -> Verdict {
    if definition.validate().is_err() {
        return Verdict::Refused;
    }
    let path = Path::new(&definition.name);
    let components: Vec<_> = path.components().collect();
    assert_eq!(components, [Component::Normal(definition.name.as_ref())]);
    assert!(definition.name.len() <= 64 && definition.memory_bytes >= 16 << 20);
    let plain = plain(definition);
    let (Ok(list), Ok(model)) =
        (arguments(definition, StartMode::Run), arguments(&plain, StartMode::Run))
    else {
        // Too many devices, which the texts do not change.
        assert!(arguments(&plain, StartMode::Run).is_err());
        return Verdict::Refused;
    };
    assert_eq!(list.len(), model.len());
    for (argument, model) in list.iter().zip(&model) {
        assert_eq!(shape(argument), shape(model), "{argument:?}, {model:?}");
    }
    Verdict::Accepted
}

/// A guest with as many devices whose texts are all harmless.
fn plain(definition: &GuestDefinition) -> GuestDefinition {
    let mut plain = GuestDefinition { name: "x".into(), ..definition.clone() };
    plain.machine = plain.machine.map(|_| "x".into());
    for disk in &mut plain.disks {
        disk.path = "/x".into();
        disk.format = "x".into();
    }
    for network in &mut plain.networks {
        network.tap = "x".into();
        network.mac = "x".into();
    }
    plain
}

/// How the hypervisor would take an argument apart: the keys of an object, or the number of parts.
fn shape(argument: &OsString) -> (usize, Vec<String>) {
    let text = argument.to_str().expect("a definition is text");
    match serde_json::from_str(text) {
        Ok(Value::Object(object)) => (0, object.keys().cloned().collect()),
        Ok(_) | Err(_) => (text.split(',').count(), Vec::new()),
    }
}

/// A line of QEMU's monitor. The guest may have taken over its QEMU.
pub(crate) fn monitor_line(data: &[u8]) -> Verdict {
    let Some(line) = read_line(data) else { return Verdict::Refused };
    let written = match &line {
        MonitorLine::Event { name, data, .. } => json!({ "event": name, "data": data }),
        MonitorLine::Reply { id, result: Ok(value) } => json!({ "return": value, "id": id }),
        MonitorLine::Reply { id, result: Err(text) } => {
            json!({ "error": { "desc": text }, "id": id })
        }
    };
    assert_eq!(read_line(written.to_string().as_bytes()).as_ref(), Some(&line), "{written}");
    match &line {
        MonitorLine::Event { name, migration_status, .. } => {
            Verdict::of(name == "MIGRATION" && migration_status.is_some())
        }
        MonitorLine::Reply { result: Ok(value), .. } => Verdict::of(replies(value) > 0),
        MonitorLine::Reply { result: Err(_), .. } => Verdict::Accepted,
    }
}

/// The device state of a synthetic guest.
pub(crate) fn synthetic_registers(data: &[u8]) -> Verdict {
    let Some(registers) = reread::<Registers>(data) else { return Verdict::Refused };
    let Ok(layout) = registers.config.layout() else { return Verdict::Refused };
    assert_eq!(layout.pages(), registers.config.pages);
    Verdict::Accepted
}
