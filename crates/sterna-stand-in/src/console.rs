//! The guest's console, and its clock.

use crate::machine::Machine;
use anyhow::Result;
use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use sterna_guest::command::Command;
use sterna_guest::line::Line;

const TICK: Duration = Duration::from_millis(1);

/// Serves one reader at a time, and lets the clock tick.
pub(crate) fn serve(machine: &Arc<Machine>, path: Option<&Path>) -> Result<()> {
    let Some(path) = path else { return Ok(()) };
    let listener = UnixListener::bind(path)?;
    let (serving, ticking) = (Arc::clone(machine), Arc::clone(machine));
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            if let Ok(heard) = stream.try_clone() {
                serving.connect_console(heard);
                listen(&serving, BufReader::new(stream));
            }
        }
    });
    std::thread::spawn(move || {
        let mut due = Instant::now();
        loop {
            ticking.tick();
            // Ticks that are late are left out, as the recorder's.
            due = (due + TICK).max(Instant::now());
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        }
    });
    Ok(())
}

fn listen(machine: &Machine, reader: impl BufRead) {
    for line in reader.lines().map_while(Result::ok) {
        let answer = match line.parse() {
            Ok(Command::Check) => machine.check().map_err(|error| format!("{error:#}")),
            Ok(other) => Err(format!("{other} is nothing for a stand-in")),
            Err(error) => Err(error.to_string()),
        };
        machine.say(&answer.unwrap_or_else(Line::Error));
    }
}
