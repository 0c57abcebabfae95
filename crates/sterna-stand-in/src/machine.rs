//! The machine: what QEMU calls its run state, and a migration.

use crate::arguments::Arguments;
use crate::guest;
use anyhow::{Context, Result, bail, ensure};
use rustix::io::Errno;
use rustix::net::{SendFlags, send};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use sterna_guest::line::Line;
use sterna_guest::settings::Settings;
use sterna_vmm::synthetic::{AwaitedRam, SyntheticGuest};

/// Bytes of a guest's state at most.
const STATE_BYTES_MAX: u64 = 16 << 20;

/// The whole of it.
pub(crate) struct Machine {
    ram: Option<(PathBuf, u64)>,
    append: String,
    state: Mutex<State>,
    events: Mutex<Vec<UnixStream>>,
    console: Mutex<Option<UnixStream>>,
    /// What a guest says that was made here, until somebody is there to hear it: a guest says it once.
    unheard: Mutex<Option<Line>>,
}

struct State {
    guest: Option<SyntheticGuest>,
    /// For the guest that it waits for.
    awaited: Option<AwaitedRam>,
    /// In QEMU's words.
    run_state: &'static str,
    migration: &'static str,
    stream: Option<UnixStream>,
    ran_before: bool,
    tick: u64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Machine {
    pub(crate) fn new(arguments: &Arguments) -> Result<Self> {
        let run_state = if arguments.waits { "inmigrate" } else { "prelaunch" };
        let state = State {
            guest: None,
            awaited: None,
            run_state,
            migration: "none",
            stream: None,
            ran_before: false,
            tick: 0,
        };
        let machine = Self {
            ram: arguments.ram.clone(),
            append: arguments.append.clone(),
            state: Mutex::new(state),
            events: Mutex::default(),
            console: Mutex::default(),
            unheard: Mutex::default(),
        };
        // As QEMU does: its RAM is mapped from the beginning.
        if arguments.ram.is_some() {
            if arguments.waits {
                let (ram, bytes) = machine.open_ram()?;
                lock(&machine.state).awaited = Some(guest::awaited(ram, bytes)?);
            } else {
                machine.make_guest()?;
            }
        }
        Ok(machine)
    }

    fn open_ram(&self) -> Result<(OwnedFd, u64)> {
        let (path, bytes) = self.ram.as_ref().context("there is no RAM")?;
        Ok((guest::ram(path)?, *bytes))
    }

    fn make_guest(&self) -> Result<()> {
        let (ram, bytes) = self.open_ram()?;
        let (guest, settings) = guest::boot(ram, bytes, &self.append)?;
        lock(&self.state).guest = Some(guest);
        let Settings { fill, working_set, .. } = settings;
        *lock(&self.unheard) = Some(Line::Ready { fill, working_set });
        Ok(())
    }

    /// Lets a guest run that was just made.
    pub(crate) fn boot(&self) -> Result<()> {
        self.cont().map(drop)
    }

    /// Whoever is connected to a monitor hears what happens.
    pub(crate) fn tell_events_to(&self, monitor: UnixStream) {
        lock(&self.events).push(monitor);
    }

    pub(crate) fn connect_console(&self, console: UnixStream) {
        *lock(&self.console) = Some(console);
        if let Some(line) = lock(&self.unheard).take() {
            self.say(&line);
        }
    }

    /// Writes a line to the console, if anybody reads it: the guest never waits for whoever does. What does not fit is cut
    /// off, as by a console that is overfull.
    pub(crate) fn say(&self, line: &Line) {
        let mut console = lock(&self.console);
        let text = format!("{line}\r\n");
        let said = console
            .as_ref()
            .map(|stream| send(stream, text.as_bytes(), SendFlags::DONTWAIT | SendFlags::NOSIGNAL));
        if let Some(Err(error)) = said
            && error != Errno::AGAIN
        {
            *console = None;
        }
    }

    fn tell(&self, event: &str, data: &Value) {
        let line = format!("{}\n", json!({ "event": event, "data": data, "timestamp": {} }));
        lock(&self.events).retain_mut(|monitor| monitor.write_all(line.as_bytes()).is_ok());
    }

    fn tell_migration(&self, status: &'static str) {
        lock(&self.state).migration = status;
        self.tell("MIGRATION", &json!({ "status": status }));
    }

    /// One millisecond of the guest's life, if it lives.
    pub(crate) fn tick(&self) {
        // Said while it cannot be paused: what was said was lived.
        let mut state = lock(&self.state);
        if state.run_state == "running" {
            state.tick += 1;
            let number = state.tick;
            self.say(&Line::Tick(sterna_guest::line::Tick {
                number,
                checked: number,
                written: number,
            }));
        }
    }

    /// What the guest says of all its memory.
    pub(crate) fn check(&self) -> Result<Line> {
        let guest = lock(&self.state).guest.clone().context("there is no guest")?;
        let report = guest.check()?;
        let pages = u32::try_from(report.existing.0)?;
        Ok(Line::Checked { pages, wrong: u32::try_from(report.faults.len())? })
    }

    pub(crate) fn status(&self) -> Value {
        let state = lock(&self.state);
        json!({ "status": state.run_state, "running": state.run_state == "running" })
    }

    pub(crate) fn migration(&self) -> Value {
        json!({ "status": lock(&self.state).migration })
    }

    pub(crate) fn stop(&self) -> Result<Value> {
        let mut state = lock(&self.state);
        if state.run_state == "running" {
            state.guest.as_ref().context("there is no guest")?.pause()?;
            state.run_state = "paused";
            drop(state);
            self.tell("STOP", &json!({}));
        }
        Ok(json!({}))
    }

    pub(crate) fn cont(&self) -> Result<Value> {
        let mut state = lock(&self.state);
        ensure!(state.run_state != "inmigrate", "the guest still waits for its state");
        if state.run_state != "running" {
            state.guest.as_ref().context("there is no guest")?.run();
            state.run_state = "running";
            drop(state);
            self.tell("RESUME", &json!({}));
        }
        Ok(json!({}))
    }

    /// Begins a migration to a socket: all but the state is none of its business.
    pub(crate) fn migrate(&self, uri: &str) -> Result<Value> {
        let path = socket(uri)?;
        let mut state = lock(&self.state);
        ensure!(state.stream.is_none(), "a migration is under way");
        state.stream = Some(UnixStream::connect(path)?);
        state.ran_before = state.run_state == "running";
        state.guest.as_ref().context("there is no guest")?.pause()?;
        state.run_state = "finish-migrate";
        drop(state);
        self.tell("STOP", &json!({}));
        self.tell_migration("pre-switchover");
        Ok(json!({}))
    }

    /// Sends the state.
    pub(crate) fn go_on(&self) -> Result<Value> {
        let mut state = lock(&self.state);
        let mut stream = state.stream.take().context("no migration is under way")?;
        let saved = guest::save(state.guest.as_ref().context("there is no guest")?, state.tick)?;
        stream.write_all(&saved)?;
        state.run_state = "postmigrate";
        drop((stream, state));
        self.tell_migration("completed");
        Ok(json!({}))
    }

    pub(crate) fn cancel(&self) -> Result<Value> {
        let mut state = lock(&self.state);
        if state.stream.take().is_none() {
            return Ok(json!({}));
        }
        let ran = state.ran_before;
        state.run_state = "paused";
        drop(state);
        self.tell_migration("cancelled");
        if ran { self.cont() } else { Ok(json!({})) }
    }

    /// Waits for a guest at a socket, in a thread. A process whose guest cannot be read ends, as QEMU does.
    pub(crate) fn wait_for_guest(self: &Arc<Self>, uri: &str) -> Result<Value> {
        ensure!(lock(&self.state).run_state == "inmigrate", "it waits for no guest");
        let listener = UnixListener::bind(socket(uri)?)?;
        let machine = Arc::clone(self);
        std::thread::spawn(move || {
            if let Err(error) = machine.receive(&listener) {
                eprintln!("stand-in: {error:#}");
                machine.tell_migration("failed");
                std::process::exit(1);
            }
        });
        Ok(json!({}))
    }

    fn receive(&self, listener: &UnixListener) -> Result<()> {
        let (stream, _) = listener.accept()?;
        let mut bytes = Vec::new();
        stream.take(STATE_BYTES_MAX).read_to_end(&mut bytes)?;
        let mut state = lock(&self.state);
        let awaited = state.awaited.take().context("it waits for no guest")?;
        let (guest, tick) = guest::load(awaited, &bytes)?;
        state.guest = Some(guest);
        state.tick = tick;
        state.run_state = "paused";
        drop(state);
        self.tell_migration("completed");
        Ok(())
    }
}

fn socket(uri: &str) -> Result<&Path> {
    match uri.strip_prefix("unix:") {
        Some(path) => Ok(Path::new(path)),
        None => bail!("{uri} is no unix socket"),
    }
}
