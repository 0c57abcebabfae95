//! The flight recorder's program: reads its settings, fills memory, starts the threads.
#![forbid(unsafe_code)]

use std::fmt;
use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Instant;

use sterna_guest::command::Command;
use sterna_guest::console::Console;
use sterna_guest::content::Content;
use sterna_guest::line::Line;
use sterna_guest::memory::Memory;
use sterna_guest::quantity::Bytes;
use sterna_guest::settings::{DiskUse, Settings};
use sterna_guest::taker::Taker;
use sterna_guest::ticker::Counters;
use sterna_guest::worker::Worker;
use sterna_guest::{disk, echo, ticker};

/// Memory that the guest's kernel and the recorder itself keep beside the fill.
const RESERVE: u64 = 24 << 20;
/// The lowest priority: ticks and echoes go first.
const WORKER_NICE: i32 = 19;

fn main() -> ExitCode {
    let start = Instant::now();
    let command_line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let settings = Settings::parse(&command_line);
    // With bad settings the console is unknown too: the default one has to do.
    let path = settings.as_ref().map_or(Settings::default().console, |known| known.console.clone());
    let Ok(console) = Console::open(&path) else {
        eprintln!("ERROR cannot open {}", path.display());
        return ExitCode::FAILURE;
    };
    let console = Arc::new(console);
    end_on_panic(&console);
    let refused = match settings {
        Ok(settings) => record(&settings, &console, start),
        Err(error) => Error::new("bad settings", error),
    };
    console.line(format_args!("ERROR {}: {}", refused.what, refused.cause));
    ExitCode::FAILURE
}

/// Why the recorder ended: it should not.
struct Error {
    what: &'static str,
    cause: String,
}

impl Error {
    fn new(what: &'static str, cause: impl fmt::Display) -> Self {
        Self { what, cause: cause.to_string() }
    }
}

/// Fills memory and works until something fails.
fn record(settings: &Settings, console: &Arc<Console>, start: Instant) -> Error {
    let mut _cached = None;
    if settings.disk == DiskUse::Cache {
        match disk::fill_cache() {
            Ok(disk) => _cached = Some(disk),
            Err(error) => return Error::new("cannot read the disk", error),
        }
    }
    if let Err(error) = memory_suffices(settings.fill) {
        return error;
    }
    let content = Content::new(settings);
    let memory = match Memory::fill(content, settings.fill.pages()) {
        Ok(memory) => memory,
        Err(error) => return Error::new("cannot fill memory", error),
    };
    console.line(Line::Ready { fill: settings.fill, working_set: settings.working_set });

    let counters = Arc::new(Counters::default());
    let worker = Worker::new(settings, memory, Arc::clone(console), Arc::clone(&counters));
    let (commands, obeyed) = mpsc::channel();
    thread::spawn(move || {
        make_way();
        worker.run(&obeyed, start);
    });
    let taker = Taker::new(settings, Arc::clone(console));
    let (takes, taken) = mpsc::channel();
    thread::spawn(move || {
        make_way();
        taker.run(&taken);
    });
    thread::spawn({
        let console = Arc::clone(console);
        move || {
            console.read_commands(|command| match command {
                Command::Take(_) | Command::Give => takes.send(command).is_ok(),
                _ => commands.send(command).is_ok(),
            });
        }
    });
    thread::spawn({
        let console = Arc::clone(console);
        move || {
            if let Err(error) = echo::run() {
                console.line(format_args!("ERROR echo: {error}"));
            }
        }
    });
    read_disk(settings, console);
    ticker::run(console, &counters, settings.tick, start);
    Error::new("the ticker ended", "no reason")
}

/// Lets ticks and echoes go before this thread. If priorities cannot be had the recorder still
/// works, with ticks less even.
fn make_way() {
    let _even = rustix::process::setpriority_process(None, WORKER_NICE);
}

/// Starts the disk's reader if it is wanted and there is a disk.
fn read_disk(settings: &Settings, console: &Arc<Console>) {
    let (how, rate) = (settings.disk, settings.disk_rate);
    let wanted = matches!(how, DiskUse::Read | DiskUse::Direct);
    if !wanted || !Path::new(disk::DEVICE).exists() {
        return;
    }
    let console = Arc::clone(console);
    thread::spawn(move || {
        if let Err(error) = disk::run(&console, how, rate) {
            console.line(format_args!("ERROR disk: {error}"));
        }
    });
}

/// Refuses a fill that the guest's kernel would answer by killing this program.
fn memory_suffices(fill: Bytes) -> Result<(), Error> {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kibibytes = available.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    match kibibytes.map(|count| count.saturating_mul(1024)) {
        Some(bytes) if bytes < fill.0.saturating_add(RESERVE) => {
            let what = "this guest has too little memory";
            Err(Error::new(what, format_args!("{bytes} bytes are free, the fill is {fill}")))
        }
        _ => Ok(()),
    }
}

/// Ends the whole program when any thread panics: a recorder that lost its worker must not go on
/// ticking as if nothing were.
fn end_on_panic(console: &Arc<Console>) {
    let console = Arc::clone(console);
    std::panic::set_hook(Box::new(move |panic| {
        console.line(format_args!("ERROR {panic}"));
        std::process::exit(101);
    }));
}
