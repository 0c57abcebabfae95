//! Moves: check, plan, begin, list, watch, cancel.

use super::answer::{Body, Query, Refusal, Segment};
use super::guests::find;
use crate::agent::Agent;
use crate::guest::Request;
use crate::moves::Move;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Deserialize;
use std::sync::Arc;
use std::time::Duration;
use sterna_api::{
    ApiError, CheckRequest, CheckView, Direction, ErrorCode, MoveRequest, MoveView, PlanRequest,
    PlanView, paths,
};
use uuid::Uuid;

pub(super) async fn begin(
    State(agent): State<Arc<Agent>>,
    Segment(name): Segment<String>,
    Body(request): Body<MoveRequest>,
) -> Result<(StatusCode, Json<MoveView>), Refusal> {
    // Asked again after it has ended, the guest may be gone from here: the move is not.
    if let Some(known) = agent.moves.get(request.id)
        && known.guest == name
        && known.direction == Direction::Outgoing
    {
        return Ok((StatusCode::ACCEPTED, Json(known.view())));
    }
    let guest = find(&agent, &name).await?;
    let entry = guest.ask(|reply| Request::Migrate(Box::new(request), reply)).await??;
    Ok((StatusCode::ACCEPTED, Json(entry.view())))
}

pub(super) async fn plan(
    State(agent): State<Arc<Agent>>,
    Segment(name): Segment<String>,
    Body(request): Body<PlanRequest>,
) -> Result<Json<PlanView>, Refusal> {
    let guest = find(&agent, &name).await?;
    Ok(Json(guest.ask(|reply| Request::Plan(Box::new(request), reply)).await??))
}

pub(super) async fn check(
    State(agent): State<Arc<Agent>>,
    Segment(name): Segment<String>,
    Body(request): Body<CheckRequest>,
) -> Result<Json<CheckView>, Refusal> {
    let guest = find(&agent, &name).await?;
    Ok(Json(guest.ask(|reply| Request::Check(request, reply)).await??))
}

pub(super) async fn list(State(agent): State<Arc<Agent>>) -> Json<Vec<MoveView>> {
    Json(agent.moves.all().iter().map(|entry| entry.view()).collect())
}

/// How long to wait for news, and what is known already.
#[derive(Debug, Deserialize)]
pub(super) struct Wait {
    #[serde(default)]
    wait_ms: u64,
    #[serde(default)]
    seen: String,
}

pub(super) async fn show(
    State(agent): State<Arc<Agent>>,
    Segment(id): Segment<Uuid>,
    Query(wait): Query<Wait>,
) -> Result<Json<MoveView>, Refusal> {
    let entry = known(&agent, id)?;
    let limit = Duration::from_millis(wait.wait_ms.min(paths::WAIT_MS_MAX));
    Ok(Json(if limit.is_zero() { entry.view() } else { entry.wait(&wait.seen, limit).await }))
}

pub(super) async fn cancel(
    State(agent): State<Arc<Agent>>,
    Segment(id): Segment<Uuid>,
) -> Result<(StatusCode, Json<MoveView>), Refusal> {
    let entry = known(&agent, id)?;
    tracing::info!(guest = %entry.guest, attempt = %entry.attempt, "cancel asked for");
    entry.cancel();
    Ok((StatusCode::ACCEPTED, Json(entry.view())))
}

fn known(agent: &Agent, id: Uuid) -> Result<Arc<Move>, ApiError> {
    agent.moves.get(id).ok_or_else(|| {
        ApiError::new(ErrorCode::NotFound, format!("there is no move {id}"))
            .hint("`sterna moves list` shows the moves of this host")
    })
}
