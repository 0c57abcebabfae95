//! What happens on the host, as a stream: an object of JSON in each line.

use super::answer::{Query, Refusal};
use crate::agent::Agent;
use crate::events::Reader;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use futures_util::stream;
use serde::Deserialize;
use std::sync::Arc;
use std::time::Duration;
use sterna_api::Event;

/// An empty line is sent when nothing has happened for so long, so that either end notices that the other has gone.
const QUIET_MAX: Duration = Duration::from_secs(15);

/// Where to begin.
#[derive(Debug, Deserialize)]
pub(super) struct After {
    after: Option<u64>,
}

pub(super) async fn read(
    State(agent): State<Arc<Agent>>,
    Query(After { after }): Query<After>,
) -> Result<impl IntoResponse, Refusal> {
    let body = Body::from_stream(stream::unfold(agent.events.reader(after), next));
    Ok(([(CONTENT_TYPE, "application/x-ndjson")], body))
}

/// The next lines.
async fn next(mut reader: Reader) -> Option<(Result<Bytes, serde_json::Error>, Reader)> {
    let lines = match tokio::time::timeout(QUIET_MAX, reader.next()).await {
        Ok(events) => {
            let line = |event: &Event| serde_json::to_string(event).map(|text| text + "\n");
            events.iter().map(line).collect::<Result<String, _>>()
        }
        Err(_) => Ok("\n".to_owned()),
    };
    Some((lines.map(Bytes::from), reader))
}
