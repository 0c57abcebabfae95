//! The flight recorder in a plain QEMU under emulation, watched by both probes. Skipped without
//! root, QEMU or a guest image.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Child;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use sterna_guest::content::{Content, Version, WORDS};
use sterna_guest::quantity::{PAGE_SIZE, PageNumber};
use sterna_guest::settings::Settings;
use sterna_testkit::image::GuestImage;
use sterna_testkit::monitor::ask;
use sterna_testkit::net::{Host, LinkRate, Topology, namespaces_allowed};
use sterna_testkit::probe::{ConsoleLog, NotOneLife, Suspicion, UdpEcho, Window};
use sterna_testkit::recorder::{Bytes, Command, DiskUse, Line, Rate, TickLines, Workload};

/// Generous: an emulated guest on a loaded machine boots slowly, and a test must not fail for it.
const LIMIT: Duration = Duration::from_secs(120);
/// How long the guest is watched.
const WATCHED: Duration = Duration::from_secs(10);

/// QEMU, killed at the end of the test whatever happens.
struct Qemu(Child);

impl Drop for Qemu {
    fn drop(&mut self) {
        // Ended already is as good.
        let _ended = self.0.kill();
        let _status = self.0.wait();
    }
}

fn image_or_skip(test: &str) -> Option<GuestImage> {
    let found = namespaces_allowed().map_err(anyhow::Error::from);
    let found = found.and_then(|()| Ok(GuestImage::find()?));
    let qemu = std::process::Command::new("qemu-system-x86_64").arg("--version").output();
    match found.and_then(|image| qemu.context("no qemu-system-x86_64").map(|_| image)) {
        Ok(image) => Some(image),
        Err(why) => {
            eprintln!("skipped {test}: {why:#}");
            None
        }
    }
}

fn boot(
    topology: &Topology,
    image: &GuestImage,
    workload: &Workload,
    folder: &Path,
    more: &[&str],
) -> Result<(Qemu, UnixStream)> {
    let console = folder.join("console");
    let mut command = topology.command_in(Host::A, "qemu-system-x86_64")?;
    command
        .args(["-M", "q35", "-accel", "tcg", "-smp", "1", "-m", "512"])
        .args(["-nodefaults", "-display", "none", "-vga", "none", "-no-reboot"])
        .arg("-kernel")
        .arg(&image.kernel)
        .arg("-initrd")
        .arg(&image.initramfs)
        .args(["-append", &workload.command_line()?])
        .args(["-chardev", &format!("socket,id=c,path={},server=on", console.display())])
        .args(["-device", "virtio-serial-pci,ioeventfd=off", "-device", "virtconsole,chardev=c"])
        .args(["-netdev", "tap,id=n,ifname=tap0,script=no,downscript=no"])
        .args(["-device", "virtio-net-pci,netdev=n"])
        .args(more);
    let qemu = Qemu(command.spawn()?);
    let deadline = Instant::now() + LIMIT;
    loop {
        // QEMU waits for the console's other end before it starts the guest.
        match UnixStream::connect(&console) {
            Ok(stream) => return Ok((qemu, stream)),
            Err(error) if Instant::now() > deadline => return Err(error.into()),
            Err(_) => thread::sleep(Duration::from_millis(10)),
        }
    }
}

fn tell(console: &mut UnixStream, command: Command) -> Result<()> {
    Ok(writeln!(console, "{command}")?)
}

fn is_ready(line: &Line) -> bool {
    matches!(line, Line::Ready { .. })
}

fn is_checked(line: &Line) -> bool {
    matches!(line, Line::Checked { .. })
}

#[test]
fn a_guest_boots_ticks_answers_and_checks_its_memory() -> Result<()> {
    let Some(image) = image_or_skip("the guest") else { return Ok(()) };
    let topology = Topology::new("sterna-tk-boot", LinkRate::megabits(1000))?;
    topology.tap(Host::A, "tap0")?;
    let folder = tempfile::tempdir()?;
    let workload = Workload::new(Bytes::mebibytes(256))
        .mix("zero:40,text:30,random:20,dup:10".parse()?)
        .rewrite(Bytes::mebibytes(64), Rate::mebibytes_per_second(20));
    let started = Instant::now();
    let (_qemu, mut console) = boot(&topology, &image, &workload, folder.path(), &[])?;
    let log = ConsoleLog::new();
    log.attach(console.try_clone()?);
    log.wait_for(0, LIMIT, is_ready)?;
    eprintln!("READY after {:?}", started.elapsed());
    log.wait_for_ticks(100, LIMIT)?;

    let echo = UdpEcho::start(topology.client(), Topology::GUEST, UdpEcho::PERIOD)?;
    thread::sleep(Duration::from_secs(1));
    let from = Instant::now();
    thread::sleep(WATCHED);
    let watched = Window::new(from, Instant::now());
    let answers = echo.finish()?;
    let ticks = log.ticks();
    let trips = answers.round_trips(watched);
    eprintln!(
        "{} answers, {} lost, round trip median {:?} max {:?}, longest gap {:?}",
        trips.len(),
        answers.lost(watched),
        trips.get(trips.len() / 2),
        trips.last(),
        answers.longest_gap(watched),
    );
    eprintln!(
        "ticks: longest gap {:?}; pages per second: {:?} checked, {:?} written",
        ticks.longest_gap(watched),
        ticks.checked_per_second(watched),
        ticks.written_per_second(watched),
    );
    assert!(!trips.is_empty());
    assert!(ticks.written_per_second(watched).is_some_and(|rate| rate > 0.0));
    assert_eq!(ticks.seen_twice(), 0);

    tell(&mut console, Command::Check)?;
    let answer = log.wait_for(0, LIMIT, is_checked)?;
    assert_eq!(answer, Line::Checked { pages: 65_536, wrong: 0 });
    assert_eq!(log.complaints(), []);
    Ok(())
}

#[test]
fn a_running_guest_obeys_its_console() -> Result<()> {
    let Some(image) = image_or_skip("the console") else { return Ok(()) };
    let topology = Topology::new("sterna-tk-obey", LinkRate::Unshaped)?;
    topology.tap(Host::A, "tap0")?;
    let folder = tempfile::tempdir()?;
    let disk = folder.path().join("disk.raw");
    sterna_testkit::disk::fill(&disk, Bytes::mebibytes(4))?;
    let workload = Workload::new(Bytes::mebibytes(32))
        .rewrite(Bytes::mebibytes(16), Rate::mebibytes_per_second(8))
        .disk(DiskUse::Direct, Rate::mebibytes_per_second(16));
    let drive = format!("file={},format=raw,if=virtio,cache=none", disk.display());
    let (_qemu, mut console) =
        boot(&topology, &image, &workload, folder.path(), &["-drive", &drive])?;
    let log = ConsoleLog::new();
    log.attach(console.try_clone()?);
    log.wait_for_ticks(100, LIMIT)?;
    let read = |line: &Line| matches!(line, Line::Disk { pass: 2, blocks: 8192, wrong: 0 });
    log.wait_for(0, LIMIT, read)?;

    // Commands take effect before the pass that was asked for after them is done.
    tell(&mut console, Command::Rate(Rate(0)))?;
    tell(&mut console, Command::Check)?;
    log.wait_for(0, LIMIT, is_checked)?;
    let stopped = log.ticks().samples().len();
    log.wait_for_ticks(stopped + 200, LIMIT)?;
    let written = |index: usize| log.ticks().samples()[index].tick.written;
    assert_eq!(written(stopped), written(stopped + 199));

    tell(&mut console, Command::Ticks(TickLines::Quiet))?;
    let heard = log.lines().len();
    tell(&mut console, Command::Check)?;
    log.wait_for(heard, LIMIT, is_checked)?;
    let quiet = log.ticks().samples().len();
    let heard = log.lines().len();
    tell(&mut console, Command::Check)?;
    log.wait_for(heard, LIMIT, is_checked)?;
    // One line may have been under way when the guest read the command.
    assert!(log.ticks().samples().len() <= quiet + 1);
    assert_eq!(log.complaints(), []);
    Ok(())
}

/// Finds a page of the filled memory in the guest's RAM file.
fn find_page(ram: &mut File, workload: &Workload, page: PageNumber) -> Result<u64> {
    let settings = Settings::parse(&workload.command_line()?)?;
    let mut words = [0; WORDS];
    Content::new(&settings).whole(page, Version(0), &mut words);
    let wanted: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let mut found = vec![0; PAGE_SIZE];
    let mut place = 0;
    while found != wanted {
        ram.read_exact(&mut found).context("the page is nowhere in the guest's RAM")?;
        place += u64::try_from(PAGE_SIZE)?;
    }
    Ok(place - u64::try_from(PAGE_SIZE)?)
}

#[test]
fn a_byte_that_is_changed_from_outside_is_told_with_its_place() -> Result<()> {
    let Some(image) = image_or_skip("the changed byte") else { return Ok(()) };
    let topology = Topology::new("sterna-tk-byte", LinkRate::Unshaped)?;
    topology.tap(Host::A, "tap0")?;
    let folder = tempfile::tempdir_in("/dev/shm")?;
    let path = folder.path().join("ram");
    let workload = Workload::new(Bytes::mebibytes(32));
    let backend =
        format!("memory-backend-file,id=ram0,size=512M,share=on,mem-path={}", path.display());
    let memory = ["-object", &backend, "-machine", "memory-backend=ram0"];
    let (_qemu, console) = boot(&topology, &image, &workload, folder.path(), &memory)?;
    let log = ConsoleLog::new();
    log.attach(console);
    log.wait_for(0, LIMIT, is_ready)?;

    let mut ram = File::options().read(true).write(true).open(&path)?;
    let place = find_page(&mut ram, &workload, PageNumber(1234))?;
    ram.write_all_at(&[0xff], place + 321)?;
    let told = log.wait_for(0, LIMIT, |line| matches!(line, Line::Wrong(_)))?;
    let Line::Wrong(what) = told else { unreachable!("just waited for") };
    assert!(what.starts_with("page=1234 offset=321 "), "{what}");
    Ok(())
}

/// Lets a guest run, does this to it by its hypervisor's monitor, and waits until it has begun anew.
fn begun_anew(prefix: &str, image: &GuestImage, command: &str) -> Result<ConsoleLog> {
    let topology = Topology::new(prefix, LinkRate::Unshaped)?;
    topology.tap(Host::A, "tap0")?;
    let folder = tempfile::tempdir()?;
    let monitor = folder.path().join("monitor");
    let workload = Workload::new(Bytes::mebibytes(32));
    let words = format!("{} unknown_nmi_panic", workload.command_line()?);
    let qmp = format!("unix:{},server=on,wait=off", monitor.display());
    let more = ["-action", "reboot=reset", "-append", &words, "-qmp", &qmp];
    let (_qemu, mut console) = boot(&topology, image, &workload, folder.path(), &more)?;
    let log = ConsoleLog::new();
    log.attach(console.try_clone()?);
    log.wait_for_ticks(100, LIMIT)?;
    log.lived_once(&[])?;
    // A kernel that panics while it writes to its console never gets to say so.
    tell(&mut console, Command::Ticks(TickLines::Quiet))?;
    tell(&mut console, Command::Check)?;
    log.wait_for(0, LIMIT, is_checked)?;
    let heard = log.lines().len();
    ask(&monitor, command)?;
    log.wait_for(heard, LIMIT, is_ready)?;
    log.wait_for_ticks(log.ticks().samples().len() + 100, LIMIT)?;
    Ok(log)
}

#[test]
fn a_guest_that_is_reset_from_outside_was_reset_by_itself_as_far_as_is_heard() -> Result<()> {
    let Some(image) = image_or_skip("the reset") else { return Ok(()) };
    let log = begun_anew("sterna-tk-reset", &image, "system_reset")?;
    let fault = log.lived_once(&[]).expect_err("it was reset");
    eprintln!("{fault}");
    assert!(matches!(fault, NotOneLife::ResetByItself { .. }), "{fault}: {:?}", log.lines());
    Ok(())
}

#[test]
fn a_guest_that_panics_and_boots_again_is_not_taken_for_one_that_was_reset() -> Result<()> {
    let Some(image) = image_or_skip("the panic") else { return Ok(()) };
    let log = begun_anew("sterna-tk-panic", &image, "inject-nmi")?;
    let fault = log.lived_once(&[]).expect_err("it panicked");
    eprintln!("{fault}");
    let NotOneLife::Reset { suspicion: Suspicion::Spoke(words), .. } = fault else {
        anyhow::bail!("{fault}: {:?}", log.lines());
    };
    assert!(words.iter().any(|line| line.contains("Kernel panic")), "{words:?}");
    Ok(())
}
