//! Reading configuration and certificates again while the agent runs.

use crate::agent::Agent;
use crate::membership;
use crate::settings::ReadLimits;
use std::convert::Infallible;
use std::io;
use sterna_api::{ApiError, ErrorCode};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Takes SIGHUP, which would else end the agent, from now on.
pub(crate) fn hang_up() -> io::Result<Signal> {
    signal(SignalKind::hangup())
}

/// Applies what is new on each SIGHUP, for as long as the agent runs.
pub(crate) async fn when_asked(
    agent: &Agent,
    read: &ReadLimits,
    mut hang_up: Signal,
) -> Infallible {
    loop {
        if hang_up.recv().await.is_none() {
            // The runtime delivers no more signals.
            return std::future::pending().await;
        }
        // First: the list that is read then may be a newer one.
        if let Err(error) = membership::learn(agent).await {
            tracing::warn!(%error, "which certificates are revoked is not known anew");
        }
        match agent.reload_identity() {
            Ok(()) => tracing::info!("certificates read again"),
            Err(error) => {
                let error = ApiError::from_chain(ErrorCode::Internal, &error);
                tracing::error!(%error, "certificates are not used; what held before goes on");
            }
        }
        match read() {
            Ok(limits) => {
                tracing::info!(?limits, "configuration read again");
                agent.set_limits(limits);
            }
            Err(error) => {
                tracing::error!(%error, "the configuration is not used; what held before goes on");
            }
        }
    }
}
