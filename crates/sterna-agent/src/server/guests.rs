//! Guests: make and start, list, show, pause.

use super::Origin;
use super::answer::{Body, Refusal, Segment};
use super::define::{accept, the_same, unused};
use crate::agent::{Agent, blocking, vmm_error};
use crate::guest::{Activity, Guest, Request, Task};
use crate::guests::Claim;
use crate::hypervisor::{Intervention, on_record};
use crate::records::{GuestRecord, Place};
use axum::extract::State;
use axum::http::StatusCode;
use axum::{Extension, Json};
use futures_util::future::join_all;
use std::sync::Arc;
use sterna_api::{
    ApiError, ErrorCode, GuestView, RunGuest, StartGuest, UpgradeRequest, UpgradeView,
};

/// Finds a guest by name, or says where it went.
pub(super) async fn find(agent: &Agent, name: &str) -> Result<Guest, ApiError> {
    if let Some(guest) = agent.guests.get(name) {
        return Ok(guest);
    }
    let known = agent.with_journal(crate::journal::Journal::guests).await?;
    let gone = known.into_iter().filter(|guest| guest.definition.name == name);
    let mut hosts = gone.filter_map(|guest| match guest.place {
        Place::Elsewhere { host } => Some(host),
        _ => None,
    });
    Err(match hosts.next_back() {
        Some(host) => {
            ApiError::new(ErrorCode::MovedAway, format!("guest {name} was moved to {host}"))
                .hint("ask the agent there, with --host")
        }
        None => ApiError::new(ErrorCode::NotFound, format!("there is no guest {name:?}"))
            .hint("`sterna vm list` shows the guests of this host"),
    })
}

pub(super) async fn list(State(agent): State<Arc<Agent>>) -> Json<Vec<GuestView>> {
    let guests = agent.guests.all();
    let views = join_all(guests.iter().map(|guest| guest.ask(Request::View))).await;
    Json(views.into_iter().filter_map(Result::ok).collect())
}

pub(super) async fn show(
    State(agent): State<Arc<Agent>>,
    Segment(name): Segment<String>,
) -> Result<Json<GuestView>, Refusal> {
    Ok(Json(find(&agent, &name).await?.ask(Request::View).await?))
}

pub(super) async fn run(
    State(agent): State<Arc<Agent>>,
    Segment(name): Segment<String>,
    Body(request): Body<RunGuest>,
) -> Result<Json<GuestView>, Refusal> {
    let guest = find(&agent, &name).await?;
    Ok(Json(guest.ask(|reply| Request::Run(request, reply)).await??))
}

pub(super) async fn pause(agent: State<Arc<Agent>>, name: Segment<String>) -> Done {
    intervene(agent, name, Intervention::Pause).await
}

pub(super) async fn reset(agent: State<Arc<Agent>>, name: Segment<String>) -> Done {
    intervene(agent, name, Intervention::Reset).await
}

pub(super) async fn shut_down(agent: State<Arc<Agent>>, name: Segment<String>) -> Done {
    intervene(agent, name, Intervention::Shutdown).await
}

/// The guest after something was done to it.
type Done = Result<Json<GuestView>, Refusal>;

async fn intervene(
    State(agent): State<Arc<Agent>>,
    Segment(name): Segment<String>,
    how: Intervention,
) -> Done {
    let guest = find(&agent, &name).await?;
    Ok(Json(guest.ask(|reply| Request::Intervene(how, reply)).await??))
}

pub(super) async fn upgrade(
    State(agent): State<Arc<Agent>>,
    Segment(name): Segment<String>,
    Body(request): Body<UpgradeRequest>,
) -> Result<Json<UpgradeView>, Refusal> {
    let guest = find(&agent, &name).await?;
    Ok(Json(guest.ask(|reply| Request::Upgrade(request, reply)).await??))
}

pub(super) async fn start(
    State(agent): State<Arc<Agent>>,
    Extension(origin): Extension<Origin>,
    Body(request): Body<StartGuest>,
) -> Result<(StatusCode, Json<GuestView>), Refusal> {
    let StartGuest { id, definition } = &request;
    accept(&agent, origin, definition)?;
    match agent.guests.claim(&definition.name, *id, definition.memory_bytes) {
        Ok(claim) => {
            // In a task of its own, so that a caller who goes away leaves nothing half done.
            let started = tokio::spawn(launch(agent, claim, request)).await;
            let view =
                started.map_err(|error| ApiError::from_chain(ErrorCode::Internal, &error))??;
            Ok((StatusCode::CREATED, Json(view)))
        }
        Err(taken) => Ok((StatusCode::OK, Json(the_same(&agent, &definition.name, taken).await?))),
    }
}

async fn launch(
    agent: Arc<Agent>,
    claim: Claim,
    request: StartGuest,
) -> Result<GuestView, ApiError> {
    let StartGuest { id, definition } = request;
    let epoch = unused(&agent, id).await?;
    let (record, process) = blocking({
        let agent = Arc::clone(&agent);
        move || {
            let reasons = agent.unfit(id, &definition);
            if !reasons.is_empty() {
                let error = ApiError::new(ErrorCode::Unable, "this host cannot run the guest");
                return Err(error.reasons(reasons));
            }
            let process = agent.hypervisor.start(&definition).map_err(|error| vmm_error(&error))?;
            let record = GuestRecord {
                id,
                definition: process.definition(),
                wishes: Some(definition.wishes()),
                epoch,
                process: Some(process.record()),
                upgrade: None,
                place: Place::Here,
            };
            Ok((record, process))
        }
    })
    .await?;
    let written = record.clone();
    if let Err(error) = agent.with_journal(move |journal| journal.put_guest(&written)).await {
        blocking(move || process.end().map_err(|error| vmm_error(&error))).await?;
        return Err(error);
    }
    on_record(process.as_ref());
    tracing::info!(guest = %record.definition.name, id = %id, pid = process.pid(), "started");
    agent.tell_definition(&record);
    let guest = Task::start(&agent, record, Some(process), Activity::Idle);
    claim.fulfil(guest.clone(), 0);
    guest.ask(Request::View).await
}
