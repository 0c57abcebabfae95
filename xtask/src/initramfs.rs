//! An initramfs: init script, busybox, further files and kernel modules as a compressed cpio archive.
//!
//! Modules are stored uncompressed and numbered in the order in which they must be loaded. The
//! order comes from the `depends=` entry that every module carries: the kernel package has no
//! `modules.dep`, which its install script would make.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use cpio::newc::{Builder, ModeFileType, trailer};
use flate2::Compression;
use flate2::write::GzEncoder;

/// Where the parts of an initramfs lie.
#[derive(Debug)]
pub(crate) struct Contents<'a> {
    /// The script that runs first.
    pub(crate) init: &'a Path,
    /// busybox, statically linked.
    pub(crate) busybox: &'a Path,
    /// What lies beside them, by name.
    pub(crate) files: &'a [(&'a str, &'a Path)],
    /// The kernel's modules that are needed.
    pub(crate) modules: &'a [&'a str],
    /// `lib/modules/<release>` of the kernel.
    pub(crate) modules_folder: &'a Path,
}

/// Builds the archive. The same parts give the same bytes.
///
/// # Errors
/// If a part is missing.
pub(crate) fn build(contents: &Contents<'_>) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for folder in ["bin", "dev", "modules", "proc", "sys"] {
        archive.folder(folder)?;
    }
    archive.file("init", &read(contents.init)?)?;
    for (name, file) in contents.files {
        archive.file(name, &read(file)?)?;
    }
    archive.file("bin/busybox", &read(contents.busybox)?)?;
    let modules = load_order(contents.modules, contents.modules_folder)?;
    for (place, module) in modules.iter().enumerate() {
        archive.file(&format!("modules/{place:02}-{}.ko", module.name), &module.bytes)?;
    }
    archive.compressed()
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// An uncompressed archive that grows entry by entry.
#[derive(Debug, Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn folder(&mut self, name: &str) -> Result<()> {
        self.entry(name, ModeFileType::Directory, &[])
    }

    fn file(&mut self, name: &str, content: &[u8]) -> Result<()> {
        self.entry(name, ModeFileType::Regular, content)
    }

    fn entry(&mut self, name: &str, kind: ModeFileType, content: &[u8]) -> Result<()> {
        self.entries += 1;
        let size = u32::try_from(content.len()).context("a file is too large for cpio")?;
        let builder =
            Builder::new(name).ino(self.entries).nlink(1).mode(0o755).set_mode_file_type(kind);
        let mut writer = builder.write(&mut self.bytes, size);
        writer.write_all(content)?;
        writer.finish()?;
        Ok(())
    }

    fn compressed(mut self) -> Result<Vec<u8>> {
        trailer(&mut self.bytes)?;
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(&self.bytes)?;
        Ok(encoder.finish()?)
    }
}

/// A kernel module, uncompressed.
#[derive(Debug, PartialEq, Eq)]
struct Module {
    name: String,
    bytes: Vec<u8>,
}

/// Returns the needed modules, each after those it depends on.
fn load_order(needed: &[&str], folder: &Path) -> Result<Vec<Module>> {
    let mut files = BTreeMap::new();
    collect_modules(&folder.join("kernel"), &mut files)?;
    let builtin = fs::read_to_string(folder.join("modules.builtin")).unwrap_or_default();
    let builtin: Vec<String> = builtin.lines().map(|line| module_name(Path::new(line))).collect();
    let mut ordered = Vec::new();
    for name in needed {
        if !builtin.iter().any(|known| known == name) {
            add_with_dependencies(name, &files, &mut ordered)?;
        }
    }
    Ok(ordered)
}

/// Adds a module behind its dependencies. The kernel's own build refuses circles, so this ends.
fn add_with_dependencies(
    name: &str,
    files: &BTreeMap<String, PathBuf>,
    ordered: &mut Vec<Module>,
) -> Result<()> {
    if ordered.iter().any(|module| module.name == name) {
        return Ok(());
    }
    let path = files.get(name).with_context(|| format!("the kernel has no module {name}"))?;
    let bytes = uncompressed(path)?;
    for needed in dependencies(&bytes) {
        add_with_dependencies(&needed, files, ordered)?;
    }
    ordered.push(Module { name: name.to_owned(), bytes });
    Ok(())
}

/// Finds all modules below a folder, by name.
fn collect_modules(folder: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            collect_modules(&path, files)?;
        } else {
            files.insert(module_name(&path), path);
        }
    }
    Ok(())
}

/// Returns a module's name: its file's, without endings, with `_` for `-` as the kernel has it.
fn module_name(path: &Path) -> String {
    let file = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
    file.split('.').next().unwrap_or_default().replace('-', "_")
}

/// Reads a module; newer releases compress them, and only some kernels can undo that.
fn uncompressed(path: &Path) -> Result<Vec<u8>> {
    if path.extension() != Some(OsStr::new("xz")) {
        return read(path);
    }
    let output = Command::new("xz").args(["--decompress", "--stdout"]).arg(path).output();
    let output = output.context("cannot start xz (package xz-utils)")?;
    ensure!(output.status.success(), "xz {}: {}", path.display(), output.status);
    Ok(output.stdout)
}

/// Returns the names in a module's `depends=` entry, a zero-terminated string of its file.
fn dependencies(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(place) = module.windows(KEY.len()).position(|window| window == KEY) else {
        return Vec::new();
    };
    let value = module[place + KEY.len()..].split(|&byte| byte == 0).next().unwrap_or_default();
    let names = String::from_utf8_lossy(value);
    let names = names.split(',').filter(|name| !name.is_empty());
    names.map(|name| name.replace('-', "_")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel_with(modules: &[(&str, &str)], builtin: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let drivers = folder.path().join("kernel/drivers");
        fs::create_dir_all(&drivers).unwrap();
        for (name, depends) in modules {
            let bytes = format!("ELF\0license=GPL\0depends={depends}\0name={name}\0");
            fs::write(drivers.join(format!("{name}.ko")), bytes).unwrap();
        }
        fs::write(folder.path().join("modules.builtin"), builtin).unwrap();
        folder
    }

    fn names(modules: &[Module]) -> Vec<&str> {
        modules.iter().map(|module| module.name.as_str()).collect()
    }

    #[test]
    fn every_module_follows_what_it_depends_on_and_comes_once() {
        let folder = kernel_with(
            &[
                ("virtio", ""),
                ("virtio_ring", "virtio"),
                ("virtio_pci", "virtio_ring,virtio"),
                ("net-failover", "failover"),
                ("failover", ""),
                ("virtio_net", "virtio_ring,net-failover"),
                ("virtio_console", "virtio"),
                ("virtio_balloon", ""),
            ],
            "kernel/drivers/block/virtio_blk.ko\n",
        );
        let needed = ["virtio_pci", "virtio_blk", "virtio_net", "virtio_console", "virtio_balloon"];
        let order = load_order(&needed, folder.path()).unwrap();
        assert_eq!(
            names(&order),
            [
                "virtio",
                "virtio_ring",
                "virtio_pci",
                "failover",
                "net_failover",
                "virtio_net",
                "virtio_console",
                "virtio_balloon"
            ]
        );
    }

    #[test]
    fn a_kernel_without_a_needed_driver_is_refused_by_name() {
        let folder = kernel_with(&[("virtio_pci", "")], "");
        let error = load_order(&["virtio_pci", "virtio_blk"], folder.path()).unwrap_err();
        assert!(error.to_string().contains("virtio_blk"), "{error}");
    }

    #[test]
    fn the_same_parts_give_the_same_bytes() {
        let build = || {
            let mut archive = Archive::default();
            archive.folder("bin").unwrap();
            archive.file("bin/busybox", b"content").unwrap();
            archive.compressed().unwrap()
        };
        assert_eq!(build(), build());
    }
}
