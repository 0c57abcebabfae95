//! What hypervisors say.
//!
//! A hypervisor writes into its runtime folder, which goes with it. The end of what it wrote is kept in the state folder,
//! one file a guest, until the guest is deleted, leaves, or its next hypervisor ends. While it runs nothing bounds what it
//! writes; of that, too, only the end is read.
//!
//! **Nothing of it is trusted.** Whoever has taken a hypervisor over may put anything in its log's place: what is no
//! ordinary file is not opened, and links are not followed.

use crate::agent::Agent;
use rustix::fs::OFlags;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use sterna_proto::message::GuestId;

/// Bytes of a log that are kept, or shown of one that is still written: some hundreds of lines.
pub(crate) const TAIL_BYTES_MAX: u64 = 64 << 10;

/// In the state folder, as it is of use after a host has crashed, too.
const FOLDER: &str = "logs";

/// The ends of the logs of hypervisors that have ended.
#[derive(Debug)]
pub(crate) struct Logs(PathBuf);

impl Logs {
    /// Those in this state folder.
    pub(crate) fn in_state(state: &Path) -> Self {
        Self(state.join(FOLDER))
    }

    /// Keeps the end of a log in place of what was kept of the guest before. A log that cannot be kept harms nobody.
    pub(crate) fn keep(&self, guest: GuestId, end: &[u8]) {
        if let Err(error) = self.write(guest, end) {
            tracing::warn!(%guest, %error, "cannot keep the hypervisor's log");
        }
    }

    fn write(&self, guest: GuestId, end: &[u8]) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.0)?;
        let mut file = tempfile::NamedTempFile::new_in(&self.0)?;
        file.write_all(end)?;
        file.persist(self.path(guest))?;
        Ok(())
    }

    /// What was kept of a guest; empty if nothing was.
    pub(crate) fn kept(&self, guest: GuestId) -> Vec<u8> {
        open(&self.path(guest)).and_then(|mut file| tail(&mut file)).unwrap_or_default()
    }

    /// Removes what was kept of a guest.
    pub(crate) fn forget(&self, guest: GuestId) {
        remove(&self.path(guest));
    }

    /// Removes all but what is kept of these guests.
    pub(crate) fn forget_others(&self, guests: &[GuestId]) {
        let Ok(entries) = std::fs::read_dir(&self.0) else { return };
        let known: Vec<PathBuf> = guests.iter().map(|guest| self.path(*guest)).collect();
        for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
            if !known.contains(&path) {
                remove(&path);
            }
        }
    }

    fn path(&self, guest: GuestId) -> PathBuf {
        self.0.join(format!("{guest}.log"))
    }
}

fn remove(path: &Path) {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            tracing::warn!(file = %path.display(), %error, "cannot be removed");
        }
        Ok(()) | Err(_) => {}
    }
}

impl Agent {
    /// The log of the process that has these data, to be read also after its folder is gone.
    pub(crate) fn open_log(&self, process: &serde_json::Value) -> Option<File> {
        open(&self.hypervisor.log(process)?).ok()
    }
}

/// Opens a log.
///
/// # Errors
/// When it is none, or cannot be read.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    // What is no file could keep whoever opens it waiting.
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits();
    let file = OpenOptions::new().read(true).custom_flags(flags.cast_signed()).open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::new(ErrorKind::InvalidInput, "it is no ordinary file")),
    }
}

/// The end of a log, from the beginning of a line on; the file is then read up to there.
///
/// # Errors
/// When it cannot be read.
pub(crate) fn tail(file: &mut File) -> io::Result<Vec<u8>> {
    let start = file.metadata()?.len().saturating_sub(TAIL_BYTES_MAX);
    file.seek(SeekFrom::Start(start))?;
    let mut end = Vec::new();
    file.take(TAIL_BYTES_MAX).read_to_end(&mut end)?;
    if start > 0
        && let Some(line_end) = end.iter().position(|byte| *byte == b'\n')
    {
        end.drain(..=line_end);
    }
    Ok(end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn guest(number: u128) -> GuestId {
        GuestId(Uuid::from_u128(number))
    }

    #[test]
    fn of_a_long_log_the_last_whole_lines_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("qemu.log");
        let text: String = (0..20_000).map(|number| format!("line {number}\n")).collect();
        std::fs::write(&path, &text).unwrap();
        let logs = Logs::in_state(folder.path());
        logs.keep(guest(1), &tail(&mut open(&path).unwrap()).unwrap());
        let kept = String::from_utf8(logs.kept(guest(1))).unwrap();
        assert!(kept.len() <= 64 << 10 && kept.len() > 63 << 10, "{}", kept.len());
        assert!(kept.starts_with("line ") && text.ends_with(&kept));
        logs.keep(guest(1), b"newer");
        assert_eq!(logs.kept(guest(1)), b"newer");
        logs.forget(guest(1));
        logs.forget(guest(1));
        assert_eq!(logs.kept(guest(1)), b"");
    }

    #[test]
    fn what_is_kept_of_guests_that_nobody_knows_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let logs = Logs::in_state(folder.path());
        logs.forget_others(&[]);
        logs.keep(guest(1), b"one");
        logs.keep(guest(2), b"two");
        std::fs::write(folder.path().join("logs/.tmp-of-a-killed-agent"), "x").unwrap();
        logs.forget_others(&[guest(2)]);
        assert_eq!((logs.kept(guest(1)), logs.kept(guest(2))), (vec![], b"two".to_vec()));
        assert_eq!(std::fs::read_dir(folder.path().join("logs")).unwrap().count(), 1);
    }

    #[test]
    fn a_log_that_was_exchanged_for_something_else_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let (secret, link) = (folder.path().join("secret"), folder.path().join("link"));
        std::fs::write(&secret, "key").unwrap();
        std::os::unix::fs::symlink(&secret, &link).unwrap();
        assert!(open(&secret).is_ok());
        assert!(open(&link).is_err());
        let pipe = folder.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0)
            .unwrap();
        assert!(open(&pipe).is_err(), "a pipe would be waited for");
    }
}
