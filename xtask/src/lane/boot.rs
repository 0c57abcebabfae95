//! The lane's machine: a host with a KVM of its own, which sees the workspace.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use super::image::Image;
use crate::machine::{Machine, word};
use crate::paths;

/// SVM with nested paging is what KVM in it needs. Five-level paging, which this processor would
/// have as well, is left out: under nesting it has not been seen to work.
const PROCESSOR: &str = "max,+svm,+npt,-la57";

/// RAM of the machine: two guests of 512 MiB of huge pages each, and room for all else.
const MEMORY: &str = "6G";

/// No time is spent on mitigations, the emulator's clock is trusted, and a panic ends the machine.
const KERNEL_WORDS: &str = "console=ttyS0 quiet mitigations=off nokaslr panic=-1 tsc=reliable";

/// How long mounting a folder may take.
const MOUNT_LIMIT: Duration = Duration::from_secs(300);

/// Starts the machine and waits until it answers. It sees the workspace, and build results that
/// lie elsewhere, at the paths they have here.
///
/// # Errors
/// If it ends or does not answer in time, with the end of what its kernel said.
pub(super) fn boot(image: &Image) -> Result<Machine> {
    let shared = shared_folders();
    let mut machine = Machine::start(qemu(image, &shared)?, &image.folder.join("console.log"))?;
    for (number, path) in shared.iter().enumerate() {
        let options = "trans=virtio,version=9p2000.L,msize=512000,ro,cache=loose";
        let path = path.display();
        let mount = format!("mkdir -p '{path}' && mount -t 9p -o {options} share{number} '{path}'");
        machine.must(&mount, MOUNT_LIMIT)?;
    }
    Ok(machine)
}

/// The workspace, and the folder of build results if it lies elsewhere.
fn shared_folders() -> Vec<PathBuf> {
    let (workspace, target) = (paths::workspace(), paths::target());
    let inside = target.starts_with(&workspace);
    std::iter::once(workspace).chain((!inside).then_some(target)).collect()
}

fn qemu(image: &Image, shared: &[PathBuf]) -> Result<Command> {
    let mut command = Command::new("qemu-system-x86_64");
    command.args(["-nodefaults", "-no-user-config", "-display", "none", "-vga", "none"]);
    command.args(["-no-reboot", "-M", "q35", "-cpu", PROCESSOR, "-smp", "2", "-m", MEMORY]);
    command.args(["-accel", "tcg,thread=multi,tb-size=512"]);
    command.arg("-kernel").arg(&image.kernel).arg("-initrd").arg(&image.initramfs);
    command.args(["-append", KERNEL_WORDS, "-device", "virtio-rng-pci"]);
    let disk = word(&image.disk)?;
    command.args(["-drive", &format!("file={disk},format=raw,if=virtio,snapshot=on")]);
    for (number, path) in shared.iter().enumerate() {
        let share = format!("path={},mount_tag=share{number}", word(path)?);
        command.args(["-virtfs", &format!("local,{share},security_model=none,readonly=on")]);
    }
    Ok(command)
}
