//! QEMU copies a guest by itself, from one process of this host to another; what its connections
//! carry is carried by this test.

use super::*;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::thread;
use sterna_vmm::{
    Compared, Compression, NativeListener, NativePlan, NativeSent, NativeStep, NativeWay,
};

const WAIT: Duration = Duration::from_millis(100);

const WAYS: [NativeWay; 4] = [
    NativeWay::PreCopy,
    NativeWay::Xbzrle,
    NativeWay::Multifd { channels: 2, compression: Compression::None },
    NativeWay::Multifd { channels: 3, compression: Compression::Zstd },
];

fn plan(way: NativeWay) -> NativePlan {
    let downtime_max = Duration::from_secs(1);
    NativePlan { way, downtime_max, bandwidth_bytes_per_second: None, slow_down: false }
}

fn pump(mut from: UnixStream, mut to: UnixStream) {
    thread::spawn(move || {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            if to.write_all(&buffer[..count]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Write);
    });
}

/// Connects what the source connects to `listener` with the destination.
fn relay(listener: NativeListener, way: NativeWay, to: &Path) -> thread::JoinHandle<()> {
    let to = to.to_owned();
    thread::spawn(move || {
        for _ in 0..way.connections() {
            let inner = listener.accept(LIMIT).unwrap().expect("QEMU connects");
            let outer = UnixStream::connect(&to).unwrap();
            pump(inner.try_clone().unwrap(), outer.try_clone().unwrap());
            pump(outer, inner);
        }
    })
}

fn expecting(host: &Host, guest: &QemuGuest, way: NativeWay) -> (QemuDestination, Ended) {
    let definition = &guest.record().definition;
    let folder = host.folder("b");
    let destination = QemuDestination::prepare_native(&host.binary, definition, folder, way);
    let destination = destination.unwrap();
    let ended = Ended(destination.guest().clone());
    (destination, ended)
}

/// Waits until the guest is paused; what was sent by then, and the rounds.
fn until_paused(source: &mut QemuSource) -> (NativeSent, usize) {
    let deadline = Instant::now() + LIMIT;
    let mut rounds = 0;
    loop {
        assert!(Instant::now() < deadline, "the guest is not paused");
        match source.native_step(WAIT).unwrap() {
            NativeStep::Copying(_) => {}
            NativeStep::RoundEnded(_) => rounds += 1,
            NativeStep::Paused { sent, .. } => return (sent, rounds),
        }
    }
}

#[test]
fn a_guest_that_its_hypervisor_copies_arrives_whole_in_every_way() {
    let Some(host) = Host::new() else { return };
    for way in WAYS {
        let guest = host.start();
        let mut source = QemuSource::new(&guest).unwrap();
        assert_eq!(source.immovable_natively(Compared::No).unwrap(), []);
        let (mut destination, arrived) = expecting(&host, &guest, way);
        let listener = source.begin_native(&plan(way)).unwrap();
        let relay = relay(listener, way, &destination.native_socket().unwrap());
        let (before, rounds) = until_paused(&mut source);
        assert_eq!(guest.status().unwrap(), QemuStatus::Stopped("finish-migrate".into()));
        let unfinished = destination.await_native(Duration::from_millis(300));
        assert!(matches!(unfinished, Err(VmmError::TimedOut { .. })), "{unfinished:?}");
        let all = source.finish_native().unwrap();
        destination.await_native(LIMIT).unwrap();
        relay.join().unwrap();
        eprintln!("{way:?}: {rounds} rounds, {before:?} before the pause, {all:?} in all");
        assert!(before.bytes > 0 && all.bytes > before.bytes && all.pages >= u64::from(COUNTED));
        assert_equal_memory(&source.memory(), &destination.memory());
        assert!(!guest.status().unwrap().eq(&QemuStatus::Running));
        let stood = counts(&arrived.memory());
        destination.activate().unwrap();
        await_counting(&arrived.memory());
        assert!(counts(&arrived.memory()) > stood);
        destination.settle().unwrap();
        source.release().unwrap();
        // What it was told is forgotten: it goes on in our own way.
        drop(destination);
        let mut back = QemuSource::new(&arrived).unwrap();
        back.pause().unwrap();
        assert!(back.save_device_state().unwrap().bytes.len() < 4 << 20, "RAM is among it");
    }
}

#[test]
fn a_guest_whose_copying_is_taken_back_at_any_step_runs_on_and_moves_in_our_own_way() {
    let Some(host) = Host::new() else { return };
    let guest = host.start();
    for way in WAYS {
        for steps in 0..3 {
            let mut source = QemuSource::new(&guest).unwrap();
            let (mut destination, arrived) = expecting(&host, &guest, way);
            let listener = source.begin_native(&plan(way)).unwrap();
            let relay = relay(listener, way, &destination.native_socket().unwrap());
            if steps > 0 {
                until_paused(&mut source);
            }
            if steps > 1 {
                source.finish_native().unwrap();
                destination.await_native(LIMIT).unwrap();
            }
            source.resume().unwrap();
            assert_eq!(guest.status().unwrap(), QemuStatus::Running);
            await_counting(&guest.memory());
            destination.discard().unwrap();
            assert!(!arrived.is_alive());
            drop(relay);
        }
    }
    let mut source = QemuSource::new(&guest).unwrap();
    source.pause().unwrap();
    assert!(source.save_device_state().unwrap().bytes.len() < 4 << 20, "RAM is among it");
}

/// Takes whatever comes, and throws it away.
fn swallow(listener: NativeListener) {
    thread::spawn(move || {
        while let Ok(Some(mut socket)) = listener.accept(WAIT) {
            thread::spawn(move || io::copy(&mut socket, &mut io::sink()));
        }
    });
}

/// QEMU 10.0 that is told to cancel while it connects aborts, though not every time.
#[test]
fn copying_that_is_taken_back_the_moment_it_begins_leaves_the_guest_as_it_was() {
    let Some(host) = Host::new() else { return };
    let guest = host.start();
    for attempt in 0..10 {
        for way in WAYS {
            let mut source = QemuSource::new(&guest).unwrap();
            let listener = source.begin_native(&plan(way)).unwrap();
            match attempt % 2 {
                0 => swallow(listener),
                _ => drop(listener),
            }
            source.resume().unwrap();
            assert_eq!(guest.status().unwrap(), QemuStatus::Running);
        }
    }
    await_counting(&guest.memory());
}

#[test]
fn a_hypervisor_whose_connection_is_cut_says_so_and_its_guest_runs_on() {
    let Some(host) = Host::new() else { return };
    let guest = host.start();
    let mut source = QemuSource::new(&guest).unwrap();
    let slow = NativePlan {
        bandwidth_bytes_per_second: Some(1 << 20),
        downtime_max: Duration::from_millis(20),
        ..plan(NativeWay::PreCopy)
    };
    let listener = source.begin_native(&slow).unwrap();
    let mut socket = listener.accept(LIMIT).unwrap().expect("QEMU connects");
    io::copy(&mut (&mut socket).take(1 << 20), &mut io::sink()).unwrap();
    drop(socket);
    let deadline = Instant::now() + LIMIT;
    let failed = loop {
        assert!(Instant::now() < deadline, "nothing is said");
        if let Err(error) = source.native_step(WAIT) {
            break error;
        }
    };
    assert!(matches!(&failed, VmmError::Refused { .. }), "{failed:?}");
    source.resume().unwrap();
    await_counting(&guest.memory());
}

#[test]
fn a_guest_in_a_hurry_is_paused_whatever_is_left_and_arrives_whole() {
    let Some(host) = Host::new() else { return };
    let guest = host.start();
    let mut source = QemuSource::new(&guest).unwrap();
    // In our own way first, of which nothing may be left.
    source.pause().unwrap();
    source.save_device_state().unwrap();
    source.resume().unwrap();
    let never = NativePlan { downtime_max: Duration::from_millis(1), ..plan(NativeWay::PreCopy) };
    let slow = NativePlan { bandwidth_bytes_per_second: Some(8 << 20), ..never };
    let (mut destination, _arrived) = expecting(&host, &guest, slow.way);
    let listener = source.begin_native(&slow).unwrap();
    let relay = relay(listener, slow.way, &destination.native_socket().unwrap());
    let mut rounds = 0;
    while rounds < 2 {
        match source.native_step(LIMIT).unwrap() {
            NativeStep::RoundEnded(_) => rounds += 1,
            NativeStep::Copying(_) => {}
            paused @ NativeStep::Paused { .. } => panic!("{paused:?}"),
        }
    }
    source.hurry_native().unwrap();
    until_paused(&mut source);
    source.finish_native().unwrap();
    relay.join().unwrap();
    destination.await_native(LIMIT).unwrap();
    assert_equal_memory(&source.memory(), &destination.memory());
}

#[test]
fn what_makes_a_comparison_of_ram_meaningless_is_told() {
    let Some(host) = Host::new() else { return };
    let guest = host.start();
    let mut source = QemuSource::new(&guest).unwrap();
    let reasons = source.immovable_natively(Compared::Yes).unwrap();
    // Under KVM there is the clock besides.
    let balloon = |reason: &Immovable| matches!(reason, Immovable::Incomparable { why } if why.contains("balloon"));
    assert!(reasons.iter().any(balloon), "{reasons:?}");
}
