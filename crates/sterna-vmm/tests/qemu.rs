//! Moves of a real QEMU guest between two processes of one host, by a plain copy loop.
//!
//! The guest is a boot sector that counts in each of its pages for ever, so that no guest image is
//! needed. It is emulated, or runs on KVM where `STERNA_TEST_ACCELERATOR` says so. Without QEMU, or
//! on a kernel that cannot track writes, the tests print why they skip.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "qemu/bare.rs"]
mod bare;
#[path = "qemu/beside.rs"]
mod beside;
#[path = "qemu/grouped.rs"]
mod grouped;
#[path = "qemu/missing.rs"]
mod missing;
#[path = "qemu/native.rs"]
mod native;
#[path = "qemu/soft_dirty.rs"]
mod soft_dirty;
#[path = "qemu/strays.rs"]
mod strays;
#[path = "qemu/users.rs"]
mod users;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use sterna_page::{PAGE_SIZE, PAGE_SIZE_BYTES, PageNumber, PageSet};
use sterna_sys::memory::GuestMemory;
use sterna_testkit::huge_pages::HugePages;
use sterna_testkit::recorder::Bytes;
use sterna_testkit::{accelerator, tracker};
use sterna_vmm::qemu::probe::{COUNTED_FROM, Verdict, boot_image, probe};
use sterna_vmm::qemu::{
    Ending, QemuBinary, QemuDestination, QemuGuest, QemuSource, QemuStatus, StartMode,
};
use sterna_vmm::{
    Accelerator, ConsoleKind, Destination, DeviceState, DeviceStateKind, Discarding, DiskCache,
    GuestDefinition, Immovable, InFlightIo, Source, Tracker, VmmError,
};

const COUNTED: u32 = 1024;
const MEMORY_BYTES: u64 = 64 << 20;
const LIMIT: Duration = Duration::from_secs(30);

struct Host {
    folder: tempfile::TempDir,
    binary: QemuBinary,
}

/// A guest that is ended when the test ends, however it ends.
struct Ended(QemuGuest);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
    }
}

impl std::ops::Deref for Ended {
    type Target = QemuGuest;
    fn deref(&self) -> &QemuGuest {
        &self.0
    }
}

impl Host {
    /// This host, or `None` with the reason printed.
    fn new() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let path = Path::new("/usr/bin/qemu-system-x86_64");
        if !path.exists() {
            eprintln!("skipped: {} is not installed", path.display());
            return None;
        }
        let binary = QemuBinary::ask(path).unwrap();
        Some(Self { folder, binary })
    }

    fn definition(&self) -> GuestDefinition {
        let image = self.folder.path().join("boot.img");
        if !image.exists() {
            std::fs::write(&image, boot_image(COUNTED)).unwrap();
        }
        let text = format!(
            r#"{{"name":"counter","memory_bytes":{MEMORY_BYTES},"disks":[{{"path":{image:?}}}]}}"#
        );
        let accelerator = match accelerator::Accelerator::wanted() {
            accelerator::Accelerator::Tcg => Accelerator::Tcg,
            accelerator::Accelerator::Kvm => Accelerator::Kvm,
        };
        GuestDefinition { accelerator, ..serde_json::from_str(&text).unwrap() }
    }

    fn folder(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A guest that counts.
    fn start(&self) -> Ended {
        self.start_as(&self.definition())
    }

    fn start_as(&self, definition: &GuestDefinition) -> Ended {
        let guest =
            QemuGuest::start(&self.binary, definition, self.folder("a"), StartMode::Run).unwrap();
        let guest = Ended(guest);
        let deadline = Instant::now() + LIMIT;
        while *counts(&guest.memory()).last().unwrap() == 0 {
            assert!(Instant::now() < deadline && guest.is_alive(), "the guest did not boot");
            std::thread::sleep(Duration::from_millis(10));
        }
        let accelerator = accelerator::Accelerator::of_process(guest.pid()).unwrap();
        assert_eq!(accelerator, accelerator::Accelerator::wanted());
        await_counting(&guest.memory());
        guest
    }

    fn destination(&self, guest: &QemuGuest, name: &str) -> (QemuDestination, Ended) {
        let definition = &guest.record().definition;
        let destination =
            QemuDestination::prepare(&self.binary, definition, self.folder(name)).unwrap();
        let ended = Ended(destination.guest().clone());
        (destination, ended)
    }
}

/// The guest as one that leaves, tracked as the environment asks.
fn leaving(guest: &QemuGuest) -> QemuSource {
    let source = QemuSource::new(guest).unwrap();
    match tracker::wanted() {
        Some("soft-dirty") => source.tracked_by(Tracker::SoftDirty),
        _ => source,
    }
}

fn counts(memory: &GuestMemory) -> Vec<u64> {
    let mut bytes = vec![0; PAGE_SIZE];
    let pages = 0..u64::from(COUNTED);
    let count = |i| {
        memory.read(PageNumber(COUNTED_FROM / PAGE_SIZE_BYTES + i), &mut bytes).unwrap();
        u64::from_le_bytes(bytes[..8].try_into().unwrap())
    };
    pages.map(count).collect()
}

/// Waits until the guest makes progress, through pages that it has all written.
fn await_counting(memory: &GuestMemory) {
    let deadline = Instant::now() + LIMIT;
    let last = || *counts(memory).last().unwrap();
    while last() == 0 {
        assert!(Instant::now() < deadline, "the guest does not count");
        std::thread::sleep(Duration::from_millis(10));
    }
    let from = last();
    while last() == from {
        assert!(Instant::now() < deadline, "the guest does not run");
    }
}

/// Whether the words of a paused guest's pages are those of one moment.
fn assert_one_moment(counts: &[u64]) {
    let (first, last) = (counts[0], *counts.last().unwrap());
    assert!(first == last || first == last + 1, "{first} … {last}");
    assert!(counts.is_sorted_by(|a, b| a >= b), "a page is stale");
}

fn copy(from: &GuestMemory, to: &GuestMemory, pages: &PageSet) {
    let mut bytes = vec![0; PAGE_SIZE];
    for page in pages.iter() {
        from.read(page, &mut bytes).unwrap();
        to.write(page, &bytes).unwrap();
    }
}

fn assert_equal_memory(a: &GuestMemory, b: &GuestMemory) {
    let mut both = a.populated().unwrap();
    both.union_with(&b.populated().unwrap());
    let (mut left, mut right) = (vec![0; PAGE_SIZE], vec![0; PAGE_SIZE]);
    for page in both.iter() {
        a.read(page, &mut left).unwrap();
        b.read(page, &mut right).unwrap();
        assert!(left == right, "{page} differs");
    }
}

/// Copies all RAM in rounds while the guest runs, and the rest when it is paused.
fn copy_in_rounds(source: &mut QemuSource, to: &GuestMemory) {
    source.start_tracking().unwrap();
    let from = source.memory();
    copy(&from, to, &source.populated().unwrap());
    let mut dirty = PageSet::empty(from.pages());
    for _ in 0..3 {
        await_counting(&from);
        dirty.clear();
        source.scan(&mut dirty).unwrap();
        let last = COUNTED_FROM / PAGE_SIZE_BYTES + u64::from(COUNTED) - 1;
        assert!(dirty.contains(PageNumber(last)), "{:?} pages reported", dirty.count());
        copy(&from, to, &dirty);
    }
    let pause = source.pause().unwrap();
    eprintln!("pause: vCPUs stopped after {:?}, drained after {:?}", pause.lead, pause.took);
    dirty.clear();
    source.scan(&mut dirty).unwrap();
    copy(&from, to, &dirty);
}

fn timed<T>(what: &str, run: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = run();
    eprintln!("{what}: {:?}", start.elapsed());
    result
}

/// One whole move; returns the guest at its new place. The old one is released.
fn move_guest(host: &Host, guest: &QemuGuest, name: &str) -> Ended {
    let mut source = leaving(guest);
    assert_eq!(source.immovable().unwrap(), []);
    let (mut destination, arrived) = timed("prepare destination", || host.destination(guest, name));
    copy_in_rounds(&mut source, &destination.memory());
    let before = counts(&source.memory());
    assert_one_moment(&before);
    let state = timed("save", || source.save_device_state()).unwrap();
    eprintln!("state: {} bytes", state.bytes.len());
    let mut dirty = PageSet::empty(source.memory().pages());
    source.scan(&mut dirty).unwrap();
    assert!(dirty.is_empty(), "saving wrote RAM");
    timed("load", || destination.load_device_state(&state)).unwrap();
    assert_eq!(counts(&destination.memory()), before, "not a step was taken");
    assert_equal_memory(&source.memory(), &destination.memory());
    assert!(matches!(arrived.status().unwrap(), QemuStatus::Stopped(_)));
    timed("activate", || destination.activate()).unwrap();
    source.release().unwrap();
    assert_eq!(arrived.status().unwrap(), QemuStatus::Running);
    await_counting(&arrived.memory());
    arrived
}

#[test]
fn a_guest_moves_there_and_on_and_every_byte_arrives() {
    let Some(host) = Host::new() else { return };
    let guest = host.start();
    let second = move_guest(&host, &guest, "b");
    assert_eq!(guest.ending(), Some(Ending::Orderly));
    assert!(!host.folder("a").exists(), "nothing is left at the source");
    let third = move_guest(&host, &second, "a");
    assert!(third.is_alive() && !second.is_alive());
}

#[test]
fn a_guest_of_huge_pages_moves_there_and_on_and_every_byte_arrives() {
    let Some(host) = Host::new() else { return };
    let _pool = match HugePages::reserve(Bytes(2 * MEMORY_BYTES)) {
        Ok(pool) => pool,
        Err(why) => return eprintln!("skipped: {why}"),
    };
    let definition = GuestDefinition { huge_pages: true, ..host.definition() };
    let guest = host.start_as(&definition);
    let taken = pages_taken(&guest);
    assert!(taken < 16, "{taken} of 32 huge pages exist");
    let arrived = move_guest(&host, &guest, "b");
    assert!(pages_taken(&guest) < 16, "to read RAM made it exist");
    // The pool holds two guests: the handle of the first is the last to hold its RAM.
    drop(guest);
    drop(move_guest(&host, &arrived, "a"));
}

#[test]
fn a_new_guest_can_give_pages_back_unless_it_was_to_have_no_balloon() {
    let Some(host) = Host::new() else { return };
    let discarding = |guest: &QemuGuest| leaving(guest).discarding().unwrap();
    let plain = GuestDefinition { balloon: Some(false), ..host.definition() };
    assert_eq!(discarding(&host.start_as(&plain)), Discarding::Never);
    let guest = host.start();
    assert_eq!(
        (guest.definition().balloon, discarding(&guest)),
        (Some(true), Discarding::Possible)
    );
    assert_eq!(guest.definition().balloon_yields, Some(true));
    drop(guest);
    let qemu_args = ["-device", "virtio-balloon-pci"].map(String::from).to_vec();
    let guest = host.start_as(&GuestDefinition { qemu_args, ..host.definition() });
    assert_eq!((guest.definition().balloon, discarding(&guest)), (None, Discarding::Possible));
}

#[test]
fn a_guest_that_arrives_without_a_word_about_a_balloon_has_none() {
    let Some(host) = Host::new() else { return };
    let definition = GuestDefinition { balloon: None, ..host.start().definition().clone() };
    let prepared = QemuDestination::prepare(&host.binary, &definition, host.folder("b")).unwrap();
    let silent = Ended(prepared.guest().clone());
    drop(prepared); // It holds the monitor that the source needs.
    assert_eq!(silent.definition().balloon, None);
    let mut source = leaving(&silent);
    assert_eq!(source.discarding().unwrap(), Discarding::Never);
}

#[test]
fn a_guest_whose_balloon_does_not_yield_keeps_it_as_it_is_on_its_way() {
    let Some(host) = Host::new() else { return };
    let stiff = GuestDefinition { balloon_yields: None, ..host.start().definition().clone() };
    let prepared = QemuDestination::prepare(&host.binary, &stiff, host.folder("b")).unwrap();
    let arriving = Ended(prepared.guest().clone());
    assert_eq!(arriving.definition().balloon, Some(true));
    assert_eq!(arriving.definition().balloon_yields, None);
}

#[test]
fn a_guest_without_a_driver_says_nothing_of_its_memory_and_gives_none() {
    let Some(host) = Host::new() else { return };
    let guest = host.start();
    let mut source = leaving(&guest);
    assert_eq!(source.memory_use().unwrap(), None);
    source.ask_for(16 << 20).unwrap();
    assert_eq!(source.memory_use().unwrap(), None);
    assert_eq!(source.in_balloon().unwrap(), 0);
    source.resume().unwrap();
    assert_eq!(source.in_balloon().unwrap(), 0);
}

#[test]
fn a_guest_without_a_balloon_cannot_be_asked_and_resumes_all_the_same() {
    let Some(host) = Host::new() else { return };
    let plain = GuestDefinition { balloon: Some(false), ..host.definition() };
    let guest = host.start_as(&plain);
    let mut source = leaving(&guest);
    assert!(matches!(source.memory_use(), Err(VmmError::Refused { .. })));
    assert!(matches!(source.ask_for(1 << 20), Err(VmmError::Refused { .. })));
    source.resume().unwrap();
}

/// Huge pages that exist of a guest's RAM.
fn pages_taken(guest: &QemuGuest) -> u64 {
    let memory = guest.memory();
    let file = memory.files().next().unwrap();
    u64::try_from(rustix::fs::fstat(file).unwrap().st_blocks).unwrap() * 512 / (2 << 20)
}

#[test]
fn memory_that_was_never_touched_exists_on_neither_side() {
    let Some(host) = Host::new() else { return };
    let guest = host.start();
    let existing = guest.memory().populated().unwrap().count().0;
    assert!(existing < 8192, "{existing} of 16384 pages exist");
    let mut source = leaving(&guest);
    let (destination, _ended) = host.destination(&guest, "b");
    assert!(destination.memory().populated().unwrap().is_empty());
    copy_in_rounds(&mut source, &destination.memory());
    let arrived = destination.memory().populated().unwrap();
    assert_eq!(arrived, source.populated().unwrap());
}

#[test]
fn a_guest_is_resumed_after_any_step_and_can_then_be_moved() {
    let Some(host) = Host::new() else { return };
    let guest = host.start();
    let mut source = leaving(&guest);
    let check_running = |source: &mut QemuSource| {
        source.resume().unwrap();
        source.resume().unwrap();
        assert_eq!(guest.status().unwrap(), QemuStatus::Running);
        await_counting(&guest.memory());
    };
    check_running(&mut source);
    source.start_tracking().unwrap();
    check_running(&mut source);
    source.pause().unwrap();
    assert!(matches!(guest.status().unwrap(), QemuStatus::Stopped(_)));
    check_running(&mut source);
    for _ in 0..2 {
        source.pause().unwrap();
        source.save_device_state().unwrap();
        check_running(&mut source);
    }
    assert!(source.save_device_state().is_err(), "it was not paused");
    drop(source);
    move_guest(&host, &guest, "b");
}

#[test]
fn a_new_agent_finds_the_guest_in_whatever_state_and_resumes_it() {
    let Some(host) = Host::new() else { return };
    let guest = host.start();
    let record = serde_json::to_string(guest.record()).unwrap();
    for saved in [false, true] {
        let mut source = leaving(&guest);
        source.start_tracking().unwrap();
        source.pause().unwrap();
        if saved {
            source.save_device_state().unwrap();
        }
        drop(source);
        let again = QemuGuest::reattach(serde_json::from_str(&record).unwrap()).unwrap();
        assert!(matches!(again.status().unwrap(), QemuStatus::Stopped(_)));
        let mut source = leaving(&again);
        source.resume().unwrap();
        assert_eq!(again.status().unwrap(), QemuStatus::Running);
        await_counting(&again.memory());
    }
    // The userfaultfd's features were set by the agent before; tracking starts anew all the same.
    let again = QemuGuest::reattach(serde_json::from_str(&record).unwrap()).unwrap();
    drop(move_guest(&host, &again, "b"));
    let gone = QemuGuest::reattach(serde_json::from_str(&record).unwrap());
    assert!(matches!(gone, Err(VmmError::Gone { .. })));
}

#[test]
fn a_new_agent_goes_on_with_a_destination_that_waits() {
    let Some(host) = Host::new() else { return };
    let guest = host.start();
    let mut source = leaving(&guest);
    let (destination, ended) = host.destination(&guest, "b");
    drop(destination);
    let again = QemuGuest::reattach(ended.record().clone()).unwrap();
    assert_eq!(again.status().unwrap(), QemuStatus::Incoming);
    assert!(again.run().is_err(), "it has no state to run with");
    assert!(leaving(&again).resume().is_err(), "nor can it be resumed");
    let mut destination = QemuDestination::attach(&again).unwrap();
    copy_in_rounds(&mut source, &destination.memory());
    destination.load_device_state(&source.save_device_state().unwrap()).unwrap();
    drop(destination);
    let mut destination = QemuDestination::attach(&again).unwrap();
    destination.activate().unwrap();
    await_counting(&again.memory());
}

#[test]
fn a_killed_qemu_is_gone_and_says_so_at_every_step() {
    let Some(host) = Host::new() else { return };
    let guest = host.start();
    let mut source = leaving(&guest);
    source.start_tracking().unwrap();
    source.pause().unwrap();
    let pid = rustix::process::Pid::from_raw(i32::try_from(guest.pid()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    let gone = |result: Result<(), VmmError>| matches!(result, Err(VmmError::Gone { .. }));
    assert!(gone(source.save_device_state().map(drop)));
    assert!(gone(source.resume()));
    assert!(gone(source.pause().map(drop)));
    assert!(gone(source.start_tracking()));
    assert!(gone(guest.status().map(drop)));
    assert!(matches!(guest.ending(), Some(Ending::Failed(text)) if text.contains("signal: 9")));
    source.release().unwrap();
}

#[test]
fn a_guest_that_is_about_to_end_is_found_or_gone_and_nothing_else() {
    let Some(host) = Host::new() else { return };
    for _ in 0..10 {
        let guest = host.start();
        let record = guest.record().clone();
        let pid = rustix::process::Pid::from_raw(guest.pid().try_into().unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        let found = || -> Result<(), VmmError> {
            let again = QemuGuest::reattach(record.clone())?;
            QemuSource::new(&again)?;
            again.status().map(drop)
        };
        let ended = loop {
            if let Err(error) = found() {
                break error;
            }
        };
        assert!(matches!(ended, VmmError::Gone { .. }), "{ended:?}");
        // Whoever finds that it is gone takes away what it has left.
        let again = QemuGuest::reattach(record);
        assert!(matches!(again, Err(VmmError::Gone { .. })), "{again:?}");
        let console = guest.console_path();
        assert!(!console.parent().unwrap().exists(), "{} is left", console.display());
    }
}

#[test]
fn a_broken_state_is_refused_in_qemus_words() {
    let Some(host) = Host::new() else { return };
    let guest = host.start();
    let kind = DeviceStateKind::QemuVmstate;
    for (name, bytes) in [("b", b"not a migration stream".to_vec()), ("c", vec![])] {
        let (mut destination, ended) = host.destination(&guest, name);
        let error = destination.load_device_state(&DeviceState { kind, bytes }).unwrap_err();
        eprintln!("{error}");
        assert!(matches!(error, VmmError::Gone { .. } | VmmError::Refused { .. }));
        destination.discard().unwrap();
        assert!(!destination.is_alive() && !host.folder(name).exists());
        drop(ended);
    }
    assert_eq!(guest.status().unwrap(), QemuStatus::Running);
}

#[test]
fn a_destination_that_differs_refuses_the_state() {
    let Some(host) = Host::new() else { return };
    let guest = host.start();
    let mut source = leaving(&guest);
    let mut other = guest.record().definition.clone();
    other.disks.clear();
    let mut destination = QemuDestination::prepare(&host.binary, &other, host.folder("b")).unwrap();
    let _ended = Ended(destination.guest().clone());
    copy_in_rounds(&mut source, &destination.memory());
    let state = source.save_device_state().unwrap();
    let error = destination.load_device_state(&state).unwrap_err();
    eprintln!("{error}");
    source.resume().unwrap();
    await_counting(&guest.memory());
}

#[test]
fn a_guest_that_cannot_be_started_says_why() {
    let Some(host) = Host::new() else { return };
    let definition = GuestDefinition {
        qemu_args: vec!["-device".into(), "no-such-device".into()],
        ..host.definition()
    };
    let result = QemuGuest::start(&host.binary, &definition, host.folder("a"), StartMode::Run);
    let Err(VmmError::Gone { detail }) = result else { panic!("{result:?}") };
    assert!(detail.contains("no-such-device"), "{detail}");
}

#[test]
fn every_reason_against_a_move_is_told_at_once() {
    let Some(host) = Host::new() else { return };
    let arguments = [
        "-object",
        "memory-backend-ram,id=private,size=16M",
        "-object",
        "memory-backend-memfd,id=unnamed,size=16M",
        "-device",
        "ivshmem-plain,memdev=shm,id=shared",
        "-object",
        "memory-backend-memfd,id=shm,size=16M",
    ];
    let definition = GuestDefinition {
        qemu_args: arguments.iter().map(|text| (*text).to_owned()).collect(),
        ..host.definition()
    };
    let guest =
        QemuGuest::start(&host.binary, &definition, host.folder("a"), StartMode::Paused).unwrap();
    let guest = Ended(guest);
    assert!(matches!(guest.status().unwrap(), QemuStatus::Stopped(_)));
    let mut source = leaving(&guest);
    assert_eq!(source.in_flight_io(), InFlightIo::Tracked);
    let reasons = source.immovable().unwrap();
    eprintln!("{reasons:#?}");
    assert!(reasons.contains(&Immovable::PrivateRam { block: "private".into() }));
    assert!(reasons.contains(&Immovable::UnnamedRam { block: "unnamed".into() }));
    assert!(reasons.iter().any(|r| matches!(r, Immovable::PassThrough { .. })));
}

#[test]
fn a_real_qemu_takes_every_kind_of_device_and_the_older_machine_type() {
    let Some(host) = Host::new() else { return };
    for machine in ["q35", "pc"] {
        let mut definition = host.definition();
        definition.machine = Some(machine.into());
        definition.console = ConsoleKind::Virtio;
        definition.disks[0].iops_max = Some(100);
        let mut second = definition.disks[0].clone();
        second.path = host.folder("second.img");
        second.cache = DiskCache::None;
        std::fs::write(&second.path, boot_image(1)).unwrap();
        definition.disks.push(second);
        let guest =
            QemuGuest::start(&host.binary, &definition, host.folder("a"), StartMode::Paused);
        let guest = Ended(guest.unwrap());
        let versioned = guest.definition().machine.clone().unwrap();
        assert!(versioned.starts_with("pc-"), "{versioned}");
        let mut source = leaving(&guest);
        assert_eq!(source.immovable().unwrap(), []);
        assert!(matches!(source.in_flight_io(), InFlightIo::Untracked(_)));
        guest.run().unwrap();
        await_counting(&guest.memory());
        std::os::unix::net::UnixStream::connect(guest.console_path()).unwrap();
    }
}

#[test]
fn a_host_is_described_and_kvm_is_believed_only_if_a_guest_runs() {
    let Some(host) = Host::new() else { return };
    let probe = probe(host.binary.path(), host.folder.path(), None);
    for finding in &probe.findings {
        eprintln!("{finding:?}");
    }
    let binary = probe.binary.unwrap();
    assert!(binary.missing_capabilities().is_empty());
    let kvm = probe.findings.iter().find(|finding| finding.name == "kvm").unwrap();
    let expected = if kvm.verdict == Verdict::Good { Accelerator::Kvm } else { Accelerator::Tcg };
    let emulated = GuestDefinition { accelerator: Accelerator::Tcg, ..host.definition() };
    assert_eq!(
        binary.resolve(&emulated, StartMode::Run).accelerator,
        Accelerator::Tcg,
        "as asked for"
    );
    let any = GuestDefinition { accelerator: Accelerator::Auto, ..host.definition() };
    assert_eq!(binary.resolve(&any, StartMode::Run).accelerator, expected);
}

#[test]
fn a_missing_qemu_is_a_finding() {
    let folder = tempfile::tempdir().unwrap();
    let probe = probe(Path::new("/no/such/qemu"), folder.path(), None);
    assert!(probe.binary.is_none());
    assert_eq!(probe.findings[0].verdict, Verdict::Missing);
}
