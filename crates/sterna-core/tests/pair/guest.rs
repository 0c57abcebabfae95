//! A modelled guest: 16 pages, registers, the hypervisor that holds it, and a dirty tracker.

use sterna_core::source::Found;
use sterna_core::speed::VcpuSpeed;
use sterna_page::{RamDigest, ram_digest};

/// Pages of the modelled guest.
pub(crate) const PAGES: usize = 16;

/// What each page holds; zero for a page that does not exist.
pub(crate) type Ram = [u64; PAGES];

/// A set of pages, one bit each.
pub(crate) type Pages = u16;

/// What a hypervisor does with the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hypervisor {
    /// It waits for a guest's RAM and state.
    Empty,
    /// RAM and state are there; nothing was executed here.
    Loaded,
    Running,
    Paused,
    Gone,
}

/// The guest as it is at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Snapshot {
    pub(crate) ram: Ram,
    pub(crate) registers: u64,
}

/// One hypervisor process, on one host, for one attempt.
#[derive(Clone, Debug)]
pub(crate) struct Instance {
    pub(crate) hypervisor: Hypervisor,
    pub(crate) guest: Snapshot,
    /// Pages written since the last scan, while tracked.
    pub(crate) dirty: Pages,
    pub(crate) tracking: bool,
    /// Whether any instruction of the guest was executed here.
    pub(crate) has_run: bool,
    /// Whether a fault, not the move, ended it.
    pub(crate) killed: bool,
    /// Whether a write of the running guest is in the queue.
    pub(crate) write_due: bool,
    pub(crate) speed: VcpuSpeed,
    /// Pages that are owed and not here. Whoever touches one waits for it.
    pub(crate) missing: Pages,
    /// The missing page that the guest waits for.
    pub(crate) waits_for: Option<usize>,
    /// The RAM as it arrived, before the guest wrote any of it here.
    pub(crate) arrived: Ram,
    /// Pages that the guest has written here.
    pub(crate) touched: Pages,
    /// Whether neither a hypervisor nor an agent has the RAM any more.
    pub(crate) ram_lost: bool,
}

impl Instance {
    pub(crate) fn empty() -> Self {
        Self {
            hypervisor: Hypervisor::Empty,
            guest: Snapshot { ram: [0; PAGES], registers: 0 },
            dirty: 0,
            tracking: false,
            has_run: false,
            killed: false,
            write_due: false,
            speed: VcpuSpeed::FULL,
            missing: 0,
            waits_for: None,
            arrived: [0; PAGES],
            touched: 0,
            ram_lost: false,
        }
    }

    /// A guest that has been running for a while: some pages exist, each with its own content.
    pub(crate) fn running(populated: Pages) -> Self {
        let mut instance = Self::empty();
        for (page, content) in (1u64..).zip(&mut instance.guest.ram) {
            *content = if populated >> (page - 1) & 1 == 1 { page } else { 0 };
        }
        instance.guest.registers = 100;
        instance.run();
        instance
    }

    pub(crate) fn run(&mut self) {
        self.hypervisor = Hypervisor::Running;
        self.has_run = true;
    }

    /// One step of the running guest; every value written is new.
    pub(crate) fn write(&mut self, page: usize) {
        self.touched |= 1 << page;
        self.guest.registers += 1;
        self.guest.ram[page] = self.guest.registers << 8 | page as u64;
        if self.tracking {
            self.dirty |= 1 << page;
        }
    }

    /// Reads and clears the dirty pages.
    pub(crate) fn scan(&mut self) -> Pages {
        std::mem::take(&mut self.dirty)
    }

    pub(crate) fn populated(&self) -> Pages {
        (0..PAGES).filter(|page| self.guest.ram[*page] != 0).fold(0, |set, page| set | 1 << page)
    }

    /// The digest of exactly this RAM.
    pub(crate) fn digest(&self) -> RamDigest {
        digest_of(&self.guest.ram)
    }

    /// What an agent that was restarted sees.
    pub(crate) fn found(&self) -> Found {
        match self.hypervisor {
            Hypervisor::Running => Found::Running,
            Hypervisor::Empty | Hypervisor::Loaded | Hypervisor::Paused => Found::Paused,
            Hypervisor::Gone => Found::Gone,
        }
    }
}

/// The digest of this RAM: four pages to a "chunk", their content as its digest.
pub(crate) fn digest_of(ram: &Ram) -> RamDigest {
    let (quads, _) = ram.as_chunks::<4>();
    ram_digest(quads.iter().map(|quad| {
        let mut chunk = [0; 32];
        for (bytes, page) in chunk.as_chunks_mut::<8>().0.iter_mut().zip(quad) {
            *bytes = page.to_le_bytes();
        }
        Some(chunk)
    }))
}
