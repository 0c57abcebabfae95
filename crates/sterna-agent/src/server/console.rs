//! A guest's console as a stream of bytes.

use super::answer::{Query, Raw, Refusal, Segment};
use super::guests::find;
use crate::agent::Agent;
use crate::console::{Piece, Reader};
use crate::guest::Request;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::Deserialize;
use std::convert::Infallible;
use std::sync::Arc;
use sterna_api::{ApiError, ErrorCode, paths};

/// Whether to wait for more output.
#[derive(Debug, Deserialize)]
pub(super) struct Follow {
    #[serde(default = "yes")]
    follow: bool,
}

fn yes() -> bool {
    true
}

pub(super) async fn read(
    State(agent): State<Arc<Agent>>,
    Segment(name): Segment<String>,
    Query(Follow { follow }): Query<Follow>,
) -> Result<Response, Refusal> {
    let terminal = find(&agent, &name).await?.ask(Request::Console).await??;
    let body = if follow {
        Body::from_stream(stream::unfold(Some(terminal.output), next))
    } else {
        Body::from(terminal.output.past().to_vec())
    };
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], body).into_response())
}

/// The next bytes of a stream; a reader that fell behind is told so, and its stream ends.
async fn next(reader: Option<Reader>) -> Option<(Result<Bytes, Infallible>, Option<Reader>)> {
    let mut reader = reader?;
    match reader.next().await? {
        Piece::Bytes(bytes) => Some((Ok(Bytes::from_owner(bytes)), Some(reader))),
        Piece::Lagged(chunks) => {
            let note = format!("\r\n[sterna: {chunks} pieces of output lost: read too slowly]\r\n");
            Some((Ok(note.into()), None))
        }
    }
}

pub(super) async fn write(
    State(agent): State<Arc<Agent>>,
    Segment(name): Segment<String>,
    Raw(bytes): Raw,
) -> Result<StatusCode, Refusal> {
    if bytes.len() > paths::CONSOLE_INPUT_BYTES_MAX {
        let message = format!("{} bytes at once are too many for a console", bytes.len());
        return Err(ApiError::new(ErrorCode::TooLarge, message).into());
    }
    let guest = find(&agent, &name).await?;
    let terminal = guest.ask(Request::Console).await??;
    terminal.input.try_send(bytes.to_vec()).map_err(|_| {
        ApiError::new(ErrorCode::WrongState, format!("{name} does not take console input"))
            .hint("it takes what was typed before first")
    })?;
    Ok(StatusCode::NO_CONTENT)
}
