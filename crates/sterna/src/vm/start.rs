//! `sterna vm start`

use crate::cli::Global;
use crate::exit::Exit;
use crate::units::parse_size;
use anyhow::{Context as _, bail};
use clap::ValueEnum;
use std::path::{Path, PathBuf};
use sterna_api::{GuestView, StartGuest, paths};
use sterna_proto::message::GuestId;
use sterna_vmm::{
    Accelerator, ConsoleKind, DiskCache, DiskDefinition, GuestDefinition, NetworkDefinition,
};
use uuid::Uuid;

/// Options of `sterna vm start`.
#[derive(Debug, clap::Args)]
pub(crate) struct StartArgs {
    /// File that describes the guest, in TOML; "-" for standard input
    #[arg(required_unless_present = "name", conflicts_with = "name")]
    file: Option<PathBuf>,
    /// Identity for the guest, so that asking again starts one; drawn if not given
    #[arg(long, value_name = "UUID")]
    id: Option<Uuid>,
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

/// Starts a guest.
pub(crate) async fn run(args: StartArgs, global: &Global) -> anyhow::Result<Exit> {
    let id = GuestId(args.id.unwrap_or_else(Uuid::new_v4));
    let definition = match &args.file {
        Some(file) => from_file(file)?,
        None => from_options(args)?,
    };
    definition.validate()?;
    let request = StartGuest { id, definition };
    let view: GuestView = global.connection.client()?.post(paths::GUESTS, &request).await?;
    super::print(&view, global.output)
}

fn from_file(file: &Path) -> anyhow::Result<GuestDefinition> {
    let text = match file.to_str() {
        Some("-") => std::io::read_to_string(std::io::stdin()),
        _ => std::fs::read_to_string(file),
    };
    let text = text.with_context(|| format!("cannot read {}", file.display()))?;
    from_toml(&text).with_context(|| format!("{} describes no guest", file.display()))
}

/// A definition in TOML, in which `memory = "2GiB"` may stand for `memory_bytes`.
fn from_toml(text: &str) -> anyhow::Result<GuestDefinition> {
    let mut table: toml::Table = text.parse()?;
    if let Some(memory) = table.remove("memory") {
        if table.contains_key("memory_bytes") {
            bail!("both memory and memory_bytes are given");
        }
        let Some(memory) = memory.as_str() else { bail!("memory is not a text such as \"2GiB\"") };
        let bytes = parse_size(memory).map_err(anyhow::Error::msg)?;
        table.insert("memory_bytes".into(), toml::Value::Integer(i64::try_from(bytes)?));
    }
    Ok(table.try_into()?)
}

fn from_options(args: StartArgs) -> anyhow::Result<GuestDefinition> {
    let (Some(name), Some(memory_bytes)) = (args.name, args.memory) else {
        bail!("a guest needs a name and memory");
    };
    let disks: anyhow::Result<Vec<_>> = args.disks.iter().map(|text| disk(text)).collect();
    Ok(GuestDefinition {
        name,
        vcpus: args.vcpus,
        memory_bytes,
        huge_pages: args.huge_pages,
        machine: args.machine,
        cpu: args.cpu,
        accelerator: match args.accelerator {
            AcceleratorArg::Auto => Accelerator::Auto,
            AcceleratorArg::Kvm => Accelerator::Kvm,
            AcceleratorArg::KvmUnproven => Accelerator::KvmUnproven,
            AcceleratorArg::Tcg => Accelerator::Tcg,
        },
        kernel: absolute(args.kernel)?,
        initrd: absolute(args.initrd)?,
        append: args.append,
        console: match args.console {
            ConsoleArg::Serial => ConsoleKind::Serial,
            ConsoleArg::Virtio => ConsoleKind::Virtio,
        },
        disks: disks?,
        networks: args.networks,
        balloon: args.no_balloon.then_some(false),
        balloon_yields: None,
        group: args.group,
        qemu_args: args.qemu_args,
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_may_be_written_with_a_unit() {
        let definition = from_toml("name = \"a\"\nmemory = \"2GiB\"\nvcpus = 2").unwrap();
        assert_eq!((definition.memory_bytes, definition.vcpus), (2 << 30, 2));
        assert!(from_toml("name = \"a\"\nmemory = \"2GiB\"\nmemory_bytes = 1").is_err());
        assert!(from_toml("name = \"a\"\nmemory = \"2GiB\"\nmemroy = 1").is_err());
    }

    #[test]
    fn a_disk_is_raw_unless_it_says_otherwise() {
        assert_eq!(disk("/x/a.img").unwrap().format, "raw");
        let disk = disk("/x/a.qcow2:qcow2").unwrap();
        assert_eq!((disk.path, disk.format.as_str()), ("/x/a.qcow2".into(), "qcow2"));
    }
}
