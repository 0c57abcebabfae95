//! Guests that are defined: made, started, edited, deleted.

use super::Origin;
use super::answer::{Body, Refusal, Segment};
use super::guests::find;
use crate::agent::Agent;
use crate::guest::define::NEVER_STARTED;
use crate::guest::{Activity, Request, Task};
use crate::guests::{Claim, Taken};
use crate::host::fit;
use crate::records::{GuestRecord, Place};
use axum::extract::State;
use axum::http::StatusCode;
use axum::{Extension, Json};
use std::sync::Arc;
use sterna_api::{
    ApiError, DefineGuest, DefinitionView, EditGuest, ErrorCode, GuestState, GuestView,
    StartDefined,
};
use sterna_core::journal::DestinationRecord;
use sterna_proto::message::{AttemptId, Epoch, GuestId};
use sterna_vmm::GuestDefinition;

pub(super) async fn define(
    State(agent): State<Arc<Agent>>,
    Extension(origin): Extension<Origin>,
    Body(request): Body<DefineGuest>,
) -> Result<(StatusCode, Json<GuestView>), Refusal> {
    let DefineGuest { id, definition } = request;
    accept(&agent, origin, &definition)?;
    // Takes no memory before it is started.
    match agent.guests.claim(&definition.name, id, 0) {
        Ok(claim) => {
            // In a task of its own, so that a caller who goes away leaves nothing half done.
            let defined = tokio::spawn(put_on_record(agent, claim, id, definition)).await;
            let view =
                defined.map_err(|error| ApiError::from_chain(ErrorCode::Internal, &error))??;
            Ok((StatusCode::CREATED, Json(view)))
        }
        Err(taken) => Ok((StatusCode::OK, Json(the_same(&agent, &definition.name, taken).await?))),
    }
}

async fn put_on_record(
    agent: Arc<Agent>,
    claim: Claim,
    id: GuestId,
    definition: GuestDefinition,
) -> Result<GuestView, ApiError> {
    let record = GuestRecord {
        id,
        wishes: Some(definition.wishes()),
        definition,
        epoch: unused(&agent, id).await?,
        process: None,
        upgrade: None,
        place: Place::Stopped { reason: NEVER_STARTED.into() },
    };
    let written = record.clone();
    agent.with_journal(move |journal| journal.put_guest(&written)).await?;
    tracing::info!(guest = %record.definition.name, %id, "defined");
    agent.tell_definition(&record);
    let guest = Task::start(&agent, record, None, Activity::Idle);
    claim.fulfil(guest.clone(), 0);
    guest.ask(Request::View).await
}

/// Refuses a definition that is none, or that the caller may not make.
pub(super) fn accept(
    agent: &Agent,
    origin: Origin,
    definition: &GuestDefinition,
) -> Result<(), ApiError> {
    definition.validate().map_err(|error| ApiError::from_chain(ErrorCode::Invalid, &error))?;
    if origin == Origin::Network
        && let Some(reason) = fit::forbidden(definition, agent.settings.peer_arguments)
    {
        let error = ApiError::new(ErrorCode::Forbidden, reason.detail.clone());
        return Err(error.reasons(vec![reason]));
    }
    Ok(())
}

/// The newest attempt of an identity that is claimed for a new guest; it goes on from there. Refused where the guest of
/// that identity has left, or did not come when it last was to: it may run.
pub(super) async fn unused(agent: &Agent, id: GuestId) -> Result<Epoch, ApiError> {
    let (known, newest, incoming) = agent
        .with_journal(move |journal| {
            let epoch = journal.newest_epoch(id)?;
            let incoming = journal.incoming(AttemptId { guest: id, epoch })?;
            Ok((journal.guest(id)?, epoch, incoming))
        })
        .await?;
    let stayed = incoming.filter(|incoming| incoming.record != Some(DestinationRecord::Active));
    let draw = "a new guest needs an identity of its own: draw another, or leave --id out";
    match known.map(|guest| guest.place) {
        None => match stayed {
            None => Ok(newest),
            Some(incoming) => {
                let message = format!("the guest {id} is that of {}", incoming.peer);
                Err(ApiError::new(ErrorCode::AlreadyExists, message).hint(draw))
            }
        },
        Some(Place::Elsewhere { host }) => {
            let message = format!("the guest {id} was moved to {host}");
            Err(ApiError::new(ErrorCode::MovedAway, message).hint(draw))
        }
        Some(_) => {
            let message = format!("another guest has the identity {id}");
            Err(ApiError::new(ErrorCode::AlreadyExists, message).hint(draw))
        }
    }
}

/// The guest that has the name, if it is the one that was asked for.
pub(super) async fn the_same(
    agent: &Agent,
    name: &str,
    taken: Taken,
) -> Result<GuestView, ApiError> {
    let other = match &taken {
        Taken::Guest(other) | Taken::Name(other) => agent.guests.get(other),
    };
    if matches!(&taken, Taken::Guest(other) if other == name) {
        let guest = other.ok_or_else(|| {
            let message = format!("guest {name} is about to start");
            ApiError::new(ErrorCode::AlreadyExists, message).hint("ask again in a moment")
        })?;
        return guest.ask(Request::View).await;
    }
    let error = ApiError::new(ErrorCode::AlreadyExists, taken.to_string());
    let state = match other {
        Some(guest) => guest.ask(Request::View).await.ok().map(|view| view.state),
        None => None,
    };
    Err(match state {
        Some(GuestState::Stopped { .. } | GuestState::Crashed { .. }) => error.hint(format!(
            "it does not run: start it with `sterna vm start {name}`, or delete it first with `sterna vm delete {name}`"
        )),
        _ => error.hint("choose another name, or end that guest with `sterna vm stop` and delete it with `sterna vm delete`"),
    })
}

pub(super) async fn start(
    State(agent): State<Arc<Agent>>,
    Segment(name): Segment<String>,
    Body(request): Body<StartDefined>,
) -> Result<Json<GuestView>, Refusal> {
    let guest = find(&agent, &name).await?;
    Ok(Json(guest.ask(|reply| Request::Start(request, reply)).await??))
}

pub(super) async fn stop(
    State(agent): State<Arc<Agent>>,
    Segment(name): Segment<String>,
) -> Result<Json<GuestView>, Refusal> {
    Ok(Json(find(&agent, &name).await?.ask(Request::Stop).await??))
}

pub(super) async fn show(
    State(agent): State<Arc<Agent>>,
    Segment(name): Segment<String>,
) -> Result<Json<DefinitionView>, Refusal> {
    Ok(Json(find(&agent, &name).await?.ask(Request::Definition).await?))
}

pub(super) async fn edit(
    State(agent): State<Arc<Agent>>,
    Extension(origin): Extension<Origin>,
    Segment(name): Segment<String>,
    Body(request): Body<EditGuest>,
) -> Result<Json<DefinitionView>, Refusal> {
    let guest = find(&agent, &name).await?;
    accept(&agent, origin, &request.definition)?;
    Ok(Json(guest.ask(|reply| Request::Edit(Box::new(request), reply)).await??))
}

pub(super) async fn delete(
    State(agent): State<Arc<Agent>>,
    Segment(name): Segment<String>,
) -> Result<Json<GuestView>, Refusal> {
    Ok(Json(find(&agent, &name).await?.ask(Request::Delete).await??))
}
