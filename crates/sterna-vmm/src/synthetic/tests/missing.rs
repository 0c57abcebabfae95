//! Synthetic guests that run before their pages are here.

use super::*;
use crate::{Begin, Faults};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const MOMENT: Duration = Duration::from_millis(20);
const LIMIT: Duration = Duration::from_secs(30);

/// A busy source, paused, and what is to load its state; `None` where this kernel cannot.
fn hand_over() -> Option<(SyntheticGuest, SyntheticSource, SyntheticDestination)> {
    if let Err(error) = sterna_sys::uffd::Userfaultfd::create() {
        eprintln!("skipped: this kernel has no userfaultfd: {error}");
        return None;
    }
    let guest = SyntheticGuest::start(busy()).unwrap();
    let mut source = guest.source();
    wait_for_writes(&guest, 1000);
    source.pause().unwrap();
    let destination = SyntheticDestination::prepare(source.layout().clone()).unwrap();
    Some((guest, source, destination))
}

/// Answers faults from the source's memory until told to stop; returns the pages asked for.
fn serve(faults: &Faults, from: &GuestMemory, stop: &AtomicBool) -> PageSet {
    let mut asked = PageSet::empty(from.pages());
    let (mut faulted, mut bytes) = (Vec::new(), vec![0; PAGE_SIZE]);
    while !stop.load(Ordering::Relaxed) {
        faults.wait(MOMENT, &mut faulted).unwrap();
        for page in faulted.drain(..) {
            asked.insert(page);
            from.read(page, &mut bytes).unwrap();
            faults.place(page, &bytes).unwrap();
        }
    }
    asked
}

/// Places every page of the source.
fn push(faults: &Faults, source: &SyntheticSource) -> PageCount {
    let (from, mut placed) = (source.memory(), PageCount::ZERO);
    for run in source.populated().unwrap().runs() {
        let mut bytes = vec![0; PAGE_SIZE * usize::try_from(run.count.0).unwrap()];
        from.read(run.first, &mut bytes).unwrap();
        placed += faults.place(run.first, &bytes).unwrap();
    }
    placed
}

/// The pages that a guest is first found waiting for.
fn first_faults(faults: &Faults) -> Vec<PageNumber> {
    let (mut faulted, deadline) = (Vec::new(), std::time::Instant::now() + LIMIT);
    while faulted.is_empty() {
        assert!(std::time::Instant::now() < deadline, "nobody waits");
        faults.wait(MOMENT, &mut faulted).unwrap();
    }
    faulted
}

/// A guest that runs without a page, its writers waiting.
fn starved() -> Option<(SyntheticGuest, SyntheticSource, SyntheticDestination, Arc<Faults>)> {
    let (_, mut source, mut destination) = hand_over()?;
    let all = PageSet::full(source.memory().pages());
    let faults = destination.serve_faults(&all, Begin::Fresh).unwrap();
    destination.load_device_state(&source.save_device_state().unwrap()).unwrap();
    destination.activate().unwrap();
    let arrived = destination.guest().unwrap();
    Some((arrived, source, destination, faults))
}

#[test]
fn a_guest_that_has_no_page_yet_runs_and_arrives_whole() {
    let Some((arrived, mut source, mut destination, faults)) = starved() else { return };
    let (from, stop) = (source.memory(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let servers = [0, 1].map(|_| scope.spawn(|| serve(&faults, &from, &stop)));
        wait_for_writes(&arrived, 3000);
        let placed = push(&faults, &source);
        stop.store(true, Ordering::Relaxed);
        let mut asked = PageSet::empty(from.pages());
        servers.map(|server| server.join().unwrap()).iter().for_each(|part| asked.union_with(part));
        let all = source.populated().unwrap().count();
        assert!(asked.count() > PageCount(1000), "{} pages were asked for", asked.count().0);
        assert!(placed < all, "{} of {} pages were placed twice", placed.0, all.0);
        assert_eq!(push(&faults, &source), PageCount::ZERO);
    });
    destination.end_faults().unwrap();
    destination.end_faults().unwrap();
    assert_eq!(arrived.check().unwrap().faults, []);
    wait_for_writes(&arrived, 3000);
    assert_eq!(arrived.check().unwrap().faults, []);
    source.release().unwrap();
    // It can leave again.
    let mut source = arrived.source();
    if !track(&mut source) {
        return;
    }
    let mut destination = SyntheticDestination::prepare(source.layout().clone()).unwrap();
    copy_in_rounds(&mut source, &destination.memory(), 3);
    destination.load_device_state(&source.save_device_state().unwrap()).unwrap();
    assert_eq!(destination.guest().unwrap().check().unwrap().faults, []);
}

#[test]
fn pages_sent_before_stay_and_owed_ones_are_not_seen_as_they_were() {
    let Some((guest, mut source, mut destination)) = hand_over() else { return };
    // All pages as they are now; the writers then change some.
    let (from, to) = (source.memory(), destination.memory());
    copy(&from, &to, &source.populated().unwrap());
    if !track(&mut source) {
        return;
    }
    guest.machine().set_phase(machine::Phase::Running);
    wait_for_writes(&guest, 100);
    source.pause().unwrap();
    let mut owed = PageSet::empty(from.pages());
    source.scan(&mut owed).unwrap();
    let faults = destination.serve_faults(&owed, Begin::Fresh).unwrap();
    let mut kept = source.populated().unwrap();
    kept.subtract(&owed);
    assert_eq!(to.populated().unwrap(), kept);
    destination.load_device_state(&source.save_device_state().unwrap()).unwrap();
    destination.activate().unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| serve(&faults, &from, &stop));
        push(&faults, &source);
        let report = destination.guest().unwrap().check();
        stop.store(true, Ordering::Relaxed);
        assert_eq!(report.unwrap().faults, []);
    });
    destination.end_faults().unwrap();
}

#[test]
fn a_new_agent_is_told_of_those_who_wait_already() {
    let Some((arrived, source, mut destination, faults)) = starved() else { return };
    let lost = first_faults(&faults);
    drop(faults);
    let none = PageSet::empty(source.memory().pages());
    assert!(destination.serve_faults(&none, Begin::Fresh).is_err(), "it has its state");
    let faults = destination.serve_faults(&none, Begin::TakenOver).unwrap();
    let mut again = Vec::new();
    while !lost.iter().all(|page| again.contains(page)) {
        again.extend(first_faults(&faults));
    }
    push(&faults, &source);
    wait_for_writes(&arrived, 100);
    destination.end_faults().unwrap();
    assert_eq!(arrived.check().unwrap().faults, []);
}

#[test]
fn a_guest_whose_pages_do_not_come_can_be_ended_but_not_paused() {
    let Some((arrived, _source, mut destination, faults)) = starved() else { return };
    first_faults(&faults);
    let paused = arrived.machine().pause_within(MOMENT);
    assert!(matches!(paused, Err(VmmError::TimedOut { .. })), "{paused:?}");
    destination.discard().unwrap();
    // The writers have let go of their registers.
    assert!(arrived.registers().writers.iter().all(|writer| writer.writes > 0));
    assert!(faults.place(PageNumber(0), &[0; PAGE_SIZE]).is_err());
}

#[test]
fn a_guest_that_nobody_holds_any_more_lets_go_of_its_writers() {
    let Some((arrived, _source, destination, faults)) = starved() else { return };
    first_faults(&faults);
    let machine = Arc::downgrade(arrived.machine());
    drop((arrived, destination));
    let deadline = std::time::Instant::now() + LIMIT;
    while machine.strong_count() > 0 {
        assert!(std::time::Instant::now() < deadline, "a writer still waits");
        std::thread::yield_now();
    }
}

#[test]
fn a_halted_guest_takes_no_further_step() {
    let Some((arrived, source, mut destination, faults)) = starved() else { return };
    first_faults(&faults);
    destination.halt().unwrap();
    assert!(destination.is_alive());
    assert!(destination.activate().is_err());
    assert!(arrived.source().resume().is_err());
    // The writes that were waited for are the last.
    push(&faults, &source);
    arrived.machine().pause_within(LIMIT).unwrap();
    let writes = arrived.writes();
    assert!(!arrived.is_running());
    std::thread::sleep(MOMENT);
    assert_eq!(arrived.writes(), writes);
    destination.discard().unwrap();
    assert!(!destination.is_alive());
}

#[test]
fn pages_that_the_guest_does_not_have_are_refused() {
    let Some((_, source, mut destination)) = hand_over() else { return };
    let pages = source.memory().pages();
    let other = PageSet::full(PageCount(pages.0 + 1));
    assert!(destination.serve_faults(&other, Begin::Fresh).is_err());
    let faults = destination.serve_faults(&PageSet::full(pages), Begin::Fresh).unwrap();
    let two = [1; 2 * PAGE_SIZE];
    assert!(faults.place(PageNumber(pages.0 - 1), &two).is_err());
    assert!(faults.place(PageNumber(u64::MAX), &two).is_err());
    assert!(faults.place(PageNumber(0), &two[1..]).is_err());
    assert!(faults.place_zero(PageRun::new(pages.0 - 1, 2)).is_err());
    assert!(destination.memory().populated().unwrap().is_empty());
    // Blocks follow one another: a run may cross them.
    let block = destination.layout().block_runs().next().unwrap();
    let crossing = PageNumber(block.count.0 - 1);
    assert_eq!(faults.place(crossing, &two).unwrap(), PageCount(2));
    let zeroes = PageRun::new(crossing.0 - 1, 4);
    assert_eq!(faults.place_zero(zeroes).unwrap(), PageCount(2));
    let mut bytes = [0; 4 * PAGE_SIZE];
    destination.memory().read(zeroes.first, &mut bytes).unwrap();
    assert!(bytes[PAGE_SIZE..3 * PAGE_SIZE] == two && bytes[..PAGE_SIZE] == [0; PAGE_SIZE]);
    assert_eq!(faults.place(PageNumber(0), &[]).unwrap(), PageCount::ZERO);
}
