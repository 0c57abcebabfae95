//! What this host has of a guest that comes: its own image, the RAM of guests of its group, and its disks;
//! and what it knows of the disks of a guest that leaves.

use crate::agent::Agent;
use crate::guest::Request;
use serde::Deserialize;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use sterna_engine::Disks;
use sterna_known::{
    CachedBlocks, Effort, Image, Places, RunningGuests, SharedDisks, Union, fresh_hasher,
};
use sterna_page::known::{DiskBlocks, KnownPages};
use sterna_page::sent::ContentHasher;
use sterna_page::{PAGE_SIZE_BYTES, PageCount};
use sterna_proto::message::{AttemptId, GuestId, Offer};
use sterna_vmm::GuestDefinition;

/// How long the RAM of other guests is looked at, or what is cached of disks; the guest still runs where it is.
const LOOKING_MAX: Duration = Duration::from_secs(2);

impl Agent {
    /// Pages that need not be sent to this host for a guest that has begun to come.
    pub(crate) fn known_of(&self, guest: GuestId) -> Option<Arc<dyn KnownPages>> {
        let hasher = match &self.images {
            Some(store) => store.hasher(),
            None => fresh_hasher()
                .inspect_err(|error| tracing::warn!(%error, "no pages can be known"))
                .ok()?,
        };
        let definition = self.journal.guest(guest).ok()??.definition;
        let image = self.image_of(guest);
        // No more may be told of than it has pages, and its own come first.
        let pages = PageCount(definition.memory_bytes / PAGE_SIZE_BYTES);
        let of_image = image.as_ref().map_or(PageCount::ZERO, Image::pages);
        let room = PageCount(pages.0.saturating_sub(of_image.0));
        let siblings = definition.group.as_deref();
        let siblings = siblings.and_then(|group| self.siblings_of(guest, group, hasher, room));
        let disks = SharedDisks::open(&paths(&definition), hasher, pages);
        if let Some(disks) = &disks {
            self.remember(guest, disks.places());
        }
        let places = [
            image.map(|image| Arc::new(image) as Arc<dyn KnownPages>),
            siblings.map(|known| Arc::new(known) as Arc<dyn KnownPages>),
            disks.map(|disks| Arc::new(disks) as Arc<dyn KnownPages>),
        ];
        let places: Vec<Arc<dyn KnownPages>> = places.into_iter().flatten().collect();
        (!places.is_empty()).then(|| Arc::new(Union::new(hasher, places)) as Arc<dyn KnownPages>)
    }

    /// Takes note of where the disks of a guest that comes are read; what is known of guests that are no longer
    /// here is forgotten.
    fn remember(&self, guest: GuestId, places: Places) {
        let mut known = self.disk_places.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|other, _| self.guests.by_id(*other).is_some());
        known.insert(guest, places);
    }

    /// The disks of a guest that leaves, if it has any.
    pub(crate) fn disks_of(&self, attempt: AttemptId, offer: &Offer) -> Option<Arc<dyn Disks>> {
        let definition = GuestDefinition::deserialize(&offer.definition).ok()?;
        let known = self.disk_places.lock().unwrap_or_else(PoisonError::into_inner);
        let places = known.get(&attempt.guest).cloned().unwrap_or_default();
        let disks = GuestDisks { paths: paths(&definition), places };
        (!disks.paths.is_empty()).then(|| Arc::new(disks) as Arc<dyn Disks>)
    }

    /// What guests of its group have in RAM, as far as there is room.
    fn siblings_of(
        &self,
        guest: GuestId,
        group: &str,
        hasher: ContentHasher,
        room: PageCount,
    ) -> Option<RunningGuests> {
        let others = self.guests.all().into_iter().filter(|other| other.id != guest);
        let memories: Vec<_> = others
            .filter_map(|other| {
                other.ask_blocking(|reply| Request::Ram(group.to_owned(), reply)).flatten()
            })
            .collect();
        if memories.is_empty() {
            return None;
        }
        let (siblings, effort) = (memories.len(), Effort { pages: room, time: LOOKING_MAX });
        match RunningGuests::look(memories, hasher, effort) {
            Ok(known) => {
                tracing::info!(%guest, siblings, pages = known.pages().0, "guests of its group run here");
                Some(known)
            }
            Err(error) => {
                tracing::warn!(%guest, %error, "the RAM of its group cannot be looked at");
                None
            }
        }
    }
}

/// The disks of a guest that leaves, in the order of its definition, as the destination has them too.
struct GuestDisks {
    paths: Vec<PathBuf>,
    /// Where they were read when it came.
    places: Places,
}

impl Disks for GuestDisks {
    fn look(&self, hasher: ContentHasher, pages: PageCount) -> Arc<dyn DiskBlocks> {
        let effort = Effort { pages, time: LOOKING_MAX };
        let blocks = CachedBlocks::look(&self.paths, &self.places, hasher, effort);
        tracing::info!(blocks = blocks.len(), "blocks of the guest's disks were looked at");
        Arc::new(blocks)
    }
}

fn paths(definition: &GuestDefinition) -> Vec<PathBuf> {
    definition.disks.iter().map(|disk| disk.path.clone()).collect()
}
