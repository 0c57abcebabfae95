//! The journal survives, is locked, and never takes a decision back.

use super::*;
use crate::records::Place;
use sterna_guest::quantity::Bytes;
use sterna_proto::message::Epoch;
use sterna_testkit::small_disk::SmallDisk;

fn guest() -> GuestRecord {
    let text = r#"{"name":"web-1","memory_bytes":1073741824}"#;
    GuestRecord {
        id: GuestId(Uuid::from_u128(7)),
        definition: serde_json::from_str(text).unwrap(),
        wishes: None,
        epoch: Epoch(3),
        process: Some(serde_json::json!({"pid": 1})),
        upgrade: None,
        place: Place::Here,
    }
}

fn attempt() -> AttemptId {
    AttemptId { guest: guest().id, epoch: Epoch(3) }
}

#[test]
fn what_was_written_is_there_after_reopening() {
    let folder = tempfile::tempdir().unwrap();
    let journal = Journal::open(folder.path()).unwrap();
    let id = journal.id();
    let mut before = guest();
    before.place = Place::Arriving { attempt: attempt(), before: Some(Box::new(guest())) };
    journal.put_guest(&before).unwrap();
    journal.record_destination(attempt(), DestinationRecord::Receiving).unwrap();
    drop(journal);

    let journal = Journal::open(folder.path()).unwrap();
    assert_eq!(journal.id(), id);
    assert_eq!(journal.guests().unwrap(), [before]);
    let incoming = journal.incoming(attempt()).unwrap().unwrap();
    assert_eq!(incoming.record, Some(DestinationRecord::Receiving));
    journal.remove_guest(guest().id).unwrap();
    assert_eq!(journal.guest(guest().id).unwrap(), None);
}

#[test]
fn what_was_recorded_outlives_a_full_disk_and_after_it_more_is_recorded() {
    let Ok(disk) = SmallDisk::new(Bytes::mebibytes(4)) else {
        return eprintln!("skipped: no file system can be mounted");
    };
    let journal = Journal::open(&disk.path()).unwrap();
    journal.put_guest(&guest()).unwrap();
    disk.fill().unwrap();
    // There is space within the file at first.
    let more = |number: u32| {
        let mut other = guest();
        other.id = GuestId(Uuid::from_u128(number.into()));
        journal.put_guest(&other).map(|()| other)
    };
    let (mut written, mut refused) = (vec![guest()], None);
    for number in 100..100_000 {
        match more(number) {
            Ok(other) => written.push(other),
            Err(error) => {
                refused = Some(error);
                break;
            }
        }
    }
    assert!(matches!(refused, Some(JournalError::Full(_))), "{refused:?}");
    disk.free().unwrap();
    for before in &written {
        assert_eq!(journal.guest(before.id).unwrap().as_ref(), Some(before));
    }
    more(7).unwrap();
}

#[test]
fn another_journal_is_not_taken_for_the_one_that_failed() {
    let Ok(disk) = SmallDisk::new(Bytes::mebibytes(4)) else {
        return eprintln!("skipped: no file system can be mounted");
    };
    let journal = Journal::open(&disk.path()).unwrap();
    disk.fill().unwrap();
    let failed = (0..100_000).find_map(|number| {
        let mut other = guest();
        other.id = GuestId(Uuid::from_u128(number));
        journal.put_guest(&other).err()
    });
    assert!(failed.is_some());
    disk.free().unwrap();
    std::fs::remove_file(disk.path().join(JOURNAL_FILE)).unwrap();
    journal.guests().unwrap_err();
    Journal::open(&disk.path()).unwrap();
    let error = journal.guests().unwrap_err();
    assert!(matches!(error, JournalError::Another(_)), "{error}");
}

#[test]
fn a_second_agent_is_told_that_the_first_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let _first = Journal::open(folder.path()).unwrap();
    let error = Journal::open(folder.path()).unwrap_err();
    assert!(matches!(error, JournalError::InUse(_)), "{error}");
}

#[test]
fn a_journal_of_a_newer_release_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let journal = Journal::open(folder.path()).unwrap();
    journal
        .write(|write| {
            write.open_table(META)?.insert("format", "3")?;
            Ok(())
        })
        .unwrap();
    drop(journal);
    let error = Journal::open(folder.path()).unwrap_err();
    assert!(matches!(error, JournalError::Newer { format: 3, known: 2 }), "{error}");
}

/// As the release before wrote it.
const OF_FORMAT_1: &str = r#"{"id":"00000000-0000-0000-0000-000000000007",
    "definition":{"name":"web-1","vcpus":2,"memory_bytes":1073741824,"huge_pages":false,"machine":"pc-q35-10.0",
        "cpu":"max","accelerator":"tcg","kernel":null,"initrd":null,"append":null,"console":"serial",
        "disks":[],"networks":[],"balloon":true,"balloon_yields":true,"qemu_args":[]},
    "epoch":3,"process":{"pid":1},"place":"stopped","reason":"its system powered off"}"#;

#[test]
fn a_journal_of_the_release_before_is_read_and_belongs_to_this_one_from_then_on() {
    let folder = tempfile::tempdir().unwrap();
    let journal = Journal::open(folder.path()).unwrap();
    let format = |journal: &Journal| journal.one::<u32>(META, "format").unwrap();
    let old = journal.write(|write| {
        write.open_table(META)?.insert("format", "1")?;
        write.open_table(GUESTS)?.insert(guest().id.to_string().as_str(), OF_FORMAT_1)?;
        write.delete_table(DELETED)?;
        Ok(())
    });
    old.unwrap();
    drop(journal);
    let journal = Journal::open(folder.path()).unwrap();
    let read = journal.guest(guest().id).unwrap().unwrap();
    assert_eq!((read.epoch, &read.wishes), (Epoch(3), &None));
    // What an earlier release had chosen stays so.
    assert_eq!(read.written(), read.definition);
    assert_eq!(read.written().machine.as_deref(), Some("pc-q35-10.0"));
    assert!(matches!(&read.place, Place::Stopped { reason } if reason == "its system powered off"));
    assert_eq!(journal.deleted(guest().id).unwrap(), None);
    assert_eq!(format(&journal), Some(2), "the release before must leave it alone");
}

#[test]
fn what_is_deleted_leaves_the_number_of_its_newest_attempt() {
    let folder = tempfile::tempdir().unwrap();
    let journal = Journal::open(folder.path()).unwrap();
    let id = guest().id;
    assert_eq!(journal.newest_epoch(id).unwrap(), Epoch(0));
    let of = |epoch: u64| GuestRecord { epoch: Epoch(epoch), ..guest() };
    for (epoch, newest) in [(3, 3), (2, 3), (9, 9), (0, 9)] {
        journal.put_guest(&of(epoch)).unwrap();
        journal.delete_guest(id).unwrap();
        assert_eq!(journal.guest(id).unwrap(), None);
        assert_eq!(journal.newest_epoch(id).unwrap(), Epoch(newest), "after {epoch}");
    }
    // Of others nothing is concluded.
    let other = GuestId(Uuid::from_u128(8));
    assert_eq!(journal.newest_epoch(other).unwrap(), Epoch(0));
    let attempt = AttemptId { guest: other, epoch: Epoch(12) };
    journal.record_destination(attempt, DestinationRecord::Refused).unwrap();
    assert_eq!(journal.newest_epoch(other).unwrap(), Epoch(12), "an attempt that was refused");
    assert_eq!(journal.newest_epoch(id).unwrap(), Epoch(9));
    // One that was never on a move leaves nothing.
    let new = GuestRecord { id: GuestId(Uuid::from_u128(9)), ..of(0) };
    journal.put_guest(&new).unwrap();
    journal.delete_guest(new.id).unwrap();
    assert_eq!(journal.deleted(new.id).unwrap(), None);
}

#[test]
fn a_new_journal_has_a_new_identity() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let one = Journal::open(one.path()).unwrap();
    assert_ne!(one.id(), Journal::open(two.path()).unwrap().id());
}

#[test]
fn an_attempt_is_never_both_owned_and_refused() {
    use DestinationRecord::{Active, Lost, Owing, Owned, Receiving, Refused};
    let folder = tempfile::tempdir().unwrap();
    let journal = Journal::open(folder.path()).unwrap();
    let refused = AttemptId { epoch: Epoch(4), ..attempt() };
    journal.record_destination(refused, Refused).unwrap();
    for record in [Receiving, Owned, Active] {
        let error = journal.record_destination(refused, record).unwrap_err();
        assert!(matches!(error, JournalError::Contradiction { .. }), "{error}");
    }
    for record in [Receiving, Owned, Active] {
        journal.record_destination(attempt(), record).unwrap();
    }
    assert!(journal.record_destination(attempt(), Refused).is_err());
    let owing = AttemptId { epoch: Epoch(5), ..attempt() };
    for record in [Receiving, Owing, Lost] {
        journal.record_destination(owing, record).unwrap();
    }
    for record in [Owing, Active, Refused] {
        assert!(journal.record_destination(owing, record).is_err(), "{record:?} after Lost");
    }
    let incoming = journal.incoming(attempt()).unwrap().unwrap();
    assert_eq!(incoming.record, Some(Active));
}

#[test]
fn a_move_nobody_began_has_no_source_record() {
    let folder = tempfile::tempdir().unwrap();
    let journal = Journal::open(folder.path()).unwrap();
    let error = journal.record_source(attempt(), &SourceRecord::Undone).unwrap_err();
    assert!(matches!(error, JournalError::Unknown(_)), "{error}");
}
