//! Why a guest cannot be moved: every reason at once.

use super::binary::NEEDED_CAPABILITIES;
use super::instance::QemuGuest;
use super::qmp::Qmp;
use super::replies::{Capability, MemoryBackend, Migration, Property};
use crate::tracking::in_full;
use crate::{Discarding, Immovable, Tracker, VmmError};
use qapi::qmp::{qom_list, query_memdev, query_migrate, query_migrate_capabilities};
use sterna_sys::soft_dirty;
use sterna_sys::uffd::{UffdError, Userfaultfd};

/// Every reason, by all that QEMU and the kernel tell.
pub(super) fn reasons(
    guest: &QemuGuest,
    qmp: &mut Qmp,
    tracker: Tracker,
) -> Result<Vec<Immovable>, VmmError> {
    let mut reasons = Vec::new();
    match tracker {
        Tracker::PagemapScan => userfaultfd(guest, &mut reasons)?,
        Tracker::SoftDirty => soft_dirty(guest, &mut reasons),
    }
    capabilities(qmp, &mut reasons)?;
    memory(guest, qmp, &mut reasons)?;
    devices(qmp, &mut reasons)?;
    command_line(guest, &mut reasons);
    blocked(qmp, &mut reasons)?;
    Ok(reasons)
}

/// What QEMU itself has against it.
pub(super) fn blocked(qmp: &mut Qmp, reasons: &mut Vec<Immovable>) -> Result<(), VmmError> {
    let migration: Migration = qmp.query(&query_migrate {})?;
    let blocked = migration.blocked_reasons.into_iter();
    reasons.extend(blocked.map(|blocker| Immovable::Blocked { blocker }));
    Ok(())
}

fn userfaultfd(guest: &QemuGuest, reasons: &mut Vec<Immovable>) -> Result<(), VmmError> {
    match Userfaultfd::take(guest.process()) {
        Ok(_) => {}
        Err(UffdError::None { .. }) => reasons.push(Immovable::NoUserfaultfd),
        Err(UffdError::Features(_)) => {
            let capability =
                "write tracking in its kernel (Linux 6.7, or one with CONFIG_MEM_SOFT_DIRTY)"
                    .into();
            reasons.push(Immovable::MissingCapability { capability });
        }
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

fn soft_dirty(guest: &QemuGuest, reasons: &mut Vec<Immovable>) {
    let checked = soft_dirty::check(guest.process(), guest.memory().files());
    reasons.extend(checked.err().map(|error| Immovable::Untracked { why: in_full(&error) }));
}

pub(super) fn capabilities(qmp: &mut Qmp, reasons: &mut Vec<Immovable>) -> Result<(), VmmError> {
    let known: Vec<Capability> = qmp.query(&query_migrate_capabilities {})?;
    let missing =
        NEEDED_CAPABILITIES.iter().filter(|name| !known.iter().any(|k| k.capability == **name));
    reasons.extend(
        missing.map(|name| Immovable::MissingCapability { capability: (*name).to_owned() }),
    );
    Ok(())
}

/// Only the blocks that we made and mapped may be RAM.
pub(super) fn memory(
    guest: &QemuGuest,
    qmp: &mut Qmp,
    reasons: &mut Vec<Immovable>,
) -> Result<(), VmmError> {
    let backends: Vec<MemoryBackend> = qmp.query(&query_memdev {})?;
    for backend in backends {
        let block = backend.id.unwrap_or_else(|| "without a name".into());
        if !backend.share {
            reasons.push(Immovable::PrivateRam { block });
        } else if !guest.layout().blocks().iter().any(|known| known.name == block) {
            reasons.push(Immovable::UnnamedRam { block });
        }
    }
    Ok(())
}

fn devices(qmp: &mut Qmp, reasons: &mut Vec<Immovable>) -> Result<(), VmmError> {
    let devices = drivers(qmp)?.into_iter();
    reasons.extend(devices.filter_map(|(path, driver)| device(path, &driver)));
    Ok(())
}

/// Path and driver of every device that was asked for.
fn drivers(qmp: &mut Qmp) -> Result<Vec<(String, String)>, VmmError> {
    let mut drivers = Vec::new();
    for path in ["/machine/peripheral", "/machine/peripheral-anon"] {
        let children: Vec<Property> = qmp.query(&qom_list { path: path.into() })?;
        drivers.extend(children.iter().filter_map(|child| {
            let driver = child.kind.strip_prefix("child<")?.strip_suffix('>')?;
            Some((format!("{path}/{}", child.name), driver.to_owned()))
        }));
    }
    Ok(drivers)
}

/// Whether a device lets the guest give RAM back.
pub(super) fn discarding(qmp: &mut Qmp) -> Result<Discarding, VmmError> {
    let gives_back = |driver: &str| driver.contains("balloon") || driver.contains("virtio-mem");
    let possible = drivers(qmp)?.iter().any(|(_, driver)| gives_back(driver));
    Ok(if possible { Discarding::Possible } else { Discarding::Never })
}

/// Whether a device's driver writes RAM past QEMU's page tables.
fn device(device: String, driver: &str) -> Option<Immovable> {
    if driver.contains("vhost-user") {
        return Some(Immovable::VhostUser { device });
    }
    let passed_through = ["vfio-", "vhost-vdpa", "ivshmem", "x-vfio-user"];
    let past = passed_through.iter().any(|prefix| driver.starts_with(prefix));
    past.then(|| Immovable::PassThrough { device, driver: driver.to_owned() })
}

/// Network backends are no QOM objects; those that share RAM are recognised where they were asked
/// for. (QEMU can also be given them at run time, but only by someone else with our monitor.)
fn command_line(guest: &QemuGuest, reasons: &mut Vec<Immovable>) {
    for argument in &guest.definition().qemu_args {
        if argument.starts_with("vhost-user,") || argument.contains("type=vhost-user") {
            reasons.push(Immovable::VhostUser { device: argument.clone() });
        }
        if argument.starts_with("vhost-vdpa,") || argument.contains("type=vhost-vdpa") {
            let driver = "vhost-vdpa".to_owned();
            reasons.push(Immovable::PassThrough { device: argument.clone(), driver });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_that_write_past_the_page_tables_are_known_by_their_drivers() {
        let of = |driver| device("/machine/peripheral/x".into(), driver);
        assert!(matches!(of("vfio-pci"), Some(Immovable::PassThrough { .. })));
        assert!(matches!(of("vhost-user-blk-pci"), Some(Immovable::VhostUser { .. })));
        assert_eq!(of("virtio-blk-pci"), None);
    }
}
