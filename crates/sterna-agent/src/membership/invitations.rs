//! Invitations that are open. They are not on record: an agent that ends takes them with it.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use sterna_pki::{Secret, Subject};

/// How long an invitation is valid.
pub(crate) const VALID: Duration = Duration::from_secs(600);

/// Invitations that are open at a time.
pub(crate) const INVITED_MAX: usize = 64;

/// Who is invited.
#[derive(Debug, Default)]
pub(crate) struct Invitations(Mutex<Vec<Invitation>>);

#[derive(Debug)]
struct Invitation {
    secret: blake3::Hash,
    subject: Subject,
    until: Instant,
}

impl Invitations {
    /// Invites a host, in place of an earlier invitation of it; whether there was room.
    pub(crate) fn add(&self, secret: &Secret, subject: Subject, now: Instant) -> bool {
        let mut open = self.open(now);
        open.retain(|one| one.subject.name != subject.name);
        let has_room = open.len() < INVITED_MAX;
        if has_room {
            open.push(Invitation { secret: secret.hash(), subject, until: now + VALID });
        }
        has_room
    }

    /// Whether anybody is invited.
    pub(crate) fn any(&self, now: Instant) -> bool {
        !self.open(now).is_empty()
    }

    /// Who is invited by this secret; from now on nobody is.
    pub(crate) fn take(&self, secret: &Secret, now: Instant) -> Option<Subject> {
        let mut open = self.open(now);
        let hash = secret.hash();
        let index = open.iter().position(|one| one.secret == hash)?;
        Some(open.swap_remove(index).subject)
    }

    fn open(&self, now: Instant) -> MutexGuard<'_, Vec<Invitation>> {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|one| one.until > now);
        open
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(name: &str) -> Subject {
        Subject { name: name.into(), addresses: vec![] }
    }

    #[test]
    fn an_invitation_is_valid_once_and_for_ten_minutes() {
        let (open, now) = (Invitations::default(), Instant::now());
        let (b, c) = (Secret::draw(), Secret::draw());
        assert!(!open.any(now));
        assert!(open.add(&b, host("b"), now) && open.add(&c, host("c"), now));
        assert_eq!(open.take(&Secret::draw(), now), None);
        assert_eq!(open.take(&b, now + VALID / 2), Some(host("b")));
        assert_eq!(open.take(&b, now), None);
        assert!(open.any(now + VALID / 2));
        assert_eq!(open.take(&c, now + VALID), None);
        assert!(!open.any(now + VALID));
    }

    #[test]
    fn the_newest_invitation_of_a_host_is_the_only_one_and_there_are_not_many() {
        let (open, now) = (Invitations::default(), Instant::now());
        let (first, second) = (Secret::draw(), Secret::draw());
        assert!(open.add(&first, host("b"), now) && open.add(&second, host("b"), now));
        assert_eq!(open.take(&first, now), None);
        assert_eq!(open.take(&second, now), Some(host("b")));
        for number in 0..INVITED_MAX {
            assert!(open.add(&Secret::draw(), host(&format!("h{number}")), now));
        }
        assert!(!open.add(&Secret::draw(), host("one-more"), now));
        assert!(open.add(&Secret::draw(), host("h0"), now));
    }
}
