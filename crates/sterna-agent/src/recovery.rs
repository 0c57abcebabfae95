//! What a new agent makes of the journal and the processes that an earlier one left.
//!
//! | guest's place | record of the move | what is done |
//! |---|---|---|
//! | here | none, or ended | found again by its process, else marked crashed |
//! | here, upgraded | under way | it is made to run where it was |
//! | here, upgraded | under way, and noted as handed over | it is made to run in its new process, and the old one ended |
//! | stopped, crashed, paused | any | as it is |
//! | here, leaving | nothing recorded | the move had not begun: the guest runs on |
//! | here, leaving | moving | the engine asks the destination, if the guest may be committed |
//! | here, leaving | released | its process is ended; the guest is elsewhere |
//! | here, leaving | undone | it is made to run |
//! | arriving | none, receiving, refused | refused on record, its process is ended |
//! | arriving | owned | it is made to run, then recorded as active |
//! | arriving | owing | it stays as it is until the source comes and pages go on following |
//! | arriving | active | here |
//! | arriving | lost | its process is ended |
//!
//! Before all else notes of upgrades come on record, and hypervisors are ended that an earlier agent had started, and was
//! killed before they were.
//!
//! All of it is done before the first connection is accepted, but for what needs another host:
//! that goes on beside everything else. Done twice, it does the same.

#[cfg(test)]
mod tests;

use crate::agent::Agent;
use crate::guest::leave::{self, Begin, Journey, Target};
use crate::guest::upgrade::Note;
use crate::guest::{Activity, Guest, Request, Task};
use crate::host::missing_pages;
use crate::hypervisor::{GuestProcess, Running};
use crate::journal::JournalError;
use crate::logs;
use crate::moves::{Move, Outcome};
use crate::records::{Elsewhere, GuestRecord, IncomingRecord, OutgoingRecord, Place, Upgrade};
use std::fs::{self, File};
use std::io::ErrorKind;
use std::sync::Arc;
use sterna_api::Direction;
use sterna_core::journal::{DestinationRecord, SourceRecord};
use sterna_core::prediction::Surroundings;
use sterna_core::source::Found;
use sterna_engine::source::LeftOver;
use sterna_proto::message::{AttemptId, JournalId};
use sterna_vmm::VmmError;

/// Brings guests and moves back. Blocks; must be called within the runtime.
pub(crate) fn recover(agent: &Arc<Agent>) -> Result<(), JournalError> {
    record_handed_over(agent)?;
    let guests = agent.journal.guests()?;
    let on_record: Vec<_> = guests.iter().filter_map(|guest| guest.process.clone()).collect();
    if let Err(error) = agent.hypervisor.end_strays(&on_record) {
        tracing::error!(%error, "cannot end hypervisors that are not on record");
    }
    let mut outgoing = agent.journal.outgoing()?;
    for record in &outgoing {
        let entry = Move::from_record(record);
        let is_newest = |guest: &GuestRecord| {
            guest.id == record.attempt.guest && guest.epoch == record.attempt.epoch
        };
        if !entry.has_ended() && !guests.iter().any(is_newest) {
            // There was no space for its end, as happens, and the guest has come back since, or was deleted.
            entry.end(Outcome::Summary("over; how it ended could not be recorded".into()));
        }
        // Ids were distinct when they were recorded.
        let _ = agent.moves.add(entry);
    }
    recover_incoming_moves(agent, &guests)?;
    outgoing.retain(|record| record.receipt.is_none());
    for record in guests {
        let attempt = AttemptId { guest: record.id, epoch: record.epoch };
        let unfinished = outgoing.iter().find(|outgoing| outgoing.attempt == attempt).cloned();
        recover_guest(agent, record, unfinished)?;
    }
    let here: Vec<_> = agent.guests.all().iter().map(|guest| guest.id).collect();
    agent.logs.forget_others(&here);
    Ok(())
}

/// Puts on record to which process a guest was handed over, if that was noted only.
fn record_handed_over(agent: &Agent) -> Result<(), JournalError> {
    for mut record in agent.journal.guests()? {
        let Some(Upgrade::UnderWay { new }) = &record.upgrade else { continue };
        let noted = Note::of(&agent.settings.runtime, record.id).names(new);
        if noted.map_err(|source| JournalError::Note { guest: record.id, source })? {
            let old = record.process.replace(new.clone());
            record.upgrade = Some(Upgrade::HandedOver { old: old.unwrap_or_default() });
            agent.journal.put_guest(&record)?;
        }
    }
    Ok(())
}

fn recover_incoming_moves(agent: &Agent, guests: &[GuestRecord]) -> Result<(), JournalError> {
    for record in agent.journal.all_incoming()? {
        forget_missing_pages(agent, &record, guests);
        let direction = Direction::Incoming;
        let entry = Move::new(record.id, &record.guest, record.attempt, direction, &record.peer);
        let summary = match record.record {
            Some(DestinationRecord::Owing) if arrives_by(record.attempt, guests) => {
                // Under way: the guest's task ends it.
                let _ = agent.moves.add(entry);
                continue;
            }
            Some(DestinationRecord::Owing) => {
                "arrived; that all pages had come could not be recorded"
            }
            Some(DestinationRecord::Owned | DestinationRecord::Active) => "arrived",
            Some(DestinationRecord::Lost) => "lost: pages of it were lost with its source",
            Some(DestinationRecord::Receiving | DestinationRecord::Refused) | None => {
                "discarded: refused, or the agent was restarted"
            }
        };
        entry.end(Outcome::Summary(summary.into()));
        let _ = agent.moves.add(entry);
    }
    Ok(())
}

fn arrives_by(by: AttemptId, guests: &[GuestRecord]) -> bool {
    let arrives = |guest: &GuestRecord| match guest.place {
        Place::Arriving { attempt, .. } => attempt == by,
        _ => false,
    };
    guests.iter().any(arrives)
}

/// Removes what an earlier agent has noted of pages that a guest lacked, unless it lacks them still. It is written
/// before the guest is owned.
fn forget_missing_pages(agent: &Agent, incoming: &IncomingRecord, guests: &[GuestRecord]) {
    let owing = incoming.record == Some(DestinationRecord::Owing);
    if owing && arrives_by(incoming.attempt, guests) {
        return;
    }
    let path = missing_pages(&agent.settings, incoming.attempt);
    for path in [path.with_extension("new"), path] {
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                tracing::warn!(path = %path.display(), %error, "a file of missing pages stays");
            }
            _ => {}
        }
    }
}

fn recover_guest(
    agent: &Arc<Agent>,
    mut record: GuestRecord,
    unfinished: Option<OutgoingRecord>,
) -> Result<(), JournalError> {
    let name = record.definition.name.clone();
    // Its folder goes with it.
    let log = record.process.as_ref().and_then(|process| agent.open_log(process));
    let process = match record.process.as_ref().map(|data| agent.hypervisor.reattach(data)) {
        None => None,
        Some(Ok(process)) => {
            if process.is_none() {
                keep(agent, &record, log);
            }
            process
        }
        // It may run: nothing is concluded, and nothing recorded, until it can be asked.
        Some(Err(error)) => {
            tracing::error!(guest = %name, %error, "cannot reach the hypervisor");
            let reason = format!("its hypervisor cannot be reached: {error}");
            record.place = Place::Paused { reason, elsewhere: Elsewhere::MayHaveRun };
            adopt(agent, record, None);
            return Ok(());
        }
    };
    match &record.place {
        Place::Elsewhere { .. } => return Ok(()),
        Place::Arriving { attempt, .. } => {
            let attempt = *attempt;
            return recover_arriving(agent, record, attempt, process);
        }
        Place::Here => {}
        Place::Paused { .. } | Place::Crashed { .. } | Place::Stopped { .. } => {
            adopt(agent, record, process);
            return Ok(());
        }
    }
    if let Some(outgoing) = unfinished {
        return recover_leaving(agent, record, outgoing, process);
    }
    if let Some(upgrade) = record.upgrade.take() {
        recover_upgraded(agent, &name, &upgrade, process.as_deref());
        agent.journal.put_guest(&record)?;
        Note::of(&agent.settings.runtime, record.id).forget();
    }
    if process.is_none() {
        crashed(&mut record, "its hypervisor ended while no agent ran");
        agent.journal.put_guest(&record)?;
    }
    tracing::info!(guest = %name, found = process.is_some(), "guest in the journal");
    adopt(agent, record, process);
    Ok(())
}

/// Lets a guest run that an agent was killed in the midst of upgrading. `process` is the one that has it.
fn recover_upgraded(
    agent: &Agent,
    name: &str,
    upgrade: &Upgrade,
    process: Option<&dyn GuestProcess>,
) {
    tracing::info!(guest = %name, ?upgrade, found = process.is_some(), "unfinished upgrade");
    let run = match upgrade {
        Upgrade::Begun | Upgrade::UnderWay { .. } => process.map(GuestProcess::run),
        Upgrade::HandedOver { old } => {
            match agent.hypervisor.reattach(old) {
                Ok(old) => end(old.as_deref()),
                Err(error) => tracing::error!(guest = %name, %error, "cannot reach the former one"),
            }
            process.map(make_run)
        }
    };
    if let Some(Err(error)) = run {
        tracing::error!(guest = %name, %error, "cannot make it run");
    }
}

/// Keeps the end of the log of a hypervisor that has ended.
fn keep(agent: &Agent, record: &GuestRecord, log: Option<File>) {
    if let Some(mut log) = log {
        agent.logs.keep(record.id, &logs::tail(&mut log).unwrap_or_default());
    }
}

fn crashed(record: &mut GuestRecord, reason: &str) {
    record.process = None;
    record.place = Place::Crashed { reason: reason.into() };
}

/// Starts the guest's task under its name.
fn adopt(
    agent: &Arc<Agent>,
    record: GuestRecord,
    process: Option<Arc<dyn GuestProcess>>,
) -> Option<Guest> {
    adopt_as(agent, record, process, Activity::Idle)
}

fn adopt_as(
    agent: &Arc<Agent>,
    record: GuestRecord,
    process: Option<Arc<dyn GuestProcess>>,
    activity: Activity,
) -> Option<Guest> {
    let name = record.definition.name.clone();
    match agent.guests.claim(&name, record.id, 0) {
        Ok(claim) => {
            let guest = Task::start(agent, record, process, activity);
            claim.fulfil(guest.clone(), 0);
            Some(guest)
        }
        Err(taken) => {
            tracing::error!(guest = %name, %taken, "two guests of one name in the journal");
            None
        }
    }
}

fn recover_arriving(
    agent: &Arc<Agent>,
    mut record: GuestRecord,
    attempt: AttemptId,
    process: Option<Arc<dyn GuestProcess>>,
) -> Result<(), JournalError> {
    let known = agent.journal.incoming(attempt)?.and_then(|incoming| incoming.record);
    tracing::info!(guest = %record.definition.name, %attempt, role = "destination", ?known,
        found = process.is_some(), "unfinished move in the journal");
    match (known, process) {
        (None | Some(DestinationRecord::Receiving | DestinationRecord::Refused), process) => {
            agent.journal.record_destination(attempt, DestinationRecord::Refused)?;
            end(process.as_deref());
            match record.place {
                Place::Arriving { before: Some(before), .. } => agent.journal.put_guest(&before)?,
                _ => agent.journal.remove_guest(record.id)?,
            }
            return Ok(());
        }
        (Some(DestinationRecord::Owing), Some(process)) => {
            let incoming = agent.journal.incoming(attempt)?;
            let activity = incoming
                .and_then(|incoming| agent.moves.get(incoming.id))
                .map_or(Activity::Idle, Activity::Moving);
            adopt_as(agent, record, Some(process), activity);
        }
        (Some(DestinationRecord::Lost), process) => {
            end(process.as_deref());
            crashed(&mut record, "pages of it were lost with its source");
            agent.journal.put_guest(&record)?;
            adopt(agent, record, None);
        }
        (
            Some(DestinationRecord::Owned | DestinationRecord::Owing | DestinationRecord::Active),
            None,
        ) => {
            crashed(&mut record, "its hypervisor ended while no agent ran");
            agent.journal.put_guest(&record)?;
            adopt(agent, record, None);
        }
        (Some(DestinationRecord::Owned | DestinationRecord::Active), Some(process)) => {
            match make_run(process.as_ref()) {
                Ok(()) => {
                    agent.journal.record_destination(attempt, DestinationRecord::Active)?;
                    record.place = Place::Here;
                }
                // Owned stays on record: the source is told that the guest is lost.
                Err(error) => {
                    let log = agent.open_log(&process.record());
                    end(Some(process.as_ref()));
                    keep(agent, &record, log);
                    crashed(&mut record, &format!("it could not be made to run: {error}"));
                }
            }
            agent.journal.put_guest(&record)?;
            let process = record.process.is_some().then_some(process);
            adopt(agent, record, process);
        }
    }
    Ok(())
}

/// Lets an arrived guest run, unless it does already.
fn make_run(process: &dyn GuestProcess) -> Result<(), VmmError> {
    match process.running()? {
        Running::Yes => Ok(()),
        Running::No(_) => process.destination()?.activate(),
    }
}

fn end(process: Option<&dyn GuestProcess>) {
    if let Some(Err(error)) = process.map(GuestProcess::end) {
        tracing::error!(%error, "cannot end a hypervisor");
    }
}

fn recover_leaving(
    agent: &Arc<Agent>,
    mut record: GuestRecord,
    outgoing: OutgoingRecord,
    process: Option<Arc<dyn GuestProcess>>,
) -> Result<(), JournalError> {
    tracing::info!(guest = %record.definition.name, attempt = %outgoing.attempt, role = "source",
        record = ?outgoing.record, found = process.is_some(), "unfinished move in the journal");
    match (&outgoing.record, process) {
        (Some(SourceRecord::Released), process) => {
            end(process.as_deref());
            record.process = None;
            record.place = Place::Elsewhere { host: outgoing.request.to.clone() };
            agent.journal.put_guest(&record)?;
        }
        (Some(SourceRecord::Moving { journal }), process) => {
            resolve(agent, record, &outgoing, *journal, process);
        }
        (None | Some(SourceRecord::Undone), Some(process)) => {
            if let Err(error) = process.source().and_then(|mut source| source.resume()) {
                tracing::error!(guest = %record.definition.name, %error, "cannot make it run");
            }
            adopt(agent, record, Some(process));
        }
        (None | Some(SourceRecord::Undone), None) => {
            crashed(&mut record, "its hypervisor ended while no agent ran");
            agent.journal.put_guest(&record)?;
            adopt(agent, record, None);
        }
    }
    Ok(())
}

/// Leaves the question who owns the guest to the engine, which asks the destination if it must.
fn resolve(
    agent: &Arc<Agent>,
    record: GuestRecord,
    outgoing: &OutgoingRecord,
    journal: JournalId,
    process: Option<Arc<dyn GuestProcess>>,
) {
    let Some(entry) = agent.moves.get(outgoing.request.id) else { return };
    let activity = Activity::Moving(Arc::clone(&entry));
    let Some(guest) = adopt_as(agent, record, process.clone(), activity) else { return };
    let (agent, outgoing) = (Arc::clone(agent), outgoing.clone());
    agent.runtime.clone().spawn(async move {
        let target = loop {
            match Target::find(&agent, &outgoing.request.to).await {
                Ok(target) => break target,
                Err(error) => {
                    tracing::warn!(guest = %guest.name, %error, "cannot ask the destination");
                    tokio::time::sleep(RESOLVER_PAUSE).await;
                }
            }
        };
        let begin = tokio::task::spawn_blocking(move || found(process.as_deref(), journal)).await;
        match begin {
            Ok(begin) => {
                // Nothing is foreseen of a move that is over but for its end.
                let surroundings = Surroundings::default();
                let journey = Journey { outgoing, surroundings, planned: None, target, begin };
                leave::run(&agent, &guest, &entry, journey);
            }
            Err(_) => guest.tell(Request::Left(Box::new(outgoing), None)).await,
        }
    });
}

/// How long to wait before a name that could not be resolved is tried again.
const RESOLVER_PAUSE: std::time::Duration = std::time::Duration::from_secs(5);

fn found(process: Option<&dyn GuestProcess>, journal: JournalId) -> Begin {
    let gone = Begin::Left(LeftOver { journal, found: Found::Gone, guest: None });
    let Some(process) = process else { return gone };
    let found = match process.running() {
        Ok(Running::Yes) => Found::Running,
        Ok(Running::No(_)) => Found::Paused,
        Err(error) => {
            tracing::error!(pid = process.pid(), %error, "cannot ask the hypervisor");
            return gone;
        }
    };
    match process.source() {
        Ok(source) => Begin::Left(LeftOver { journal, found, guest: Some(source) }),
        Err(error) => {
            tracing::error!(pid = process.pid(), %error, "cannot take the guest over");
            gone
        }
    }
}
