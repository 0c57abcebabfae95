//! Images on a real disk: what comes back is what left, or nothing.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use sterna_known::{ImageError, ImageStore};
use sterna_page::coding::PageBytes;
use sterna_page::known::KnownPages;
use sterna_page::{PAGE_SIZE, PageCount, PageNumber, PageSet, RamBlock, RamLayout};
use sterna_sys::memory::{GuestMemory, HugePages, create_shared};
use tempfile::TempDir;
use uuid::Uuid;

/// Pages of a guest.
const PAGES: u64 = 2000;

/// Words by which pages can be told apart on the disk.
const SECRET: &[u8] = b"a secret of the guest";

/// Bytes that an image takes for a page, and without any.
const PAGE_COSTS: u64 = 4096 + 16 + 16;
const IMAGE_COSTS: u64 = 72 + 16;

const MUCH: u64 = 1 << 30;

struct Disk {
    root: TempDir,
}

impl Disk {
    fn new() -> Self {
        Self { root: tempfile::tempdir().unwrap() }
    }

    fn folder(&self) -> PathBuf {
        self.root.path().join("images")
    }

    fn keys(&self) -> PathBuf {
        self.root.path().join("images.keys")
    }

    fn store(&self, budget_bytes: u64) -> ImageStore {
        ImageStore::open(&self.folder(), &self.keys(), budget_bytes).unwrap()
    }

    fn files(&self) -> Vec<PathBuf> {
        fs::read_dir(self.folder()).unwrap().map(|entry| entry.unwrap().path()).collect()
    }

    fn bytes(&self) -> u64 {
        self.files().iter().map(|file| fs::metadata(file).unwrap().len()).sum()
    }

    /// What all files together had at one moment at least, while others write and remove them: a file
    /// grows until it is emptied and removed, so one that is still there was at that moment as long as it
    /// was before. Lengths that are just added up may be of files that never were there together.
    fn bytes_at_once(&self) -> u64 {
        let opened = self.files().into_iter().filter_map(|path| File::open(path).ok());
        let seen: Vec<(u64, File)> = opened.map(|file| (bytes_there(&file), file)).collect();
        // This is the moment.
        seen.iter().map(|(before, file)| bytes_there(file).min(*before)).sum()
    }
}

/// How long an open file is, unless it has been removed.
fn bytes_there(file: &File) -> u64 {
    let found = file.metadata().unwrap();
    if found.nlink() == 0 { 0 } else { found.len() }
}

fn page(content: u64) -> PageBytes {
    let mut bytes = [0; PAGE_SIZE];
    bytes[..SECRET.len()].copy_from_slice(SECRET);
    bytes[100..108].copy_from_slice(&content.to_le_bytes());
    bytes
}

/// A guest whose page `i` has content `i + seed`.
fn guest(seed: u64) -> GuestMemory {
    let name = "ram".to_owned();
    let size_bytes = PageCount(PAGES).bytes();
    let block = RamBlock { name, size_bytes, host_page_bytes: PAGE_SIZE as u64 };
    let file = create_shared("ram", size_bytes, HugePages::No).unwrap();
    let memory = GuestMemory::open(RamLayout::new(vec![block]).unwrap(), vec![file]).unwrap();
    for number in 0..PAGES {
        memory.write(PageNumber(number), &page(number + seed)).unwrap();
    }
    memory
}

fn none() -> PageSet {
    PageSet::empty(PageCount(PAGES))
}

/// Whether the store has this content for a guest, and tells of it.
fn has(store: &ImageStore, guest: Uuid, content: &PageBytes) -> bool {
    let Some(image) = store.find(guest).unwrap() else { return false };
    let hash = image.hasher().hash(content);
    let mut read = [0; PAGE_SIZE];
    let got = image.read(hash, &mut read);
    assert_eq!(got, image.summary().binary_search(&hash.half()).is_ok());
    assert!(!got || read == *content);
    got
}

#[test]
fn what_was_kept_comes_back_also_to_a_later_agent() {
    let (disk, id) = (Disk::new(), Uuid::new_v4());
    let memory = guest(0);
    // Three times the same, and one that is zero: neither is kept (again).
    for twin in [10, 20] {
        memory.write(PageNumber(twin), &page(5)).unwrap();
    }
    memory.write(PageNumber(30), &[0; PAGE_SIZE]).unwrap();
    let mut changing = none();
    changing.insert(PageNumber(40));
    let store = disk.store(MUCH);
    let kept = store.keep(id, &memory, &changing).unwrap();
    assert_eq!((u64::from(kept.pages), kept.whole), (PAGES - 4, true));
    assert_eq!((kept.bytes, disk.bytes()), (IMAGE_COSTS + (PAGES - 4) * PAGE_COSTS, kept.bytes));
    drop(store);
    let store = disk.store(MUCH);
    assert_eq!(store.list().iter().map(|image| image.guest).collect::<Vec<_>>(), [id]);
    let lacking: Vec<u64> =
        (0..PAGES).filter(|content| !has(&store, id, &page(*content))).collect();
    assert_eq!(lacking, [10, 20, 30, 40]);
    assert!(!has(&store, id, &[0; PAGE_SIZE]));
    assert!(store.find(Uuid::new_v4()).unwrap().is_none());
}

#[test]
fn the_disk_alone_tells_nothing() {
    let (disk, id) = (Disk::new(), Uuid::new_v4());
    disk.store(MUCH).keep(id, &guest(0), &none()).unwrap();
    let stored = fs::read(&disk.files()[0]).unwrap();
    assert!(!stored.windows(SECRET.len()).any(|words| words == SECRET), "a secret is on the disk");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&disk.files()[0]), mode(&disk.keys())), (0o600, 0o600));
    // As after a reboot.
    fs::remove_file(disk.keys()).unwrap();
    let store = disk.store(MUCH);
    assert!(store.find(id).unwrap().is_none() && store.list().is_empty());
    assert_eq!(disk.files().len(), 0);
}

#[test]
fn damage_is_lacking_not_wrong() {
    let (disk, id) = (Disk::new(), Uuid::new_v4());
    let store = disk.store(MUCH);
    store.keep(id, &guest(0), &none()).unwrap();
    let file = OpenOptions::new().write(true).open(&disk.files()[0]).unwrap();
    // In the middle of page 3, and in the tag of page 7.
    file.write_all_at(&[0xff; 8], 72 + 3 * 4112 + 2000).unwrap();
    file.write_all_at(&[0xff; 16], 72 + 7 * 4112 + 4096).unwrap();
    let image = store.find(id).unwrap().unwrap();
    let got = |content| image.read(image.hasher().hash(&page(content)), &mut [0; PAGE_SIZE]);
    let lacking: Vec<u64> = (0..PAGES).filter(|content| !got(*content)).collect();
    assert_eq!(lacking, [3, 7]);
    // The index: nothing can be had, and the image goes.
    file.write_all_at(&[0xff; 16], 72 + PAGES * 4112 + 99).unwrap();
    assert!(matches!(store.find(id), Err(ImageError::Unreadable)));
    assert!(store.find(id).unwrap().is_none() && disk.files().is_empty());
}

#[test]
fn pages_and_images_do_not_pass_for_others() {
    let (disk, ids) = (Disk::new(), [Uuid::new_v4(), Uuid::new_v4()]);
    let store = disk.store(MUCH);
    for id in ids {
        store.keep(id, &guest(0), &none()).unwrap();
    }
    let path = |id: Uuid| disk.folder().join(format!("{id}.image"));
    let first = fs::read(path(ids[0])).unwrap();
    // A page in another's place, of the same image and of another.
    let mut second = fs::read(path(ids[1])).unwrap();
    second.copy_within(72 + 4112..72 + 2 * 4112, 72);
    second[72 + 5 * 4112..72 + 6 * 4112].copy_from_slice(&first[72 + 5 * 4112..72 + 6 * 4112]);
    fs::write(path(ids[1]), second).unwrap();
    let lacking: Vec<u64> = (0..9)
        .filter(|content| {
            let image = store.find(ids[1]).unwrap().unwrap();
            !image.read(image.hasher().hash(&page(*content)), &mut [0; PAGE_SIZE])
        })
        .collect();
    assert_eq!(lacking, [0, 5]);
    // One guest's image under the other's name.
    fs::write(path(ids[1]), &first).unwrap();
    assert!(matches!(store.find(ids[1]), Err(ImageError::Unreadable)));
    fs::write(path(ids[1]), &first).unwrap();
    assert_eq!(disk.store(MUCH).list().len(), 1);
    assert_eq!(disk.files(), [path(ids[0])]);
}

#[test]
fn the_budget_holds_and_the_oldest_go() {
    let disk = Disk::new();
    let image = IMAGE_COSTS + PAGES * PAGE_COSTS;
    // Room is asked for in pieces, so a little more than two images.
    let budget = 2 * image + 300 * PAGE_COSTS;
    let ids: Vec<Uuid> = (0..4).map(|_| Uuid::new_v4()).collect();
    let store = disk.store(budget);
    let memory = guest(0);
    for (number, id) in ids.iter().enumerate() {
        assert!(store.keep(*id, &memory, &none()).unwrap().whole);
        assert!(disk.bytes() <= budget);
        assert_eq!(store.list().len(), (number + 1).min(2));
    }
    let left: Vec<Uuid> = store.list().iter().map(|image| image.guest).collect();
    assert_eq!(left, ids[2..]);
    // A smaller budget is kept to from the start; what does not fit by itself is cut.
    drop(store);
    let store = disk.store(image / 2);
    assert!(store.list().is_empty() && disk.files().is_empty());
    let kept = store.keep(ids[0], &memory, &none()).unwrap();
    assert!(!kept.whole && kept.pages > 500 && disk.bytes() <= image / 2, "{kept:?}");
    assert!(has(&store, ids[0], &page(100)) && !has(&store, ids[0], &page(PAGES - 1)));
}

#[test]
fn a_removed_image_is_gone_for_its_readers_and_writers_too() {
    let (disk, id) = (Disk::new(), Uuid::new_v4());
    let store = disk.store(MUCH);
    store.keep(id, &guest(0), &none()).unwrap();
    let image = store.find(id).unwrap().unwrap();
    let hash = image.hasher().hash(&page(1));
    assert!(image.read(hash, &mut [0; PAGE_SIZE]));
    assert!(store.remove(id).unwrap());
    assert!(!image.read(hash, &mut [0; PAGE_SIZE]));
    assert!(!store.remove(id).unwrap() && disk.files().is_empty());
    // Removed again and again while it is written: it is there, or the writer was told.
    let (memory, done) = (guest(0), AtomicBool::new(false));
    thread::scope(|scope| {
        let remover = scope.spawn(|| {
            let mut removed = 0;
            while !done.load(Ordering::Relaxed) {
                removed += u32::from(store.remove(id).unwrap());
            }
            removed
        });
        let mut cancelled = 0;
        for _ in 0..20 {
            match store.keep(id, &memory, &none()) {
                Ok(_) => {}
                Err(ImageError::Cancelled) => cancelled += 1,
                Err(error) => panic!("{error}"),
            }
        }
        done.store(true, Ordering::Relaxed);
        assert!(cancelled > 0 && remover.join().unwrap() > 0);
    });
    store.remove(id).unwrap();
    assert!(disk.files().is_empty(), "{:?}", disk.files());
}

#[test]
fn the_budget_holds_while_many_guests_leave_at_once() {
    let disk = Disk::new();
    let budget = 5 * (IMAGE_COSTS + PAGES * PAGE_COSTS) / 2;
    let store = disk.store(budget);
    let memories: Vec<GuestMemory> = (0..6).map(|seed| guest(seed * PAGES)).collect();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let most = scope.spawn(|| {
            let mut most = 0;
            while !done.load(Ordering::Relaxed) {
                most = most.max(disk.bytes_at_once());
            }
            most
        });
        let leaving: Vec<_> = memories
            .iter()
            .map(|memory| scope.spawn(|| store.keep(Uuid::new_v4(), memory, &none()).unwrap()))
            .collect();
        let kept: Vec<_> = leaving.into_iter().map(|thread| thread.join().unwrap()).collect();
        done.store(true, Ordering::Relaxed);
        let most = most.join().unwrap();
        assert!((1..=budget).contains(&most), "{most} of {budget} bytes");
        assert!(kept.iter().any(|image| !image.whole), "{kept:?}");
    });
    // Each that is told of can be read.
    for image in store.list() {
        assert!(store.find(image.guest).unwrap().is_some());
    }
    assert!(disk.bytes() <= budget);
}
