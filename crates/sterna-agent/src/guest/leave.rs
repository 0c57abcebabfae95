//! A guest leaves for another host: what is checked first, and the thread that runs the move.

use super::{Activity, Guest, Request, Task};
use crate::agent::{Agent, Records, blocking, vmm_error};
use crate::host::cpu;
use crate::hypervisor::Running;
use crate::membership;
use crate::moves::Move;
use crate::queue::{Queue, Turn};
use crate::records::{GuestRecord, OutgoingRecord, Place};
use rustls::pki_types::ServerName;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use sterna_api::{ApiError, Direction, ErrorCode, MoveRequest, Priority, address, paths};
use sterna_core::algorithm::{AlgorithmName, Tracking};
use sterna_core::balloon::Balloon;
use sterna_core::compress::Compress;
use sterna_core::limits::{StageLimits, WhenStuck};
use sterna_core::prediction::{Choice, Surroundings};
use sterna_engine::SourceJournal;
use sterna_engine::source::{self, LeftOver, Move as EngineMove};
use sterna_page::RamLayout;
use sterna_proto::limits::STREAMS_MAX;
use sterna_proto::message::{AttemptId, Coding, NativeMode, Offer, Reason, ReasonCode, Verify};
use sterna_vmm::{Compared, GuestDefinition, Source};

/// Where a guest is to go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(super) address: SocketAddr,
    pub(super) name: ServerName<'static>,
}

/// How a move begins.
pub(crate) enum Begin {
    /// At its beginning.
    New(Box<dyn Source>),
    /// Where an earlier agent left it.
    Left(LeftOver),
}

/// A move that is about to run.
pub(crate) struct Journey {
    pub(crate) outgoing: OutgoingRecord,
    pub(crate) surroundings: Surroundings,
    pub(crate) planned: Option<Choice>,
    pub(crate) target: Target,
    pub(crate) begin: Begin,
}

impl Target {
    /// Finds the host that `to` (`host`, `host:port`, `[address]:port`) names: as this host's resolver knows it, or else as
    /// the cluster does.
    pub(crate) async fn find(agent: &Agent, to: &str) -> Result<Self, ApiError> {
        let (host, port) = address::split(to, paths::MOVE_PORT).map_err(invalid)?;
        let name = ServerName::try_from(host.to_owned())
            .map_err(|_| invalid(format!("{host:?} is neither a host name nor an address")))?;
        let resolved = tokio::net::lookup_host((host, port)).await.map(|mut all| all.next());
        let detail = match resolved {
            Ok(Some(address)) => return Ok(Self { address, name }),
            Ok(None) => "it has no address".to_owned(),
            Err(error) => error.to_string(),
        };
        let known = membership::find(agent, host).await;
        let known = known.map(|subject| subject.addresses.first().copied());
        let why = match known {
            Ok(Some(address)) => return Ok(Self { address: SocketAddr::new(address, port), name }),
            Ok(None) => "its certificate has no address".to_owned(),
            Err(error) => error.message,
        };
        let message = format!("cannot find the host {host}: {detail}; {why}");
        Err(invalid(message).hint("name it as `sterna host list` does, or give an address"))
    }
}

fn invalid(message: String) -> ApiError {
    ApiError::new(ErrorCode::Invalid, message)
}

impl Task {
    /// Begins a move; it goes on in a thread of its own.
    pub(super) async fn migrate(&mut self, request: MoveRequest) -> Result<Arc<Move>, ApiError> {
        if let Some(known) = self.agent.moves.get(request.id) {
            return same_move(known, &self.guest.name);
        }
        if self.agent.is_ending() {
            return Err(ApiError::new(ErrorCode::ShuttingDown, "the agent is about to end"));
        }
        self.idle("leave")?;
        let (Place::Here, Some(process)) = (&self.record.place, self.process.clone()) else {
            return Err(self.wrong_state("leave").await);
        };
        if request.streams == 0 || request.streams > STREAMS_MAX {
            let message = format!("{} streams: 1 to {STREAMS_MAX}", request.streams);
            return Err(invalid(message));
        }
        request.limits.check().map_err(|error| invalid(error.to_string()))?;
        if request.balloon == Balloon::Inflate && !self.record.definition.has_balloon() {
            return Err(no_balloon(&self.record.definition));
        }
        check_native(&request)?;
        let target = Target::find(&self.agent, &request.to).await?;
        let (algorithm, verify) = (request.algorithm, request.verify);
        let name = self.guest.name.clone();
        let source = blocking(move || {
            if let Running::No(why) = process.running().map_err(|e| vmm_error(&e))? {
                return Err(paused(&name, &why));
            }
            let mut source = process.source().map_err(|e| vmm_error(&e))?;
            check_movable(source.as_mut(), algorithm, verify)?;
            Ok(source)
        })
        .await?;
        self.begin(request, target, source).await
    }

    async fn begin(
        &mut self,
        request: MoveRequest,
        target: Target,
        source: Box<dyn Source>,
    ) -> Result<Arc<Move>, ApiError> {
        let attempt = AttemptId { guest: self.guest.id, epoch: self.record.epoch.next() };
        let offer = offer(&self.agent, &self.record, &request, source.layout())?;
        let new =
            Move::new(request.id, &self.guest.name, attempt, Direction::Outgoing, &request.to);
        let entry = match self.agent.moves.add(new) {
            Ok(entry) => entry,
            Err(known) => return same_move(known, &self.guest.name),
        };
        // Durable before anything is sent: an attempt's number is never used twice.
        self.record.epoch = attempt.epoch;
        let outgoing = OutgoingRecord { attempt, request, offer, record: None, receipt: None };
        let written = self.agent.with_journal({
            let (record, outgoing) = (self.record.clone(), outgoing.clone());
            move |journal| journal.begin_outgoing(&record, &outgoing)
        });
        if let Err(error) = written.await {
            self.agent.moves.remove(entry.id);
            return Err(error);
        }
        tracing::info!(guest = %self.guest.name, %attempt, role = "source",
            to = %outgoing.request.to, "move begins");
        self.agent.events.tell_of(&entry);
        self.activity = Activity::Moving(Arc::clone(&entry));
        let planned = self.planned.as_ref().and_then(|plan| plan.of(&outgoing.request));
        let (surroundings, begin) = (self.surroundings(), Begin::New(source));
        let journey = Journey { outgoing, surroundings, planned, target, begin };
        run(&self.agent, &self.guest, &entry, journey);
        Ok(entry)
    }

    /// What is known of this guest, and of moves from here.
    pub(super) fn surroundings(&self) -> Surroundings {
        let vcpus = self.record.definition.vcpus;
        Surroundings { vcpus, experience: self.agent.moves.experience() }
    }
}

/// What a destination is told of a guest that is to come.
pub(super) fn offer(
    agent: &Agent,
    guest: &GuestRecord,
    request: &MoveRequest,
    layout: &RamLayout,
) -> Result<Offer, ApiError> {
    let unwritable = |error: serde_json::Error| ApiError::from_chain(ErrorCode::Internal, &error);
    let definition = &guest.definition;
    let described = serde_json::to_value(definition).map_err(unwritable)?;
    let wishes = guest.wishes.as_ref().map(serde_json::to_value);
    let mut codings = vec![Coding::Absent, Coding::Zero, Coding::Raw];
    if request.compress == Compress::Auto {
        codings.extend([Coding::Coded, Coding::Same, Coding::Changed]);
        // What the destination turns out not to have needs another round.
        if request.algorithm.start().tracking() == Tracking::Needed {
            codings.push(Coding::Known);
            if !definition.disks.is_empty() {
                codings.push(Coding::OnDisk);
            }
        }
    }
    // Costs both sides a connection, so it is asked for only where it may be used.
    if request.algorithm.start().may_owe(&request.limits) {
        codings.push(Coding::Owed);
    }
    let native = request.algorithm == AlgorithmName::Native;
    if native {
        codings.push(Coding::Native);
    }
    Ok(Offer {
        name: definition.name.clone(),
        layout: layout.clone(),
        hypervisor: agent.hypervisor.name().into(),
        definition: described,
        wishes: wishes.transpose().map_err(unwritable)?,
        algorithm: request.algorithm.as_str().into(),
        codings,
        streams: request.streams,
        verify: request.verify,
        host_cpu: cpu::is_seen_by(definition).then(cpu::here).flatten(),
        native: native.then_some(request.native_mode),
    })
}

fn same_move(known: Arc<Move>, guest: &str) -> Result<Arc<Move>, ApiError> {
    if known.guest == guest && known.direction == Direction::Outgoing {
        return Ok(known);
    }
    let message = format!("{} is the id of another move, of guest {}", known.id, known.guest);
    Err(ApiError::new(ErrorCode::AlreadyExists, message))
}

/// The destination would let it run.
fn paused(name: &str, why: &str) -> ApiError {
    let message = format!("{name} cannot leave: it does not run ({why})");
    let hint = format!("let it run first, with `sterna vm run {name}`");
    ApiError::new(ErrorCode::WrongState, message).hint(hint)
}

fn no_balloon(definition: &GuestDefinition) -> ApiError {
    let message = format!("{} has no balloon that could be inflated", definition.name);
    let next = match definition.huge_pages {
        true => "move it without --balloon: guests of huge pages can have none",
        false => {
            "move it without --balloon, or start it anew with `balloon = true` in its definition"
        }
    };
    ApiError::new(ErrorCode::Unable, message).hint(next)
}

/// What an operator wants of a move that hypervisors do not do by themselves.
fn check_native(request: &MoveRequest) -> Result<(), ApiError> {
    if request.algorithm != AlgorithmName::Native {
        return Ok(());
    }
    let wrong = |what: &str| Err(invalid(format!("native cannot {what}")));
    if request.native_mode == NativeMode::Unknown {
        return wrong("copy in the mode that is asked for: it is not known here");
    }
    if request.limits.when_stuck == Some(WhenStuck::PostCopy) {
        return wrong("hand a guest over before its pages; use hybrid, or --when-stuck throttle");
    }
    if request.balloon == Balloon::Inflate {
        return wrong("ask the guest for memory; move it without --balloon");
    }
    if request.limits.downtime_stretch.is_some() {
        return wrong("widen the longest downtime in steps; allow all of it with --max-downtime");
    }
    Ok(())
}

/// Whether a guest can leave by this algorithm.
fn check_movable(
    source: &mut dyn Source,
    algorithm: AlgorithmName,
    verify: Verify,
) -> Result<(), ApiError> {
    if algorithm == AlgorithmName::Native {
        let ram = if verify == Verify::No { Compared::No } else { Compared::Yes };
        let reasons = source.immovable_natively(ram).map_err(|e| vmm_error(&e))?;
        let hint = "without --verify it may go";
        return match &reasons[..] {
            [] => Ok(()),
            reasons if ram == Compared::Yes => Err(immovable(reasons).hint(hint)),
            reasons => Err(immovable(reasons)),
        };
    }
    let reasons = source.immovable().map_err(|e| vmm_error(&e))?;
    if reasons.is_empty() {
        return Ok(());
    }
    let by_itself = source.immovable_natively(Compared::No);
    let hint = "the hypervisor can move it by itself: use --algorithm native";
    let error = immovable(&reasons);
    Err(if by_itself.is_ok_and(|against| against.is_empty()) { error.hint(hint) } else { error })
}

pub(super) fn immovable(reasons: &[sterna_vmm::Immovable]) -> ApiError {
    let reasons: Vec<Reason> = reasons
        .iter()
        .map(|reason| Reason::new(ReasonCode::Incompatible, reason.to_string()))
        .collect();
    ApiError::new(ErrorCode::Unable, "the guest cannot leave").reasons(reasons)
}

/// Runs a move in a thread of its own, once it is its turn, and tells the guest's task when it has ended.
pub(crate) fn run(agent: &Agent, guest: &Guest, entry: &Arc<Move>, journey: Journey) {
    let Journey { outgoing, surroundings, planned, target, begin } = journey;
    let to = target.address.ip();
    let request = EngineMove {
        attempt: outgoing.attempt,
        offer: outgoing.offer.clone(),
        algorithm: outgoing.request.algorithm,
        limits: outgoing.request.limits,
        surroundings,
        planned,
        hold_back: outgoing.request.hold_back,
        balloon: outgoing.request.balloon,
        stages: StageLimits::default(),
        bandwidth_bytes_per_second: outgoing.request.bandwidth_bytes_per_second,
        host_bandwidth: Arc::clone(&agent.bandwidth),
        push: outgoing.request.push,
        keeper: agent.keeper(),
        disks: agent.disks_of(outgoing.attempt, &outgoing.offer),
        to: target.address,
        to_name: target.name,
        identity: agent.identity.clone(),
        source_name: agent.settings.name.clone(),
        destination_name: outgoing.request.to.clone(),
    };
    let journal: Arc<dyn SourceJournal> = Arc::new(Records(Arc::clone(&agent.journal)));
    let (guest, entry, queue) = (guest.clone(), Arc::clone(entry), Arc::clone(&agent.queue));
    let copies = matches!(begin, Begin::New(_));
    agent.runtime.spawn(async move {
        // What an earlier agent left is not copied any more, and waits for nobody.
        let turn = match copies {
            true => turn(&queue, &entry, to, outgoing.request.priority).await,
            false => None,
        };
        let watch = Arc::clone(&entry.watch);
        let thread = tokio::task::spawn_blocking(move || match begin {
            Begin::New(source) => source::migrate(&request, source, &journal, &watch),
            Begin::Left(left) => source::resolve(&request, left, &journal, &watch),
        });
        let receipt = thread.await.map(Box::new).ok();
        drop(turn);
        guest.tell(Request::Left(Box::new(outgoing), receipt)).await;
    });
}

/// Waits until a move may begin; at once without a turn if it is cancelled, as it then ends before anything is sent.
async fn turn(queue: &Arc<Queue>, entry: &Move, to: IpAddr, priority: Priority) -> Option<Turn> {
    let waits = |why: String| {
        tracing::info!(guest = %entry.guest, attempt = %entry.attempt, why, "the move waits");
        entry.watch.waits_for(why);
    };
    let turn = tokio::select! {
        turn = queue.turn(to, priority, waits) => Some(turn),
        () = entry.cancelled() => None,
    };
    entry.watch.begins();
    turn
}
