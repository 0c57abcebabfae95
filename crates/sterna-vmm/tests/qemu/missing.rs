//! Guests that run before their pages are here, by real QEMU: its vCPUs, its device models, and its
//! reads of disks wait for the pages they touch.

use super::bare::{await_checked, await_ticks, follow, start};
use super::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use sterna_page::{PageCount, PageRun};
use sterna_sys::uffd::{FaultsSeen, Userfaultfd};
use sterna_testkit::bare::BareGuest;
use sterna_vmm::{Begin, Faults};

const MOMENT: Duration = Duration::from_millis(20);
const PAGES_PUSHED_AT_ONCE: u64 = 64;

/// A thread that answers faults from the source's memory; ends with this value.
struct Server {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<PageSet>>,
}

impl Server {
    fn start(faults: &Arc<Faults>, source: &QemuSource) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (faults, from, until) = (Arc::clone(faults), source.memory(), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let mut asked = PageSet::empty(from.pages());
            let (mut faulted, mut bytes) = (Vec::new(), vec![0; PAGE_SIZE]);
            while !until.load(Ordering::Relaxed) {
                faults.wait(MOMENT, &mut faulted).unwrap();
                for page in faulted.drain(..) {
                    asked.insert(page);
                    from.read(page, &mut bytes).unwrap();
                    faults.place(page, &bytes).unwrap();
                }
            }
            asked
        });
        Self { stop, thread: Some(thread) }
    }

    /// Ends it; the pages that were asked for.
    fn end(mut self) -> PageSet {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Whether guests started here can wait wherever they touch a page; else prints why not.
fn can_wait(guest: &QemuGuest) -> bool {
    let process = sterna_sys::process::Process::open(guest.pid()).unwrap();
    let can = Userfaultfd::take(&process).is_ok_and(|uffd| uffd.faults_seen() == FaultsSeen::All);
    if !can {
        eprintln!("skipped: this host lets QEMU wait for no faults inside the kernel");
    }
    can
}

/// Places every page of the source; returns how many were not there.
fn push(faults: &Faults, source: &QemuSource) -> PageCount {
    let (from, mut placed) = (source.memory(), PageCount::ZERO);
    for run in source.populated().unwrap().runs() {
        let end = run.end().unwrap().0;
        for first in (run.first.0..end).step_by(usize::try_from(PAGES_PUSHED_AT_ONCE).unwrap()) {
            let count = PAGES_PUSHED_AT_ONCE.min(end - first);
            let mut bytes = vec![0; PAGE_SIZE * usize::try_from(count).unwrap()];
            from.read(PageNumber(first), &mut bytes).unwrap();
            placed += faults.place(PageNumber(first), &bytes).unwrap();
        }
    }
    placed
}

/// What is here of a guest of which no page has arrived, but which runs.
struct Starved {
    source: QemuSource,
    destination: QemuDestination,
    arrived: Ended,
    faults: Arc<Faults>,
    server: Server,
}

/// Hands a guest over without its RAM; `loaded` is called before it runs.
fn starve(host: &Host, guest: &QemuGuest, name: &str, loaded: impl FnOnce(&QemuGuest)) -> Starved {
    let mut source = QemuSource::new(guest).unwrap();
    let (mut destination, arrived) = host.destination(guest, name);
    // An earlier round sent all of it, and all of it has changed since.
    copy(&source.memory(), &destination.memory(), &source.populated().unwrap());
    source.pause().unwrap();
    let state = source.save_device_state().unwrap();
    let missing = source.populated().unwrap();
    let begin = || destination.serve_faults(&missing, Begin::Fresh);
    let faults = timed("serve faults", begin).unwrap();
    assert!(destination.memory().populated().unwrap().is_empty(), "nothing old is left");
    let server = Server::start(&faults, &source);
    timed("load", || destination.load_device_state(&state)).unwrap();
    let read = destination.memory().populated().unwrap().count();
    eprintln!("{} of {} pages here after the load", read.0, missing.count().0);
    loaded(&arrived);
    timed("activate", || destination.activate()).unwrap();
    Starved { source, destination, arrived, faults, server }
}

#[test]
fn a_guest_that_has_no_page_yet_runs_and_arrives_whole() {
    let Some(host) = Host::new() else { return };
    let guest = host.start();
    if !can_wait(&guest) {
        return;
    }
    let arriving = starve(&host, &guest, "b", |_| ());
    let Starved { mut source, mut destination, arrived, faults, server } = arriving;
    let before = counts(&source.memory());
    assert_one_moment(&before);
    destination.settle().unwrap();
    await_counting(&arrived.memory());
    let all = source.populated().unwrap().count();
    let placed = timed("push", || push(&faults, &source));
    let asked = server.end().count();
    eprintln!("{} pages asked for, {} pushed, of {}", asked.0, placed.0, all.0);
    assert!(asked >= PageCount(u64::from(COUNTED)) && asked + placed >= all);
    assert_eq!(push(&faults, &source), PageCount::ZERO);
    timed("end", || destination.end_faults()).unwrap();
    destination.end_faults().unwrap();
    await_counting(&arrived.memory());
    source.release().unwrap();
    drop(destination);
    // It moves on, its writes tracked by the same userfaultfd. (`move_guest` compares all memory.)
    let third = move_guest(&host, &arrived, "a");
    let after = counts(&third.memory());
    assert!(after.iter().zip(&before).all(|(after, before)| after > before), "a page is stale");
}

#[test]
fn a_bare_metal_guest_goes_on_without_its_pages_and_no_word_of_them_is_wrong() {
    let Some(host) = Host::new() else { return };
    let bare = BareGuest::default();
    let (guest, console) = start(&host, bare, super::bare::accelerator(&host));
    if !can_wait(&guest) {
        return;
    }
    let arriving = starve(&host, &guest, "b", |arrived| follow(arrived, &console));
    let Starved { source, destination, arrived, faults, server } = arriving;
    await_ticks(&console);
    // The agent dies, with faults that it has read and not answered.
    let asked = server.end().count();
    let mut lost = Vec::new();
    let deadline = Instant::now() + LIMIT;
    while lost.is_empty() {
        assert!(Instant::now() < deadline, "the guest has all it needs");
        faults.wait(MOMENT, &mut lost).unwrap();
    }
    eprintln!("{} pages asked for of the first agent, who died over {lost:?}", asked.0);
    drop((faults, destination));
    let again = QemuGuest::reattach(arrived.record().clone()).unwrap();
    let mut destination = QemuDestination::attach(&again).unwrap();
    let none = PageSet::empty(source.memory().pages());
    let faults = destination.serve_faults(&none, Begin::TakenOver).unwrap();
    let server = Server::start(&faults, &source);
    await_ticks(&console);
    push(&faults, &source);
    let asked = server.end();
    assert!(asked.contains(lost[0]), "{lost:?} was not asked for again");
    destination.end_faults().unwrap();
    drop((faults, destination));
    await_checked(&console, 2 * (bare.pages - bare.hot));
    assert_eq!(console.complaints(), []);
    assert_eq!(console.ticks().seen_twice(), 0);
    assert_eq!(arrived.status().unwrap(), QemuStatus::Running);
}

#[test]
fn huge_pages_have_to_be_here_before_the_guest_runs() {
    let Some(host) = Host::new() else { return };
    let _pool = match HugePages::reserve(Bytes(MEMORY_BYTES)) {
        Ok(pool) => pool,
        Err(why) => return eprintln!("skipped: {why}"),
    };
    let definition = GuestDefinition { huge_pages: true, ..host.definition() };
    let prepared = QemuDestination::prepare(&host.binary, &definition, host.folder("b"));
    let mut destination = prepared.unwrap();
    let _ended = Ended(destination.guest().clone());
    let all = PageSet::full(destination.memory().pages());
    let refused = destination.serve_faults(&all, Begin::Fresh).unwrap_err();
    assert!(refused.to_string().contains("huge pages"), "{refused}");
    destination.end_faults().unwrap();
}

/// Waits until every thread of process `pid` is stopped.
fn await_stopped(pid: u32) {
    let deadline = Instant::now() + LIMIT;
    let is_stopped = |task: std::io::Result<std::fs::DirEntry>| {
        let stat = std::fs::read_to_string(task.unwrap().path().join("stat")).unwrap();
        stat.rsplit_once(')').unwrap().1.starts_with(" T")
    };
    while !std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().all(is_stopped) {
        assert!(Instant::now() < deadline, "a thread goes on");
        std::thread::sleep(MOMENT);
    }
}

/// Waits until the guest waits for a page, with nobody to place it.
fn await_waiting(faults: &Faults) {
    let deadline = Instant::now() + LIMIT;
    let mut waiting = Vec::new();
    while waiting.is_empty() {
        assert!(Instant::now() < deadline, "the guest does not wait");
        faults.wait(MOMENT, &mut waiting).unwrap();
    }
}

#[test]
fn a_guest_whose_pages_are_lost_is_halted_and_can_be_ended() {
    let Some(host) = Host::new() else { return };
    let guest = host.start();
    if !can_wait(&guest) {
        return;
    }
    for (name, halted, late_pages) in [("b", true, true), ("c", true, false), ("d", false, false)] {
        let arriving = starve(&host, &guest, name, |_| ());
        let Starved { mut source, mut destination, arrived, faults, server } = arriving;
        server.end();
        // It may have all it works with by now; no longer.
        let counted = PageRun::new(COUNTED_FROM / PAGE_SIZE_BYTES, u64::from(COUNTED));
        destination.memory().punch(counted).unwrap();
        await_waiting(&faults);
        if halted {
            destination.halt().unwrap();
            assert!(destination.is_alive());
        }
        if late_pages {
            // A thread that waits inside the kernel does not stop before it has its page.
            push(&faults, &source);
            await_stopped(arrived.pid());
        }
        timed("discard", || destination.discard()).unwrap();
        assert!(!arrived.is_alive());
        let late = faults.place(PageNumber(0), &[0; PAGE_SIZE]);
        assert!(matches!(late, Err(VmmError::Gone { .. })), "{late:?}");
        source.resume().unwrap();
        await_counting(&guest.memory());
    }
}
