//! The guest and its clock: what a migration stream carries.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::os::fd::OwnedFd;
use std::path::Path;
use sterna_guest::settings::Settings;
use sterna_page::{PAGE_SIZE_BYTES, PageCount, RamBlock, RamLayout};
use sterna_vmm::synthetic::{
    AwaitedRam, Content, Registers, Rewrite, SyntheticConfig, SyntheticGuest, WriteRate,
};

/// What a stream begins with.
const MAGIC: &[u8; 8] = b"stand-in";

/// All that is known of a guest beside its RAM.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Saved {
    /// Milliseconds that it has lived.
    pub(crate) tick: u64,
    registers: Registers,
}

/// Opens RAM's file.
pub(crate) fn ram(path: &Path) -> Result<OwnedFd> {
    let file: File = OpenOptions::new().read(true).write(true).open(path).context("RAM")?;
    Ok(file.into())
}

/// A guest as the kernel's command line wants the flight recorder to be.
pub(crate) fn boot(ram: OwnedFd, bytes: u64, append: &str) -> Result<(SyntheticGuest, Settings)> {
    let settings = Settings::parse(append)?;
    let pages = |bytes: u64| PageCount(bytes / PAGE_SIZE_BYTES);
    let config = SyntheticConfig {
        pages: pages(bytes),
        blocks: 1,
        populated: pages(settings.fill.0),
        content: Content::Text,
        rewrite: Rewrite::Whole,
        writers: 1,
        rate: WriteRate::BytesPerSecond(settings.rate.0),
        working_set: pages(settings.working_set.0).max(PageCount(1)),
        seed: 1,
    };
    Ok((SyntheticGuest::boot_in(config, vec![ram])?, settings))
}

/// What the stream of a paused guest carries.
pub(crate) fn save(guest: &SyntheticGuest, tick: u64) -> Result<Vec<u8>> {
    let saved = Saved { tick, registers: guest.registers() };
    let mut bytes = MAGIC.to_vec();
    serde_json::to_writer(&mut bytes, &saved)?;
    Ok(bytes)
}

/// RAM that waits for a guest.
pub(crate) fn awaited(ram: OwnedFd, bytes: u64) -> Result<AwaitedRam> {
    let (name, host_page_bytes) = ("ram0".into(), PAGE_SIZE_BYTES);
    let layout = RamLayout::new(vec![RamBlock { name, size_bytes: bytes, host_page_bytes }])?;
    Ok(AwaitedRam::over(&layout, vec![ram])?)
}

/// The guest of a stream.
pub(crate) fn load(ram: AwaitedRam, stream: &[u8]) -> Result<(SyntheticGuest, u64)> {
    let rest = stream.strip_prefix(MAGIC).context("this is no guest")?;
    let saved: Saved = serde_json::from_slice(rest)?;
    Ok((ram.load(saved.registers)?, saved.tick))
}
