//! A move by QEMU itself: the yardstick.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use sterna_testkit::image::GuestImage;
use sterna_testkit::net::{Host, LinkRate, Topology};
use sterna_testkit::probe::{ConsoleLog, Window};

use super::measure::{Run, Watcher};
use super::scenario::Scenario;

const TAP: &str = "tap-guest";
/// After this time a migration that has not ended is given up: it never will.
const GIVE_UP: Duration = Duration::from_secs(60);
/// How long QEMU may take to open a socket.
const START_LIMIT: Duration = Duration::from_secs(30);

/// Connections of a migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Channels {
    /// QEMU's default.
    One,
    /// Multifd with two.
    Two,
}

/// A QEMU with its monitor; killed on drop.
struct Qemu {
    child: Child,
    monitor: BufReader<UnixStream>,
}

/// Boots a guest, lets QEMU migrate it once, and says what was seen.
pub(crate) fn run(scenario: &Scenario, rate: LinkRate, channels: Channels) -> Result<Run> {
    let folder = tempfile::tempdir()?;
    let topology = Topology::new("sterna-bt", rate)?;
    topology.tap(Host::A, TAP)?;
    topology.tap(Host::B, TAP)?;
    let console = ConsoleLog::new();
    let mut source = Qemu::start(&topology, Host::A, scenario, folder.path(), &console)?;
    let mut destination = Qemu::start(&topology, Host::B, scenario, folder.path(), &console)?;
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

impl Qemu {
    fn start(
        topology: &Topology,
        host: Host,
        scenario: &Scenario,
        folder: &Path,
        console: &ConsoleLog,
    ) -> Result<Self> {
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
            .args([
                "-device",
                "virtio-serial-pci,ioeventfd=off",
                "-device",
                "virtconsole,chardev=c",
            ])
            .args(["-netdev", &network])
            .args(["-device", "virtio-net-pci,netdev=n,mac=52:54:00:78:00:10"])
            .stdin(Stdio::null());
        if host == Host::B {
            command.args(["-incoming", "defer"]);
        }
        let child = command.spawn()?;
        console.attach(connect(&socket("con"))?);
        let monitor = BufReader::new(connect(&socket("qmp"))?);
        let mut this = Self { child, monitor };
        this.read()?;
        this.ask("qmp_capabilities", &json!({}))?;
        Ok(this)
    }

    /// Lifts QEMU's cap on bandwidth, which would lose the comparison for a reason not its own.
    fn prepare(&mut self, channels: Channels) -> Result<()> {
        self.ask("migrate-set-parameters", &json!({ "max-bandwidth": 0 }))?;
        if channels == Channels::Two {
            let capability = json!({ "capability": "multifd", "state": true });
            self.ask("migrate-set-capabilities", &json!({ "capabilities": [capability] }))?;
            self.ask("migrate-set-parameters", &json!({ "multifd-channels": 2 }))?;
        }
        Ok(())
    }

    fn await_end(&mut self, begin: Instant) -> Result<Value> {
        loop {
            let state = self.ask("query-migrate", &json!({}))?;
            match state["status"].as_str() {
                Some("completed") => return Ok(state),
                Some("failed" | "cancelled") => bail!("QEMU's migration failed: {state}"),
                _ if begin.elapsed() > GIVE_UP => {
                    self.ask("migrate_cancel", &json!({}))?;
                    return Ok(json!({ "status": "given up" }));
                }
                _ => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    fn ask(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        let line = json!({ "execute": command, "arguments": arguments });
        writeln!(self.monitor.get_mut(), "{line}")?;
        loop {
            let mut answer = self.read()?;
            if let Some(error) = answer.get("error") {
                bail!("QEMU refuses {command}: {error}");
            }
            if answer.get("return").is_some() {
                return Ok(answer["return"].take());
            }
        }
    }

    fn read(&mut self) -> Result<Value> {
        let mut line = String::new();
        self.monitor.read_line(&mut line)?;
        serde_json::from_str(&line).context("QEMU's monitor is gone")
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        // Ended already is as good.
        let _killed = self.child.kill();
        let _status = self.child.wait();
    }
}

fn connect(socket: &Path) -> Result<UnixStream> {
    let deadline = Instant::now() + START_LIMIT;
    loop {
        match UnixStream::connect(socket) {
            Ok(stream) => return Ok(stream),
            Err(error) if Instant::now() > deadline => return Err(error.into()),
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}
