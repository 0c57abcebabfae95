//! The journal survives, is locked, and never takes a decision back.

use super::*;
use crate::records::Place;
use sterna_proto::message::Epoch;

fn guest() -> GuestRecord {
    let text = r#"{"name":"web-1","memory_bytes":1073741824}"#;
    GuestRecord {
        id: GuestId(Uuid::from_u128(7)),
        definition: serde_json::from_str(text).unwrap(),
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
            write.open_table(META)?.insert("format", "2")?;
            Ok(())
        })
        .unwrap();
    drop(journal);
    let error = Journal::open(folder.path()).unwrap_err();
    assert!(matches!(error, JournalError::Newer { format: 2, known: 1 }), "{error}");
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
