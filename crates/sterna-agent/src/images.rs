//! RAM of guests that have left, kept for when they come back, if this host is to.

use crate::agent::Agent;
use crate::settings::Settings;
use std::io;
use std::sync::Arc;
use sterna_engine::Keeper;
use sterna_known::{Image, ImageError, ImageStore};
use sterna_page::PageSet;
use sterna_proto::message::{AttemptId, GuestId};
use sterna_sys::memory::GuestMemory;

/// In the state folder, as images are large.
const FOLDER: &str = "images";

/// In the runtime folder, so that they do not outlive the host's uptime.
const KEY_FILE: &str = "images.key";

/// Opens the store that the settings ask for. Without one, images that an earlier agent has kept are removed.
pub(crate) fn open(settings: &Settings) -> Result<Option<Arc<ImageStore>>, ImageError> {
    let folder = settings.state.join(FOLDER);
    if settings.images_bytes_max == 0 {
        return match std::fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(ImageError::Io {
                what: "remove the kept images, as none are to be kept",
                source: error,
            }),
            Ok(()) | Err(_) => Ok(None),
        };
    }
    let keys = settings.runtime.join(KEY_FILE);
    ImageStore::open(&folder, &keys, settings.images_bytes_max).map(|store| Some(Arc::new(store)))
}

/// Keeps images in threads of their own, so that no move waits for a disk.
struct ImageKeeper(Arc<ImageStore>);

impl Keeper for ImageKeeper {
    fn keep(&self, attempt: AttemptId, memory: Arc<GuestMemory>, changing: PageSet) {
        let (store, guest) = (Arc::clone(&self.0), attempt.guest);
        let keep = move || match store.keep(guest.0, &memory, &changing) {
            Ok(kept) => tracing::info!(%attempt, pages = kept.pages, bytes = kept.bytes,
                whole = kept.whole, "image kept"),
            Err(ImageError::Cancelled) => tracing::info!(%attempt, "image wanted no more"),
            Err(error) => tracing::warn!(%attempt, %error, "no image kept"),
        };
        let thread = std::thread::Builder::new().name("image".into()).spawn(keep);
        if let Err(error) = thread {
            tracing::warn!(%attempt, %error, "no image kept: no thread");
        }
    }
}

impl Agent {
    /// Who takes the RAM of guests that leave.
    pub(crate) fn keeper(&self) -> Option<Arc<dyn Keeper>> {
        let store = self.images.as_ref()?;
        Some(Arc::new(ImageKeeper(Arc::clone(store))))
    }

    /// What this host kept of a guest.
    pub(crate) fn image_of(&self, guest: GuestId) -> Option<Image> {
        match self.images.as_ref()?.find(guest.0) {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(%guest, %error, "a kept image cannot be used");
                None
            }
        }
    }

    /// Takes note that a guest runs here: what was kept of it grows old.
    pub(crate) fn drop_image_of(&self, guest: GuestId) {
        if let Some(Err(error)) = self.images.as_ref().map(|store| store.remove(guest.0)) {
            tracing::warn!(%guest, %error, "a kept image cannot be removed");
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::fake::agent;
    use std::fs;

    #[tokio::test]
    async fn a_host_that_is_to_keep_none_removes_what_it_kept() {
        let folder = tempfile::tempdir().unwrap();
        let mut settings = agent(folder.path()).0.settings.clone();
        let images = settings.state.join(super::FOLDER);
        fs::write(images.join("left.image"), "something").unwrap();
        settings.images_bytes_max = 0;
        assert!(super::open(&settings).unwrap().is_none() && !images.exists());
        assert!(super::open(&settings).unwrap().is_none());
    }
}
