//! A page connection, written into the RAM of a small guest and compared with a model.
//!
//! Pages are long and mutating their bytes finds nothing, so an input holds headers only: its first
//! byte chooses the stream, and then each header of 16 bytes is followed by one byte that fills the
//! pages of a `raw` frame. `0xff` cuts the stream off in the midst of them.

use crate::Verdict;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use sterna_engine::fuzzing::{PagesEnd, page_stream as receive};
use sterna_page::coding::{Coder, Encoders, PageBytes, code_bytes_max};
use sterna_page::delta::{self, LineHasher};
use sterna_page::known::{DiskBlock, KnownPages};
use sterna_page::sent::{ContentHash, ContentHasher};
use sterna_page::{PAGE_SIZE, PageNumber, RamBlock, RamLayout};
use sterna_proto::pages::{OnDisk, Reference};
use sterna_sys::memory::{GuestMemory, HugePages, create_shared};

/// Pages of the guest's two blocks. Neither ends at a multiple of [`CHUNK`], so that frames may
/// cross from one to the other and reach beyond the second.
const BLOCKS: [u64; 2] = [300, 340];
const PAGES: u64 = BLOCKS[0] + BLOCKS[1];

/// Pages that travel together, and the most a frame may have.
const CHUNK: u64 = 256;

/// Frames of an input that are used, so that no input takes long.
const FRAMES_MAX: usize = 24;

const HEADER: usize = 16;
const RAW: u8 = 1;
const SAME: u8 = 7;
const KNOWN: u8 = 8;
const CHANGED: u8 = 9;
const ON_DISK: u8 = 10;
const CODED: u8 = 16;
const CUT: u8 = 0xff;

/// What a stream should do to an empty guest.
#[derive(Debug, Default)]
struct Model {
    /// What fills each page that was written and not cleared since.
    filled: BTreeMap<u64, u8>,
    /// Pages that this host could not get.
    lacking: BTreeSet<u64>,
    rounds: Vec<u32>,
}

/// Whether the stream goes on after a frame.
enum Next {
    Frame,
    End(PagesEnd),
}

pub(crate) fn page_stream(data: &[u8]) -> Verdict {
    let Some((choice, frames)) = data.split_first() else { return Verdict::Refused };
    let streams = u16::from(choice % 4) + 1;
    let stream = u16::from(choice / 4) % streams;
    let mut model = Model::default();
    let mut bytes = Vec::new();
    let mut encoders = Encoders::default();
    let mut end = PagesEnd::Cut;
    for frame in frames.chunks(HEADER + 1).take(FRAMES_MAX) {
        let Some((header, fill)) = frame.split_first_chunk::<HEADER>() else {
            bytes.extend(frame);
            break;
        };
        let fill = fill.first().copied().unwrap_or(CUT);
        let header = &match coder(header) {
            Some(coder) => code(header, coder, fill, &mut encoders, &mut bytes),
            None if is_changed(header) => changed(header, fill, &mut bytes),
            None => {
                bytes.extend(header);
                payload(header, fill, &mut bytes);
                *header
            }
        };
        if let Next::End(how) = model.frame(header, fill, stream, streams) {
            end = how;
            break;
        }
    }
    let memory = memory();
    let memory = memory.lock().unwrap_or_else(PoisonError::into_inner);
    memory.punch_all().expect("RAM of our own can be emptied");
    let place = (stream, streams);
    let (rounds, ended) = receive(bytes.as_slice(), Arc::clone(&memory), Arc::new(Had), place);
    assert_eq!(ended, Some(end));
    assert_eq!(rounds, model.rounds);
    model.compare(&memory);
    Verdict::of(!model.filled.is_empty() || !model.rounds.is_empty())
}

/// The guest's RAM, made once.
fn memory() -> &'static Mutex<Arc<GuestMemory>> {
    static MEMORY: LazyLock<Mutex<Arc<GuestMemory>>> = LazyLock::new(|| {
        let sizes = BLOCKS.map(|pages| pages * PAGE_SIZE as u64);
        let block = |size_bytes| RamBlock { name: "ram".into(), size_bytes, host_page_bytes: 4096 };
        let layout = RamLayout::new(sizes.map(block).to_vec()).expect("two blocks of whole pages");
        let file = |size| create_shared("fuzz", size, HugePages::No).expect("memory can be had");
        let memory = GuestMemory::open(layout, sizes.map(file).into());
        Mutex::new(Arc::new(memory.expect("the files are as long as the blocks")))
    });
    &MEMORY
}

/// Adds the pages that belong to a header which announces some.
fn payload(header: &[u8; HEADER], fill: u8, bytes: &mut Vec<u8>) {
    let count = u64::from(count(header)).min(CHUNK);
    if header[0] == RAW {
        for page in 0..count {
            bytes.resize(bytes.len() + PAGE_SIZE, content(fill, page));
        }
        if fill == CUT && count > 0 {
            bytes.truncate(bytes.len() - PAGE_SIZE / 2);
        }
    }
    if header[0] == KNOWN {
        for page in 0..count {
            bytes.extend(Had::hash(content(fill, page)).encode());
        }
        if fill == CUT && count > 0 {
            bytes.truncate(bytes.len() - 1);
        }
    }
    if header[0] == ON_DISK {
        for page in 0..count {
            let content = content(fill, page);
            let block = DiskBlock { disk: u16::from(fill), number: content.into() };
            bytes.extend(OnDisk { hash: Had::hash(content), block }.encode());
        }
        if fill == CUT && count > 0 {
            bytes.truncate(bytes.len() - 1);
        }
    }
    if header[0] == SAME {
        for page in 0..count {
            bytes.extend(reference(fill, first(header), page).encode());
        }
        if fill == CUT && count > 0 {
            bytes.truncate(bytes.len() - 1);
        }
    }
}

/// What this host has: pages of any one byte, of which half are right, a quarter are damaged, and a
/// quarter have gone; and disks with the same blocks, of which nobody knows the numbers from 192 on.
struct Had;

impl Had {
    fn is_right(content: u8) -> bool {
        content < 128
    }

    fn read(content: u8, page: &mut PageBytes) -> bool {
        page.fill(content);
        page[1] ^= u8::from(!Self::is_right(content));
        content < 192
    }

    fn hash(content: u8) -> ContentHash {
        Self.hasher().hash(&[content; PAGE_SIZE])
    }
}

impl KnownPages for Had {
    fn hasher(&self) -> ContentHasher {
        ContentHasher::new([9; 32])
    }

    fn summary(&self) -> Vec<u64> {
        Vec::new()
    }

    fn read(&self, hash: ContentHash, page: &mut PageBytes) -> bool {
        static CONTENTS: LazyLock<HashMap<ContentHash, u8>> =
            LazyLock::new(|| (0..=u8::MAX).map(|content| (Had::hash(content), content)).collect());
        let Some(content) = CONTENTS.get(&hash).copied() else { return false };
        Self::read(content, page)
    }

    fn has_disks(&self) -> bool {
        true
    }

    fn read_block(&self, block: DiskBlock, page: &mut PageBytes) -> bool {
        u8::try_from(block.number).is_ok_and(|content| Self::read(content, page))
    }
}

/// What page `page` of a frame refers to: some page near by, sometimes none of the guest's.
fn reference(fill: u8, first: u64, page: u64) -> Reference {
    let base = first.wrapping_add(page).wrapping_add(u64::from(fill % 64)) % (PAGES + 4);
    Reference { page: PageNumber(base), comes: fill >= 128 }
}

fn first(header: &[u8; HEADER]) -> u64 {
    header[8..].iter().rev().fold(0, |all, byte| all << 8 | u64::from(*byte))
}

/// The coder whose code a header announces.
fn coder(header: &[u8; HEADER]) -> Option<Coder> {
    let place = usize::from(header[0].checked_sub(CODED)?);
    let counts = (1..=CHUNK).contains(&count(header).into());
    Coder::ALL.get(place).copied().filter(|_| counts)
}

/// Adds a frame with the code of the pages that a header announces, whatever length it gives it.
fn code(
    header: &[u8; HEADER],
    coder: Coder,
    fill: u8,
    encoders: &mut Encoders,
    bytes: &mut Vec<u8>,
) -> [u8; HEADER] {
    let count = u64::from(count(header));
    let coded = (0..count).filter(|page| is_coded(fill, *page));
    let pages: Vec<_> = coded.map(|page| [content(fill, page); PAGE_SIZE]).collect();
    let mut code = vec![0; code_bytes_max(pages.len())];
    let length = match pages.len() {
        0 => 1,
        _ => encoders.encode(coder, &pages, &mut code),
    };
    let mut header = *header;
    let length_bytes = u32::try_from(length).expect("a code is short").to_le_bytes();
    header[1..4].copy_from_slice(&length_bytes[..3]);
    bytes.extend(header);
    let bit = |page| u8::from(page < count && is_coded(fill, page)) << (page % 8);
    bytes.extend((0..count.div_ceil(8)).map(|byte| (byte * 8..byte * 8 + 8).map(bit).sum::<u8>()));
    bytes.extend(&code[..if fill == CUT { length / 2 } else { length }]);
    header
}

/// Whether page `page` of a frame with a code is of those that are coded: of some frames all, of others some, or
/// none.
fn is_coded(fill: u8, page: u64) -> bool {
    fill == CUT || fill.is_multiple_of(2) || (page + u64::from(fill)).is_multiple_of(3)
}

/// Whether a header announces deltas.
fn is_changed(header: &[u8; HEADER]) -> bool {
    header[0] == CHANGED && (1..=CHUNK).contains(&count(header).into())
}

/// Adds a frame with deltas that leave nothing of what was there, whatever length the header gives it. What
/// they are to come out as is a lie where [`Had`] would have no right page.
fn changed(header: &[u8; HEADER], fill: u8, bytes: &mut Vec<u8>) -> [u8; HEADER] {
    let hasher = LineHasher::new(3);
    let mut deltas = Vec::new();
    for page in 0..u64::from(count(header)) {
        let content = content(fill, page);
        let mut other = hasher.fingerprints(&[!content; PAGE_SIZE]);
        let page = [content; PAGE_SIZE];
        let start = deltas.len();
        delta::encode(&page, hasher.changed(&mut other, &page), &mut deltas);
        deltas[start] ^= u8::from(!Had::is_right(content));
    }
    let mut header = *header;
    let length = u32::try_from(deltas.len()).expect("deltas are short").to_le_bytes();
    header[1..4].copy_from_slice(&length[..3]);
    bytes.extend(header);
    bytes.extend(&deltas[..if fill == CUT { deltas.len() / 2 } else { deltas.len() }]);
    header
}

/// What fills page `page` of a frame.
fn content(fill: u8, page: u64) -> u8 {
    fill.wrapping_add((page % 251) as u8)
}

fn count(header: &[u8; HEADER]) -> u32 {
    u32::from_le_bytes([header[4], header[5], header[6], header[7]])
}

impl Model {
    /// Takes a frame as `docs/protocol.md` describes it.
    fn frame(&mut self, header: &[u8; HEADER], fill: u8, stream: u16, streams: u16) -> Next {
        let (kind, count) = (header[0], count(header));
        let first = first(header);
        let refused = Next::End(PagesEnd::Refused);
        let coded = coder(header).is_some() || is_changed(header);
        if !coded && (header[1..4] != [0; 3] || ![1, 2, 3, 4, SAME, KNOWN, ON_DISK].contains(&kind))
        {
            return refused;
        }
        if kind == 4 {
            if first != 0 {
                return refused;
            }
            self.rounds.push(count);
            return Next::Frame;
        }
        let count = u64::from(count);
        let ours = (first / CHUNK) % u64::from(streams) == u64::from(stream);
        let in_ram = first < PAGES && count <= PAGES - first;
        if count == 0 || !ours || !in_ram || first % CHUNK + count > CHUNK {
            return refused;
        }
        if ([RAW, SAME, KNOWN, ON_DISK].contains(&kind) || coded) && fill == CUT {
            return Next::End(PagesEnd::Cut);
        }
        if kind == SAME {
            let theirs = |page| (page / CHUNK) % u64::from(streams) != u64::from(stream);
            return self.same(fill, first, count, theirs);
        }
        let is_code = coder(header).is_some();
        let pages: Vec<u64> = (0..count).filter(|page| !is_code || is_coded(fill, *page)).collect();
        if pages.is_empty() {
            return refused;
        }
        for page in pages {
            let (at, content) = (first + page, content(fill, page));
            let right = match kind {
                KNOWN | ON_DISK => Had::is_right(content),
                CHANGED => Had::is_right(content) && !self.lacking.contains(&at),
                _ => true,
            };
            if !right {
                self.lacking.insert(at);
                continue;
            }
            self.lacking.remove(&at);
            match kind {
                RAW | KNOWN | CHANGED | ON_DISK | CODED.. => drop(self.filled.insert(at, content)),
                _ => drop(self.filled.remove(&at)),
            }
        }
        Next::Frame
    }

    /// Takes references; the other streams bring nothing.
    fn same(&mut self, fill: u8, first: u64, count: u64, theirs: impl Fn(u64) -> bool) -> Next {
        let mut contents = Vec::new();
        for page in 0..count {
            let Reference { page: PageNumber(base), comes } = reference(fill, first, page);
            if base >= PAGES || comes && theirs(base) {
                return Next::End(PagesEnd::Refused);
            }
            let whole = !self.lacking.contains(&base);
            contents.push(whole.then(|| self.filled.get(&base).copied().unwrap_or(0)));
        }
        for (page, content) in (first..).zip(contents) {
            match content {
                Some(content) => {
                    self.lacking.remove(&page);
                    self.filled.insert(page, content);
                }
                None => drop(self.lacking.insert(page)),
            }
        }
        Next::Frame
    }

    /// Makes sure that the guest's RAM holds what it should, and nothing else.
    fn compare(&self, memory: &GuestMemory) {
        let populated = memory.populated().expect("the kernel tells which pages exist");
        let mut page = [0; PAGE_SIZE];
        for number in populated.iter().map(|page| page.0).chain(self.filled.keys().copied()) {
            memory.read(PageNumber(number), &mut page).expect("the page is the guest's");
            let expected = self.filled.get(&number).copied().unwrap_or(0);
            assert!(page.iter().all(|byte| *byte == expected), "page {number} is not {expected}");
        }
    }
}
