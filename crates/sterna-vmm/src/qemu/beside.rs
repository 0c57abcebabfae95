//! A second QEMU for a guest that runs, on the same host and in the same RAM.
//!
//! **Two processes have one RAM, and only one may write.** The guest runs in the old one until its state was saved; the new
//! one writes nothing before the state is loaded. QEMU means to: it leaves RAM alone while it waits for a guest. A version
//! that did not would corrupt the guest that still runs, so it is tried first, with RAM that nobody has.
//!
//! **Two processes have one tap.** A tap lets itself be opened once, so the new process is given the old one's open file,
//! and must not change its settings meanwhile (`preload/taps.rs`). A packet that comes while it waits may be read by it instead of
//! by the old one: one for each network at most, as QEMU then reads no more; the guest gets it when it has been handed over.

use super::binary::QemuBinary;
use super::command_line::StartMode;
use super::instance::QemuGuest;
use super::start::{Machine, Ram};
use super::user::UserId;
use crate::tracking::system;
use crate::{GuestDefinition, VmmError};
use std::path::{Path, PathBuf};
use sterna_sys::process::find_tap;

/// Starts it; it waits for the guest's state.
pub(super) fn start(
    binary: &QemuBinary,
    old: &QemuGuest,
    folder: PathBuf,
) -> Result<QemuGuest, VmmError> {
    let mode = StartMode::Incoming;
    let definition = binary.resolve(old.definition(), mode);
    let user = old.record().user;
    leaves_ram_alone(binary, &definition, &folder, user)?;
    let tap = |network: &crate::NetworkDefinition| {
        find_tap(old.process(), &network.tap).map_err(system("finding the guest's tap"))
    };
    let taps = definition.networks.iter().map(tap).collect::<Result<_, _>>()?;
    let machine = Machine { ram: Ram::of_guest(old)?, taps, user };
    QemuGuest::launch(binary, definition, folder, machine, mode)
}

/// Refuses a QEMU that writes into RAM while it waits for a guest: starts one that has RAM of its own, and looks.
fn leaves_ram_alone(
    binary: &QemuBinary,
    definition: &GuestDefinition,
    folder: &Path,
    user: Option<UserId>,
) -> Result<(), VmmError> {
    // Without what can be had only once: taps, and huge pages.
    let tried = GuestDefinition { networks: Vec::new(), huge_pages: false, ..definition.clone() };
    let machine = Machine { ram: Ram::create(&tried, user)?, taps: Vec::new(), user };
    let mode = StartMode::Incoming;
    let guest = QemuGuest::launch(binary, tried, folder.to_owned(), machine, mode)?;
    let written = guest.memory().populated().map_err(system("asking which pages exist"));
    guest.kill()?;
    match written?.count().0 {
        0 => Ok(()),
        pages => Err(VmmError::Refused {
            operation: "starting a second QEMU for the guest",
            detail: format!("it would write {pages} pages of the guest's RAM as it starts"),
        }),
    }
}
