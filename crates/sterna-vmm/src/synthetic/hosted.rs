//! A synthetic guest in RAM that somebody else has made: for a process that passes for a hypervisor, whose guest is moved
//! from outside like any other.

use super::config::SyntheticConfig;
use super::machine::{Machine, Phase, SyntheticGuest};
use super::memories::Memories;
use super::page::{Version, render_into};
use super::registers::Registers;
use crate::VmmError;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use sterna_page::{PAGE_SIZE, PageNumber, RamLayout};

/// RAM that waits for its guest: mapped from the beginning, as a hypervisor's is, so that what is missing of it can follow.
#[derive(Debug)]
pub struct AwaitedRam(Memories);

impl AwaitedRam {
    /// In `files`, one for each block.
    ///
    /// # Errors
    /// When the files are not such RAM.
    pub fn over(layout: &RamLayout, files: Vec<OwnedFd>) -> Result<Self, VmmError> {
        Memories::over(layout, files).map(Self)
    }

    /// The guest of these registers. It does not run yet.
    ///
    /// # Errors
    /// When the registers are no guest's of such RAM.
    pub fn load(self, registers: Registers) -> Result<SyntheticGuest, VmmError> {
        if registers.config.layout()? != *self.0.inside.layout() {
            let detail = "the guest has other RAM".into();
            return Err(VmmError::Refused { operation: "loading a synthetic guest", detail });
        }
        SyntheticGuest::paused(self.0, registers)
    }
}

impl SyntheticGuest {
    /// Populates a guest in `files`, one for each of its RAM blocks. It does not run yet.
    ///
    /// # Errors
    /// When `config` is no guest, or the files are not its RAM.
    pub fn boot_in(config: SyntheticConfig, files: Vec<OwnedFd>) -> Result<Self, VmmError> {
        let memories = Memories::over(&config.layout()?, files)?;
        let mut bytes = vec![0; PAGE_SIZE];
        for page in (0..config.populated.0).map(PageNumber) {
            render_into(&config, page, Version(1), &mut bytes);
            memories.inside.write(page, &bytes)?;
        }
        Self::paused(memories, Registers::fresh(config))
    }

    fn paused(memories: Memories, registers: Registers) -> Result<Self, VmmError> {
        Ok(Self::from_handle(Arc::new(Machine::start(memories, registers)?)))
    }

    /// Lets its writers run.
    pub fn run(&self) {
        self.machine().set_phase(Phase::Running);
    }

    /// Stops its writers.
    ///
    /// # Errors
    /// When one waits for a missing page that does not come.
    pub fn pause(&self) -> Result<(), VmmError> {
        self.machine().pause()
    }
}
