//! Guests that an agent started and did not put on record.

use super::*;
use sterna_vmm::qemu::{QemuRecord, end_strays};

#[test]
fn a_guest_that_was_never_on_record_is_ended_by_the_next_agent() {
    let Some(host) = Host::new() else { return };
    let guests = host.folder.path();
    let guest = host.start();
    let record = guest.record().clone();
    // The mark is older than the record, so both may be there.
    let ended = |on_record: &[QemuRecord]| end_strays(guests, on_record).unwrap();
    assert!(ended(std::slice::from_ref(&record)).is_empty());
    assert!(guest.is_alive(), "it is on record");
    assert!(ended(&[]).is_empty(), "it has been on record once");
    assert!(guest.is_alive());
    let (_, stray) = host.destination(&guest, "b");
    assert_eq!(ended(&[record]), [stray.pid()]);
    assert!(!stray.is_alive() && guest.is_alive());
    assert!(!host.folder("b").exists(), "nothing is left of it");
}

#[test]
fn a_guest_is_not_started_where_one_runs_that_nobody_knows() {
    let Some(host) = Host::new() else { return };
    let guest = host.start();
    let again =
        QemuGuest::start(&host.binary, &host.definition(), host.folder("a"), StartMode::Run);
    let error = again.unwrap_err().to_string();
    assert!(error.contains(&guest.pid().to_string()), "{error}");
    assert!(guest.is_alive() && guest.status().unwrap() == QemuStatus::Running);
    guest.kill().unwrap();
    host.start();
}
