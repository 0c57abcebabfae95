//! A process that writes its memory without a pause while it is copied, in rounds, by what is reported.

use super::*;
use crate::process::{FileIdentity, find_file, mappings_of, spawn_detached};
use std::io::{BufRead, BufReader};
use std::os::fd::AsRawFd;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

/// The variable that tells the process under which number it has its memory.
const MEMORY: &str = "STERNA_TEST_MEMORY";

const THREADS: u64 = 4;

/// Rounds of one copy, and for how long there are others: reclaiming is slow where disks are.
const ROUNDS: usize = 100;
const ROUNDS_LIMIT: Duration = Duration::from_secs(20);
const LIMIT: Duration = Duration::from_secs(30);

/// A process that writes, and its memory.
struct Writer {
    child: Child,
    outside: GuestMemory,
}

/// What happens to the memory meanwhile.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Strain {
    None,
    /// The kernel reclaims it again and again.
    Reclaimed,
}

impl Writer {
    fn start() -> Self {
        let (guest, outside) = memory();
        let file = part(&guest).file;
        // Above the standard streams, and not closed when the program begins.
        let name = "soft_dirty::tests::elsewhere::writes_until_it_is_ended";
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", name, "--ignored", "--nocapture"]);
        command.env(MEMORY, file.as_raw_fd().to_string());
        command.stdout(Stdio::piped()).stdin(Stdio::null());
        let mut child = spawn_detached(command, vec![file], None, vec![]).unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().contains("begins")));
        Self { child, outside }
    }

    fn process(&self) -> Process {
        Process::open(self.child.id()).unwrap()
    }

    fn part(&self) -> Part {
        let file = self.outside.files().next().unwrap();
        let identity = FileIdentity::of(file).unwrap();
        let mapped = mappings_of(self.child.id(), identity).unwrap();
        let file = find_file(&self.process(), identity).unwrap();
        Part { addresses: mapped[0].addresses, file, offset: mapped[0].offset }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _status = self.child.wait();
    }
}

#[test]
#[ignore = "is the process that other tests start"]
fn writes_until_it_is_ended() {
    let Ok(number) = std::env::var(MEMORY) else { return };
    let file = OpenOptions::new().read(true).write(true).open(format!("/proc/self/fd/{number}"));
    let size_bytes = PAGES * PAGE_SIZE_BYTES;
    let block = RamBlock { name: "ram0".into(), size_bytes, host_page_bytes: PAGE_SIZE_BYTES };
    let layout = RamLayout::new(vec![block]).unwrap();
    let memory = GuestMemory::map(layout, vec![file.unwrap().into()], Access::ReadWrite).unwrap();
    println!("begins");
    // A writer that outlives its test would write for ever.
    let end = Instant::now() + 4 * LIMIT;
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let memory = &memory;
            scope.spawn(move || write_and_read(memory, thread, end));
        }
    });
}

/// Each thread writes pages of its own, far fewer than it reads, so that most that are unmapped are read first.
fn write_and_read(memory: &GuestMemory, thread: u64, end: Instant) {
    let mut word = thread + 1;
    let mut page = [0; PAGE_SIZE];
    while Instant::now() < end {
        // Xorshift: any order will do, if it is not the same all the time.
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        let own = word % (PAGES / THREADS) * THREADS + thread;
        memory.write(PageNumber(own), &word.to_ne_bytes().repeat(PAGE_SIZE / 8)).unwrap();
        for any in 0..8 {
            memory.read(PageNumber((word >> any) % PAGES), &mut page).unwrap();
        }
        // Much is left clean in a round, as only that can be lost.
        std::thread::sleep(Duration::from_micros(word % 300));
    }
}

/// Copies in rounds, stops the process at last, copies the rest, and compares everything.
fn every_write_arrives(strain: Strain) {
    if !kept() || strain == Strain::Reclaimed && !reclaims() {
        return;
    }
    let writer = Writer::start();
    let put_away = swapped_out();
    let started = Instant::now();
    let process = Writers::Of(writer.process());
    let mut tracker = SoftDirty::start(process, vec![writer.part()]).unwrap();
    eprintln!("began after {:?}", started.elapsed());
    let (_, copy) = memory();
    let all = PageSet::full(PageCount(PAGES));
    copy_pages(&writer.outside, &copy, &all);
    let (mut stops, mut reported) = (Vec::new(), 0);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        if strain == Strain::Reclaimed {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    reclaim_some();
                    std::thread::sleep(Duration::from_millis(300));
                }
            });
        }
        let began = Instant::now();
        while stops.len() < ROUNDS && began.elapsed() < ROUNDS_LIMIT {
            std::thread::sleep(Duration::from_millis(2));
            let mut pages = PageSet::empty(PageCount(PAGES));
            let scanned = tracker.scan(AfterScan::Forget, |_, run| pages.insert_run(run));
            stops.push(scanned.unwrap());
            reported += pages.count().0;
            copy_pages(&writer.outside, &copy, &pages);
        }
        over.store(true, Ordering::Relaxed);
    });
    // Stopped for good, and not by the tracker.
    writer.process().stop().unwrap();
    let mut pages = PageSet::empty(PageCount(PAGES));
    await_stop(writer.child.id());
    tracker.scan(AfterScan::Forget, |_, run| pages.insert_run(run)).unwrap();
    copy_pages(&writer.outside, &copy, &pages);
    stops.sort_unstable();
    let (typical, longest) = (stops[stops.len() / 2], stops[stops.len() - 1]);
    eprintln!(
        "{reported} pages in {} rounds; stopped for {typical:?}, {longest:?} at most",
        stops.len()
    );
    let (mut here, mut there) = ([0; PAGE_SIZE], [0; PAGE_SIZE]);
    let differ = |page: &PageNumber| {
        writer.outside.read(*page, &mut there).unwrap();
        copy.read(*page, &mut here).unwrap();
        here != there
    };
    let stale: Vec<PageNumber> = all.iter().filter(differ).collect();
    assert!(stale.is_empty(), "writes were lost: {stale:?}");
    let put_away = swapped_out() - put_away;
    eprintln!("{put_away} pages were put into swap");
    assert!(
        strain == Strain::None || put_away > PAGES / 4,
        "the kernel has hardly reclaimed anything"
    );
    if strain == Strain::None {
        assert!(reported < stops.len() as u64 * PAGES / 2, "all is reported all the time");
    }
}

/// Pages that the kernel has put into swap since it began.
fn swapped_out() -> u64 {
    let text = std::fs::read_to_string("/proc/vmstat").unwrap();
    let count = text.lines().find_map(|line| line.strip_prefix("pswpout "));
    count.unwrap().parse().unwrap()
}

fn await_stop(pid: u32) {
    let deadline = Instant::now() + LIMIT;
    let stopped = || {
        let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
        threads.into_iter().all(|thread| {
            let stat = std::fs::read_to_string(thread.unwrap().path().join("stat")).unwrap();
            stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
        })
    };
    while !stopped() {
        assert!(Instant::now() < deadline, "it was told to stop");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn copy_pages(from: &GuestMemory, to: &GuestMemory, pages: &PageSet) {
    let mut bytes = [0; PAGE_SIZE];
    for page in pages.iter() {
        from.read(page, &mut bytes).unwrap();
        to.write(page, &bytes).unwrap();
    }
}

#[test]
fn every_write_of_a_busy_process_arrives() {
    every_write_arrives(Strain::None);
}

#[test]
fn every_write_arrives_although_the_kernel_reclaims_its_memory_all_the_time() {
    every_write_arrives(Strain::Reclaimed);
}

#[test]
fn a_process_that_has_ended_is_no_process_without_writes() {
    if !kept() {
        return;
    }
    let writer = Writer::start();
    let process = Writers::Of(writer.process());
    let mut tracker = SoftDirty::start(process, vec![writer.part()]).unwrap();
    writer.process().kill().unwrap();
    assert!(matches!(writer.process().wait_for_end(LIMIT), crate::process::Liveness::Ended));
    for after in [AfterScan::Keep, AfterScan::Forget] {
        assert!(tracker.scan(after, |_, _| {}).is_err());
    }
}
