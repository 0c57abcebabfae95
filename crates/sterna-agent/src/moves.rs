//! The moves this agent knows, running and ended, and how their news reach those who wait.

use crate::records::OutgoingRecord;
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use sterna_api::{Direction, MoveState, MoveView};
use sterna_core::journal::SourceRecord;
use sterna_core::prediction::Experience;
use sterna_core::progress::Progress;
use sterna_core::receipt::{Ending, Receipt};
use sterna_engine::Watch;
use sterna_proto::message::AttemptId;
use tokio::sync::{Notify, watch};
use uuid::Uuid;

/// Ended moves that are remembered in memory, the oldest are forgotten first.
const ENDED_MAX: usize = 2000;

/// How a move ended.
#[derive(Clone, Debug)]
pub(crate) enum Outcome {
    /// Seen from the source.
    Receipt(Box<Receipt>),
    /// Seen from elsewhere, in a few words.
    Summary(String),
}

/// One move.
#[derive(Debug)]
pub(crate) struct Move {
    pub(crate) id: Uuid,
    pub(crate) guest: String,
    pub(crate) attempt: AttemptId,
    pub(crate) direction: Direction,
    pub(crate) peer: String,
    /// When it was asked for, in milliseconds since 1970.
    began_unix_ms: u64,
    /// Where its figures are shown, at the source.
    pub(crate) watch: Arc<Watch>,
    cancelled: Notify,
    outcome: watch::Sender<Option<Outcome>>,
}

impl Move {
    /// A move that begins.
    pub(crate) fn new(
        id: Uuid,
        guest: &str,
        attempt: AttemptId,
        direction: Direction,
        peer: &str,
    ) -> Self {
        Self {
            id,
            guest: guest.into(),
            attempt,
            direction,
            peer: peer.into(),
            began_unix_ms: unix_ms(),
            watch: Arc::default(),
            cancelled: Notify::new(),
            outcome: watch::Sender::new(None),
        }
    }

    /// A move to another host, from the journal.
    pub(crate) fn from_record(record: &OutgoingRecord) -> Self {
        let OutgoingRecord { attempt, request, offer, record, receipt } = record;
        let direction = Direction::Outgoing;
        let mut found = Self::new(request.id, &offer.name, *attempt, direction, &request.to);
        let outcome = match (receipt, record) {
            (Some(receipt), _) => {
                found.began_unix_ms = receipt.started_unix_ms;
                Outcome::Receipt(receipt.clone())
            }
            (None, Some(SourceRecord::Moving { .. })) => return found,
            (None, None | Some(SourceRecord::Undone)) => {
                Outcome::Summary("undone: the agent was restarted".into())
            }
            (None, Some(SourceRecord::Released)) => {
                Outcome::Summary("moved; the agent was restarted before the receipt".into())
            }
        };
        found.end(outcome);
        found
    }

    /// Takes note of how it ended and tells those who wait.
    pub(crate) fn end(&self, outcome: Outcome) {
        self.outcome.send_replace(Some(outcome));
    }

    /// Asks it to end; it goes on if it is too late.
    pub(crate) fn cancel(&self) {
        self.watch.cancel();
        self.cancelled.notify_one();
    }

    /// Returns once it was asked to end. One task may wait for that.
    pub(crate) async fn cancelled(&self) {
        self.cancelled.notified().await;
    }

    /// Whether it has ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.outcome.borrow().is_some()
    }

    /// Returns once it has ended.
    pub(crate) async fn ended(&self) {
        let _ = self.outcome.subscribe().wait_for(Option::is_some).await;
    }

    /// What the other host is asked, once it does not answer whether it runs the guest.
    pub(crate) fn doubt(&self) -> Option<String> {
        if self.has_ended() || self.direction == Direction::Incoming {
            return None;
        }
        let progress = self.watch.progress();
        progress.waiting.filter(|_| progress.stage == "committing")
    }

    /// The move as it is shown.
    pub(crate) fn view(&self) -> MoveView {
        let outcome = self.outcome.borrow().clone();
        let (state, receipt) = match outcome {
            None => match self.doubt() {
                Some(reason) => (MoveState::InDoubt { reason }, None),
                None => (MoveState::Moving, None),
            },
            Some(Outcome::Receipt(receipt)) => {
                (MoveState::Ended { summary: summary(&receipt.ending) }, Some(*receipt))
            }
            Some(Outcome::Summary(summary)) => (MoveState::Ended { summary }, None),
        };
        let outgoing = self.direction == Direction::Outgoing;
        let progress = outgoing.then(|| self.watch.progress());
        let version = version(progress.as_ref(), &state);
        MoveView {
            id: self.id,
            guest: self.guest.clone(),
            attempt: self.attempt,
            direction: self.direction,
            peer: self.peer.clone(),
            state,
            version,
            progress,
            receipt,
        }
    }

    /// The move as it is shown once its version is another than `seen`, or `limit` has passed.
    pub(crate) async fn wait(&self, seen: &str, limit: Duration) -> MoveView {
        let mut ended = self.outcome.subscribe();
        let view = self.view();
        if view.version != seen || self.has_ended() {
            return view;
        }
        let watch = Arc::clone(&self.watch);
        let known = view.progress.unwrap_or_default();
        // The thread ends with the limit at the latest, also if the move ends without a word.
        let progress = tokio::task::spawn_blocking(move || drop(watch.wait(&known, limit)));
        tokio::select! {
            _ = ended.wait_for(Option::is_some) => {}
            _ = progress => {}
        }
        self.view()
    }
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn version(progress: Option<&Progress>, state: &MoveState) -> String {
    let mut hasher = DefaultHasher::new();
    format!("{progress:?}{state:?}").hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

/// How a move ended, in a few words.
fn summary(ending: &Ending) -> String {
    match ending {
        Ending::Moved => "moved".into(),
        Ending::Undone { reasons } => {
            let reasons: Vec<String> = reasons.iter().map(ToString::to_string).collect();
            format!("undone: {}", reasons.join("; "))
        }
        Ending::GuestGone { reason } => format!("the guest ended: {reason}"),
        Ending::Stuck { reason, .. } => format!("the guest stays paused: {reason}"),
        Ending::Lost { reason } => {
            format!("the guest stays paused, and may have run at the destination: {reason}")
        }
    }
}

/// All moves.
#[derive(Debug, Default)]
pub(crate) struct Moves(Mutex<BTreeMap<Uuid, Arc<Move>>>);

impl Moves {
    /// Adds a move, unless one of that id is known: then that one.
    pub(crate) fn add(&self, new: Move) -> Result<Arc<Move>, Arc<Move>> {
        let mut moves = self.lock();
        if let Some(known) = moves.get(&new.id) {
            return Err(Arc::clone(known));
        }
        if moves.len() >= ENDED_MAX {
            let ended = moves.values().filter(|m| m.has_ended());
            let oldest = ended.min_by_key(|m| m.began_unix_ms).map(|m| m.id);
            oldest.map(|id| moves.remove(&id));
        }
        let new = Arc::new(new);
        moves.insert(new.id, Arc::clone(&new));
        Ok(new)
    }

    /// Forgets a move that did not begin.
    pub(crate) fn remove(&self, id: Uuid) {
        self.lock().remove(&id);
    }

    /// The move of this id.
    pub(crate) fn get(&self, id: Uuid) -> Option<Arc<Move>> {
        self.lock().get(&id).cloned()
    }

    /// The move by which a guest arrives, if it does.
    pub(crate) fn arriving(&self, attempt: AttemptId) -> Option<Arc<Move>> {
        let is_it = |entry: &&Arc<Move>| {
            entry.attempt == attempt && entry.direction == Direction::Incoming && !entry.has_ended()
        };
        self.lock().values().find(is_it).cloned()
    }

    /// What the moves from here have taken, apart from copying.
    pub(crate) fn experience(&self) -> Experience {
        let receipt = |entry: &Arc<Move>| match &*entry.outcome.borrow() {
            Some(Outcome::Receipt(receipt)) => Some(receipt.clone()),
            Some(Outcome::Summary(_)) | None => None,
        };
        let receipts: Vec<Box<Receipt>> = self.all().iter().rev().filter_map(receipt).collect();
        Experience::of(receipts.iter().map(AsRef::as_ref))
    }

    /// All of them, the oldest first.
    pub(crate) fn all(&self) -> Vec<Arc<Move>> {
        let mut moves: Vec<_> = self.lock().values().cloned().collect();
        moves.sort_by_key(|m| m.began_unix_ms);
        moves
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Uuid, Arc<Move>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
