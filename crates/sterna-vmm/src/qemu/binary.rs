//! The QEMU of this host: where it is, and what it can do.

use super::command_line::StartMode;
use super::qmp::Qmp;
use super::replies::{Capability, Machine, Version};
use crate::tracking::system;
use crate::{Accelerator, GuestDefinition, VmmError};
use qapi::qmp::{query_machines, query_migrate_capabilities, query_version};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// How long a QEMU without a guest may take to start.
const START_LIMIT: Duration = Duration::from_secs(10);

/// The machine type of a guest whose definition names none.
const MACHINE_DEFAULT: &str = "q35";

/// Migration capabilities without which a guest cannot be moved.
pub(super) const NEEDED_CAPABILITIES: [&str; 3] =
    ["x-ignore-shared", "pause-before-switchover", "events"];

/// A QEMU program, as it described itself when asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QemuBinary {
    pub(super) path: PathBuf,
    /// Version with the packager's suffix, such as `10.0.2 (Debian 1:10.0.2+ds-2)`.
    pub version: String,
    /// Major version.
    pub major: u32,
    /// Machine types as (alias, versioned name).
    aliases: Vec<(String, String)>,
    /// Machine types by their versioned names.
    machines: Vec<String>,
    capabilities: Vec<String>,
    /// Whether guests may be given to KVM.
    pub accelerator: Accelerator,
}

/// Ends a child however the asking went.
struct Probed(Child);

impl Drop for Probed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl QemuBinary {
    /// Starts `path` without a machine and asks it.
    ///
    /// [`Self::accelerator`] is TCG until [`super::probe`] has found KVM to work.
    ///
    /// # Errors
    /// When it does not start or does not answer.
    pub fn ask(path: &Path) -> Result<Self, VmmError> {
        // A socket that is connected from the start: one that listens may hang, see `command_line`.
        let (ours, theirs) = UnixStream::pair().map_err(system("making a monitor's socket"))?;
        let child = Command::new(path)
            .args(["-M", "none", "-nodefaults", "-no-user-config", "-display", "none"])
            .args(["-chardev", "socket,id=first,fd=0", "-mon", "chardev=first,mode=control"])
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(system("starting QEMU"))?;
        let mut child = Probed(child);
        let asked = Qmp::over(ours, START_LIMIT).and_then(|mut qmp| Self::describe(path, &mut qmp));
        match (asked, child.0.try_wait()) {
            (Err(VmmError::Gone { .. }), Ok(Some(status))) => {
                Err(VmmError::Gone { detail: format!("it ended at once: {status}") })
            }
            (asked, _) => asked,
        }
    }

    fn describe(path: &Path, qmp: &mut Qmp) -> Result<Self, VmmError> {
        let version: Version = qmp.query(&query_version {})?;
        let machines: Vec<Machine> = qmp.query(&query_machines { compat_props: None })?;
        let capabilities: Vec<Capability> = qmp.query(&query_migrate_capabilities {})?;
        Ok(Self {
            path: path.to_owned(),
            version: version.to_string(),
            major: version.qemu.major,
            machines: machines.iter().map(|machine| machine.name.clone()).collect(),
            aliases: machines.into_iter().filter_map(|m| Some((m.alias?, m.name))).collect(),
            capabilities: capabilities.into_iter().map(|c| c.capability).collect(),
            accelerator: Accelerator::Tcg,
        })
    }

    /// Where the program is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The capabilities needed to move a guest that this QEMU lacks.
    #[must_use]
    pub fn missing_capabilities(&self) -> Vec<String> {
        let has = |name: &&str| !self.capabilities.iter().any(|known| known == name);
        NEEDED_CAPABILITIES.iter().filter(|name| has(name)).map(|name| (*name).into()).collect()
    }

    /// Whether it has the machine type that `definition` names, if that names one.
    #[must_use]
    pub fn has_machine(&self, definition: &GuestDefinition) -> bool {
        definition.machine.as_ref().is_none_or(|wanted| {
            let alias = self.aliases.iter().any(|(alias, _)| alias == wanted);
            alias || self.machines.contains(wanted)
        })
    }

    /// Fills in what a definition leaves open, so that both sides of a later move agree: the
    /// versioned machine type, the accelerator, the CPU model and, for a guest that is new and not
    /// one that arrives, the balloon.
    #[must_use]
    pub fn resolve(&self, definition: &GuestDefinition, mode: StartMode) -> GuestDefinition {
        let wanted = definition.machine.as_deref().unwrap_or(MACHINE_DEFAULT);
        let versioned = self.aliases.iter().find(|(alias, _)| alias == wanted);
        let machine = versioned.map_or(wanted, |(_, name)| name).to_owned();
        let accelerator = match definition.accelerator {
            Accelerator::Auto => self.accelerator,
            chosen => chosen,
        };
        // Of equal QEMUs on equal hosts both are the same on either side.
        let cpu = match accelerator {
            Accelerator::Kvm | Accelerator::KvmUnproven => "host",
            Accelerator::Tcg | Accelerator::Auto => "max",
        };
        let cpu = definition.cpu.clone().unwrap_or_else(|| cpu.to_owned());
        // A guest that arrives has what it was started with; QEMU takes one balloon at most.
        let may_get_one = mode != StartMode::Incoming && !definition.huge_pages;
        let has_own = definition.qemu_args.iter().any(|word| word.contains("virtio-balloon"));
        let balloon = definition.balloon.or((may_get_one && !has_own).then_some(true));
        let may_yield = mode != StartMode::Incoming && balloon == Some(true);
        let balloon_yields = definition.balloon_yields.or(may_yield.then_some(true));
        GuestDefinition {
            machine: Some(machine),
            cpu: Some(cpu),
            accelerator,
            balloon,
            balloon_yields,
            ..definition.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_chooses_nothing_but_what_wishes_tell_of() {
        let binary = QemuBinary {
            path: "/qemu".into(),
            version: "10.0.2".into(),
            major: 10,
            aliases: vec![("q35".into(), "pc-q35-10.0".into())],
            machines: vec!["pc-q35-10.0".into(), "pc-q35-7.2".into()],
            capabilities: Vec::new(),
            accelerator: Accelerator::Tcg,
        };
        for text in [
            r#"{"name":"a","memory_bytes":16777216}"#,
            r#"{"name":"a","memory_bytes":16777216,"machine":"q35","cpu":"qemu64","balloon":false}"#,
            r#"{"name":"a","memory_bytes":16777216,"machine":"pc-q35-7.2","accelerator":"tcg",
                "vcpus":3,"group":"g","append":"x","qemu_args":["-s"]}"#,
        ] {
            let written: GuestDefinition = serde_json::from_str(text).unwrap();
            let runs = binary.resolve(&written, StartMode::Run);
            assert_ne!(runs, written);
            assert!(runs.machine.is_some() && runs.balloon.is_some());
            assert_eq!(runs.with_wishes(&written.wishes()), written);
        }
    }
}
