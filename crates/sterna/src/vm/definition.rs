//! Definitions of guests as people write them: in TOML, or in options.

use crate::units::parse_size;
use anyhow::{Context as _, bail};
use clap::ValueEnum;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use sterna_proto::message::GuestId;
use sterna_vmm::{
    Accelerator, ConsoleKind, DefinitionError, DiskCache, DiskDefinition, GuestDefinition,
    NetworkDefinition,
};
use toml::de::DeTable;
use uuid::Uuid;

/// A new guest, in a file or in options.
#[derive(Debug, clap::Args)]
pub(crate) struct DefinitionArgs {
    /// File that describes the guest, in TOML; "-" for standard input
    #[arg(required_unless_present = "name", conflicts_with = "name")]
    pub(super) file: Option<PathBuf>,
    /// Identity for the guest, so that asking again makes one; drawn if not given
    #[arg(long, value_name = "UUID")]
    pub(super) id: Option<Uuid>,
    /// Name of the guest
    #[arg(long, requires = "memory")]
    name: Option<String>,
    /// RAM, such as 2GiB
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    memory: Option<u64>,
    /// Number of virtual CPUs
    #[arg(long, value_name = "N", default_value_t = 1)]
    vcpus: u32,
    /// Make RAM of the host's 2 MiB huge pages
    #[arg(long)]
    huge_pages: bool,
    /// QEMU machine type
    #[arg(long)]
    machine: Option<String>,
    /// QEMU CPU model
    #[arg(long)]
    cpu: Option<String>,
    /// How guest code is executed
    #[arg(long, value_enum, default_value = "auto")]
    accelerator: AcceleratorArg,
    /// Kernel to boot directly
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// Initial RAM disk for the kernel
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// Command line for the kernel
    #[arg(long, value_name = "TEXT")]
    append: Option<String>,
    /// Which device the console is
    #[arg(long, value_enum, default_value = "serial")]
    console: ConsoleArg,
    /// Disk image with its format, raw unless given, such as disk.qcow2:qcow2; may be repeated
    #[arg(long = "disk", value_name = "FILE[:FORMAT]")]
    disks: Vec<String>,
    /// Network card on an existing tap device, such as tap0=52:54:00:12:34:56; may be repeated
    #[arg(long = "network", value_name = "TAP=MAC", value_parser = parse_network)]
    networks: Vec<NetworkDefinition>,
    /// Give the guest no balloon: memory that it has used once then counts as used for good
    #[arg(long)]
    no_balloon: bool,
    /// Whose the guest is: only guests of one group may have their pages compared with each other's,
    /// to send fewer of them
    #[arg(long, value_name = "NAME")]
    group: Option<String>,
    /// Further argument for QEMU, as it is; may be repeated
    #[arg(long = "qemu-arg", value_name = "ARG", allow_hyphen_values = true)]
    qemu_args: Vec<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum AcceleratorArg {
    Auto,
    Kvm,
    /// KVM even where it has not shown to run stock guests
    KvmUnproven,
    Tcg,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ConsoleArg {
    Serial,
    Virtio,
}

fn parse_network(text: &str) -> Result<NetworkDefinition, String> {
    let (tap, mac) = text.split_once('=').ok_or("expected TAP=MAC")?;
    Ok(NetworkDefinition { tap: tap.into(), mac: mac.into() })
}

impl DefinitionArgs {
    /// The guest that they describe, with its identity.
    pub(super) fn read(self) -> anyhow::Result<(GuestId, GuestDefinition)> {
        let id = GuestId(self.id.unwrap_or_else(Uuid::new_v4));
        let definition = match &self.file {
            Some(file) => from_file(file)?,
            None => self.described()?,
        };
        Ok((id, definition))
    }

    fn described(self) -> anyhow::Result<GuestDefinition> {
        let (Some(name), Some(memory_bytes)) = (self.name, self.memory) else {
            bail!("a guest needs a name and memory");
        };
        let disks: anyhow::Result<Vec<_>> = self.disks.iter().map(|text| disk(text)).collect();
        let definition = GuestDefinition {
            name,
            vcpus: self.vcpus,
            memory_bytes,
            huge_pages: self.huge_pages,
            machine: self.machine,
            cpu: self.cpu,
            accelerator: match self.accelerator {
                AcceleratorArg::Auto => Accelerator::Auto,
                AcceleratorArg::Kvm => Accelerator::Kvm,
                AcceleratorArg::KvmUnproven => Accelerator::KvmUnproven,
                AcceleratorArg::Tcg => Accelerator::Tcg,
            },
            kernel: absolute(self.kernel)?,
            initrd: absolute(self.initrd)?,
            append: self.append,
            console: match self.console {
                ConsoleArg::Serial => ConsoleKind::Serial,
                ConsoleArg::Virtio => ConsoleKind::Virtio,
            },
            disks: disks?,
            networks: self.networks,
            balloon: self.no_balloon.then_some(false),
            balloon_yields: None,
            group: self.group,
            qemu_args: self.qemu_args,
        };
        definition.validate()?;
        Ok(definition)
    }
}

/// The agent has a working folder of its own.
fn absolute(path: Option<PathBuf>) -> anyhow::Result<Option<PathBuf>> {
    Ok(path.map(std::path::absolute).transpose()?)
}

fn disk(text: &str) -> anyhow::Result<DiskDefinition> {
    let (path, format) = match text.rsplit_once(':') {
        Some((path, format)) if !format.contains('/') => (path, format),
        _ => (text, "raw"),
    };
    Ok(DiskDefinition {
        path: std::path::absolute(path)?,
        format: format.into(),
        cache: DiskCache::default(),
        iops_max: None,
    })
}

/// A file's definition; "-" is standard input.
pub(super) fn from_file(file: &Path) -> anyhow::Result<GuestDefinition> {
    let text = match file.to_str() {
        Some("-") => std::io::read_to_string(std::io::stdin()),
        _ => std::fs::read_to_string(file),
    };
    let text = text.with_context(|| format!("cannot read {}", file.display()))?;
    from_toml(&text).with_context(|| format!("{} describes no guest", file.display()))
}

/// A definition in TOML, in which `memory = "2GiB"` may stand for `memory_bytes`. What it is refused for is told with
/// line and column.
pub(super) fn from_toml(text: &str) -> anyhow::Result<GuestDefinition> {
    let table = DeTable::parse(text)?;
    let span = |name: &str| {
        let mut fields = table.get_ref().iter();
        fields.find(|(key, _)| key.get_ref() == name).map(|(_, value)| value.span())
    };
    let with_bytes = match memory(text, &table)? {
        Some((field, bytes)) => {
            // As many lines as before, so that places are right.
            let (before, after) = (&text[..field.start], &text[field.end..]);
            format!("{before}memory_bytes = {bytes}{after}")
        }
        None => text.to_owned(),
    };
    let definition: GuestDefinition = toml::from_str(&with_bytes)?;
    definition.validate().map_err(|error| {
        let found = fields_of(&error).iter().find_map(|name| span(name));
        Misplaced::new(text, found.unwrap_or(0..0), &error)
    })?;
    Ok(definition)
}

/// Where `memory` stands, key and value, and the bytes that it means.
fn memory(
    text: &str,
    table: &toml::Spanned<DeTable<'_>>,
) -> Result<Option<(Range<usize>, u64)>, Misplaced> {
    let find = |name: &str| table.get_ref().iter().find(|(key, _)| key.get_ref() == name);
    let Some((key, value)) = find("memory") else { return Ok(None) };
    let wrong = |what: &str| Misplaced::new(text, value.span(), what);
    if find("memory_bytes").is_some() {
        return Err(wrong("both memory and memory_bytes are given"));
    }
    let words = value.get_ref().as_str();
    let words = words.ok_or_else(|| wrong("memory is not a text such as \"2GiB\""))?;
    let bytes = parse_size(words).map_err(|error| wrong(&error))?;
    Ok(Some((key.span().start..value.span().end, bytes)))
}

/// The fields, one of which is what is wrong.
fn fields_of(error: &DefinitionError) -> &'static [&'static str] {
    match error {
        DefinitionError::Name(_) => &["name"],
        DefinitionError::Group(_) => &["group"],
        DefinitionError::Memory(_) | DefinitionError::HugePages(_) => &["memory", "memory_bytes"],
        DefinitionError::BalloonOfHugePages => &["balloon"],
        DefinitionError::Vcpus(_) => &["vcpus"],
        DefinitionError::Unsafe { field, .. } => match *field {
            "machine" => &["machine"],
            "tap" | "mac" => &["networks"],
            _ => &["disks"],
        },
    }
}

/// What is wrong in a text, and where.
#[derive(Debug, thiserror::Error)]
#[error("line {line}, column {column}: {what}")]
struct Misplaced {
    line: usize,
    column: usize,
    what: String,
}

impl Misplaced {
    fn new(text: &str, span: Range<usize>, what: impl fmt::Display) -> Self {
        let before = text.get(..span.start).unwrap_or_default();
        let line_start = before.rfind('\n').map_or(0, |end| end + 1);
        let line = before.matches('\n').count() + 1;
        let column = before[line_start..].chars().count() + 1;
        Self { line, column, what: what.to_string() }
    }
}

/// A definition as [`from_toml`] reads it, for people to edit.
pub(super) fn to_toml(definition: &GuestDefinition) -> anyhow::Result<String> {
    let bytes = definition.memory_bytes;
    let memory = match (bytes.is_multiple_of(1 << 30), bytes.is_multiple_of(1 << 20)) {
        (true, _) => format!("memory = \"{}GiB\"\n", bytes >> 30),
        (false, true) => format!("memory = \"{}MiB\"\n", bytes >> 20),
        (false, false) => format!("memory_bytes = {bytes}\n"),
    };
    let text = toml::to_string_pretty(definition)?;
    // Before it come a name and a number, so nothing else can look like it.
    Ok(text.replacen(&format!("memory_bytes = {bytes}\n"), &memory, 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_may_be_written_with_a_unit() {
        let definition = from_toml("name = \"a\"\nmemory = \"2GiB\"\nvcpus = 2").unwrap();
        assert_eq!((definition.memory_bytes, definition.vcpus), (2 << 30, 2));
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place() {
        for (text, place, what) in [
            ("name = \"a\"\nmemory = \"2GiB\"\nmemory_bytes = 1", "line 2, column 10", "both"),
            ("name = \"a\"\nmemory = 2", "line 2, column 10", "not a text"),
            ("name = \"a\"\nmemory = \"much\"", "line 2, column 10", ""),
            ("name = \"a\"\nmemory = \"1MiB\"", "line 2, column 10", "at least"),
            ("name = \"a\"\n\nmemory = \"2GiB\"\nmemroy = 1", "line 4, column 1", "memroy"),
            ("name = \"a\"\nmemory = \"2GiB\"\nvcpus = \"2\"", "line 3, column 9", "string"),
            ("name = \"a\"\nmemory = \"2GiB\"\nvcpus = 0", "line 3, column 9", "0 vCPUs"),
            ("vcpus = 1\nname = \"a b\"\nmemory = \"2GiB\"", "line 2, column 8", "guest name"),
            ("name = \"a\"\nmemory = \"2GiB\"\nvcpus =", "line 3, column 8", ""),
            ("name = \"a\"\nmemory_bytes = 5", "line 2, column 16", "at least"),
            ("name = \"a\"", "line 1, column 1", "memory_bytes"),
            (
                "name = \"a\"\nmemory = \"2GiB\"\n[[disks]]\npath = \"/a,b\"",
                "line 3, column 1",
                "comma",
            ),
        ] {
            let error = format!("{:#}", from_toml(text).unwrap_err());
            assert!(error.contains(place) && error.contains(what), "{text:?}: {error}");
        }
    }

    #[test]
    fn what_is_shown_for_editing_is_read_as_the_same() {
        let text = "name = \"a\"\nmemory = \"1536MiB\"\nappend = \"\"\"x\nmemory_bytes = 1610612736\n\"\"\"\n\
            disks = [{ path = \"/x\" }]\nqemu_args = [\"-s\"]\n[[networks]]\ntap = \"t\"\nmac = \"m\"\n";
        let definition = from_toml(text).unwrap();
        let shown = to_toml(&definition).unwrap();
        assert!(shown.contains("memory = \"1536MiB\"\n"), "{shown}");
        assert_eq!(from_toml(&shown).unwrap(), definition);
        let larger = GuestDefinition { memory_bytes: 2 << 30, ..definition };
        assert!(to_toml(&larger).unwrap().contains("memory = \"2GiB\"\n"));
        let odd = GuestDefinition { memory_bytes: 5, ..larger };
        assert!(to_toml(&odd).unwrap().contains("memory_bytes = 5\n"));
    }

    #[test]
    fn a_disk_is_raw_unless_it_says_otherwise() {
        assert_eq!(disk("/x/a.img").unwrap().format, "raw");
        let disk = disk("/x/a.qcow2:qcow2").unwrap();
        assert_eq!((disk.path, disk.format.as_str()), ("/x/a.qcow2".into(), "qcow2"));
    }
}
