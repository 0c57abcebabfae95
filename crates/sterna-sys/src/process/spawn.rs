//! Starting a process that outlives this one.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

/// Whose a process is that is not to have this one's rights.
#[derive(Debug)]
pub struct Unprivileged {
    /// Its user id and its group id, and no other group. Must not be 0.
    pub id: u32,
    /// The folder in which it begins. It is entered through this descriptor, so no folder above it need be open to that
    /// user.
    pub folder: OwnedFd,
}

/// Starts `command` in a session of its own, so that no signal to this one's terminal or process
/// group reaches it. It inherits `descriptors` under the numbers they have here; they are closed
/// on exec in every other child. With `user` it has that user's rights, no capability, and can get none by a program
/// that it executes; the folder that the command itself names is then not entered. It is in the groups of `entrances`
/// ([`crate::cgroup::Group::make`]) before it executes anything, unless the kernel refuses: then it starts all the same.
///
/// # Errors
/// As [`Command::spawn`], and for the user 0.
pub fn spawn_detached(
    mut command: Command,
    descriptors: Vec<OwnedFd>,
    user: Option<Unprivileged>,
    entrances: Vec<OwnedFd>,
) -> io::Result<Child> {
    if let Some(user) = &user {
        if user.id == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "user 0 is not unprivileged"));
        }
        // The standard library drops all other groups first, then sets the group and the user; a capability that this
        // process has ends with the latter. What is below runs after that.
        command.uid(user.id).gid(user.id);
    }
    let before_exec = move || {
        for entrance in &entrances {
            // 0 is whoever writes. Whether that may is decided by the rights of whoever has opened it.
            let _ = rustix::io::write(entrance, b"0");
        }
        rustix::process::setsid()?;
        if let Some(user) = &user {
            rustix::process::fchdir(&user.folder)?;
            rustix::thread::set_no_new_privs(true)?;
        }
        for descriptor in &descriptors {
            let kept = rustix::io::FdFlags::empty();
            debug_assert!(descriptor.as_raw_fd() > 2, "standard streams are set by the command");
            rustix::io::fcntl_setfd(descriptor, kept)?;
        }
        Ok(())
    };
    // SAFETY: the closure runs in the child between fork and exec. It calls only write, setsid, fchdir, prctl and fcntl,
    // which are async-signal-safe; it neither allocates nor locks, and touches no memory that the
    // parent's other threads could have left in an odd state.
    unsafe { command.pre_exec(before_exec) };
    command.spawn()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{HugePages, create_shared};
    use std::os::unix::fs::PermissionsExt;
    use std::process::Stdio;

    fn says(mut command: Command, kept: Vec<OwnedFd>, user: Option<Unprivileged>) -> String {
        command.stdout(Stdio::piped());
        let output =
            spawn_detached(command, kept, user, vec![]).unwrap().wait_with_output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn only_the_named_descriptors_are_inherited() {
        let kept = create_shared("kept", 4096, HugePages::No).unwrap();
        let closed = create_shared("closed", 4096, HugePages::No).unwrap();
        let numbers = (kept.as_raw_fd(), closed.as_raw_fd());
        let script =
            format!("readlink /proc/$$/fd/{}; readlink /proc/$$/fd/{}", numbers.0, numbers.1);
        let text = says(shell(&script), vec![kept], None);
        assert!(text.contains("memfd:kept"), "{text:?}");
        assert!(!text.contains("memfd:closed"), "{text:?}");
    }

    #[test]
    fn an_unprivileged_process_has_one_id_no_capability_and_its_folder() {
        if !rustix::process::geteuid().is_root() {
            return eprintln!("skipped: only root changes users");
        }
        let above = tempfile::tempdir().unwrap();
        std::fs::set_permissions(above.path(), PermissionsExt::from_mode(0o700)).unwrap();
        let folder = above.path().join("own");
        std::fs::create_dir(&folder).unwrap();
        std::fs::set_permissions(&folder, PermissionsExt::from_mode(0o711)).unwrap();
        std::fs::write(folder.join("here"), "").unwrap();
        let script =
            "cat /proc/self/status; cat here && echo entered; cat ../own/here || echo refused";
        let user = |id| Unprivileged { id, folder: std::fs::File::open(&folder).unwrap().into() };
        let text = says(shell(script), vec![], Some(user(65_533)));
        for line in [
            "Uid:\t65533\t65533\t65533\t65533\n",
            "Gid:\t65533\t65533\t65533\t65533\n",
            "Groups:\t \n",
            "CapPrm:\t0000000000000000\n",
            "CapEff:\t0000000000000000\n",
            "CapAmb:\t0000000000000000\n",
            "NoNewPrivs:\t1\n",
            "entered\n",
            "refused\n",
        ] {
            assert!(text.contains(line), "{line:?} is not in {text}");
        }
        let refused = spawn_detached(shell("exit"), vec![], Some(user(0)), vec![]);
        assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
