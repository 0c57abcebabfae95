//! An image that is being written.

use crate::ImageError;
use crate::image::{HEADER_BYTES, Header, bytes_of};
use crate::keys::{Keys, Seal, TAG_BYTES};
use std::collections::HashSet;
use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::time::SystemTime;
use sterna_page::coding::PageBytes;
use sterna_page::sent::{ContentHash, ContentHasher};
use sterna_page::{PAGE_SIZE, PageNumber, PageRun, PageSet, is_zero};
use sterna_sys::memory::GuestMemory;
use uuid::Uuid;

/// Pages that are read at once, and for which room is asked at once.
const BATCH_PAGES: u32 = 256;

/// Bytes for which room is asked at once, at least.
pub(crate) fn batch_bytes() -> u64 {
    bytes_of(BATCH_PAGES)
}

/// Writes one image.
pub(crate) struct Writer {
    file: BufWriter<File>,
    header: Header,
    seal: Seal,
    hasher: ContentHasher,
    hashes: Vec<ContentHash>,
    written: HashSet<ContentHash>,
}

impl Writer {
    /// Begins an image of `guest` in an empty `file`.
    pub(crate) fn new(mut file: File, guest: Uuid, keys: &Keys) -> Result<Self, ImageError> {
        let image = Uuid::new_v4();
        let header = Header { image, guest, kept_at: SystemTime::now(), pages: 0 };
        file.seek(SeekFrom::Start(HEADER_BYTES as u64)).map_err(Self::failed())?;
        Ok(Self {
            file: BufWriter::with_capacity(1 << 20, file),
            header,
            seal: keys.seal_of(image),
            hasher: keys.hasher,
            hashes: Vec::new(),
            written: HashSet::new(),
        })
    }

    fn failed() -> impl Fn(std::io::Error) -> ImageError {
        ImageError::io("write a kept image")
    }

    /// Writes the pages of `pages`. Asks for `room` before each batch, with what there is, and
    /// ends where there is none: `false`.
    pub(crate) fn write(
        &mut self,
        memory: &GuestMemory,
        pages: &PageSet,
        mut room: impl FnMut(u64) -> Result<bool, ImageError>,
    ) -> Result<bool, ImageError> {
        let mut buffer = Vec::new();
        for run in pages.runs() {
            let mut first = run.first.0;
            let end = first + run.count.0;
            while first < end {
                let batch = PageRun::new(first, u64::from(BATCH_PAGES).min(end - first));
                if !room(self.bytes())? {
                    return Ok(false);
                }
                self.write_run(memory, batch, &mut buffer)?;
                first += batch.count.0;
            }
        }
        Ok(true)
    }

    fn write_run(
        &mut self,
        memory: &GuestMemory,
        run: PageRun,
        buffer: &mut Vec<u8>,
    ) -> Result<(), ImageError> {
        buffer.resize(usize::try_from(run.count.bytes()).expect("a batch is short"), 0);
        memory.read(PageNumber(run.first.0), buffer)?;
        let (pages, _) = buffer.as_chunks_mut::<PAGE_SIZE>();
        pages.iter_mut().try_for_each(|page| self.write_page(page))
    }

    fn write_page(&mut self, page: &mut PageBytes) -> Result<(), ImageError> {
        if is_zero(page) {
            return Ok(());
        }
        let hash = self.hasher.hash(page);
        if self.header.pages == u32::MAX || !self.written.insert(hash) {
            return Ok(());
        }
        let mut tag = [0; TAG_BYTES];
        self.seal.close(u64::from(self.header.pages), &[], page, &mut tag);
        self.hashes.push(hash);
        self.header.pages += 1;
        let written = self.file.write_all(page).and_then(|()| self.file.write_all(&tag));
        written.map_err(Self::failed())
    }

    /// Bytes that the image has when it is ended now.
    pub(crate) fn bytes(&self) -> u64 {
        bytes_of(self.header.pages)
    }

    /// Writes index and header: from now on it is an image.
    pub(crate) fn end(mut self) -> Result<Header, ImageError> {
        let mut index: Vec<u8> = self.hashes.iter().flat_map(|hash| hash.encode()).collect();
        let mut tag = [0; TAG_BYTES];
        self.seal.close(self.header.index_part(), &[], &mut index, &mut tag);
        self.file
            .write_all(&index)
            .and_then(|()| self.file.write_all(&tag))
            .map_err(Self::failed())?;
        let file = self.file.into_inner().map_err(|error| Self::failed()(error.into_error()))?;
        file.write_all_at(&self.header.encode(&self.seal), 0).map_err(Self::failed())?;
        Ok(self.header)
    }
}
