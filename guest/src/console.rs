//! The console device: whole lines out, commands in.

use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;

use crate::command::Command;

/// The console, shared by all threads. Each line is one write, which the terminal layer does not
/// mix with another's.
#[derive(Debug)]
pub struct Console {
    device: File,
}

impl Console {
    /// Opens the console device.
    ///
    /// # Errors
    /// If the device cannot be opened for reading and writing.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { device: File::options().read(true).write(true).open(path)? })
    }

    /// Writes one line. A console that nobody can write to leaves nobody to tell, so a failure is
    /// passed over; the host sees that lines are missing.
    pub fn line(&self, line: impl fmt::Display) {
        let text = format!("{line}\n");
        let _unheard = (&self.device).write_all(text.as_bytes());
    }

    /// Reads commands until the console ends or `obey` says that nobody takes them any more.
    pub fn read_commands(&self, mut obey: impl FnMut(Command) -> bool) {
        for line in BufReader::new(&self.device).lines() {
            let Ok(line) = line else { return };
            match line.parse() {
                Ok(command) => {
                    if !obey(command) {
                        return;
                    }
                }
                Err(error) => self.line(format_args!("ERROR {error}")),
            }
        }
    }
}
