//! The driver takes it for QEMU, and its guest moves whole.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};
use sterna_guest::line::Line;
use sterna_page::{PAGE_SIZE, PageCount, PageNumber, PageRun, PageSet};
use sterna_sys::memory::GuestMemory;
use sterna_vmm::qemu::{QemuBinary, QemuDestination, QemuGuest, QemuSource, QemuStatus, StartMode};
use sterna_vmm::{Begin, Destination, GuestDefinition, Source};

const LIMIT: Duration = Duration::from_secs(30);

struct Ended(QemuGuest);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
    }
}

fn binary() -> QemuBinary {
    QemuBinary::ask(Path::new(env!("CARGO_BIN_EXE_sterna-stand-in"))).unwrap()
}

fn definition() -> GuestDefinition {
    let append = "quiet sterna.fill=8M sterna.ws=2M sterna.rate=40M";
    let text = format!(
        r#"{{"name":"s","memory_bytes":16777216,"balloon":false,"append":"{append}","accelerator":"tcg"}}"#
    );
    serde_json::from_str(&text).unwrap()
}

/// What the guest says of all its memory, and the newest tick before that.
fn checked(guest: &QemuGuest) -> (Line, u64) {
    let mut console = UnixStream::connect(guest.console_path()).unwrap();
    console.set_read_timeout(Some(LIMIT)).unwrap();
    console.write_all(b"check\n").unwrap();
    let mut newest = 0;
    for line in BufReader::new(console).lines() {
        match Line::read(&line.unwrap()) {
            Line::Tick(tick) => newest = tick.number,
            line @ (Line::Checked { .. } | Line::Error(_)) => return (line, newest),
            _ => {}
        }
    }
    panic!("the console has ended");
}

fn copy(from: &GuestMemory, to: &GuestMemory, pages: &PageSet) {
    let mut bytes = vec![0; PAGE_SIZE];
    for page in pages.iter() {
        from.read(page, &mut bytes).unwrap();
        to.write(page, &bytes).unwrap();
    }
}

fn moved(guest: &QemuGuest, folder: &Path) -> Ended {
    let mut source = QemuSource::new(guest).unwrap();
    assert_eq!(source.immovable().unwrap(), []);
    let folder = folder.to_owned();
    let mut destination = QemuDestination::prepare(&binary(), guest.definition(), folder).unwrap();
    let arrived = Ended(destination.guest().clone());
    source.start_tracking().unwrap();
    let (from, to) = (source.memory(), destination.memory());
    copy(&from, &to, &source.populated().unwrap());
    let mut dirty = PageSet::empty(from.pages());
    let deadline = Instant::now() + LIMIT;
    while dirty.is_empty() {
        assert!(Instant::now() < deadline, "the guest writes nothing");
        source.scan(&mut dirty).unwrap();
    }
    copy(&from, &to, &dirty);
    source.pause().unwrap();
    dirty.clear();
    source.scan(&mut dirty).unwrap();
    copy(&from, &to, &dirty);
    let state = source.save_device_state().unwrap();
    destination.load_device_state(&state).unwrap();
    assert!(matches!(arrived.0.status().unwrap(), QemuStatus::Stopped(_)));
    destination.activate().unwrap();
    destination.settle().unwrap();
    source.release().unwrap();
    arrived
}

#[test]
fn its_guest_moves_there_and_back_and_every_page_arrives() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let guest = QemuGuest::start(&binary(), &definition(), at("a"), StartMode::Run).unwrap();
    let guest = Ended(guest);
    let (line, first) = checked(&guest.0);
    assert!(matches!(line, Line::Checked { wrong: 0, pages } if pages > 2000), "{line:?}");
    let second = moved(&guest.0, &at("b"));
    assert!(!guest.0.is_alive() && !at("a").exists());
    let (line, after) = checked(&second.0);
    assert!(matches!(line, Line::Checked { wrong: 0, .. }), "{line:?}");
    assert!(after >= first, "its clock went back from {first} to {after}");
    let third = moved(&second.0, &at("a"));
    assert!(matches!(checked(&third.0).0, Line::Checked { wrong: 0, .. }));
}

#[test]
fn a_page_that_was_lost_on_the_way_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let guest = QemuGuest::start(&binary(), &definition(), folder.path().join("a"), StartMode::Run);
    let guest = Ended(guest.unwrap());
    let memory = guest.0.memory();
    let page = memory.populated().unwrap().iter().last().unwrap();
    memory.write(page, &[7; PAGE_SIZE]).unwrap();
    let (line, _) = checked(&guest.0);
    assert!(matches!(line, Line::Checked { wrong: 1.., .. }), "{line:?}");
}

#[test]
fn pages_that_are_missing_can_follow_a_guest_that_is_awaited() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().join("a");
    let mut destination = QemuDestination::prepare(&binary(), &definition(), folder).unwrap();
    let _awaiting = Ended(destination.guest().clone());
    let mut missing = PageSet::empty(destination.memory().pages());
    missing.insert_run(PageRun { first: PageNumber(3), count: PageCount(2) });
    destination.serve_faults(&missing, Begin::Fresh).unwrap();
}

#[test]
fn a_guest_that_is_taken_back_runs_on() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().join("a");
    let guest = QemuGuest::start(&binary(), &definition(), folder, StartMode::Run).unwrap();
    let guest = Ended(guest);
    let mut source = QemuSource::new(&guest.0).unwrap();
    for saved in [false, true] {
        source.start_tracking().unwrap();
        source.pause().unwrap();
        if saved {
            source.save_device_state().unwrap();
        }
        source.resume().unwrap();
        assert_eq!(guest.0.status().unwrap(), QemuStatus::Running);
    }
    assert!(matches!(checked(&guest.0).0, Line::Checked { wrong: 0, .. }));
}
