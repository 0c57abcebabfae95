//! An emulated machine while it runs: started, asked to run commands, ended on drop.
//!
//! Commands go over a virtio port, to the loop in `machine-port`: no network, no keys, no daemon.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use uuid::Uuid;

use crate::packages;

/// How long it may take to boot; without systemd it takes 5 to 20 s on two cores, with it a minute.
const BOOT_LIMIT: Duration = Duration::from_secs(300);

/// What does in a machine what its command port is asked for; below the workspace.
pub(crate) const PORT_SCRIPT: &str = "xtask/src/machine-port";

/// How often is looked whether the machine has ended.
const INTERVAL: Duration = Duration::from_millis(200);

/// A running machine.
#[derive(Debug)]
pub(crate) struct Machine {
    child: Child,
    port: UnixStream,
    console: PathBuf,
    _folder: tempfile::TempDir,
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// By itself, with this exit status.
    Exit(i32),
    /// With the machine: its kernel has panicked.
    Machine,
}

/// What came of a command.
#[derive(Debug)]
pub(crate) struct Answer {
    /// How it ended.
    pub(crate) end: End,
    /// What it printed.
    pub(crate) text: String,
}

impl Answer {
    fn new(end: End, text: &[u8]) -> Self {
        Self { end, text: String::from_utf8_lossy(text).into_owned() }
    }
}

impl Machine {
    /// Starts a machine by its QEMU's `command`, to which its command port and console are added, and waits until it
    /// answers. What its kernel says is left in `console`.
    ///
    /// # Errors
    /// If it ends or does not answer in time, with the end of what its kernel said.
    pub(crate) fn start(mut command: Command, console: &Path) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let socket = folder.path().join("port");
        command.args(["-serial", &format!("file:{}", word(console)?)]);
        command.args(["-device", "virtio-serial-pci", "-chardev"]);
        command.arg(format!("socket,id=port,path={},server=on,wait=off", word(&socket)?));
        command.args(["-device", "virtserialport,chardev=port,name=sterna"]);
        command.stdin(Stdio::null());
        let child = command.spawn().context("cannot start qemu-system-x86_64")?;
        let mut child = Ended(Some(child));
        let port = child.connect(&socket).with_context(|| end_of(console))?;
        port.set_read_timeout(Some(INTERVAL))?;
        let child = child.0.take().context("it has just been started")?;
        let mut machine = Self { child, port, console: console.to_owned(), _folder: folder };
        machine.must("true", BOOT_LIMIT).context("it does not boot")?;
        Ok(machine)
    }

    /// Runs a command that must succeed; returns what it printed.
    ///
    /// # Errors
    /// If it does not, or takes longer than `limit`.
    pub(crate) fn must(&mut self, command: &str, limit: Duration) -> Result<String> {
        let answer = self.run(command, limit, Echo::No)?;
        let text = answer.text.trim();
        ensure!(answer.end == End::Exit(0), "{command}: {text}; {}", end_of(&self.console));
        Ok(answer.text)
    }

    /// Puts what the machine's kernel said where the next machine does not overwrite it.
    ///
    /// # Errors
    /// If that cannot be done.
    pub(crate) fn keep_console(&self) -> Result<PathBuf> {
        let kept = self.console.with_file_name("console-crashed.log");
        fs::copy(&self.console, &kept)
            .with_context(|| format!("cannot write {}", kept.display()))?;
        Ok(kept)
    }

    /// Runs a command of a shell and waits for its end, however it ends.
    ///
    /// # Errors
    /// If the command takes longer than `limit`: the machine is then of no further use.
    pub(crate) fn run(&mut self, command: &str, limit: Duration, echo: Echo) -> Result<Answer> {
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
pub(crate) enum Echo {
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

/// Makes a disk of a folder, of so many bytes; what is not used takes no room.
///
/// # Errors
/// If that cannot be done.
pub(crate) fn make_disk(root: &Path, disk: &Path, bytes: u64) -> Result<()> {
    let partial = disk.with_extension("partial");
    let file =
        fs::File::create(&partial).with_context(|| format!("cannot make {}", partial.display()))?;
    file.set_len(bytes)?;
    drop(file);
    let mut command = Command::new("mkfs.ext4");
    command.args(["-q", "-F", "-E", "lazy_itable_init=1", "-d"]).arg(root).arg(&partial);
    // Where an ordinary shell of root would find it.
    let path = std::env::var("PATH").unwrap_or_default();
    packages::run(command.env("PATH", format!("{path}:/usr/sbin:/sbin")))?;
    fs::rename(&partial, disk).with_context(|| format!("cannot make {}", disk.display()))
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

/// A path as a word of QEMU's options.
pub(crate) fn word(path: &Path) -> Result<&str> {
    let text = path.to_str().with_context(|| format!("{} is no text", path.display()))?;
    ensure!(!text.contains([',', '\'']), "{text}: a comma or quote in a path is not supported");
    Ok(text)
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
