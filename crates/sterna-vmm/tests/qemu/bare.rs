//! The bare-metal guest, under KVM wherever `/dev/kvm` runs it, and else emulated.
//!
//! What KVM adds to a hand-over: its own state of vCPU, timers and interrupt controllers, and
//! writes to guest RAM that come from the kernel.

use super::*;
use std::io::Write as _;
use std::os::unix::net::UnixStream;
use sterna_testkit::bare::{BareGuest, CPU, MEMORY_FROM, STRIDE_BYTES};
use sterna_testkit::monitor::runs_with_kvm;
use sterna_testkit::probe::ConsoleLog;
use sterna_testkit::recorder::Line;
use sterna_vmm::qemu::probe::run_small_guest;

/// Ticks that must come anew before the guest is taken to run.
const NEW_TICKS: usize = 50;

/// How the guest is executed here: said where the test harness does not hide it.
pub(super) fn accelerator(host: &Host) -> Accelerator {
    let (accelerator, why) = match run_small_guest(&host.binary, host.folder.path()) {
        Ok(took) => (Accelerator::KvmUnproven, format!("a boot sector ran within {took:.1?}")),
        Err(error) => (Accelerator::Tcg, format!("KVM runs no guest: {error}")),
    };
    let said = format!("bare-metal guest under {accelerator:?}: {why}\n");
    std::io::stderr().write_all(said.as_bytes()).unwrap();
    accelerator
}

/// Starts the guest on this host and follows its console from its first byte on.
pub(super) fn start(host: &Host, bare: BareGuest, accelerator: Accelerator) -> (Ended, ConsoleLog) {
    let definition = bare.define("bare", &host.folder.path().join("bare.img")).unwrap();
    let definition: GuestDefinition = serde_json::from_value(definition).unwrap();
    let cpu = (accelerator == Accelerator::KvmUnproven).then(|| CPU.to_owned());
    let definition = GuestDefinition { accelerator, cpu, ..definition };
    let guest = QemuGuest::start(&host.binary, &definition, host.folder("a"), StartMode::Paused);
    let guest = Ended(guest.unwrap());
    let console = ConsoleLog::new();
    follow(&guest, &console);
    guest.run().unwrap();
    console.wait_for(0, LIMIT, |line| matches!(line, Line::Ready { .. })).unwrap();
    await_ticks(&console);
    assert_accelerator(&guest, accelerator);
    (guest, console)
}

pub(super) fn follow(guest: &QemuGuest, console: &ConsoleLog) {
    console.attach(UnixStream::connect(guest.console_path()).unwrap());
}

pub(super) fn await_ticks(console: &ConsoleLog) {
    let seen = console.ticks().samples().len();
    console.wait_for_ticks(seen + NEW_TICKS, LIMIT).unwrap();
}

/// Waits until the guest has compared so many more pages.
pub(super) fn await_checked(console: &ConsoleLog, pages: u32) {
    let checked = || console.ticks().samples().last().unwrap().tick.checked;
    let enough = checked() + u64::from(pages);
    while checked() < enough {
        await_ticks(console);
    }
}

fn assert_accelerator(guest: &QemuGuest, accelerator: Accelerator) {
    let monitor = guest.record().folder.join("control.qmp");
    assert_eq!(runs_with_kvm(&monitor).unwrap(), accelerator == Accelerator::KvmUnproven);
}

/// Copies all RAM in rounds while the guest works, and the rest when it is paused.
fn copy_while_it_works(source: &mut QemuSource, to: &GuestMemory, console: &ConsoleLog) {
    source.start_tracking().unwrap();
    let from = source.memory();
    copy(&from, to, &source.populated().unwrap());
    let mut dirty = PageSet::empty(from.pages());
    for _ in 0..3 {
        await_ticks(console);
        dirty.clear();
        source.scan(&mut dirty).unwrap();
        assert!(!dirty.is_empty(), "no write was reported");
        copy(&from, to, &dirty);
    }
    source.pause().unwrap();
    dirty.clear();
    source.scan(&mut dirty).unwrap();
    eprintln!("{:?} pages after the pause", dirty.count());
    copy(&from, to, &dirty);
}

/// One whole move; returns the guest at its new place. The old one is released.
fn move_bare(host: &Host, guest: &QemuGuest, name: &str, console: &ConsoleLog) -> Ended {
    let mut source = QemuSource::new(guest).unwrap();
    assert_eq!(source.immovable().unwrap(), []);
    let (mut destination, arrived) = host.destination(guest, name);
    copy_while_it_works(&mut source, &destination.memory(), console);
    let state = timed("save", || source.save_device_state()).unwrap();
    let mut dirty = PageSet::empty(source.memory().pages());
    source.scan(&mut dirty).unwrap();
    assert!(dirty.is_empty(), "saving wrote RAM");
    // Not after loading: KVM may write the guest's clock page as soon as it has the vCPU's state.
    assert_equal_memory(&source.memory(), &destination.memory());
    timed("load", || destination.load_device_state(&state)).unwrap();
    follow(&arrived, console);
    timed("activate", || destination.activate()).unwrap();
    source.release().unwrap();
    assert_accelerator(&arrived, guest.definition().accelerator);
    arrived
}

#[test]
fn a_bare_metal_guest_moves_there_and_back_and_no_word_of_it_is_wrong() {
    let Some(host) = Host::new() else { return };
    let bare = BareGuest::default();
    let (guest, console) = start(&host, bare, accelerator(&host));
    let second = move_bare(&host, &guest, "b", &console);
    await_ticks(&console);
    let third = move_bare(&host, &second, "a", &console);
    // Of the pages compared half are rewritten ones, so that the others need twice their number.
    await_checked(&console, 2 * (bare.pages - bare.hot));
    assert_eq!(third.status().unwrap(), QemuStatus::Running);
    assert!(!guest.is_alive() && !second.is_alive());
    assert_eq!(console.complaints(), []);
    let begun = console.lines().into_iter().filter(|line| matches!(line, Line::Ready { .. }));
    assert_eq!(begun.count(), 1, "the guest began anew: its machine was reset");
    assert_eq!(console.ticks().seen_twice(), 0);
}

/// Whether the guest said that this page is wrong.
fn told(console: &ConsoleLog, page: u32) -> bool {
    let begins = format!("page={page} ");
    console.complaints().iter().any(|line| matches!(line, Line::Wrong(w) if w.starts_with(&begins)))
}

#[test]
fn a_bare_metal_guest_tells_of_a_changed_word_and_of_stale_pages() {
    let Some(host) = Host::new() else { return };
    let bare = BareGuest { pages: 1024, hot: 512, ..BareGuest::default() };
    let (guest, console) = start(&host, bare, Accelerator::Tcg);
    let memory = guest.memory();
    let at = |page: u32| PageNumber(MEMORY_FROM / PAGE_SIZE_BYTES + u64::from(page));
    let read = |page: u32| {
        let mut bytes = vec![0; PAGE_SIZE];
        memory.read(at(page), &mut bytes).unwrap();
        bytes
    };
    // Far apart: the guest may be in the midst of one of them, but not of both.
    let hot = [100, 400];
    let old = hot.map(read);
    // More than a round.
    await_checked(&console, 4 * bare.hot);
    assert_eq!(console.complaints(), []);
    let mut source = QemuSource::new(&guest).unwrap();
    source.pause().unwrap();
    for (page, bytes) in hot.into_iter().zip(&old) {
        assert_ne!(read(page), *bytes, "page {page} was not rewritten");
        memory.write(at(page), bytes).unwrap();
    }
    let mut other = read(1000);
    other[3 * STRIDE_BYTES] ^= 1;
    memory.write(at(1000), &other).unwrap();
    source.resume().unwrap();
    await_checked(&console, 4 * bare.hot);
    assert!(told(&console, 100) || told(&console, 400), "{:?}", console.complaints());
    let offset = format!("page=1000 offset={} ", 3 * STRIDE_BYTES);
    let wrong = console.complaints();
    let is_it = |line: &Line| matches!(line, Line::Wrong(what) if what.starts_with(&offset));
    assert!(wrong.iter().any(is_it), "{wrong:?}");
}

#[test]
fn a_host_whose_processor_shows_no_virtualization_gives_stock_guests_no_kvm() {
    let Some(host) = Host::new() else { return };
    let flags = std::fs::read_to_string("/proc/cpuinfo").unwrap();
    if flags.split_whitespace().any(|flag| flag == "vmx" || flag == "svm") {
        eprintln!("skipped: the processor shows virtualization");
        return;
    }
    let binary = probe(host.binary.path(), host.folder.path(), None).binary.unwrap();
    let stock = GuestDefinition { accelerator: Accelerator::Auto, ..host.definition() };
    assert_eq!(binary.resolve(&stock, StartMode::Run).accelerator, Accelerator::Tcg);
    let vouched = GuestDefinition { accelerator: Accelerator::KvmUnproven, ..stock };
    assert_eq!(binary.resolve(&vouched, StartMode::Run).accelerator, Accelerator::KvmUnproven);
}
