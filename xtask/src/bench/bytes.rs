//! What a guest's pages hold, and what the destination has of them: how many bytes a move needs.
//!
//! Guests that write little, so that nearly all bytes are those of the first pass: of pages of one kind,
//! of the libraries and programs of a real system in the page cache, some that come back to where they were
//! kept, and some that come to where others of their kind are. QEMU has no moves of the last kinds; its figures
//! there are those of a guest that goes away.

use std::fs::{self, File};
use std::io::Write;
use std::num::NonZeroU8;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sterna_testkit::recorder::{Bytes, DiskUse, Kind, Mix, Order, Rate, Seed, Share, Workload};

use super::scenario::{Journey, Scenario};
use crate::paths;

const MEMORY: Bytes = Bytes(512 << 20);
const FILL: Bytes = Bytes(192 << 20);
/// Beside what is in the page cache.
const FILL_BESIDE_CACHE: Bytes = Bytes(16 << 20);
const PAGE: usize = 4096;

/// What the guests write all the time: a little.
const WRITTEN: (Bytes, Rate) = (Bytes(8 << 20), Rate(1 << 20));
/// How fast pages are checked, and how many milliseconds there are between ticks, so that an emulated
/// guest leaves the processors to the move: with 8 MiB a second and a tick each millisecond it took 80 %
/// of one, so it takes 15 %.
const CHECKED: Rate = Rate(1 << 20);
const TICK: NonZeroU8 = NonZeroU8::new(10).expect("it is not zero");

/// Content by name.
const MIXES: [(&str, &str); 5] = [
    ("zero-heavy", "zero:70,text:20,random:10"),
    ("text", "text:100"),
    ("heap", "heap:100"),
    ("random", "random:100"),
    ("mixed", MIXED),
];
/// Percents of its memory that a guest rewrites before it comes back.
const CHANGED: [u64; 3] = [5, 20, 50];
/// How many siblings are there already.
const SIBLINGS: [u16; 2] = [1, 3];
/// Of which the guests are that find pages known.
const MIXED: &str = "zero:20,text:30,random:20,dup:10,heap:20";

/// Where a Debian has its programs, libraries and texts.
const SYSTEM_FOLDERS: [&str; 3] = ["/usr/bin", "/usr/lib/x86_64-linux-gnu", "/usr/share"];

/// An image of a disk with files of this host's system; made if it is not there.
///
/// # Errors
/// If it cannot be written.
pub(crate) fn system_disk() -> Result<PathBuf> {
    let disk = paths::target().join("bench").join("system.raw");
    write_system(&disk).with_context(|| format!("cannot write {}", disk.display()))?;
    Ok(disk)
}

/// All scenarios, one of them with this disk.
///
/// # Errors
/// If a mix is none.
pub(crate) fn scenarios(disk: &Path) -> Result<Vec<Scenario>> {
    let guest = |fill, mix: &str| -> Result<Workload> {
        let (set, rate) = WRITTEN;
        let workload = Workload::new(fill).mix(mix.parse::<Mix>()?).check_at_most(CHECKED);
        Ok(workload.tick_each(TICK).rewrite(set, rate))
    };
    let mut scenarios = Vec::new();
    for (name, mix) in MIXES {
        let first = Scenario::new(&format!("{FILL} {name}"), MEMORY, guest(FILL, mix)?);
        scenarios.push(Scenario { bound: true, ..first });
    }
    let text = Mix::only(Kind::Text).to_string();
    let cache = guest(FILL_BESIDE_CACHE, &text)?.disk(DiskUse::Cache, Rate(0));
    let system =
        Scenario::new(&format!("{FILL} of a Debian's files in the page cache"), MEMORY, cache);
    scenarios.push(Scenario { disk: Some(disk.into()), bound: true, ..system });
    for percent in CHANGED {
        let set = Bytes(FILL.0 * percent / 100 / PAGE as u64 * PAGE as u64);
        // It rewrites all of it once while it is away, and nothing while it moves.
        let workload = guest(FILL, MIXED)?.order(Order::Sequential).rewrite(set, Rate(0));
        let name = format!("{FILL} mixed, back after {percent} % were rewritten");
        let scenario = Scenario::new(&name, MEMORY, workload);
        scenarios.push(Scenario { journey: Journey::Back, ..scenario });
    }
    for siblings in SIBLINGS {
        let workload = guest(FILL, MIXED)?.own(Share::QUARTER, Seed(1));
        let name = format!("{FILL} mixed, after {siblings} siblings with a quarter of their own");
        let sibling = Scenario::new(&name, MEMORY, workload);
        scenarios.push(Scenario { journey: Journey::AfterSiblings(siblings), ..sibling });
    }
    Ok(scenarios)
}

/// Writes files of this host's system one after the other, each from the beginning of a page, as a page
/// cache has them, as many as a guest's fill; what is there already stays.
fn write_system(image: &Path) -> Result<()> {
    if fs::metadata(image).is_ok_and(|found| found.len() == FILL.0) {
        return Ok(());
    }
    fs::create_dir_all(image.parent().context("no folder")?)?;
    let unfinished = image.with_extension("new");
    let mut file = File::create(&unfinished)?;
    let mut left = FILL.0;
    let share = FILL.0 / SYSTEM_FOLDERS.len() as u64;
    for folder in SYSTEM_FOLDERS {
        let mut of_this = share;
        for path in files(Path::new(folder))? {
            let Ok(mut content) = fs::read(&path) else { continue };
            content.resize(content.len().next_multiple_of(PAGE), 0);
            if content.len() as u64 > of_this {
                continue;
            }
            file.write_all(&content)?;
            of_this -= content.len() as u64;
            left -= content.len() as u64;
        }
    }
    file.set_len(FILL.0)?;
    println!(
        "{} MiB of this host's system, and {} MiB of zeroes",
        (FILL.0 - left) >> 20,
        left >> 20
    );
    Ok(fs::rename(unfinished, image)?)
}

/// All files below a folder, in the order of their names.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() {
                found.push(entry.path());
            }
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guests_understand_what_they_are_told() {
        let all = scenarios(Path::new("/disk")).unwrap();
        let lines: Vec<String> =
            all.iter().map(|one| one.workload.command_line().unwrap()).collect();
        assert_eq!(lines.len(), MIXES.len() + 1 + CHANGED.len() + SIBLINGS.len());
        assert!(lines[2].contains("heap:100"), "{lines:?}");
        assert!(lines[5].contains("sterna.disk=cache"), "{lines:?}");
    }
}
