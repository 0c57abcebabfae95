//! The cgroup in which one QEMU is, from its first instruction until it has ended.
//!
//! Its name is that of the guest's folder, so whoever knows that finds it, and agents with folders of their own have
//! groups of their own. **No bound on memory:** whoever reached it would be killed, and its guest lost; what a guest
//! may have is its RAM, which was claimed when it started. A host that has no group to give starts guests without:
//! [`super::probe::cgroups`] says why.

use super::folder::Folder;
use crate::GuestDefinition;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use sterna_sys::cgroup::{Bounds, Group, NoGroups, Parents};
use sterna_sys::process::{Liveness, Process};

/// Processes and threads that a QEMU may have beside its vCPUs. One that is refused a thread aborts, and its guest is lost, so
/// no honest one may come near: it has up to 64 threads for each thread of its own that does disk I/O, 255 for each
/// direction of its own migration, some of vhost for each queue, and a few more. A QEMU that was taken over gets 4096
/// kernel stacks and process ids by it, of which a host has millions.
pub(super) const TASKS_BESIDE_VCPUS_MAX: u32 = 4096;

/// Makes the group of the QEMU that is about to be started in this folder, and returns by what it enters it.
pub(super) fn make(folder: &Folder, definition: &GuestDefinition) -> Vec<OwnedFd> {
    let Ok(group) = of(folder.path()) else { return Vec::new() };
    group.make(bounds(definition)).unwrap_or_else(|error| {
        warn(folder.path(), "its QEMU gets no cgroup", &error);
        Vec::new()
    })
}

/// Takes in a QEMU that runs among the processes of an earlier agent, where it would be in the way of all groups.
pub(super) fn adopt(folder: &Folder, process: &Process, definition: &GuestDefinition) {
    let Ok(group) = of(folder.path()) else { return };
    if let Err(error) = group.adopt(process.pid(), bounds(definition)) {
        warn(folder.path(), "its QEMU cannot be taken into a cgroup of its own", &error);
    }
}

fn bounds(definition: &GuestDefinition) -> Bounds {
    let tasks_max = TASKS_BESIDE_VCPUS_MAX.saturating_add(definition.vcpus);
    Bounds { tasks_max, weight: definition.vcpus }
}

/// Says so if a QEMU is not where it was told to begin.
pub(super) fn check(folder: &Folder, process: &Process) {
    let Ok(group) = of(folder.path()) else { return };
    let is_outside = match group.has(process.pid()) {
        Ok(is_inside) => !is_inside,
        // It was not made, which has been said.
        Err(error) => error.kind() != ErrorKind::NotFound,
    };
    // One that has ended is nowhere.
    if is_outside && process.liveness() == Liveness::Alive {
        let error = std::io::Error::other("the kernel did not let it in");
        warn(folder.path(), "its QEMU is in no cgroup of its own", &error);
    }
}

/// Removes the group of the QEMU that has run in a folder, if it had one.
pub(super) fn remove(folder: &Folder) {
    let Ok(group) = of(folder.path()) else { return };
    if let Err(error) = group.remove() {
        warn(folder.path(), "its cgroup cannot be removed", &error);
    }
}

/// Removes the groups of QEMUs that have run in folders below `guests`, and run no more.
pub(super) fn remove_left(guests: &Path) {
    let Ok(groups) = in_use(guests) else { return };
    for group in groups {
        match group.remove() {
            Err(error) if error.kind() != ErrorKind::ResourceBusy => {
                warn(guests, "a cgroup that is left cannot be removed", &error);
            }
            Ok(()) | Err(_) => {}
        }
    }
}

/// The folders of all cgroups there are of guests whose own folders lie below `guests`, as far as they are below where
/// this process makes its own.
///
/// # Errors
/// When this process makes none.
pub fn cgroups_below(guests: &Path) -> Result<Vec<PathBuf>, NoGroups> {
    Ok(in_use(guests)?.iter().flat_map(Group::folders).collect())
}

fn in_use(guests: &Path) -> Result<Vec<Group>, NoGroups> {
    let pid = std::process::id();
    let named = Parents::of(pid)?.named(&format!("{},", name(guests)));
    named.map_err(|source| NoGroups::Unknown { pid, source })
}

fn of(folder: &Path) -> Result<Group, NoGroups> {
    Ok(Parents::of(std::process::id())?.group(&name(folder)))
}

/// A folder's path as a name. A comma is in no path of a guest's folder, so no two have the same.
fn name(folder: &Path) -> String {
    format!("sterna{}", folder.to_string_lossy().replace('/', ","))
}

fn warn(folder: &Path, what: &str, error: &std::io::Error) {
    tracing::warn!(folder = %folder.display(), %error, "{what}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_have_groups_of_names_of_their_own() {
        assert_eq!(name(Path::new("/run/sterna/guests/web-1")), "sterna,run,sterna,guests,web-1");
        assert_ne!(name(Path::new("/run/a-b")), name(Path::new("/run/a/b")));
    }
}
