//! The libraries that a hypervisor is started with.
//!
//! A userfaultfd belongs to the address space that created it, so the hypervisor has to do that
//! itself. Stock ones do not; a library, named in `LD_PRELOAD`, does it before their `main`.
//! Its source is `preload/preload.rs`; it needs no C library of a particular kind.
//!
//! Another one (`preload/taps.rs`) is for a hypervisor that waits for a guest of this host and has been given the taps
//! of the one that still runs it: it keeps them as they are until the guest is handed over.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};

use rustix::fs::{MemfdFlags, memfd_create};

/// Makes the process hold a userfaultfd.
pub const LIBRARY: &[u8] = include_bytes!(env!("STERNA_PRELOAD_LIBRARY"));

/// Keeps taps as they are while another process uses them.
pub const TAPS_LIBRARY: &[u8] = include_bytes!(env!("STERNA_TAPS_LIBRARY"));

/// The variable that names the file whose existence says that taps are in use by another process.
/// `preload/taps.rs` has it as well.
pub const TAPS_IN_USE_VARIABLE: &str = "STERNA_TAPS_IN_USE";

/// The variable that tells the loader about the libraries' files, with colons in between.
pub const PATH_VARIABLE: &str = "LD_PRELOAD";

/// The variable that tells the library to act; without the value `1` it does nothing.
pub const ENABLE_VARIABLE: &str = "STERNA_PRELOAD";

/// The variable that tells the library under which number the process has inherited [`DEVICE`], if it may not open it
/// itself.
pub const DEVICE_VARIABLE: &str = "STERNA_USERFAULTFD";

/// The device that makes userfaultfds which see all faults, whoever asks it.
pub const DEVICE: &str = "/dev/userfaultfd";

/// Name of the memfd that the process holds when its userfaultfd sees faults taken inside the kernel
/// too. `preload/preload.rs` has it as well.
pub(crate) const SEES_ALL_FAULTS: &str = "sterna-userfaultfd-sees-all-faults";

/// Makes a library a file that has no place: a process that inherits it finds it under [`by_number`]. Where a guest's
/// files lie nothing may be executed: Debian mounts `/run` so.
///
/// # Errors
/// When there is no memory for it.
pub fn in_memory(library: &[u8]) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::EXEC;
    let mut file = File::from(memfd_create("sterna-preload", flags)?);
    file.write_all(library)?;
    Ok(file.into())
}

/// The name by which whoever inherits a descriptor of this number finds what it is open on.
#[must_use]
pub fn by_number(descriptor: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", descriptor.as_raw_fd())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::{Process, descriptors, spawn_detached};
    use crate::uffd::{FaultsSeen, Userfaultfd};
    use std::io::{BufRead, BufReader};
    use std::os::unix::process::CommandExt;
    use std::path::Path;
    use std::process::{Child, Command, Stdio};

    /// A user without any privilege.
    const NOBODY: u32 = 65534;

    /// A shell that is started with the library, says a line, and waits for one.
    fn shell(enable: &str, user: Option<u32>, device: Option<OwnedFd>) -> Child {
        let library = in_memory(LIBRARY).unwrap();
        let mut command = Command::new("sh");
        command
            .args([
                "-c",
                "echo \"[$LD_PRELOAD|$STERNA_PRELOAD$STERNA_USERFAULTFD]\"; read line; exit 0",
            ])
            .env(PATH_VARIABLE, by_number(&library))
            .env(ENABLE_VARIABLE, enable)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        if let Some(user) = user {
            command.uid(user);
        }
        if let Some(device) = &device {
            command.env(DEVICE_VARIABLE, device.as_raw_fd().to_string());
        }
        let inherited = std::iter::once(library).chain(device).collect();
        spawn_detached(command, inherited, None, vec![]).unwrap()
    }

    fn first_line(child: &mut Child) -> String {
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        line
    }

    fn end(mut child: Child) {
        child.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
        assert!(child.wait().unwrap().success());
    }

    #[test]
    fn a_process_started_with_it_holds_a_userfaultfd_and_hides_it_from_its_children() {
        let mut child = shell("1", None, None);
        assert_eq!(first_line(&mut child), "[|]\n");
        let process = Process::open(child.id()).unwrap();
        match Userfaultfd::take(&process) {
            // Features are set once: the second taker finds them set.
            Ok(_) => drop(Userfaultfd::take(&process).unwrap()),
            Err(error) => eprintln!("skipped: this kernel cannot track writes: {error}"),
        }
        end(child);
    }

    #[test]
    fn what_the_userfaultfd_sees_is_known_to_whoever_takes_it() {
        let Ok(own) = Userfaultfd::create() else {
            return eprintln!("skipped: this kernel cannot track writes");
        };
        let mut child = shell("1", None, None);
        first_line(&mut child);
        let taken = Userfaultfd::take(&Process::open(child.id()).unwrap()).unwrap();
        // The device may give more than the system call that this process uses.
        if own.faults_seen() == FaultsSeen::All {
            assert_eq!(taken.faults_seen(), FaultsSeen::All);
        }
        end(child);
        let itself = Process::open(std::process::id()).unwrap();
        let unmarked = Userfaultfd::take(&itself).unwrap();
        assert_eq!(unmarked.faults_seen(), FaultsSeen::UserMode, "nobody vouches for it");
    }

    #[test]
    fn a_userfaultfd_that_does_not_see_all_faults_is_not_marked() {
        let allowed = std::fs::read_to_string("/proc/sys/vm/unprivileged_userfaultfd");
        if !rustix::process::geteuid().is_root() || !allowed.is_ok_and(|text| text.trim() == "0") {
            return eprintln!("skipped: everyone here may see the same faults");
        }
        let mut child = shell("1", Some(NOBODY), None);
        first_line(&mut child);
        let taken = Userfaultfd::take(&Process::open(child.id()).unwrap());
        end(child);
        match taken {
            Ok(taken) => assert_eq!(taken.faults_seen(), FaultsSeen::UserMode),
            Err(error) => eprintln!("skipped: this kernel cannot track writes: {error}"),
        }
    }

    #[test]
    fn whoever_inherits_the_device_sees_all_faults_and_keeps_the_userfaultfd_only() {
        if !rustix::process::geteuid().is_root() {
            return eprintln!("skipped: only root changes users");
        }
        let device = std::fs::OpenOptions::new().read(true).write(true).open(DEVICE);
        let Ok(device) = device else { return eprintln!("skipped: there is no {DEVICE}") };
        let mut child = shell("1", Some(NOBODY), Some(device.into()));
        assert_eq!(first_line(&mut child), "[|]\n");
        let links = descriptors(child.id()).unwrap();
        let taken = Userfaultfd::take(&Process::open(child.id()).unwrap());
        end(child);
        assert!(!links.iter().any(|held| held.link == Path::new(DEVICE)), "{links:?}");
        match taken {
            Ok(taken) => assert_eq!(taken.faults_seen(), FaultsSeen::All),
            Err(error) => eprintln!("skipped: this kernel cannot track writes: {error}"),
        }
    }

    #[test]
    fn without_the_variable_it_does_nothing() {
        let mut child = shell("0", None, None);
        first_line(&mut child);
        let links = descriptors(child.id()).unwrap();
        assert!(!links.iter().any(|d| d.link.to_string_lossy().contains("userfaultfd")));
        end(child);
    }
}
