//! Disks that write guest memory behind the tracker's back.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rustix::fs::{major, minor};
use serde_json::json;
use sterna_testkit::lab::GuestPlan;
use sterna_testkit::net::Host;
use sterna_testkit::recorder::{Bytes, DiskUse, Line, Rate, Workload};

use crate::kit::{GUEST, PRE_COPY, World, until};

/// Reads that the throttled disk does in a second: with a few at once each takes long, and its
/// data land long after the kernel has marked the page as written.
const READS_PER_SECOND: u32 = 20;

/// Slow enough that many rounds of copying are made, and that a page is copied while its data are
/// still on their way.
const SLOW: [&str; 6] =
    ["--bandwidth", "60MB/s", "--max-downtime", "20s", "--downtime-goal", "1ms"];

#[test]
fn data_that_a_disk_delivers_after_its_page_was_scanned_arrive_all_the_same() -> Result<()> {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let disk = folder.path().join("disk.raw");
    sterna_testkit::disk::fill(&disk, Bytes::mebibytes(64))?;
    let Some(mut world) = World::with("st-dio", &guest(&disk))? else { return Ok(()) };
    let slow = SlowDisk::make(&disk).inspect_err(|why| eprintln!("at full speed: {why:#}")).ok();
    if let Some(slow) = &slow {
        slow.take(world.qemu(Host::A)?)?;
    }
    let receipt = {
        let words = [&["--verify"], &PRE_COPY[..], &SLOW].concat();
        world.begin(Host::A, Host::B, &words)?.moved()?
    };
    ensure!(receipt.rounds.len() > 2, "only {} rounds", receipt.rounds.len());
    drop(slow);
    world.runs_only_on(Host::B)?;
    let skip = world.console.lines().len();
    world.console.wait_for(skip, crate::kit::LIMIT, |line| matches!(line, Line::Disk { .. }))?;
    world.nothing_is_wrong(Host::B)
}

fn guest(disk: &Path) -> GuestPlan {
    let workload = Workload::new(Bytes::mebibytes(128))
        .rewrite(Bytes::mebibytes(64), Rate::mebibytes_per_second(20))
        .check_at_most(Rate::mebibytes_per_second(20))
        .disk(DiskUse::Direct, Rate::mebibytes_per_second(8));
    let disk = json!({ "path": disk, "cache": "none" });
    let more = json!({ "disks": [disk] });
    GuestPlan { more, ..GuestPlan::new(GUEST, Bytes::mebibytes(256), workload) }
}

/// A control group whose processes read slowly from the device of a file.
struct SlowDisk(PathBuf);

impl SlowDisk {
    fn make(file: &Path) -> Result<Self> {
        let device = fs::metadata(file)?.dev();
        let limit = format!("{}:{} {READS_PER_SECOND}", major(device), minor(device));
        let group = format!("/sys/fs/cgroup/blkio/sterna-test-{}", std::process::id());
        let group = PathBuf::from(group);
        fs::create_dir_all(&group).context("no control group for block I/O")?;
        let slow = Self(group);
        fs::write(slow.0.join("blkio.throttle.read_iops_device"), limit)?;
        Ok(slow)
    }

    fn take(&self, pid: u32) -> Result<()> {
        Ok(fs::write(self.0.join("cgroup.procs"), pid.to_string())?)
    }
}

impl Drop for SlowDisk {
    fn drop(&mut self) {
        let _removed = until("the end of a control group", || Ok(fs::remove_dir(&self.0).ok()));
    }
}
