//! Guests whose writes are tracked by soft-dirty bits, which the kernel keeps or the tests are skipped.

use super::*;
use sterna_sys::process::Process;
use sterna_sys::soft_dirty::{SoftDirtyError, check};

fn by_soft_dirty(guest: &QemuGuest) -> QemuSource {
    QemuSource::new(guest).unwrap().tracked_by(Tracker::SoftDirty)
}

/// Whether the kernel keeps bits; if not it is said.
fn kept(guest: &QemuGuest) -> bool {
    let process = Process::open(guest.pid()).unwrap();
    let checked = check(&process, guest.memory().files());
    let kept = !matches!(checked, Err(SoftDirtyError::None));
    if !kept {
        eprintln!("skipped: this kernel keeps no soft-dirty bits");
    }
    kept
}

#[test]
fn many_scans_of_a_busy_guest_lose_nothing_and_leave_it_running() {
    let Some(host) = Host::new() else { return };
    let guest = host.start();
    if !kept(&guest) {
        return;
    }
    let mut source = by_soft_dirty(&guest);
    let (destination, _ended) = host.destination(&guest, "b");
    let (from, to) = (source.memory(), destination.memory());
    source.start_tracking().unwrap();
    copy(&from, &to, &source.populated().unwrap());
    let mut dirty = PageSet::empty(from.pages());
    let mut fewest = u64::MAX;
    for _ in 0..60 {
        dirty.clear();
        source.scan(&mut dirty).unwrap();
        fewest = fewest.min(dirty.count().0);
        copy(&from, &to, &dirty);
    }
    assert!(fewest < from.pages().0 / 4, "all of RAM is reported all the time");
    assert!(guest.is_alive() && guest.ending().is_none(), "that it was stopped is no end");
    source.pause().unwrap();
    dirty.clear();
    source.scan(&mut dirty).unwrap();
    copy(&from, &to, &dirty);
    assert_one_moment(&counts(&from));
    assert_equal_memory(&from, &to);
    let tracked = source.tracked();
    eprintln!("{tracked:?}, {fewest} pages at least");
    assert!(tracked.stopped > Duration::ZERO && tracked.longest_stop <= tracked.stopped);
    source.resume().unwrap();
    await_counting(&guest.memory());
}

#[test]
fn a_guest_of_huge_pages_is_refused_with_the_reason() {
    let Some(host) = Host::new() else { return };
    let _pool = match HugePages::reserve(Bytes(MEMORY_BYTES)) {
        Ok(pool) => pool,
        Err(why) => return eprintln!("skipped: {why}"),
    };
    let guest = host.start_as(&GuestDefinition { huge_pages: true, ..host.definition() });
    if !kept(&guest) {
        return;
    }
    let mut source = by_soft_dirty(&guest);
    let reasons = source.immovable().unwrap();
    let told = |reason: &Immovable| matches!(reason, Immovable::Untracked { why } if why.contains("huge pages"));
    assert!(reasons.iter().any(told), "{reasons:?}");
    assert!(matches!(source.start_tracking(), Err(VmmError::Refused { .. })));
}

#[test]
fn a_kernel_without_bits_is_a_reason_not_to_move() {
    let Some(host) = Host::new() else { return };
    let guest = host.start();
    let process = Process::open(guest.pid()).unwrap();
    let none = matches!(check(&process, guest.memory().files()), Err(SoftDirtyError::None));
    let mut source = by_soft_dirty(&guest);
    let reasons = source.immovable().unwrap();
    let told = |reason: &Immovable| matches!(reason, Immovable::Untracked { why } if why.contains("CONFIG_MEM_SOFT_DIRTY"));
    assert_eq!(reasons.iter().any(told), none, "{reasons:?}");
    assert_eq!(source.start_tracking().is_err(), none);
}
