//! Moves of synthetic guests by a plain copy loop, and what their check finds.

use super::*;
use crate::{Destination, Source, VmmError};
use sterna_page::{PAGE_SIZE, PageCount, PageNumber, PageRun, PageSet};
use sterna_sys::memory::GuestMemory;

fn copy(from: &GuestMemory, to: &GuestMemory, pages: &PageSet) {
    let mut bytes = vec![0; PAGE_SIZE];
    for page in pages.iter() {
        from.read(page, &mut bytes).unwrap();
        to.write(page, &bytes).unwrap();
    }
}

/// Starts tracking, or prints why this kernel cannot.
fn track(source: &mut SyntheticSource) -> bool {
    match source.start_tracking() {
        Ok(()) => true,
        Err(error) => {
            eprintln!("skipped: this kernel cannot track writes: {error}");
            false
        }
    }
}

/// Moves all RAM in rounds; ends paused, with source and destination alike.
fn copy_in_rounds(source: &mut SyntheticSource, to: &GuestMemory, rounds: usize) {
    let from = source.memory();
    copy(&from, to, &source.populated().unwrap());
    let mut dirty = PageSet::empty(from.pages());
    for round in 0..=rounds {
        if round == rounds {
            source.pause().unwrap();
        }
        dirty.clear();
        source.scan(&mut dirty).unwrap();
        copy(&from, to, &dirty);
    }
    let mut holes = PageSet::full(from.pages());
    holes.subtract(&source.populated().unwrap());
    holes.runs().for_each(|run| to.punch(run).unwrap());
}

fn busy() -> SyntheticConfig {
    let blocks = 3;
    let working_set = PageCount(1500);
    let rate = WriteRate::Unlimited;
    SyntheticConfig { writers: 2, blocks, working_set, rate, ..SyntheticConfig::default() }
}

fn wait_for_writes(guest: &SyntheticGuest, more: u64) {
    let from = guest.writes();
    while guest.writes() < from + more {
        std::thread::yield_now();
    }
}

#[test]
fn a_guest_that_writes_as_fast_as_it_can_arrives_whole_and_goes_on() {
    let guest = SyntheticGuest::start(busy()).unwrap();
    let mut source = guest.source();
    if !track(&mut source) {
        return;
    }
    wait_for_writes(&guest, 1000);
    let mut destination = SyntheticDestination::prepare(source.layout().clone()).unwrap();
    copy_in_rounds(&mut source, &destination.memory(), 5);
    let state = source.save_device_state().unwrap();
    destination.load_device_state(&state).unwrap();
    let arrived = destination.guest().unwrap();
    assert_eq!(arrived.check().unwrap().faults, []);
    assert_eq!(arrived.registers(), guest.registers());
    source.release().unwrap();
    destination.activate().unwrap();
    wait_for_writes(&arrived, 5000);
    assert!(arrived.check().unwrap().is_sound());
    assert!(matches!(source.resume(), Err(VmmError::Gone { .. })), "released for good");
}

#[test]
fn memory_that_was_never_touched_exists_on_neither_side() {
    let config = SyntheticConfig { rate: WriteRate::Idle, ..SyntheticConfig::default() };
    let guest = SyntheticGuest::start(config.clone()).unwrap();
    let mut source = guest.source();
    if !track(&mut source) {
        return;
    }
    let destination = SyntheticDestination::prepare(source.layout().clone()).unwrap();
    copy_in_rounds(&mut source, &destination.memory(), 1);
    for memory in [source.memory(), destination.memory()] {
        assert_eq!(memory.populated().unwrap().count(), config.populated);
    }
}

#[test]
fn a_page_that_was_not_copied_again_is_found_stale() {
    let guest = SyntheticGuest::start(busy()).unwrap();
    let mut source = guest.source();
    let destination = SyntheticDestination::prepare(source.layout().clone()).unwrap();
    let to = destination.memory();
    copy(&source.memory(), &to, &source.populated().unwrap());
    wait_for_writes(&guest, 3000);
    source.pause().unwrap();
    let report = check::check(&to, &guest.registers()).unwrap();
    assert!(report.faults.iter().any(|fault| matches!(fault, Fault::Stale { .. })), "{report:?}");
}

#[test]
fn torn_and_misplaced_pages_are_found() {
    let config = SyntheticConfig { rate: WriteRate::Idle, ..SyntheticConfig::default() };
    let guest = SyntheticGuest::start(config).unwrap();
    assert!(guest.check().unwrap().is_sound());
    let memory = guest.memory();
    let mut bytes = vec![0; PAGE_SIZE];
    memory.read(PageNumber(7), &mut bytes).unwrap();
    memory.write(PageNumber(8), &bytes).unwrap();
    bytes[4000] ^= 1;
    memory.write(PageNumber(7), &bytes).unwrap();
    let faults = guest.check().unwrap().faults;
    assert!(faults.contains(&Fault::Torn(PageNumber(7))), "{faults:?}");
    let foreign = Fault::Foreign { page: PageNumber(8), holds: PageNumber(7) };
    assert!(faults.contains(&foreign), "{faults:?}");
}

#[test]
fn ballooned_pages_are_noticed_when_a_destination_keeps_them() {
    let guest = SyntheticGuest::start(busy()).unwrap();
    let mut source = guest.source();
    if !track(&mut source) {
        return;
    }
    let mut destination = SyntheticDestination::prepare(source.layout().clone()).unwrap();
    let to = destination.memory();
    copy(&source.memory(), &to, &source.populated().unwrap());
    // Beyond the working set: no writer touches these pages again, and no scan reports them.
    guest.balloon(PageRun::new(1600, 100)).unwrap();
    assert!(guest.check().unwrap().is_sound());
    source.pause().unwrap();
    let mut dirty = PageSet::empty(to.pages());
    source.scan(&mut dirty).unwrap();
    assert!(!dirty.contains(PageNumber(1650)));
    copy(&source.memory(), &to, &dirty);
    let report = check::check(&to, &guest.registers()).unwrap();
    assert!(!report.is_sound(), "the discarded pages are still there");
    to.punch(PageRun::new(1600, 100)).unwrap();
    destination.load_device_state(&source.save_device_state().unwrap()).unwrap();
    assert_eq!(destination.guest().unwrap().check().unwrap().faults, []);
}

#[test]
fn a_failed_step_leaves_a_guest_that_can_be_resumed() {
    let guest = SyntheticGuest::start(SyntheticConfig::default()).unwrap();
    let mut source = guest.source();
    guest.fail_at(Step::Pause);
    assert!(source.pause().is_err());
    source.pause().unwrap();
    assert!(!guest.is_running());
    guest.fail_at(Step::Save);
    assert!(source.save_device_state().is_err());
    guest.fail_at(Step::Resume);
    assert!(source.resume().is_err());
    assert!(!guest.is_running(), "it stays paused");
    source.resume().unwrap();
    source.resume().unwrap();
    wait_for_writes(&guest, 10);
    assert!(guest.check().unwrap().is_sound());
}

#[test]
fn a_destination_never_runs_before_it_is_activated() {
    let guest = SyntheticGuest::start(SyntheticConfig::default()).unwrap();
    let mut source = guest.source();
    let mut destination = SyntheticDestination::prepare(source.layout().clone()).unwrap();
    assert!(destination.activate().is_err(), "nothing was loaded");
    source.pause().unwrap();
    let state = source.save_device_state().unwrap();
    destination.fail_at(Step::Load);
    assert!(destination.load_device_state(&state).is_err());
    destination.load_device_state(&state).unwrap();
    let arrived = destination.guest().unwrap();
    assert!(!arrived.is_running());
    destination.discard().unwrap();
    assert!(destination.activate().is_err());
    assert!(!arrived.is_running());
}

#[test]
fn a_killed_guest_is_gone() {
    let guest = SyntheticGuest::start(SyntheticConfig::default()).unwrap();
    let mut source = guest.source();
    guest.kill();
    assert!(matches!(source.pause(), Err(VmmError::Gone { .. })));
    assert!(matches!(source.resume(), Err(VmmError::Gone { .. })));
}

#[test]
fn foreign_or_broken_state_is_refused() {
    let guest = SyntheticGuest::start(SyntheticConfig::default()).unwrap();
    let mut source = guest.source();
    source.pause().unwrap();
    let good = source.save_device_state().unwrap();
    let prepare = || SyntheticDestination::prepare(source.layout().clone()).unwrap();
    let kind = crate::DeviceStateKind::QemuVmstate;
    let foreign = crate::DeviceState { kind, bytes: good.bytes.clone() };
    let refused = prepare().load_device_state(&foreign);
    assert!(matches!(refused, Err(VmmError::WrongKind(_))));
    for end in (0..good.bytes.len()).step_by(17) {
        let bytes = good.bytes[..end].to_vec();
        let cut = crate::DeviceState { kind: good.kind, bytes };
        assert!(prepare().load_device_state(&cut).is_err(), "{end} bytes");
    }
}

mod missing;
