//! The fewest bytes that a guest's first move could have: what the destination cannot derive, coded as well as
//! any coder does.
//!
//! Each content counts once, zero pages and what is on the guest's disk not at all. The strongest coder is taken for
//! all pages, with its window from one to the next, or the page itself where that is shorter. A page that is
//! as another still needs a word that says so, one on the disk its hash and place, and each run of pages a header;
//! that is left out.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use rustix::fs::{SeekFrom, seek};
use sterna_page::coding::{Coder, Encoders, PageBytes, code_bytes_max};
use sterna_page::sent::{ContentHash, ContentHasher};
use sterna_page::{PAGE_SIZE, PAGE_SIZE_BYTES, is_zero};
use sterna_testkit::net::Namespace;

/// Pages that are coded at once.
const RUN: usize = 64;

/// What a hypervisor calls the file of a guest's RAM.
const RAM: &str = "/memfd:ram0";

/// Bytes of the first move of the one guest on a host, which has this disk.
///
/// # Errors
/// If the guest's RAM or disk cannot be read.
pub(crate) fn bytes(host: &Namespace, disk: Option<&Path>) -> Result<u64> {
    let ram = ram(host)?;
    let mut bound = Bound::new();
    if let Some(disk) = disk {
        let disk = File::open(disk)?;
        let length = disk.metadata()?.len();
        let mut page = [0; PAGE_SIZE];
        for at in (0..length / PAGE_SIZE_BYTES).map(|block| block * PAGE_SIZE_BYTES) {
            disk.read_exact_at(&mut page, at)?;
            bound.derived(&page);
        }
    }
    let mut page = [0; PAGE_SIZE];
    let mut at = 0;
    // Holes are zero pages.
    while let Some(start) = data_from(&ram, at)? {
        let end = seek(&ram, SeekFrom::Hole(start))?;
        for place in (start..end).step_by(PAGE_SIZE) {
            ram.read_exact_at(&mut page, place)?;
            bound.add(&page);
        }
        at = end;
    }
    Ok(bound.finish())
}

/// Where the next data of a file are, from here on.
fn data_from(file: &File, at: u64) -> Result<Option<u64>> {
    match seek(file, SeekFrom::Data(at)) {
        Ok(start) => Ok(Some(start)),
        Err(rustix::io::Errno::NXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The file of the guest's RAM.
fn ram(host: &Namespace) -> Result<File> {
    let output = Command::new("ip").args(["netns", "pids", host.name()]).output()?;
    for pid in String::from_utf8(output.stdout)?.split_whitespace() {
        let entries = match fs::read_dir(format!("/proc/{pid}/fd")) {
            // It has ended meanwhile.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            entries => entries?,
        };
        for path in entries.map(|entry| entry.map(|entry| entry.path())) {
            let path = path?;
            if fs::read_link(&path).unwrap_or_default().to_string_lossy().starts_with(RAM) {
                return File::open(path).context("cannot open the guest's RAM");
            }
        }
    }
    anyhow::bail!("no guest's RAM on {}", host.name())
}

struct Bound {
    hasher: ContentHasher,
    derived: HashSet<ContentHash>,
    encoders: Encoders,
    run: Vec<PageBytes>,
    code: Vec<u8>,
    bytes: u64,
}

impl Bound {
    fn new() -> Self {
        Self {
            hasher: ContentHasher::new([0; 32]),
            derived: HashSet::new(),
            encoders: Encoders::default(),
            run: Vec::with_capacity(RUN),
            code: vec![0; code_bytes_max(RUN)],
            bytes: 0,
        }
    }

    /// The destination has this page.
    fn derived(&mut self, page: &PageBytes) {
        self.derived.insert(self.hasher.hash(page));
    }

    /// The guest has this page.
    fn add(&mut self, page: &PageBytes) {
        if is_zero(page) || !self.derived.insert(self.hasher.hash(page)) {
            return;
        }
        self.run.push(*page);
        if self.run.len() == RUN {
            self.code_run();
        }
    }

    fn code_run(&mut self) {
        if !self.run.is_empty() {
            let coded = self.encoders.encode(Coder::ZstdStrong, &self.run, &mut self.code);
            self.bytes += coded.min(self.run.len() * PAGE_SIZE) as u64;
            self.run.clear();
        }
    }

    fn finish(mut self) -> u64 {
        self.code_run();
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_derived_costs_nothing() {
        let noise = |seed: u64| {
            let mut page = [0; PAGE_SIZE];
            let mut word = seed;
            for bytes in page.as_chunks_mut::<8>().0 {
                word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(99);
                *bytes = (word ^ word >> 31).to_le_bytes();
            }
            page
        };
        let mut bound = Bound::new();
        bound.derived(&noise(1));
        for page in [noise(1), [0; PAGE_SIZE], noise(2), noise(2), [7; PAGE_SIZE]] {
            bound.add(&page);
        }
        let bytes = bound.finish();
        assert!((4096..4500).contains(&bytes), "{bytes}");
    }
}
