//! What a guest's hypervisor says, as bytes. Whoever shows them on a terminal makes them harmless first.

use super::answer::{Query, Refusal, Segment};
use super::guests::find;
use crate::agent::{Agent, blocking};
use crate::guest::{Guest, Request};
use crate::logs::{self, TAIL_BYTES_MAX};
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use futures_util::stream;
use serde::Deserialize;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use sterna_api::{ApiError, ErrorCode};

/// At what distance a log is looked at again while somebody waits for more of it.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// Whether to wait for more.
#[derive(Debug, Deserialize)]
pub(super) struct Follow {
    #[serde(default)]
    follow: bool,
}

pub(super) async fn read(
    State(agent): State<Arc<Agent>>,
    Segment(name): Segment<String>,
    Query(Follow { follow }): Query<Follow>,
) -> Result<impl IntoResponse, Refusal> {
    let guest = find(&agent, &name).await?;
    let body = match guest.ask(Request::Log).await? {
        // One that was just removed has been kept.
        Some(path) => match begin(path.clone()).await {
            Ok((file, end)) if follow => {
                let follower = Follower { file, path, guest, unsent: end };
                Body::from_stream(stream::unfold(Some(follower), next))
            }
            Ok((_, end)) => Body::from(end),
            Err(_) => Body::from(agent.logs.kept(guest.id)),
        },
        None => Body::from(agent.logs.kept(guest.id)),
    };
    Ok(([(CONTENT_TYPE, "text/plain; charset=utf-8")], body))
}

async fn begin(path: PathBuf) -> Result<(File, Vec<u8>), ApiError> {
    let read = move || {
        let mut file = logs::open(&path)?;
        let end = logs::tail(&mut file)?;
        Ok((file, end))
    };
    blocking(move || {
        read().map_err(|error: io::Error| ApiError::from_chain(ErrorCode::Internal, &error))
    })
    .await
}

/// Reads a log that is still written.
struct Follower {
    file: File,
    path: PathBuf,
    guest: Guest,
    unsent: Vec<u8>,
}

/// The next bytes; none once the hypervisor has ended and all of its log was read.
async fn next(follower: Option<Follower>) -> Option<(io::Result<Bytes>, Option<Follower>)> {
    let mut follower = follower?;
    loop {
        if !follower.unsent.is_empty() {
            let bytes = std::mem::take(&mut follower.unsent);
            return Some((Ok(bytes.into()), Some(follower)));
        }
        let log = follower.guest.ask(Request::Log).await.ok().flatten();
        let goes_on = log.as_ref() == Some(&follower.path);
        match follower.more() {
            Ok(0) if goes_on => tokio::time::sleep(LOOK_AGAIN).await,
            Ok(0) => return None,
            Ok(_) => {}
            Err(error) => return Some((Err(error), None)),
        }
    }
}

impl Follower {
    /// Reads what was written meanwhile, some of it at a time; it is in memory.
    fn more(&mut self) -> io::Result<usize> {
        (&self.file).take(TAIL_BYTES_MAX).read_to_end(&mut self.unsent)
    }
}
