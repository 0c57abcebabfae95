//! A move by QEMU itself: the yardstick.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::json;
use sterna_testkit::image::GuestImage;
use sterna_testkit::net::{Host, LinkRate, Topology};
use sterna_testkit::probe::{ConsoleLog, Window};

use super::measure::{End, Run, Watcher};
use super::method::Kind;
use super::monitor::{COMPLETED, GIVEN_UP, Qemu, connect};
use super::scenario::Scenario;
use super::usage::as_float;

const TAP: &str = "tap-guest";

/// Boots a guest, lets QEMU migrate it once, and says what was seen.
///
/// QEMU's downtime is its source's own account; of a post-copy it ends when the device state has
/// been sent, before the destination has loaded it.
pub(crate) fn run(scenario: &Scenario, rate: LinkRate, kind: Kind, limit: Duration) -> Result<Run> {
    let folder = tempfile::tempdir()?;
    let topology = Topology::new("sterna-bt", rate)?;
    topology.tap(Host::A, TAP)?;
    topology.tap(Host::B, TAP)?;
    let console = ConsoleLog::new();
    let mut source = start(&topology, Host::A, scenario, folder.path(), &console)?;
    let mut destination = start(&topology, Host::B, scenario, folder.path(), &console)?;
    let (watcher, baseline) = Watcher::start(console, &topology, &scenario.workload)?;
    for qemu in [&mut source, &mut destination] {
        qemu.prepare(kind)?;
    }
    let uri = format!("tcp:{}:7501", Host::B.migration_address());
    destination.ask("migrate-incoming", &json!({ "uri": uri }))?;
    let wire_before = topology.link_bytes(Host::A)?.sent.0;
    let begin = Instant::now();
    source.ask("migrate", &json!({ "uri": uri }))?;
    let ended = source.await_end(kind, begin, limit)?;
    let window = Window::new(begin, Instant::now());
    let wire = topology.link_bytes(Host::A)?.sent.0 - wire_before;
    let state = &ended.state;
    let end = match state["status"].as_str() {
        Some(COMPLETED) => End::Moved,
        Some(GIVEN_UP) => End::GivenUp,
        _ => End::NotMoved(format!("{}: {}", state["status"], state["error-desc"])),
    };
    let number = |name: &str| state[name].as_f64().filter(|_| end == End::Moved);
    let mut run = Run {
        total_ms: number("total-time"),
        downtime_ms: number("downtime"),
        wire_bytes: Some(as_float(wire)),
        throttle_percent: Some(ended.throttle_percent),
        waited_pages: state["ram"]["postcopy-requests"].as_f64().filter(|_| kind.goes_first()),
        end,
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
    if let Some(disk) = &scenario.disk {
        let drive = format!("file={},if=virtio,format=raw,read-only=on", disk.display());
        command.args(["-drive", &drive]);
    }
    if host == Host::B {
        command.args(["-incoming", "defer"]);
    }
    let child = command.spawn()?;
    console.attach(connect(&socket("con"))?);
    Qemu::new(child, &socket("qmp"))
}
