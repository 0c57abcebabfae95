//! All images of a host.

use crate::ImageError;
use crate::image::{Header, Image, bytes_of};
use crate::keys::Keys;
use crate::writing::{Writer, batch_bytes};
use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;
use sterna_page::PageSet;
use sterna_page::sent::ContentHasher;
use sterna_sys::memory::GuestMemory;
use tempfile::NamedTempFile;
use uuid::Uuid;

/// Keeps images of guests in a folder of its own.
pub struct ImageStore {
    folder: PathBuf,
    keys: Keys,
    budget_bytes: u64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    kept: HashMap<Uuid, ImageInfo>,
    writing: Vec<Arc<Writing>>,
}

/// An image that is being written, to everybody but its writer.
struct Writing {
    guest: Uuid,
    cancelled: AtomicBool,
    /// What it has, and is about to have.
    bytes: AtomicU64,
}

/// An image that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageInfo {
    /// Whose it is.
    pub guest: Uuid,
    /// When it was kept.
    pub kept_at: SystemTime,
    /// Pages in it.
    pub pages: u32,
    /// Its size.
    pub bytes: u64,
}

/// What has been kept of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Pages in the image.
    pub pages: u32,
    /// Its size.
    pub bytes: u64,
    /// Whether there was room for all pages that are worth it.
    pub whole: bool,
}

impl State {
    fn bytes(&self) -> u64 {
        let kept: u64 = self.kept.values().map(|image| image.bytes).sum();
        let writing = self.writing.iter().map(|writing| writing.bytes.load(Ordering::Relaxed));
        kept + writing.sum::<u64>()
    }
}

impl ImageStore {
    /// Opens the store in `folder`, whose images are sealed under the keys in `key_file`; makes both where
    /// they are missing. What cannot be read is removed, and what is over the budget.
    ///
    /// # Errors
    /// If the folder or the file of keys cannot be made or read.
    pub fn open(folder: &Path, key_file: &Path, budget_bytes: u64) -> Result<Self, ImageError> {
        let failed = ImageError::io("open the folder of kept images");
        fs::create_dir_all(folder).map_err(&failed)?;
        let keys = Keys::open(key_file)?;
        let mut kept = HashMap::new();
        for entry in fs::read_dir(folder).map_err(&failed)? {
            let path = entry.map_err(&failed)?.path();
            if let Some(info) = examine(folder, &path, &keys) {
                kept.insert(info.guest, info);
            } else {
                tracing::info!(file = %path.display(), "no image of these keys; removed");
                fs::remove_file(&path).map_err(&failed)?;
            }
        }
        let state = Mutex::new(State { kept, writing: Vec::new() });
        let store = Self { folder: folder.to_owned(), keys, budget_bytes, state };
        store.make_room(&mut store.lock(), 0)?;
        Ok(store)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No update of the tables can be cut in two by a panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Under which pages of its images are hashed.
    #[must_use]
    pub fn hasher(&self) -> ContentHasher {
        self.keys.hasher
    }

    /// The images, oldest first.
    #[must_use]
    pub fn list(&self) -> Vec<ImageInfo> {
        let mut images: Vec<ImageInfo> = self.lock().kept.values().cloned().collect();
        images.sort_by_key(|image| (image.kept_at, image.guest));
        images
    }

    /// Keeps an image of a guest that has left and whose memory does not change any more, without the pages
    /// of `changing`. It takes the place of an older image. Returns once it is there.
    ///
    /// # Errors
    /// If it cannot be written, or is removed meanwhile. There is then no image of the guest.
    pub fn keep(
        &self,
        guest: Uuid,
        memory: &GuestMemory,
        changing: &PageSet,
    ) -> Result<Kept, ImageError> {
        self.remove(guest)?;
        let writing = Arc::new(Writing {
            guest,
            cancelled: AtomicBool::new(false),
            bytes: AtomicU64::new(0),
        });
        self.lock().writing.push(Arc::clone(&writing));
        let written = self.write(&writing, memory, changing);
        let mut state = self.lock();
        state.writing.retain(|other| !Arc::ptr_eq(other, &writing));
        // What is not made an image is removed with its file.
        let (file, header, whole) = written?;
        if writing.cancelled.load(Ordering::Relaxed) {
            return Err(ImageError::Cancelled);
        }
        let renamed = file.persist(path(&self.folder, guest)).map_err(|error| error.error);
        renamed.map_err(ImageError::io("rename a kept image"))?;
        let info = info(&header);
        let kept = Kept { pages: info.pages, bytes: info.bytes, whole };
        state.kept.insert(guest, info);
        Ok(kept)
    }

    fn write(
        &self,
        writing: &Writing,
        memory: &GuestMemory,
        changing: &PageSet,
    ) -> Result<(NamedTempFile, Header, bool), ImageError> {
        let failed = ImageError::io("write a kept image");
        let file = NamedTempFile::new_in(&self.folder).map_err(&failed)?;
        let mut pages =
            memory.populated().map_err(ImageError::io("tell which memory a guest has"))?;
        pages.subtract(changing);
        let opened = file.as_file().try_clone().map_err(&failed)?;
        let mut writer = Writer::new(opened, writing.guest, &self.keys)?;
        let whole = writer.write(memory, &pages, |bytes| {
            if writing.cancelled.load(Ordering::Relaxed) {
                return Err(ImageError::Cancelled);
            }
            let mut state = self.lock();
            writing.bytes.store(bytes, Ordering::Relaxed);
            let room = self.make_room(&mut state, batch_bytes())?;
            if room {
                writing.bytes.store(bytes + batch_bytes(), Ordering::Relaxed);
            }
            Ok(room)
        })?;
        Ok((file, writer.end()?, whole))
    }

    /// Removes the oldest images until there is room for as many more bytes; `false` if there never is.
    fn make_room(&self, state: &mut State, bytes: u64) -> Result<bool, ImageError> {
        while state.bytes() + bytes > self.budget_bytes {
            let oldest = state.kept.values().min_by_key(|image| (image.kept_at, image.guest));
            let Some(guest) = oldest.map(|image| image.guest) else { return Ok(false) };
            tracing::info!(%guest, "kept image removed: the oldest, and room is needed");
            state.kept.remove(&guest);
            self.erase(guest)?;
        }
        Ok(true)
    }

    /// The image of a guest, if there is one. It can be read until it is removed.
    ///
    /// # Errors
    /// If it cannot be read. It is removed then.
    pub fn find(&self, guest: Uuid) -> Result<Option<Image>, ImageError> {
        let mut state = self.lock();
        if !state.kept.contains_key(&guest) {
            return Ok(None);
        }
        let opened = Image::open(&path(&self.folder, guest), guest, &self.keys);
        if opened.is_err() {
            state.kept.remove(&guest);
            self.erase(guest)?;
        }
        opened.map(Some)
    }

    /// Removes the image of a guest, also one that is being written, or read. Tells whether there was one.
    ///
    /// # Errors
    /// If its file cannot be removed.
    pub fn remove(&self, guest: Uuid) -> Result<bool, ImageError> {
        let mut state = self.lock();
        let mut found = state.kept.remove(&guest).is_some();
        for writing in state.writing.iter().filter(|writing| writing.guest == guest) {
            writing.cancelled.store(true, Ordering::Relaxed);
            found = true;
        }
        self.erase(guest)?;
        Ok(found)
    }

    /// Removes a guest's file, and takes what is in it from whoever has it open.
    fn erase(&self, guest: Uuid) -> Result<(), ImageError> {
        let path = path(&self.folder, guest);
        let emptied = OpenOptions::new().write(true).truncate(true).open(&path);
        match emptied.and_then(|_| fs::remove_file(&path)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(ImageError::io("remove a kept image")(error))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

fn path(folder: &Path, guest: Uuid) -> PathBuf {
    folder.join(format!("{guest}.image"))
}

fn info(header: &Header) -> ImageInfo {
    let Header { guest, kept_at, pages, .. } = *header;
    ImageInfo { guest, kept_at, pages, bytes: bytes_of(pages) }
}

/// The image in a file, if it is one and where it should be.
fn examine(folder: &Path, file: &Path, keys: &Keys) -> Option<ImageInfo> {
    let (header, _) = Header::read(&File::open(file).ok()?, keys).ok()?;
    (path(folder, header.guest) == file).then(|| info(&header))
}
