//! Guests that come to another QEMU of the same host, in the same RAM.

use super::*;

fn contents(memory: &GuestMemory) -> Vec<(PageNumber, Vec<u8>)> {
    let mut bytes = vec![0; PAGE_SIZE];
    let read = |page| {
        memory.read(page, &mut bytes).unwrap();
        (page, bytes.clone())
    };
    memory.populated().unwrap().iter().map(read).collect()
}

fn beside(host: &Host, guest: &QemuGuest, name: &str) -> (QemuDestination, Ended) {
    let prepared = QemuDestination::prepare_beside(&host.binary, guest, host.folder(name));
    let destination = timed("prepare beside", || prepared.unwrap());
    let ended = Ended(destination.guest().clone());
    (destination, ended)
}

/// Pauses and saves the guest, and loads its state into the new one; neither changes its RAM.
fn hand_over(source: &mut QemuSource, destination: &mut QemuDestination) {
    timed("pause", || source.pause()).unwrap();
    let before = contents(&source.memory());
    let state = timed("save", || source.save_device_state()).unwrap();
    timed("load", || destination.load_device_state(&state)).unwrap();
    let after = contents(&source.memory());
    assert_eq!(before.len(), after.len());
    let differ = before.iter().zip(&after).find(|(before, after)| before != after);
    assert!(differ.is_none(), "page {} was written", differ.unwrap().0.0);
    assert_one_moment(&counts(&destination.memory()));
}

pub(super) fn upgrade(host: &Host, guest: &QemuGuest, name: &str) -> Ended {
    let (mut destination, arrived) = beside(host, guest, name);
    assert_eq!(guest.status().unwrap(), QemuStatus::Running, "it runs on meanwhile");
    assert_eq!(arrived.record().ram, guest.record().ram, "the same RAM");
    await_counting(&guest.memory());
    let mut source = leaving(guest);
    hand_over(&mut source, &mut destination);
    timed("activate", || destination.activate()).unwrap();
    destination.settle().unwrap();
    source.release().unwrap();
    assert!(!guest.is_alive());
    assert_eq!(arrived.status().unwrap(), QemuStatus::Running);
    await_counting(&arrived.memory());
    arrived
}

#[test]
fn a_guest_goes_on_in_another_qemu_with_the_same_ram() {
    let Some(host) = Host::new() else { return };
    let guest = host.start();
    let second = upgrade(&host, &guest, "b");
    let third = upgrade(&host, &second, "a");
    assert!(third.record().took_ram_over && third.record().version.is_some());
    // It can still move like any other.
    let moved = move_guest(&host, &third, "b");
    assert!(!moved.record().took_ram_over);
}

#[test]
fn a_guest_of_huge_pages_needs_no_more_of_them() {
    let Some(host) = Host::new() else { return };
    let _pool = match HugePages::reserve(Bytes(MEMORY_BYTES)) {
        Ok(pool) => pool,
        Err(why) => return eprintln!("skipped: {why}"),
    };
    let guest = host.start_as(&GuestDefinition { huge_pages: true, ..host.definition() });
    let second = upgrade(&host, &guest, "b");
    drop(guest);
    drop(second);
}

#[test]
fn a_guest_that_is_taken_back_runs_on_where_it_was() {
    let Some(host) = Host::new() else { return };
    let guest = host.start();
    let mut source = leaving(&guest);
    // Before its state is saved, and after it has been loaded by the new one.
    for loaded in [false, true] {
        let (mut destination, arrived) = beside(&host, &guest, "b");
        if loaded {
            hand_over(&mut source, &mut destination);
        } else {
            source.pause().unwrap();
        }
        destination.discard().unwrap();
        assert!(!arrived.is_alive() && !host.folder("b").exists());
        source.resume().unwrap();
        assert_eq!(guest.status().unwrap(), QemuStatus::Running);
        await_counting(&guest.memory());
    }
}

/// Whoever takes up the new one must not empty RAM, as it would that of a guest that arrives.
#[test]
fn ram_that_was_taken_over_is_never_emptied() {
    let Some(host) = Host::new() else { return };
    let guest = host.start();
    let (destination, arrived) = beside(&host, &guest, "b");
    drop(destination);
    let found = QemuGuest::reattach(arrived.record().clone()).unwrap();
    QemuDestination::attach(&found).unwrap();
    await_counting(&guest.memory());
    assert!(counts(&guest.memory()).iter().all(|count| *count > 0));
}
