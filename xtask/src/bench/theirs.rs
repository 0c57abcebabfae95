//! A move by QEMU itself: the yardstick.

use std::path::Path;
use std::process::Stdio;
use std::time::Instant;

use anyhow::Result;
use serde_json::json;
use sterna_testkit::image::GuestImage;
use sterna_testkit::net::{Host, LinkRate, Topology};
use sterna_testkit::probe::{ConsoleLog, Window};

use super::measure::{Run, Watcher};
use super::monitor::{Channels, Qemu, connect};
use super::scenario::Scenario;

const TAP: &str = "tap-guest";

/// Boots a guest, lets QEMU migrate it once, and says what was seen.
pub(crate) fn run(scenario: &Scenario, rate: LinkRate, channels: Channels) -> Result<Run> {
    let folder = tempfile::tempdir()?;
    let topology = Topology::new("sterna-bt", rate)?;
    topology.tap(Host::A, TAP)?;
    topology.tap(Host::B, TAP)?;
    let console = ConsoleLog::new();
    let mut source = start(&topology, Host::A, scenario, folder.path(), &console)?;
    let mut destination = start(&topology, Host::B, scenario, folder.path(), &console)?;
    let (watcher, baseline) = Watcher::start(console, &topology)?;
    for qemu in [&mut source, &mut destination] {
        qemu.prepare(channels)?;
    }
    let uri = format!("tcp:{}:7501", Host::B.migration_address());
    destination.ask("migrate-incoming", &json!({ "uri": uri }))?;
    let wire_before = topology.link_bytes(Host::A)?.sent.0;
    let begin = Instant::now();
    source.ask("migrate", &json!({ "uri": uri }))?;
    let ended = source.await_end(begin)?;
    let window = Window::new(begin, Instant::now());
    let wire = topology.link_bytes(Host::A)?.sent.0 - wire_before;
    let number = |name: &str| ended[name].as_f64();
    let moved = ended["status"] == "completed";
    let mut run = Run {
        moved,
        total_ms: number("total-time").filter(|_| moved),
        downtime_ms: number("downtime").filter(|_| moved),
        wire_bytes: Some(f64::from(u32::try_from(wire / 1024)?) * 1024.0),
        ..Run::default()
    };
    watcher.finish(baseline, window, &mut run)?;
    Ok(run)
}

/// Starts a guest as an operator without Sterna would.
fn start(
    topology: &Topology,
    host: Host,
    scenario: &Scenario,
    folder: &Path,
    console: &ConsoleLog,
) -> Result<Qemu> {
    let image = GuestImage::find()?;
    let socket = |name: &str| folder.join(format!("{}.{name}", host.name()));
    let mut command = topology.command_in(host, "qemu-system-x86_64")?;
    let memory = (scenario.memory.0 >> 20).to_string();
    let console_socket = format!("socket,id=c,path={},server=on", socket("con").display());
    let monitor = format!("unix:{},server=on,wait=off", socket("qmp").display());
    let network = format!("tap,id=n,ifname={TAP},script=no,downscript=no");
    command
        .args(["-M", "q35", "-accel", "tcg", "-cpu", "max", "-smp", "1", "-m", &memory])
        .args(["-nodefaults", "-display", "none", "-vga", "none"])
        .arg("-kernel")
        .arg(&image.kernel)
        .arg("-initrd")
        .arg(&image.initramfs)
        .args(["-append", &scenario.workload.command_line()?])
        .args(["-chardev", &console_socket, "-qmp", &monitor])
        .args(["-device", "virtio-serial-pci,ioeventfd=off", "-device", "virtconsole,chardev=c"])
        .args(["-netdev", &network])
        .args(["-device", "virtio-net-pci,netdev=n,mac=52:54:00:78:00:10"])
        .stdin(Stdio::null());
    if host == Host::B {
        command.args(["-incoming", "defer"]);
    }
    let child = command.spawn()?;
    console.attach(connect(&socket("con"))?);
    Qemu::new(child, &socket("qmp"))
}
