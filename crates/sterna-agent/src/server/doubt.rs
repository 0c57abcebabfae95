//! A guest in doubt: what is known, and what an operator says.

use super::answer::{Body, Refusal, Segment};
use super::guests::find;
use crate::agent::Agent;
use crate::guest::{Guest, Request};
use crate::moves::Move;
use axum::Json;
use axum::extract::State;
use std::sync::Arc;
use sterna_api::doubt::{DoubtView, ResolveRequest, Verdict};
use sterna_api::{ApiError, Direction, ErrorCode, GuestState, GuestView, RunGuest};
use sterna_engine::UNACKNOWLEDGED_MAX;

pub(super) async fn show(
    State(agent): State<Arc<Agent>>,
    Segment(name): Segment<String>,
) -> Result<Json<DoubtView>, Refusal> {
    let guest = find(&agent, &name).await?;
    Ok(Json(doubt(&agent, &guest).await?.0))
}

/// What is in doubt about a guest, and the move by which it came about.
async fn doubt(agent: &Agent, guest: &Guest) -> Result<(DoubtView, Arc<Move>), ApiError> {
    let view: GuestView = guest.ask(Request::View).await?;
    let may_run_elsewhere = guest.ask(Request::MayRunElsewhere).await?;
    let reason = match view.state {
        GuestState::InDoubt { reason } => reason,
        GuestState::Paused { reason } if may_run_elsewhere => reason,
        state => {
            let message = format!("{} is not in doubt: it is {}", guest.name, state.word());
            return Err(ApiError::new(ErrorCode::WrongState, message));
        }
    };
    let its =
        |entry: &&Arc<Move>| entry.guest == guest.name && entry.direction == Direction::Outgoing;
    let all = agent.moves.all();
    let entry = all.iter().rev().find(its).cloned().ok_or_else(|| {
        let message = format!("the move by which {} may have left is not known", guest.name);
        ApiError::new(ErrorCode::NotFound, message)
    })?;
    let view = DoubtView {
        guest: guest.name.clone(),
        move_id: entry.id,
        destination: entry.peer.clone(),
        reason,
        is_asking: !entry.has_ended(),
    };
    Ok((view, entry))
}

pub(super) async fn resolve(
    State(agent): State<Arc<Agent>>,
    Segment(name): Segment<String>,
    Body(request): Body<ResolveRequest>,
) -> Result<Json<GuestView>, Refusal> {
    let guest = find(&agent, &name).await?;
    let (_, entry) = doubt(&agent, &guest).await?;
    // In a task of its own, so that a caller who goes away leaves nothing half done.
    let resolved = tokio::spawn(end_doubt(guest, entry, request.runs)).await;
    Ok(Json(resolved.map_err(|error| ApiError::from_chain(ErrorCode::Internal, &error))??))
}

async fn end_doubt(guest: Guest, entry: Arc<Move>, runs: Verdict) -> Result<GuestView, ApiError> {
    tracing::warn!(guest = %guest.name, attempt = %entry.attempt, ?runs, "an operator ends the doubt");
    let was_asking = !entry.has_ended();
    entry.watch.give_up();
    // If the destination answers at the last moment, that is what counts.
    entry.ended().await;
    match runs {
        Verdict::There => guest.ask(|reply| Request::Concede(entry.peer.clone(), reply)).await?,
        Verdict::Nowhere => {
            if was_asking {
                // A word that was on its way to the destination has come there by now, or never will.
                tokio::time::sleep(UNACKNOWLEDGED_MAX).await;
            }
            let run = RunGuest { runs_nowhere_else: true };
            guest.ask(|reply| Request::Run(run, reply)).await?
        }
    }
}
