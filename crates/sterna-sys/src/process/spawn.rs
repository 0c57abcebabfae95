//! Starting a process that outlives this one.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

/// Starts `command` in a session of its own, so that no signal to this one's terminal or process
/// group reaches it. It inherits `descriptors` under the numbers they have here; they are closed
/// on exec in every other child.
///
/// # Errors
/// As [`Command::spawn`].
pub fn spawn_detached(mut command: Command, descriptors: Vec<OwnedFd>) -> io::Result<Child> {
    let before_exec = move || {
        rustix::process::setsid()?;
        for descriptor in &descriptors {
            let kept = rustix::io::FdFlags::empty();
            debug_assert!(descriptor.as_raw_fd() > 2, "standard streams are set by the command");
            rustix::io::fcntl_setfd(descriptor, kept)?;
        }
        Ok(())
    };
    // SAFETY: the closure runs in the child between fork and exec. It calls only setsid and fcntl,
    // which are async-signal-safe; it neither allocates nor locks, and touches no memory that the
    // parent's other threads could have left in an odd state.
    unsafe { command.pre_exec(before_exec) };
    command.spawn()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{HugePages, create_shared};
    use std::process::Stdio;

    #[test]
    fn only_the_named_descriptors_are_inherited() {
        let kept = create_shared("kept", 4096, HugePages::No).unwrap();
        let closed = create_shared("closed", 4096, HugePages::No).unwrap();
        let numbers = (kept.as_raw_fd(), closed.as_raw_fd());
        let script =
            format!("readlink /proc/$$/fd/{}; readlink /proc/$$/fd/{}", numbers.0, numbers.1);
        let mut command = Command::new("sh");
        command.args(["-c", &script]).stdout(Stdio::piped());
        let output = spawn_detached(command, vec![kept]).unwrap().wait_with_output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains("memfd:kept"), "{text:?}");
        assert!(!text.contains("memfd:closed"), "{text:?}");
    }
}
