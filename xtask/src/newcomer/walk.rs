//! The path itself, and what is looked for at its end.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::readme::{Commands, Place};
use super::tree::Tree;
use crate::machine::{self, Machine, word};

/// No KVM in the machines: under nesting it sometimes takes them down. So their guests are emulated twice.
const PROCESSOR: &str = "max,-svm,-la57";
const MEMORY: &str = "1536M";
const KERNEL_WORDS: &str = "root=/dev/vda rw console=ttyS0 quiet mitigations=off tsc=reliable";

/// How long a command may take: installing a hypervisor on an emulated machine takes minutes.
const LIMIT: Duration = Duration::from_secs(900);

/// What README's guest says once it waits for somebody to type.
const PROMPT: &str = "(initramfs)";

/// What begins the command that an invitation says.
const JOIN: &str = "sterna host join ";

/// Bytes of the disk with the package.
const PACKAGE_DISK_BYTES: u64 = 256 << 20;

struct Hosts {
    a: Machine,
    b: Machine,
}

impl Hosts {
    fn boot(folder: &Path, tree: &Tree, package: &Path) -> Result<Self> {
        let stage = tempfile::tempdir()?;
        let name = package.file_name().context("the package has a name")?;
        fs::copy(package, stage.path().join(name))?;
        let disk = folder.join("package.ext4");
        machine::make_disk(stage.path(), &disk, PACKAGE_DISK_BYTES)?;
        let link = stage.path().join("link");
        let link = word(&link)?;
        let boot = |name: &str, address: &str, end: &str| -> Result<Machine> {
            let end = format!("stream,id=link,addr.type=unix,addr.path={link},server={end}");
            let console = folder.join(format!("console-{name}.log"));
            let mut machine = Machine::start(qemu(tree, &disk, &end, name)?, &console)?;
            let setup = format!(
                "udevadm settle; hostname {name}; echo {name} > /etc/hostname; \
                 card=$(ls /sys/class/net | grep -v lo); ip address add {address}/24 dev $card; \
                 ip link set $card up; mkdir /root/package; mount -o ro /dev/vdb /root/package"
            );
            machine.must(&setup, LIMIT)?;
            Ok(machine)
        };
        Ok(Self { a: boot("a", "192.0.2.1", "on")?, b: boot("b", "192.0.2.2", "off")? })
    }

    fn at(&mut self, place: Place) -> &mut Machine {
        match place {
            Place::A => &mut self.a,
            Place::B => &mut self.b,
        }
    }
}

/// Types all of it, and looks.
///
/// # Errors
/// At the first command that fails, and when the guest is not where it should be.
pub(super) fn walk(folder: &Path, tree: &Tree, package: &Path, commands: &Commands) -> Result<()> {
    println!("── booting two machines");
    let mut hosts = Hosts::boot(folder, tree, package)?;
    let mut invitation = None;
    for typed in &commands.0 {
        for place in &typed.places {
            // README has a code that was valid once.
            let joins = typed.command.starts_with(JOIN);
            let command = invitation.clone().filter(|_| joins);
            let command = command.unwrap_or_else(|| typed.command.clone());
            let said = type_one(&mut hosts, *place, &command)?;
            let join = said.lines().find_map(|line| line.find(JOIN).map(|at| line[at..].trim()));
            invitation = join.map(str::to_owned).or(invitation);
        }
    }
    ensure!(invitation.is_some(), "nobody was invited");
    ensure!(guests(&mut hosts.a)?.is_empty(), "a still has a guest");
    runs_alone(&mut hosts.b)?;
    outlives_its_agent(&mut hosts.b)
}

/// Types a command, and sees that it has done what it is for. Returns what it said.
fn type_one(hosts: &mut Hosts, place: Place, command: &str) -> Result<String> {
    println!("{}# {command}", if place == Place::A { "a" } else { "b" });
    let began = Instant::now();
    let machine = hosts.at(place);
    let said = match command.starts_with("sterna vm console ") {
        true => look_at_console(machine, command)?,
        false => machine.must(&format!("cd /root/package && {command}"), LIMIT)?,
    };
    let lines: Vec<&str> = said.trim().lines().collect();
    lines[lines.len().saturating_sub(12)..].iter().for_each(|line| println!("   {line}"));
    println!("   ({:.0?})", began.elapsed());
    if command.starts_with("sterna migrate ") {
        ensure!(said.contains("equal on both hosts"), "RAM was not compared");
    }
    if command.starts_with("sterna vm start ") {
        wait_for_prompt(machine)?;
    }
    Ok(said)
}

/// The guest runs on while its agent is restarted, and when that is removed.
fn outlives_its_agent(machine: &mut Machine) -> Result<()> {
    machine.must("systemctl is-active sterna", LIMIT)?;
    let pid = hypervisor(machine)?;
    for change in ["systemctl restart sterna", "apt remove sterna"] {
        println!("b# {change}");
        machine.must(change, LIMIT)?;
        ensure!(hypervisor(machine)? == pid, "the guest has not outlived `{change}`");
        if change.contains("restart") {
            runs_alone(machine)?;
        }
    }
    println!("ok: the guest runs on b, through a restart of its agent and without one");
    Ok(())
}

/// Types a word on the console, in the guest's shell.
fn look_at_console(machine: &mut Machine, command: &str) -> Result<String> {
    let typing = "sleep 5; echo; echo 'echo alive $((6 * 7))'; sleep 30";
    let said = machine.must(&format!("({typing}) | timeout 60 {command} || true"), LIMIT)?;
    ensure!(said.contains("alive 42"), "the guest does not answer on its console: {said}");
    Ok(said)
}

/// Waits until the guest has booted. A newcomer would look at its console.
fn wait_for_prompt(machine: &mut Machine) -> Result<()> {
    let deadline = Instant::now() + LIMIT;
    while Instant::now() < deadline {
        let look = "(sleep 1; echo; sleep 9) | timeout 20 sterna vm console first || true";
        if machine.must(look, LIMIT)?.contains(PROMPT) {
            return Ok(());
        }
    }
    bail!("the guest did not boot within {LIMIT:?}")
}

fn guests(machine: &mut Machine) -> Result<Vec<Value>> {
    let listed = machine.must("sterna vm list --output json", LIMIT)?;
    serde_json::from_str(listed.trim()).with_context(|| format!("a list of guests: {listed}"))
}

fn runs_alone(machine: &mut Machine) -> Result<()> {
    let guests = guests(machine)?;
    let runs = matches!(&guests[..], [guest] if guest["state"] == "running");
    ensure!(runs, "one guest should run: {guests:?}");
    Ok(())
}

/// Process id of the one hypervisor.
fn hypervisor(machine: &mut Machine) -> Result<u32> {
    let found = machine.must("pidof qemu-system-x86_64", LIMIT)?;
    found.trim().parse().with_context(|| format!("one hypervisor: {found}"))
}

fn qemu(tree: &Tree, package: &Path, link: &str, name: &str) -> Result<Command> {
    let mut command = Command::new("qemu-system-x86_64");
    command.args(["-nodefaults", "-no-user-config", "-display", "none", "-vga", "none"]);
    command.args(["-no-reboot", "-M", "q35", "-cpu", PROCESSOR, "-smp", "1", "-m", MEMORY]);
    command.args(["-accel", "tcg,thread=multi,tb-size=512", "-device", "virtio-rng-pci"]);
    command.arg("-kernel").arg(&tree.kernel).arg("-initrd").arg(&tree.initramfs);
    command.args(["-append", KERNEL_WORDS]);
    for (disk, more) in [(tree.disk.as_path(), "snapshot=on"), (package, "readonly=on")] {
        command.arg("-drive").arg(format!("file={},format=raw,if=virtio,{more}", word(disk)?));
    }
    let last = if name == "a" { 1 } else { 2 };
    command.args(["-netdev", link, "-device"]);
    command.arg(format!("virtio-net-pci,netdev=link,mac=52:54:00:00:00:0{last}"));
    Ok(command)
}
