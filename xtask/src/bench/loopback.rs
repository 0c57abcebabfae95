//! How fast memory moves when no link limits it: an idle gibibyte of random bytes over loopback.
//!
//! Ours is the engine with a synthetic guest, TLS and all; QEMU's is a paused machine whose RAM holds
//! as many random bytes, without TLS. Neither has a guest that competes for the processors.

use std::fs::File;
use std::io::{Read, copy};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::{Value, json};

use super::measure::{End, Run};
use super::method::Kind;
use super::monitor::{COMPLETED, Qemu};
use crate::cargo;

const MEBIBYTES: u64 = 1024;
/// Where guests keep RAM that is to be fast: memory that has a name.
const NAMED_MEMORY: &str = "/dev/shm";

/// Scenario and link, for the table.
pub(crate) const SCENARIO: &str = "1 GiB of random, synthetic, idle";
pub(crate) const LINK: &str = "loopback";

/// What the engine's bench prints.
#[derive(Debug, Deserialize)]
struct Printed {
    moved: bool,
    sound: bool,
    total_ms: f64,
    wire_bytes: f64,
}

/// Builds the engine's half; returns the program.
pub(crate) fn build() -> Result<PathBuf> {
    let words = ["build", "--release", "--package", "sterna-engine", "--bench", "loopback"];
    let output = cargo::cargo(&words)
        .args(["--message-format", "json"])
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo")?;
    ensure!(output.status.success(), "the engine's bench does not build");
    let artifacts = String::from_utf8(output.stdout)?;
    let mut programs = artifacts.lines().filter_map(|line| {
        let artifact: Value = serde_json::from_str(line).ok()?;
        artifact["executable"].as_str().map(PathBuf::from)
    });
    programs.next_back().context("cargo names no program")
}

/// Moves a synthetic guest once.
pub(crate) fn ours(program: &Path, streams: u32) -> Result<Run> {
    let output = Command::new(program)
        .args(["--mebibytes", &MEBIBYTES.to_string(), "--streams", &streams.to_string()])
        .stderr(Stdio::inherit())
        .output()?;
    let printed: Printed =
        serde_json::from_slice(&output.stdout).context("the engine's bench did not finish")?;
    ensure!(!printed.moved || printed.sound, "the RAM that arrived is not the RAM that left");
    Ok(Run {
        end: if printed.moved { End::Moved } else { End::NotMoved("it says so".into()) },
        verified: printed.sound,
        total_ms: Some(printed.total_ms),
        wire_bytes: Some(printed.wire_bytes),
        ..Run::default()
    })
}

/// Lets QEMU migrate a paused machine once.
pub(crate) fn theirs(kind: Kind, limit: Duration) -> Result<Run> {
    let folder = tempfile::tempdir()?;
    let ram = tempfile::Builder::new().prefix("sterna-bench-").tempfile_in(NAMED_MEMORY)?;
    let random = File::open("/dev/urandom")?;
    copy(&mut random.take(MEBIBYTES << 20), &mut ram.as_file())?;
    let backend = format!(
        "memory-backend-file,id=ram,share=on,size={MEBIBYTES}M,mem-path={}",
        ram.path().display()
    );
    let mut source = start(folder.path(), "a", &["-object", &backend])?;
    let plain = format!("memory-backend-ram,id=ram,size={MEBIBYTES}M");
    let mut destination = start(folder.path(), "b", &["-object", &plain, "-incoming", "defer"])?;
    for qemu in [&mut source, &mut destination] {
        qemu.prepare(kind)?;
    }
    let uri = format!("tcp:127.0.0.1:{}", free_port()?);
    destination.ask("migrate-incoming", &json!({ "uri": uri }))?;
    let begin = Instant::now();
    source.ask("migrate", &json!({ "uri": uri }))?;
    let ended = source.await_end(kind, begin, limit)?.state;
    ensure!(ended["status"] == COMPLETED, "QEMU did not finish: {ended}");
    Ok(Run {
        end: End::Moved,
        total_ms: ended["total-time"].as_f64(),
        wire_bytes: ended["ram"]["transferred"].as_f64(),
        ..Run::default()
    })
}

/// Starts a machine that never runs.
fn start(folder: &Path, name: &str, more: &[&str]) -> Result<Qemu> {
    let socket = folder.join(name);
    let memory = MEBIBYTES.to_string();
    let child = Command::new("qemu-system-x86_64")
        .args(["-M", "q35,memory-backend=ram", "-accel", "tcg", "-m", &memory, "-S"])
        .args(["-nodefaults", "-display", "none", "-vga", "none"])
        .args(["-qmp", &format!("unix:{},server=on,wait=off", socket.display())])
        .args(more)
        .stdin(Stdio::null())
        .spawn()?;
    Qemu::new(child, &socket)
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}
