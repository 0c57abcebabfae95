//! Tests with shells and a program that counts.

use super::*;
use rustix::process::Signal;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdout, Command, Stdio};

const LIMIT: Duration = Duration::from_secs(10);

/// A shell that says numbers for ever, and a number for each `USR1` that it gets.
struct Counter {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Counter {
    fn start(script: &str) -> Self {
        let mut command = Command::new("sh");
        command.args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut counter = Self { output: BufReader::new(child.stdout.take().unwrap()), child };
        assert_eq!(counter.line(), "ready");
        counter
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    fn process(&self) -> Process {
        Process::open(self.child.id()).unwrap()
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _status = self.child.wait();
    }
}

fn state_of(pid: u32) -> char {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, rest) = stat.rsplit_once(") ").unwrap();
    rest.chars().next().unwrap()
}

fn processor_time(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, rest) = stat.rsplit_once(") ").unwrap();
    rest.split(' ').nth(11).unwrap().parse().unwrap()
}

#[test]
fn a_process_that_works_stands_still_until_it_is_let_go() {
    let counter = Counter::start("echo ready; while :; do :; done");
    let process = counter.process();
    for _ in 0..20 {
        let frozen = Frozen::stop(&process, LIMIT).unwrap();
        assert_eq!(state_of(process.pid()), 't');
        let before = processor_time(process.pid());
        std::thread::sleep(Duration::from_millis(30));
        assert_eq!(processor_time(process.pid()), before);
        assert!(frozen.elapsed() >= Duration::from_millis(30));
        drop(frozen);
        let deadline = Instant::now() + LIMIT;
        while processor_time(process.pid()) == before {
            assert!(Instant::now() < deadline, "it does not go on");
        }
    }
    assert!(!is_traced(i32::try_from(process.pid()).unwrap()));
}

#[test]
fn a_signal_that_comes_meanwhile_is_not_lost() {
    let mut counter = Counter::start("trap 'echo got it' USR1; echo ready; while :; do :; done");
    let process = counter.process();
    let signal = || process.signal(Signal::USR1).unwrap();
    for _ in 0..50 {
        // Before it stops, at which it may be about to take the signal, and while it is stopped.
        signal();
        let frozen = Frozen::stop(&process, LIMIT).unwrap();
        drop(frozen);
        assert_eq!(counter.line(), "got it");
        let frozen = Frozen::stop(&process, LIMIT).unwrap();
        signal();
        drop(frozen);
        assert_eq!(counter.line(), "got it");
    }
}

#[test]
fn a_process_that_was_stopped_by_a_signal_stays_so() {
    let counter = Counter::start("echo ready; while :; do :; done");
    let process = counter.process();
    process.stop().unwrap();
    let deadline = Instant::now() + LIMIT;
    while state_of(process.pid()) != 'T' {
        assert!(Instant::now() < deadline);
    }
    drop(Frozen::stop(&process, LIMIT).unwrap());
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(state_of(process.pid()), 'T');
}

#[test]
fn a_process_goes_on_when_the_thread_that_stopped_it_ends() {
    let counter = Counter::start("echo ready; while :; do :; done");
    let process = counter.process();
    std::thread::scope(|scope| {
        scope.spawn(|| std::mem::forget(Frozen::stop(&process, LIMIT).unwrap()));
    });
    let before = processor_time(process.pid());
    let deadline = Instant::now() + LIMIT;
    while processor_time(process.pid()) == before {
        assert!(Instant::now() < deadline, "nobody has let it go");
    }
}

#[test]
fn a_process_that_has_ended_or_is_traced_already_cannot_be_stopped() {
    let counter = Counter::start("echo ready; while :; do :; done");
    let process = counter.process();
    let _first = Frozen::stop(&process, LIMIT).unwrap();
    let again = Frozen::stop(&process, LIMIT);
    assert!(
        matches!(again, Err(FreezeError::Unstoppable { ref name }) if name == "sh"),
        "{again:?}"
    );
    process.kill().unwrap();
    assert_eq!(process.wait_for_end(LIMIT), Liveness::Ended);
    assert!(matches!(Frozen::stop(&process, LIMIT), Err(FreezeError::System(_))));
}

#[test]
fn who_waits_for_input_goes_on_waiting() {
    let mut counter = Counter::start("echo ready; read line; echo \"$line\"");
    let process = counter.process();
    for _ in 0..10 {
        drop(Frozen::stop(&process, LIMIT).unwrap());
    }
    counter.child.stdin.as_mut().unwrap().write_all(b"a line\n").unwrap();
    let mut rest = String::new();
    counter.output.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "a line\n");
}

/// Threads that end while they are asked to stop are waited for by nobody but who traces them.
#[test]
fn a_process_whose_threads_come_and_go_is_stopped_and_ends_as_any() {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--ignored", "--exact", "process::frozen::tests::threads_that_come_and_go"]);
    let child = command.env(THREADS, "1").stdout(Stdio::null()).spawn().unwrap();
    let mut ended = Ended(child);
    let process = Process::open(ended.0.id()).unwrap();
    let began = Instant::now();
    while threads(process.pid()).unwrap().len() < 3 {
        assert!(began.elapsed() < LIMIT, "it has no threads");
    }
    for round in 0..300 {
        let frozen = Frozen::stop(&process, LIMIT);
        assert!(frozen.is_ok(), "round {round}: {frozen:?}");
    }
    let frozen = Frozen::stop(&process, LIMIT).unwrap();
    ended.0.kill().unwrap();
    drop(frozen);
    assert_eq!(process.wait_for_end(LIMIT), Liveness::Ended);
    ended.0.wait().unwrap();
}

/// Says that a process of this program is the one with threads.
const THREADS: &str = "STERNA_TEST_THREADS";

struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _status = self.0.wait();
    }
}

#[test]
#[ignore = "is the process that another test starts"]
fn threads_that_come_and_go() {
    if std::env::var_os(THREADS).is_none() {
        return;
    }
    loop {
        let threads: Vec<_> = (0..4).map(|_| std::thread::spawn(|| ())).collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    }
}
