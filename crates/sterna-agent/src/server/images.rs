//! Kept RAM images: list, drop.

use super::answer::{Refusal, Segment};
use crate::agent::{Agent, blocking};
use crate::journal::Journal;
use crate::records::GuestRecord;
use axum::Json;
use axum::extract::State;
use std::sync::Arc;
use std::time::SystemTime;
use sterna_api::{ApiError, ErrorCode, ImageView};
use sterna_known::ImageInfo;
use sterna_proto::message::GuestId;

pub(super) async fn list(State(agent): State<Arc<Agent>>) -> Result<Json<Vec<ImageView>>, Refusal> {
    Ok(Json(views(&agent).await?))
}

pub(super) async fn remove(
    State(agent): State<Arc<Agent>>,
    Segment(guest): Segment<String>,
) -> Result<Json<ImageView>, Refusal> {
    let is_it =
        |view: &ImageView| view.guest.to_string() == guest || view.name.as_ref() == Some(&guest);
    let none = || {
        ApiError::new(ErrorCode::NotFound, format!("no image of {guest:?} is kept here"))
            .hint("`sterna images list` shows what is kept")
    };
    let view = views(&agent).await?.into_iter().rev().find(is_it).ok_or_else(none)?;
    let store = agent.images.clone().ok_or_else(none)?;
    let id = view.guest.0;
    blocking(move || {
        store.remove(id).map_err(|error| ApiError::from_chain(ErrorCode::Internal, &error))
    })
    .await?;
    tracing::info!(guest = %view.guest, "kept image dropped, as was asked for");
    Ok(Json(view))
}

/// Those that are kept, oldest first.
async fn views(agent: &Agent) -> Result<Vec<ImageView>, ApiError> {
    let Some(store) = &agent.images else { return Ok(Vec::new()) };
    let guests = agent.with_journal(Journal::guests).await?;
    Ok(store.list().into_iter().map(|image| view(&image, &guests)).collect())
}

fn view(image: &ImageInfo, guests: &[GuestRecord]) -> ImageView {
    let guest = GuestId(image.guest);
    let known = guests.iter().find(|record| record.id == guest);
    let since = image.kept_at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    ImageView {
        guest,
        name: known.map(|record| record.definition.name.clone()),
        kept_unix_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
        pages: image.pages,
        bytes: image.bytes,
    }
}
