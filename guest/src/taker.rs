//! Memory beside the fill that is taken and given back on command.
//!
//! What was given back the guest's kernel does not use any more, and tells its host so if it has a
//! balloon. What is taken next may be the same memory again: then a page that a migration brought
//! back from the time before is found, as its content is of another seed.

use std::sync::Arc;
use std::sync::mpsc::Receiver;

use crate::command::Command;
use crate::console::Console;
use crate::content::{Content, Seed};
use crate::line::Line;
use crate::memory::Memory;
use crate::quantity::{Bytes, PageNumber};
use crate::settings::Settings;

/// So many wrong pages are told one by one.
const WRONG_LINES_MAX: u32 = 16;

/// The taker with what it has taken.
#[derive(Debug)]
pub struct Taker {
    settings: Settings,
    console: Arc<Console>,
    taken: Option<(Bytes, Memory)>,
}

impl Taker {
    /// One that has taken nothing; its pages are like those outside the working set.
    #[must_use]
    pub fn new(settings: &Settings, console: Arc<Console>) -> Self {
        let settings = Settings { working_set: Bytes(0), ..settings.clone() };
        Self { settings, console, taken: None }
    }

    /// Takes and gives back as told, until nobody tells any more.
    pub fn run(mut self, commands: &Receiver<Command>) {
        for command in commands {
            self.obey(command);
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Take(size) => self.take(size),
            Command::Give => self.give(),
            // The worker's.
            Command::Rate(_) | Command::WorkingSet(_) | Command::Check | Command::Ticks(_) => {}
        }
    }

    fn take(&mut self, size: Bytes) {
        self.give();
        self.settings.seed = Seed(self.settings.seed.0.wrapping_add(1));
        match Memory::fill(Content::new(&self.settings), size.pages()) {
            Ok(memory) => {
                self.taken = Some((size, memory));
                self.console.line(Line::Taken { size });
            }
            Err(error) => self.console.line(format_args!("ERROR taking {size}: {error}")),
        }
    }

    /// Checks what was taken and gives it back.
    fn give(&mut self) {
        let Some((size, mut memory)) = self.taken.take() else { return };
        let mut wrong = 0;
        for page in 0..memory.len() {
            if let Err(found) = memory.check(PageNumber(page)) {
                wrong += 1;
                if wrong <= WRONG_LINES_MAX {
                    self.console.line(found);
                }
            }
        }
        drop(memory);
        self.console.line(Line::Given { size, wrong });
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_was_taken_is_checked_when_it_is_given_back() {
        let console = std::env::temp_dir().join(format!("taker-{}", std::process::id()));
        fs::write(&console, "").unwrap();
        let device = Arc::new(Console::open(&console).unwrap());
        let mut taker = Taker::new(&Settings::default(), device);
        taker.obey(Command::Give);
        taker.obey(Command::Take(Bytes(64 << 10)));
        taker.obey(Command::Take(Bytes(128 << 10)));
        taker.taken.as_mut().unwrap().1.spoil(PageNumber(31));
        taker.obey(Command::Give);
        let text = fs::read_to_string(&console).unwrap();
        fs::remove_file(&console).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[..3], ["TAKEN size=64K", "GIVEN size=64K wrong=0", "TAKEN size=128K"]);
        assert!(lines[3].starts_with("WRONG page=31 "), "{text}");
        assert_eq!(lines[4..], ["GIVEN size=128K wrong=1"]);
    }
}
