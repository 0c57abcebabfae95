//! The lane's machine while it runs: started, asked to run commands, ended on drop.
//!
//! Commands go over a virtio port, to the loop in `host-init`: no network, no keys, no daemon.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use uuid::Uuid;

use super::image::Image;
use crate::paths;

/// SVM with nested paging is what KVM in it needs. Five-level paging, which this processor would
/// have as well, is left out: under nesting it has not been seen to work.
const PROCESSOR: &str = "max,+svm,+npt,-la57";

/// RAM of the machine: two guests of 512 MiB of huge pages each, and room for all else.
const MEMORY: &str = "6G";

/// No time is spent on mitigations, the emulator's clock is trusted, and a panic ends the machine.
const KERNEL_WORDS: &str = "console=ttyS0 quiet mitigations=off nokaslr panic=-1 tsc=reliable";

/// How long it may take to boot; it takes 5 to 20 s on two cores.
const BOOT_LIMIT: Duration = Duration::from_secs(300);

/// How often is looked whether the machine has ended.
const INTERVAL: Duration = Duration::from_millis(200);

/// A running machine.
#[derive(Debug)]
pub(super) struct Machine {
    child: Child,
    port: UnixStream,
    console: PathBuf,
    _folder: tempfile::TempDir,
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// By itself, with this exit status.
    Exit(i32),
    /// With the machine: its kernel has panicked.
    Machine,
}

/// What came of a command.
#[derive(Debug)]
pub(super) struct Answer {
    /// How it ended.
    pub(super) end: End,
    /// What it printed.
    pub(super) text: String,
}

impl Answer {
    fn new(end: End, text: &[u8]) -> Self {
        Self { end, text: String::from_utf8_lossy(text).into_owned() }
    }
}

impl Machine {
    /// Starts the machine and waits until it answers. It sees the workspace, and build results that
    /// lie elsewhere, at the paths they have here.
    ///
    /// # Errors
    /// If it ends or does not answer in time, with the end of what its kernel said.
    pub(super) fn boot(image: &Image) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let socket = folder.path().join("port");
        let console = image.folder.join("console.log");
        let shared = shared_folders();
        let mut command = qemu(image, &console, &socket, &shared)?;
        let child = command.spawn().context("cannot start qemu-system-x86_64")?;
        let mut child = Ended(Some(child));
        let port = child.connect(&socket).with_context(|| end_of(&console))?;
        port.set_read_timeout(Some(INTERVAL))?;
        let child = child.0.take().context("it has just been started")?;
        let mut machine = Self { child, port, console, _folder: folder };
        let answer = machine.run("true", BOOT_LIMIT, Echo::No).context("it does not boot")?;
        ensure!(answer.end == End::Exit(0), "it does not boot: {}", end_of(&machine.console));
        for (number, path) in shared.iter().enumerate() {
            let options = "trans=virtio,version=9p2000.L,msize=512000,ro,cache=loose";
            let path = path.display();
            let mount =
                format!("mkdir -p '{path}' && mount -t 9p -o {options} share{number} '{path}'");
            let answer = machine.run(&mount, BOOT_LIMIT, Echo::No)?;
            ensure!(answer.end == End::Exit(0), "{mount}: {}", answer.text.trim());
        }
        Ok(machine)
    }

    /// Puts what the machine's kernel said where the next machine does not overwrite it.
    ///
    /// # Errors
    /// If that cannot be done.
    pub(super) fn keep_console(&self) -> Result<PathBuf> {
        let kept = self.console.with_file_name("console-crashed.log");
        fs::copy(&self.console, &kept)
            .with_context(|| format!("cannot write {}", kept.display()))?;
        Ok(kept)
    }

    /// Runs a command of a shell and waits for its end, however it ends.
    ///
    /// # Errors
    /// If the command takes longer than `limit`: the machine is then of no further use.
    pub(super) fn run(&mut self, command: &str, limit: Duration, echo: Echo) -> Result<Answer> {
        ensure!(!command.contains('\n'), "a command is one line");
        let mark = Uuid::new_v4().simple().to_string();
        writeln!(self.port, "{mark} {command}").context("the machine's port is closed")?;
        let deadline = Instant::now() + limit;
        let mut text = Vec::new();
        let mut shown = 0;
        loop {
            if let Some((end, status)) = ending(&text, &mark) {
                text.truncate(end);
                return Ok(Answer::new(End::Exit(status), &text));
            }
            if Instant::now() > deadline {
                bail!("{command}: not within {limit:?}; {}", end_of(&self.console));
            }
            let mut piece = [0; 4096];
            match self.port.read(&mut piece) {
                Ok(0) => return Ok(Answer::new(End::Machine, &text)),
                Ok(count) => text.extend_from_slice(&piece[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
            if echo == Echo::Yes {
                shown += show_lines(&text[shown..], &mark);
            }
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _killed = self.child.kill();
        let _status = self.child.wait();
    }
}

/// Whether a command's output is shown while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Echo {
    /// It is only returned.
    No,
    /// Line by line.
    Yes,
}

/// Kills a machine that did not come up.
struct Ended(Option<Child>);

impl Ended {
    fn connect(&mut self, socket: &Path) -> Result<UnixStream> {
        let deadline = Instant::now() + BOOT_LIMIT;
        loop {
            if let Ok(stream) = UnixStream::connect(socket) {
                return Ok(stream);
            }
            if let Some(child) = &mut self.0
                && let Some(status) = child.try_wait()?
            {
                bail!("QEMU ended at once: {status}");
            }
            ensure!(Instant::now() < deadline, "QEMU opens no port");
            std::thread::sleep(INTERVAL);
        }
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _killed = child.kill();
            let _status = child.wait();
        }
    }
}

/// The workspace, and the folder of build results if it lies elsewhere.
fn shared_folders() -> Vec<PathBuf> {
    let (workspace, target) = (paths::workspace(), paths::target());
    let inside = target.starts_with(&workspace);
    std::iter::once(workspace).chain((!inside).then_some(target)).collect()
}

fn qemu(image: &Image, console: &Path, port: &Path, shared: &[PathBuf]) -> Result<Command> {
    let text = |path: &Path| -> Result<String> {
        let text = path.to_str().with_context(|| format!("{} is no text", path.display()))?;
        ensure!(!text.contains([',', '\'']), "{text}: a comma or quote in a path is not supported");
        Ok(text.to_owned())
    };
    let mut command = Command::new("qemu-system-x86_64");
    command.args(["-nodefaults", "-no-user-config", "-display", "none", "-vga", "none"]);
    command.args(["-no-reboot", "-M", "q35", "-cpu", PROCESSOR, "-smp", "2", "-m", MEMORY]);
    command.args(["-accel", "tcg,thread=multi,tb-size=512"]);
    command.arg("-kernel").arg(&image.kernel).arg("-initrd").arg(&image.initramfs);
    command.args(["-append", KERNEL_WORDS, "-serial"]);
    command.arg(format!("file:{}", text(console)?));
    let disk = text(&image.disk)?;
    command.args(["-drive", &format!("file={disk},format=raw,if=virtio,snapshot=on")]);
    command.args(["-device", "virtio-rng-pci", "-device", "virtio-serial-pci", "-chardev"]);
    command.arg(format!("socket,id=port,path={},server=on,wait=off", text(port)?));
    command.args(["-device", "virtserialport,chardev=port,name=sterna"]);
    for (number, path) in shared.iter().enumerate() {
        let path = text(path)?;
        let share = format!("path={path},mount_tag=share{number}");
        command.args(["-virtfs", &format!("local,{share},security_model=none,readonly=on")]);
    }
    command.stdin(Stdio::null());
    Ok(command)
}

/// Where a command's output ends, and its exit status, once both are there.
fn ending(text: &[u8], mark: &str) -> Option<(usize, i32)> {
    let start = format!("\n{mark} ");
    let at = text.windows(start.len()).rposition(|window| window == start.as_bytes())?;
    let rest = std::str::from_utf8(&text[at + start.len()..]).ok()?;
    let (status, _) = rest.split_once('\n')?;
    Some((at, status.trim().parse().ok()?))
}

/// Shows whole lines but the last one; returns how many bytes were dealt with.
fn show_lines(text: &[u8], mark: &str) -> usize {
    let Some(end) = text.iter().rposition(|byte| *byte == b'\n') else { return 0 };
    for line in String::from_utf8_lossy(&text[..end]).lines() {
        if !line.starts_with(mark) && !line.is_empty() {
            println!("   {line}");
        }
    }
    end + 1
}

/// The end of what the machine's kernel said.
fn end_of(console: &Path) -> String {
    let text = fs::read(console).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    format!("{}: {}", console.display(), lines[lines.len().saturating_sub(8)..].join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_has_ended_when_its_mark_and_status_are_there() {
        assert_eq!(ending(b"text\nmark 0\n", "mark"), Some((4, 0)));
        assert_eq!(ending(b"\nmark 101\n", "mark"), Some((0, 101)));
        assert_eq!(ending(b"text\nmark 1", "mark"), None, "the status may go on");
        assert_eq!(ending(b"text mark 0\n", "mark"), None, "not at the start of a line");
        assert_eq!(ending(b"", "mark"), None);
    }
}
