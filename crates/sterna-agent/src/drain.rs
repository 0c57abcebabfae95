//! The end of an agent that is asked to end: moves first.

use crate::agent::Agent;
use std::io;
use std::time::Duration;
use sterna_api::Direction;
use tokio::signal::unix::{SignalKind, signal};

/// How long moves may take to end. A cancelled one needs milliseconds; one that has been committed
/// needs an answer from the other host.
const MOVES_END_MAX: Duration = Duration::from_secs(30);

/// Waits for SIGTERM or SIGINT, then until no move is on its way. A second signal ends the wait.
pub(crate) async fn when_asked(agent: &Agent) -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
    agent.end();
    let moves: Vec<_> = agent.moves.all().into_iter().filter(|m| !m.has_ended()).collect();
    tracing::info!(moves = moves.len(), "asked to end");
    for entry in moves.iter().filter(|entry| entry.direction == Direction::Outgoing) {
        entry.cancel();
    }
    let all_ended = async {
        for entry in &moves {
            entry.ended().await;
        }
    };
    tokio::select! {
        () = all_ended => tracing::info!("all moves have ended; guests run on"),
        () = tokio::time::sleep(MOVES_END_MAX) => {
            tracing::warn!("moves have not ended; the next agent settles them");
        }
        _ = terminate.recv() => tracing::warn!("ends at once"),
        _ = interrupt.recv() => tracing::warn!("ends at once"),
    }
    Ok(())
}
