//! The guests of this host by name. A name is claimed before anything is started under it, so two
//! requests at once cannot both have it.

use crate::guest::Guest;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use sterna_proto::message::GuestId;

#[derive(Debug)]
enum Slot {
    Claimed { id: GuestId, memory_bytes: u64 },
    Guest { guest: Guest, promised_bytes: u64 },
}

impl Slot {
    fn id(&self) -> GuestId {
        match self {
            Self::Claimed { id, .. } => *id,
            Self::Guest { guest, .. } => guest.id,
        }
    }
}

/// Why a name cannot be claimed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Taken {
    /// Another guest has this name.
    #[error("another guest is called {0}")]
    Name(String),
    /// The guest is here already, under this name.
    #[error("the guest is here already, as {0}")]
    Guest(String),
}

/// All guests of this host.
#[derive(Debug, Default)]
pub(crate) struct Guests(Mutex<BTreeMap<String, Slot>>);

/// A claimed name; given back when it is dropped without a guest.
#[derive(Debug)]
pub(crate) struct Claim {
    guests: Arc<Guests>,
    name: String,
    id: GuestId,
}

impl Guests {
    /// Claims a name and memory for a guest.
    pub(crate) fn claim(
        self: &Arc<Self>,
        name: &str,
        id: GuestId,
        memory_bytes: u64,
    ) -> Result<Claim, Taken> {
        let mut slots = self.lock();
        if let Some((name, _)) = slots.iter().find(|(_, slot)| slot.id() == id) {
            return Err(Taken::Guest(name.clone()));
        }
        if slots.contains_key(name) {
            return Err(Taken::Name(name.into()));
        }
        slots.insert(name.into(), Slot::Claimed { id, memory_bytes });
        Ok(Claim { guests: Arc::clone(self), name: name.into(), id })
    }

    /// Memory of guests other than `id` that start or arrive: they may not have taken it yet.
    pub(crate) fn promised_bytes(&self, id: GuestId) -> u64 {
        let slots = self.lock();
        let others = slots.values().filter(|slot| slot.id() != id);
        let promised = others.map(|slot| match slot {
            Slot::Claimed { memory_bytes, .. } => *memory_bytes,
            Slot::Guest { promised_bytes, .. } => *promised_bytes,
        });
        promised.fold(0, u64::saturating_add)
    }

    /// A guest that is here takes so much memory at once from now on, and has not done so yet.
    pub(crate) fn promise(&self, name: &str, bytes: u64) {
        if let Some(Slot::Guest { promised_bytes, .. }) = self.lock().get_mut(name) {
            *promised_bytes = bytes;
        }
    }

    /// The guest has all the memory that it will take at once.
    pub(crate) fn arrived(&self, name: &str) {
        self.promise(name, 0);
    }

    /// The guest of this name.
    pub(crate) fn get(&self, name: &str) -> Option<Guest> {
        match self.lock().get(name) {
            Some(Slot::Guest { guest, .. }) => Some(guest.clone()),
            Some(Slot::Claimed { .. }) | None => None,
        }
    }

    /// The guest of this identity.
    pub(crate) fn by_id(&self, id: GuestId) -> Option<Guest> {
        self.all().into_iter().find(|guest| guest.id == id)
    }

    /// All guests by name.
    pub(crate) fn all(&self) -> Vec<Guest> {
        let slots = self.lock();
        let guests = slots.values().filter_map(|slot| match slot {
            Slot::Guest { guest, .. } => Some(guest.clone()),
            Slot::Claimed { .. } => None,
        });
        guests.collect()
    }

    /// Forgets a guest.
    pub(crate) fn remove(&self, name: &str, id: GuestId) {
        let mut slots = self.lock();
        if slots.get(name).is_some_and(|slot| slot.id() == id) {
            slots.remove(name);
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Slot>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Claim {
    /// The guest has the name from now on; `promised_bytes` of its memory are not taken yet.
    pub(crate) fn fulfil(self, guest: Guest, promised_bytes: u64) {
        self.guests.lock().insert(self.name.clone(), Slot::Guest { guest, promised_bytes });
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut slots = self.guests.lock();
        let claimed = |slot: &Slot| matches!(slot, Slot::Claimed { id, .. } if *id == self.id);
        if slots.get(&self.name).is_some_and(claimed) {
            slots.remove(&self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn id(number: u128) -> GuestId {
        GuestId(Uuid::from_u128(number))
    }

    #[test]
    fn a_name_and_an_identity_are_claimed_once() {
        let guests = Arc::new(Guests::default());
        let claim = guests.claim("a", id(1), 1).unwrap();
        assert_eq!(guests.claim("a", id(2), 1).unwrap_err(), Taken::Name("a".into()));
        assert_eq!(guests.claim("b", id(1), 1).unwrap_err(), Taken::Guest("a".into()));
        drop(claim);
        let _claim = guests.claim("a", id(2), 1).unwrap();
    }

    #[test]
    fn memory_that_others_claimed_is_not_promised_twice() {
        let guests = Arc::new(Guests::default());
        let _one = guests.claim("a", id(1), 100).unwrap();
        let _two = guests.claim("b", id(2), 20).unwrap();
        assert_eq!(guests.promised_bytes(id(2)), 100);
        assert_eq!(guests.promised_bytes(id(3)), 120);
    }
}
