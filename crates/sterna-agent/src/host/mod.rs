//! This host to the engine: whether a guest may come, and what became of it.
//!
//! What an offer says of a guest comes from another host. It is checked like an operator's
//! definition, and its hypervisor arguments are refused unless [`PeerArguments`] says otherwise.
//! Its disk paths are used as they are: a host of the cluster may hand over any guest, so it may
//! also name any disk; the hypervisor's own user and its permissions bound what that can reach.
//!
//! [`PeerArguments`]: crate::settings::PeerArguments

pub(crate) mod cpu;
pub(crate) mod fit;
#[cfg(test)]
pub(crate) mod tests;

use crate::agent::{Agent, journal_error, vmm_error};
use crate::guest::{Activity, Request, Task};
use crate::guests::{Claim, Taken};
use crate::hypervisor::{GuestProcess, Prepared, Running, on_record};
use crate::moves::Move;
use crate::records::{GuestRecord, IncomingRecord, Place};
use crate::settings::Settings;
use fit::Facts;
use procfs::Current;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use sterna_api::{ApiError, Direction};
use sterna_core::destination::Ending;
use sterna_core::journal::DestinationRecord;
use sterna_core::source::Found;
use sterna_engine::identity::PeerName;
use sterna_engine::{FoundMove, Host, native};
use sterna_page::known::KnownPages;
use sterna_proto::message::{
    AttemptId, Coding, GuestId, HostCpu, JournalId, Offer, Reason, ReasonCode,
};
use sterna_vmm::{Destination, GuestDefinition, Wishes};
use uuid::Uuid;

/// The engine's view of an agent.
pub(crate) struct AgentHost(pub(crate) Arc<Agent>);

impl Agent {
    /// Every reason why this host cannot run a guest.
    pub(crate) fn unfit(&self, id: GuestId, definition: &GuestDefinition) -> Vec<Reason> {
        let free = match procfs::Meminfo::current() {
            Ok(memory) if definition.huge_pages => {
                // Those that are promised to a mapping are still counted as free.
                let reserved = memory.hugepages_rsvd.unwrap_or(0);
                let pages = memory.hugepages_free.unwrap_or(0).saturating_sub(reserved);
                pages.saturating_mul(memory.hugepagesize.unwrap_or(0))
            }
            Ok(memory) => memory.mem_available.unwrap_or(memory.mem_free),
            Err(error) => {
                let detail = format!("the host's memory cannot be told: {error}");
                return vec![Reason::new(ReasonCode::Agent, detail)];
            }
        };
        let facts = Facts {
            memory_free_bytes: free.saturating_sub(self.guests.promised_bytes(id)),
            objections: self.hypervisor.objections(definition),
            missing: fit::missing(definition),
        };
        fit::unfit(definition, &facts)
    }
}

/// The file that says which pages of a guest that runs here are missing; see [`Host::missing_pages`].
pub(crate) fn missing_pages(settings: &Settings, attempt: AttemptId) -> PathBuf {
    settings.runtime.join(format!("{}-{}.missing", attempt.guest, attempt.epoch.0))
}

fn agent_reason(error: &ApiError) -> Reason {
    Reason::new(ReasonCode::Agent, error.message.clone())
}

impl AgentHost {
    /// The offer's definition, if it is one, and what its operator wants of the choices of each start, if that is said.
    fn definition(&self, offer: &Offer) -> Result<(GuestDefinition, Option<Wishes>), Vec<Reason>> {
        let protocol = |detail: String| vec![Reason::new(ReasonCode::Protocol, detail)];
        if offer.hypervisor != self.0.hypervisor.name() {
            let detail = format!(
                "the guest runs on {:?}, this host has {}",
                offer.hypervisor,
                self.0.hypervisor.name()
            );
            return Err(vec![Reason::new(ReasonCode::Incompatible, detail)]);
        }
        let definition: GuestDefinition = serde_json::from_value(offer.definition.clone())
            .map_err(|error| protocol(format!("the definition cannot be read: {error}")))?;
        definition.validate().map_err(|error| protocol(error.to_string()))?;
        if definition.name != offer.name {
            return Err(protocol("the offer and the definition differ in the name".into()));
        }
        let wishes: Option<Wishes> = serde_json::from_value(offer.wishes.clone().into())
            .map_err(|error| protocol(format!("the wishes cannot be read: {error}")))?;
        let written = wishes.as_ref().map(|wishes| definition.with_wishes(wishes).validate());
        written.transpose().map_err(|error| protocol(error.to_string()))?;
        Ok((definition, wishes))
    }

    /// Claims the name, or says every reason why the guest cannot come.
    fn claim(
        &self,
        attempt: AttemptId,
        definition: &GuestDefinition,
        host_cpu: Option<&HostCpu>,
    ) -> Result<(Claim, Option<GuestRecord>), Vec<Reason>> {
        let agent = &self.0;
        let known = agent
            .journal
            .guest(attempt.guest)
            .map_err(|error| vec![agent_reason(&journal_error(&error))])?;
        let mut reasons = agent.unfit(attempt.guest, definition);
        if let Some(theirs) = host_cpu {
            reasons.extend(cpu::unlike(theirs, cpu::here().as_ref()));
        }
        if agent.is_ending() {
            reasons.push(Reason::new(ReasonCode::Agent, "the agent is about to end"));
        }
        reasons.extend(fit::forbidden(definition, agent.settings.peer_arguments));
        let deleted = agent
            .journal
            .deleted(attempt.guest)
            .map_err(|error| vec![agent_reason(&journal_error(&error))])?;
        let seen = known.as_ref().map(|guest| guest.epoch).max(deleted);
        reasons.extend(fit::stale(attempt.epoch, seen));
        match agent.guests.claim(&definition.name, attempt.guest, definition.memory_bytes) {
            Ok(claim) if reasons.is_empty() => Ok((claim, known)),
            Ok(_) => Err(reasons),
            Err(taken) => {
                let detail = format!("{taken}{}", self.if_at_rest(&taken));
                reasons.push(Reason::new(ReasonCode::AlreadyHere, detail));
                Err(reasons)
            }
        }
    }

    /// What more to say of a guest that is in the way, if it does not run and so might be forgotten.
    fn if_at_rest(&self, taken: &Taken) -> String {
        let (Taken::Name(name) | Taken::Guest(name)) = taken;
        let known = self.0.journal.guests().unwrap_or_default();
        let word = known.iter().find_map(|guest| match guest.place {
            _ if guest.definition.name != *name => None,
            Place::Stopped { .. } => Some("stopped"),
            Place::Crashed { .. } => Some("crashed"),
            _ => None,
        });
        word.map_or_else(String::new, |word| {
            format!(
                ", and is {word} there: it has to be deleted first, with `sterna vm delete {name}`"
            )
        })
    }

    /// Whether no more guests are arriving than this host wants at once. Hosts that ask at the same moment may each be told
    /// so: then there is one too many for a while.
    fn has_a_place_for_one_more(&self) -> Result<(), Vec<Reason>> {
        let most = self.0.limits().to_here.get();
        let arrives =
            |entry: &Arc<Move>| entry.direction == Direction::Incoming && !entry.has_ended();
        let arriving = self.0.moves.all().iter().filter(|entry| arrives(entry)).count();
        if arriving < usize::try_from(most).unwrap_or(usize::MAX) {
            return Ok(());
        }
        let detail = format!(
            "{arriving} guests are arriving already, and this host takes no more at once (to-here in its configuration); try again \
             when one has come"
        );
        Err(vec![Reason::new(ReasonCode::NoRoom, detail)])
    }

    /// Starts the empty guest, and checks that its RAM is like the one that leaves.
    fn prepare(
        &self,
        definition: &GuestDefinition,
        offer: &Offer,
    ) -> Result<Prepared, Vec<Reason>> {
        let layout = &offer.layout;
        // In a way that is not known here it is not granted, and the source gives up.
        let asked = offer.native.filter(|_| offer.codings.contains(&Coding::Native));
        let way = asked.and_then(|mode| native::way(mode, native::streams(offer)));
        let prepared = self
            .0
            .hypervisor
            .prepare(definition, way)
            .map_err(|error| vec![Reason::new(ReasonCode::Hypervisor, vmm_text(&error))])?;
        if prepared.destination.layout() == layout {
            return Ok(prepared);
        }
        let detail = format!(
            "the guest's RAM is laid out as {:?}, here it would be {:?}",
            layout.blocks(),
            prepared.destination.layout().blocks()
        );
        discard(prepared.process.as_ref());
        Err(vec![Reason::new(ReasonCode::Incompatible, detail)])
    }
}

fn vmm_text(error: &sterna_vmm::VmmError) -> String {
    vmm_error(error).message
}

fn discard(process: &dyn GuestProcess) {
    if let Err(error) = process.end() {
        tracing::error!(pid = process.pid(), %error, "cannot end the hypervisor");
    }
}

impl Host for AgentHost {
    fn journal(&self) -> JournalId {
        self.0.journal.id()
    }

    fn inspect(&self, attempt: AttemptId, offer: &Offer, _peer: &PeerName) -> Vec<Reason> {
        let inspect = || -> Result<(), Vec<Reason>> {
            let (definition, _) = self.definition(offer)?;
            // Given back at once: who asks shall be in nobody's way.
            drop(self.claim(attempt, &definition, offer.host_cpu.as_ref())?);
            // For the same reason no huge pages are taken.
            if !definition.huge_pages {
                discard(self.prepare(&definition, offer)?.process.as_ref());
            }
            Ok(())
        };
        inspect().err().unwrap_or_default()
    }

    fn reserve(
        &self,
        attempt: AttemptId,
        offer: &Offer,
        peer: &PeerName,
    ) -> Result<Box<dyn Destination>, Vec<Reason>> {
        let agent = &self.0;
        let (definition, wishes) = self.definition(offer)?;
        self.has_a_place_for_one_more()?;
        let (claim, before) = self.claim(attempt, &definition, offer.host_cpu.as_ref())?;
        let Prepared { process, destination } = self.prepare(&definition, offer)?;
        let record = GuestRecord {
            id: attempt.guest,
            definition,
            wishes,
            epoch: attempt.epoch,
            process: Some(process.record()),
            upgrade: None,
            place: Place::Arriving { attempt, before: before.map(Box::new) },
        };
        let incoming = IncomingRecord {
            id: Uuid::new_v4(),
            attempt,
            guest: offer.name.clone(),
            peer: peer.to_string(),
            record: None,
        };
        if let Err(error) = agent.journal.begin_incoming(&record, &incoming) {
            discard(process.as_ref());
            return Err(vec![agent_reason(&journal_error(&error))]);
        }
        on_record(process.as_ref());
        let direction = Direction::Incoming;
        let new = Move::new(incoming.id, &offer.name, attempt, direction, &incoming.peer);
        // The id was drawn just now, so no move has it.
        let entry = agent.moves.add(new).unwrap_or_else(|known| known);
        agent.events.tell_of(&entry);
        tracing::info!(guest = %offer.name, %attempt, role = "destination", %peer,
            "place reserved");
        // Huge pages were reserved when they were mapped, so that nobody else can have them.
        let definition = &record.definition;
        let promised_bytes = if definition.huge_pages { 0 } else { definition.memory_bytes };
        let _runtime = agent.runtime.enter();
        let guest = Task::start(agent, record, Some(process), Activity::Moving(entry));
        claim.fulfil(guest, promised_bytes);
        Ok(destination)
    }

    fn known_pages(&self, attempt: AttemptId) -> Option<Arc<dyn KnownPages>> {
        self.0.known_of(attempt.guest)
    }

    fn record(&self, attempt: AttemptId, record: DestinationRecord) -> io::Result<()> {
        self.0.journal.record_destination(attempt, record)?;
        tracing::info!(%attempt, role = "destination", ?record, "recorded");
        Ok(())
    }

    fn missing_pages(&self, attempt: AttemptId) -> PathBuf {
        missing_pages(&self.0.settings, attempt)
    }

    fn find(&self, attempt: AttemptId, peer: &PeerName) -> Option<FoundMove> {
        let record = match self.0.journal.incoming(attempt) {
            Ok(Some(incoming)) if incoming.peer != peer.to_string() => return None,
            Ok(incoming) => incoming.and_then(|incoming| incoming.record),
            Err(error) => {
                // Whoever cannot read may have run the guest: the answer is then that it is lost,
                // and the source keeps it paused. "Unknown" would let it run there.
                tracing::error!(%attempt, %error, "cannot read the journal");
                let record = Some(DestinationRecord::Owned);
                return Some(FoundMove { record, found: Found::Gone, guest: None });
            }
        };
        let guest = self.0.guests.by_id(attempt.guest);
        let asked = |reply| Request::Arriving(attempt, reply);
        let process = guest.and_then(|guest| guest.ask_blocking(asked)).flatten();
        let (found, guest) = match process {
            None => (Found::Gone, None),
            // It may not answer before it has the page that it waits for.
            Some(process) if record == Some(DestinationRecord::Owing) => {
                (Found::Running, Some(process.taken_over()))
            }
            Some(process) => {
                let found = match process.running() {
                    Ok(Running::Yes) => Found::Running,
                    Ok(Running::No(_)) => Found::Paused,
                    Err(_) => Found::Gone,
                };
                (found, process.destination().ok())
            }
        };
        tracing::info!(%attempt, role = "destination", ?record, ?found, "asked about");
        Some(FoundMove { record, found, guest })
    }

    fn is_cancelled(&self, attempt: AttemptId) -> bool {
        let arriving = self.0.moves.arriving(attempt);
        arriving.is_some_and(|entry| entry.watch.is_cancelled())
    }

    fn ended(&self, attempt: AttemptId, ending: &Ending) {
        if *ending == Ending::Active {
            self.0.drop_image_of(attempt.guest);
        }
        if let Some(guest) = self.0.guests.by_id(attempt.guest) {
            guest.tell_blocking(Request::Arrived(attempt, ending.clone()));
        }
    }
}
