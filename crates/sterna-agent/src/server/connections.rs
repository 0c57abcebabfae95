//! Connections of callers: how many there are, and for how long one may do nothing.
//!
//! Whoever holds a certificate may hold connections, each of which takes a descriptor and some memory. So there is a
//! bound for all, and a lower one for each certificate, so that no holder of one keeps all others out. Who has too many is told
//! so once, or hung up on if too many are being told, and takes no place of others. A caller who does not finish the head of a request, or sends none, loses the connection; one who does not
//! finish a body gets an error ([`super::answer`]). An answer may take any time, as some never end: a caller
//! that is gone without a word is noticed by TCP ([`super::tls`]).

use super::answer::Refusal;
use super::roles::Caller;
use axum::Router;
use axum::extract::Request;
use axum::extract::connect_info::ConnectInfo;
use axum::http::header::CONNECTION;
use axum::serve::Listener;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use sterna_api::{ApiError, ErrorCode};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tower::ServiceExt as _;

/// What callers may hold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Connections of all callers.
    pub(super) all: usize,
    /// Connections of one certificate.
    pub(super) of_one: usize,
    /// How long a request's head may take to come, and the next one to begin.
    pub(super) head: Duration,
}

impl Limits {
    /// An interface's.
    pub(crate) const USUAL: Self = Self { all: 512, of_one: 64, head: Duration::from_secs(30) };
}

/// Connections at a time on which nothing is said but that they are too many.
const REFUSED_MAX: usize = 16;

/// Serves whoever comes, for ever. `caller` tells who that is, if it is not this host's operator.
pub(crate) async fn serve<L: Listener>(
    mut listener: L,
    router: Router,
    limits: Limits,
    caller: impl Fn(&L::Io) -> Option<Caller>,
) {
    let places = Arc::new(Semaphore::new(limits.all));
    let refused = Arc::new(Semaphore::new(REFUSED_MAX));
    let held = Arc::new(Held::default());
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let (io, _) = listener.accept().await;
        let caller = caller(&io);
        let certificate = caller.as_ref().and_then(Caller::certificate);
        let hold = certificate.map(|one| held.hold(one, limits.of_one));
        let (router, place) = if let Some(None) = hold {
            let Ok(place) = Arc::clone(&refused).try_acquire_owned() else { continue };
            (too_many(limits.of_one), place)
        } else {
            (router.clone(), place)
        };
        let place = Place(Arc::new((place, hold.flatten())));
        let held = place.clone();
        let service = router.map_request(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(held.clone());
            if let Some(caller) = caller.clone() {
                request.extensions_mut().insert(ConnectInfo(caller));
            }
            request
        });
        tokio::spawn(async move {
            let served = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(limits.head)
                .serve_connection(TokioIo::new(io), TowerToHyperService::new(service))
                .with_upgrades();
            if let Err(error) = served.await {
                tracing::debug!(%error, "a connection broke off");
            }
            drop(place);
        });
    }
}

/// A connection's place within the bounds, which is given back when the last clone is dropped.
#[derive(Clone, Debug)]
pub(super) struct Place(
    #[expect(dead_code, reason = "held")] Arc<(OwnedSemaphorePermit, Option<Hold>)>,
);

/// What a caller gets who has too many connections already.
fn too_many(of_one: usize) -> Router {
    Router::new().fallback(async move || {
        let message = format!("more than {of_one} connections with this certificate");
        let error = ApiError::new(ErrorCode::TooMany, message).hint("close some of them first");
        ([(CONNECTION, "close")], Refusal(error))
    })
}

/// How many connections there are by certificate.
#[derive(Debug, Default)]
pub(super) struct Held(Mutex<HashMap<Vec<u8>, usize>>);

impl Held {
    /// Counts one more connection until what is returned is dropped; none if that were too many.
    pub(super) fn hold(self: &Arc<Self>, certificate: &[u8], most: usize) -> Option<Hold> {
        let mut counts = self.lock();
        let count = counts.entry(certificate.to_vec()).or_default();
        if *count == most {
            return None;
        }
        *count += 1;
        Some(Hold { held: Arc::clone(self), certificate: certificate.to_vec() })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Vec<u8>, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One connection that is counted.
#[derive(Debug)]
pub(super) struct Hold {
    held: Arc<Held>,
    certificate: Vec<u8>,
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut counts = self.held.lock();
        if let Some(count) = counts.get_mut(&self.certificate) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.certificate);
            }
        }
    }
}
