//! What a guest is made of: the file an operator writes, and what travels with an offer.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Bytes of RAM a guest must have at least.
const MEMORY_BYTES_MIN: u64 = 16 << 20;

/// Bytes of the huge pages that RAM may be made of.
pub(crate) const HUGE_PAGE_BYTES: u64 = 2 << 20;

/// Characters of a guest's name at most: it becomes part of file and unit names.
const NAME_LENGTH_MAX: usize = 64;

/// What [`is_name`] takes, for schemas.
#[cfg(feature = "schema")]
const NAME_PATTERN: &str = r"^[A-Za-z0-9][A-Za-z0-9._\-]{0,63}$";

/// Why a definition describes no guest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DefinitionError {
    /// The name would not be safe as part of a file name.
    #[error("guest name {0:?} is not 1 to {NAME_LENGTH_MAX} letters, digits, dots, dashes")]
    Name(String),
    /// A group that is no word.
    #[error("group {0:?} is not 1 to {NAME_LENGTH_MAX} letters, digits, dots, dashes")]
    Group(String),
    /// Not enough memory, or not whole MiB.
    #[error("{0} bytes of memory: at least {MEMORY_BYTES_MIN}, in whole MiB")]
    Memory(u64),
    /// Memory that cannot be made of huge pages.
    #[error("{0} bytes of memory are not whole huge pages of {HUGE_PAGE_BYTES} bytes")]
    HugePages(u64),
    /// A balloon where nobody tells which pages were given back by it.
    #[error("a guest of huge pages can have no balloon: which of them exist cannot be found out")]
    BalloonOfHugePages,
    /// No virtual CPU.
    #[error("{0} vCPUs: at least 1")]
    Vcpus(u32),
    /// A path or name that would be read as further options of the hypervisor.
    #[error("{field} {value:?} contains a comma or a control character")]
    Unsafe {
        /// The field it stands in.
        field: &'static str,
        /// What was given.
        value: String,
    },
}

/// How guest code is executed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Accelerator {
    /// KVM where it really runs guests, else TCG.
    #[default]
    Auto,
    /// Hardware virtualization, on hosts that have shown to run stock guests with it.
    Kvm,
    /// Whatever `/dev/kvm` is, on the operator's word that it runs this guest: for one without a
    /// stock operating system on a host with a paravirtual KVM. Never chosen by itself.
    KvmUnproven,
    /// Emulation.
    Tcg,
}

/// Which device the guest's console is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum ConsoleKind {
    /// A 16550 serial port (`ttyS0`).
    #[default]
    Serial,
    /// A virtio console (`hvc0`): far cheaper for a guest that prints much.
    Virtio,
}

/// How the host caches a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum DiskCache {
    /// Through the host's page cache with worker threads: every write to guest RAM is tracked.
    #[default]
    Writeback,
    /// O_DIRECT with native AIO: data may land in guest RAM after the scan that reported its page.
    None,
}

/// One disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct DiskDefinition {
    /// Image file or block device, reachable under this path on both hosts.
    pub path: PathBuf,
    /// `raw` or `qcow2`.
    #[serde(default = "raw")]
    pub format: String,
    /// How the host caches it.
    #[serde(default)]
    pub cache: DiskCache,
    /// I/O operations a second at most; `None` for no limit.
    #[serde(default)]
    pub iops_max: Option<u32>,
}

fn raw() -> String {
    "raw".into()
}

/// One network card.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct NetworkDefinition {
    /// Name of an existing tap device, the same on both hosts.
    pub tap: String,
    /// MAC address; must be given, as it moves with the guest.
    pub mac: String,
}

/// A guest, as its operator defines it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct GuestDefinition {
    /// Name, unique on a host.
    #[cfg_attr(feature = "schema", schemars(regex(pattern = NAME_PATTERN)))]
    pub name: String,
    /// Number of virtual CPUs.
    #[serde(default = "one")]
    #[cfg_attr(feature = "schema", schemars(range(min = 1)))]
    pub vcpus: u32,
    /// RAM in bytes.
    #[cfg_attr(feature = "schema", schemars(range(min = MEMORY_BYTES_MIN)))]
    #[cfg_attr(feature = "schema", schemars(extend("multipleOf" = 1 << 20)))]
    pub memory_bytes: u64,
    /// Whether RAM is made of 2 MiB huge pages from the host's pool.
    #[serde(default)]
    pub huge_pages: bool,
    /// QEMU machine type; a versioned one is chosen when the guest first starts.
    #[serde(default)]
    pub machine: Option<String>,
    /// QEMU CPU model; `None` for the accelerator's most portable default.
    #[serde(default)]
    pub cpu: Option<String>,
    /// How guest code is executed.
    #[serde(default)]
    pub accelerator: Accelerator,
    /// Kernel to boot directly.
    #[serde(default)]
    pub kernel: Option<PathBuf>,
    /// Initial RAM disk for `kernel`.
    #[serde(default)]
    pub initrd: Option<PathBuf>,
    /// Command line for `kernel`.
    #[serde(default)]
    pub append: Option<String>,
    /// Which device the console is.
    #[serde(default)]
    pub console: ConsoleKind,
    /// Disks in order.
    #[serde(default)]
    pub disks: Vec<DiskDefinition>,
    /// Network cards in order.
    #[serde(default)]
    pub networks: Vec<NetworkDefinition>,
    /// Whether it has a balloon, by which it gives back pages that it does not use: they cost no
    /// memory and are not sent. `None` in a new guest's definition means yes, unless it is
    /// of huge pages or has a balloon among `qemu_args`; in that of a guest that runs, no.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub balloon: Option<bool>,
    /// Whether the guest's kernel takes memory back from its balloon by itself before it ends a
    /// program for want of it. `None` in a new guest's definition means yes; in that of a guest that
    /// runs, no. Nothing without a balloon.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub balloon_yields: Option<bool>,
    /// Whose the guest is, in a word of the operator's: only guests of one group may have their pages
    /// compared with each other's, to spare what the destination has already. None: with nobody's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(regex(pattern = NAME_PATTERN)))]
    pub group: Option<String>,
    /// Further QEMU arguments, given as they are. May make the guest immovable.
    #[serde(default)]
    pub qemu_args: Vec<String>,
}

/// What an operator wants of what each start of a guest chooses; `None` leaves it to the start. A guest that runs has a
/// definition in which all is chosen; this is what it is started anew by.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wishes {
    /// As [`GuestDefinition::machine`].
    #[serde(default)]
    pub machine: Option<String>,
    /// As [`GuestDefinition::cpu`].
    #[serde(default)]
    pub cpu: Option<String>,
    /// As [`GuestDefinition::accelerator`].
    #[serde(default)]
    pub accelerator: Accelerator,
    /// As [`GuestDefinition::balloon`].
    #[serde(default)]
    pub balloon: Option<bool>,
    /// As [`GuestDefinition::balloon_yields`].
    #[serde(default)]
    pub balloon_yields: Option<bool>,
}

fn is_name(text: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let begins = text.starts_with(|c: char| c.is_ascii_alphanumeric());
    begins && text.len() <= NAME_LENGTH_MAX && text.chars().all(fits)
}

fn one() -> u32 {
    1
}

impl GuestDefinition {
    /// Whether a guest of this resolved definition has a balloon.
    #[must_use]
    pub fn has_balloon(&self) -> bool {
        self.balloon == Some(true)
    }

    /// What it says of what each start chooses.
    #[must_use]
    pub fn wishes(&self) -> Wishes {
        Wishes {
            machine: self.machine.clone(),
            cpu: self.cpu.clone(),
            accelerator: self.accelerator,
            balloon: self.balloon,
            balloon_yields: self.balloon_yields,
        }
    }

    /// The same guest, with other wishes.
    #[must_use]
    pub fn with_wishes(&self, wishes: &Wishes) -> Self {
        let Wishes { machine, cpu, accelerator, balloon, balloon_yields } = wishes.clone();
        Self { machine, cpu, accelerator, balloon, balloon_yields, ..self.clone() }
    }

    /// Checks everything that can be checked without a host.
    ///
    /// # Errors
    /// With the first field that is wrong.
    pub fn validate(&self) -> Result<(), DefinitionError> {
        if !is_name(&self.name) {
            return Err(DefinitionError::Name(self.name.clone()));
        }
        if let Some(group) = self.group.as_ref().filter(|group| !is_name(group)) {
            return Err(DefinitionError::Group(group.clone()));
        }
        if self.memory_bytes < MEMORY_BYTES_MIN || !self.memory_bytes.is_multiple_of(1 << 20) {
            return Err(DefinitionError::Memory(self.memory_bytes));
        }
        if self.huge_pages && !self.memory_bytes.is_multiple_of(HUGE_PAGE_BYTES) {
            return Err(DefinitionError::HugePages(self.memory_bytes));
        }
        if self.huge_pages && self.has_balloon() {
            return Err(DefinitionError::BalloonOfHugePages);
        }
        if self.vcpus == 0 {
            return Err(DefinitionError::Vcpus(self.vcpus));
        }
        self.validate_texts()
    }

    fn validate_texts(&self) -> Result<(), DefinitionError> {
        let mut texts: Vec<(&'static str, String)> = Vec::new();
        let display = |path: &PathBuf| path.to_string_lossy().into_owned();
        texts.extend(self.machine.iter().map(|m| ("machine", m.clone())));
        for disk in &self.disks {
            texts.push(("disk path", display(&disk.path)));
            texts.push(("disk format", disk.format.clone()));
        }
        for network in &self.networks {
            texts.push(("tap", network.tap.clone()));
            texts.push(("mac", network.mac.clone()));
        }
        let unsafe_text = |t: &String| t.chars().any(|c| c == ',' || c.is_control());
        match texts.into_iter().find(|(_, t)| unsafe_text(t)) {
            Some((field, value)) => Err(DefinitionError::Unsafe { field, value }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definition() -> GuestDefinition {
        serde_json::from_str(r#"{"name":"web-1","memory_bytes":1073741824}"#).unwrap()
    }

    #[test]
    fn a_name_and_memory_are_enough() {
        let guest = definition();
        assert_eq!(guest.validate(), Ok(()));
        assert_eq!(guest.vcpus, 1);
    }

    #[test]
    fn a_name_that_leaves_its_folder_is_refused() {
        for name in ["", "..", "../x", "a/b", "a b", "-x", &"x".repeat(65)] {
            let guest = GuestDefinition { name: name.into(), ..definition() };
            assert!(matches!(guest.validate(), Err(DefinitionError::Name(_))), "{name:?}");
        }
    }

    #[test]
    fn a_group_is_a_word_like_a_name() {
        let of = |group: &str| GuestDefinition { group: Some(group.into()), ..definition() };
        assert_eq!(of("tenant-a").validate(), Ok(()));
        for group in ["", "a b", "../a", &"x".repeat(65)] {
            assert!(matches!(of(group).validate(), Err(DefinitionError::Group(_))), "{group:?}");
        }
    }

    #[test]
    fn a_guest_of_huge_pages_has_a_whole_number_of_them() {
        let odd = GuestDefinition { memory_bytes: 33 << 20, ..definition() };
        assert_eq!(odd.validate(), Ok(()));
        let guest = GuestDefinition { huge_pages: true, ..odd };
        assert_eq!(guest.validate(), Err(DefinitionError::HugePages(33 << 20)));
    }

    #[test]
    fn a_guest_of_huge_pages_has_no_balloon() {
        let huge = GuestDefinition { huge_pages: true, ..definition() };
        assert_eq!(huge.validate(), Ok(()));
        let guest = GuestDefinition { balloon: Some(true), ..huge };
        assert_eq!(guest.validate(), Err(DefinitionError::BalloonOfHugePages));
    }

    #[test]
    fn a_guest_from_before_there_were_balloons_is_told_of_in_the_words_of_then() {
        let text = serde_json::to_string(&definition()).unwrap();
        assert!(!text.contains("balloon"), "{text}");
    }

    #[test]
    fn a_path_cannot_carry_further_options() {
        let path = PathBuf::from("/images/a,readonly=off");
        let disk = DiskDefinition { path, format: raw(), cache: DiskCache::None, iops_max: None };
        let guest = GuestDefinition { disks: vec![disk], ..definition() };
        assert!(matches!(guest.validate(), Err(DefinitionError::Unsafe { .. })));
    }

    #[test]
    fn an_unknown_field_is_an_error_not_a_surprise() {
        let text = r#"{"name":"a","memory_bytes":16777216,"memroy":1}"#;
        assert!(serde_json::from_str::<GuestDefinition>(text).is_err());
    }
}
