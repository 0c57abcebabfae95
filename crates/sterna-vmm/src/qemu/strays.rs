//! Hypervisors that an agent started, and was killed before it had them on record.
//!
//! Nobody was told that such a guest runs, and nobody would ever end it; a second one under its name would be its
//! double. So a folder is marked before anything is started in it, and the mark is taken away when the guest is on
//! record. Whatever a new agent finds in a marked folder, and not on record, it ends.
//!
//! **A mark is needed.** An agent whose journal was lost knows no guest at all. It must not end them for that: those
//! that were on record once have no mark.

use super::cgroup;
use super::folder::Folder;
use super::instance::{KILL_LIMIT, QUIT_LIMIT, QemuRecord};
use super::qmp::Qmp;
use crate::VmmError;
use crate::tracking::system;
use qapi::qmp::quit;
use std::io::ErrorKind;
use std::path::Path;
use sterna_sys::process::{Liveness, Process, with_argument};

/// Ends all hypervisors in the folders below `guests` that were started and are not among those that are on record,
/// and removes their folders. Returns their process ids. Cgroups in which nothing runs any more are removed as well.
///
/// # Errors
/// When one cannot be ended, or the folders not be read.
pub fn end_strays(guests: &Path, on_record: &[QemuRecord]) -> Result<Vec<u32>, VmmError> {
    let entries = match std::fs::read_dir(guests) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            cgroup::remove_left(guests);
            return Ok(Vec::new());
        }
        entries => entries.map_err(system("reading the guests' folder"))?,
    };
    let mut ended = Vec::new();
    for entry in entries {
        let folder = Folder::existing(entry.map_err(system("reading the guests' folder"))?.path());
        if !folder.is_marked() {
            continue;
        }
        let (known, strays): (Vec<_>, Vec<_>) =
            processes_of(&folder)?.into_iter().partition(|process| is_known(process, on_record));
        for process in &strays {
            end(process, &folder)?;
            ended.push(process.pid());
        }
        if known.is_empty() {
            folder.remove()?;
        } else {
            folder.unmark()?;
        }
    }
    cgroup::remove_left(guests);
    Ok(ended)
}

/// The hypervisors that have their sockets in this folder.
pub(super) fn processes_of(folder: &Folder) -> Result<Vec<Process>, VmmError> {
    // Of one that has its sockets there, and of one with a user of its own, which names them by its folder.
    let argument = format!("={},", folder.control_socket().display());
    with_argument(&argument).map_err(system("looking for hypervisors"))
}

fn is_known(process: &Process, on_record: &[QemuRecord]) -> bool {
    let same = |record: &QemuRecord| {
        (record.pid, record.start_time) == (process.pid(), process.start_time())
    };
    on_record.iter().any(same)
}

/// Ends a process, orderly if it can be.
fn end(process: &Process, folder: &Folder) -> Result<(), VmmError> {
    let asked = Qmp::connect(&folder.control_socket(), QUIT_LIMIT)
        .and_then(|mut qmp| qmp.execute(&quit {}, QUIT_LIMIT));
    if asked.is_ok() {
        let _ = process.wait_for_end(QUIT_LIMIT);
    }
    process.kill().map_err(system("killing QEMU"))?;
    match process.wait_for_end(KILL_LIMIT) {
        Liveness::Ended => Ok(()),
        Liveness::Alive => Err(VmmError::TimedOut { operation: "ending QEMU", limit: KILL_LIMIT }),
    }
}
