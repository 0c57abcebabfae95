//! Both ends of page streams, over real connections: whatever is written, both memories are equal.

#![allow(clippy::unwrap_used, reason = "functions of a test")]

#[path = "../../tests/kit/identities.rs"]
mod identities;

use super::{
    Alike, CHUNK_PAGES, Heard, KeepHashes, Manner, Pacer, PageReceiver, Place, ReceiveError,
    SenderPool, Sends, StreamEvent, usize_of,
};
use crate::destination::{Arrivals, Following};
use crate::link::{Link, Meter};
use identities::Cluster;
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;
use sterna_core::receipt::PagesByCoding;
use sterna_page::coding::{Coder, Encoders, code_bytes_max};
use sterna_page::delta::{self, LineHasher};
use sterna_page::known::{DiskBlock, DiskBlocks, KnownPages, Summary};
use sterna_page::sent::{ContentHash, ContentHasher};
use sterna_page::{PAGE_SIZE, PageNumber, PageRun, PageSet, RamBlock, RamLayout};
use sterna_proto::pages::{PageFrame, Reference};
use sterna_proto::preamble::{MoveToken, PreambleAnswer, Role, VERSION_MAX};
use sterna_sys::memory::{GuestMemory, HugePages, create_shared};

/// Three chunks, the last not whole.
const PAGES: u64 = 2 * CHUNK_PAGES + 40;

const PATIENCE: Duration = Duration::from_secs(20);

fn memory() -> Arc<GuestMemory> {
    let size_bytes = PAGES * PAGE_SIZE as u64;
    let block = RamBlock { name: "ram".into(), size_bytes, host_page_bytes: 4096 };
    let file = create_shared("test", size_bytes, HugePages::No).unwrap();
    Arc::new(GuestMemory::open(RamLayout::new(vec![block]).unwrap(), vec![file]).unwrap())
}

/// A connection with both of its ends.
fn connection(cluster: &Cluster, stream: u16) -> (Link, Link) {
    let role = Role::Pages { stream, token: MoveToken([7; 16]) };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (to, meter) = (listener.local_addr().unwrap(), Meter::default());
    let server = cluster.identity("b");
    thread::scope(|scope| {
        let accepted = scope.spawn(|| {
            let (tcp, _): (TcpStream, _) = listener.accept().unwrap();
            let (mut link, _, _) = Link::accept(tcp, &server, &Meter::default()).unwrap();
            link.welcome(PreambleAnswer::Welcome { version: VERSION_MAX }).unwrap();
            link
        });
        let name = "b".try_into().unwrap();
        let sending = Link::connect(to, &name, &cluster.identity("a"), role, &meter).unwrap();
        (sending, accepted.join().unwrap())
    })
}

/// The streams of a move, and what they tell at the destination.
struct Streams {
    source: Arc<GuestMemory>,
    destination: Arc<GuestMemory>,
    pool: SenderPool,
    arrivals: Arc<Arrivals>,
    events: Receiver<StreamEvent>,
    streams: u16,
    round: u32,
}

impl Streams {
    fn new(cluster: &Cluster, streams: u16, bandwidth: Option<u64>) -> Self {
        Self::with(cluster, streams, bandwidth, None)
    }

    /// With pages that the destination can get by itself.
    fn with(
        cluster: &Cluster,
        streams: u16,
        bandwidth: Option<u64>,
        known: Option<Arc<Had>>,
    ) -> Self {
        let (source, destination) = (memory(), memory());
        let (tell, events) = channel();
        let arrivals = Arc::new(Arrivals::new(destination.pages(), streams));
        let brought = Arc::clone(&arrivals);
        let mut links = Vec::new();
        for stream in 0..streams {
            let (sending, receiving) = connection(cluster, stream);
            links.push(sending);
            let following = Following::new(Arc::clone(&destination), channel().0);
            let (memory, arrivals) = (Arc::clone(&destination), Arc::clone(&arrivals));
            let known = known.clone().map(|had| had as Arc<dyn KnownPages>);
            let place = Place { memory, following, arrivals, known };
            let receiver = PageReceiver::new(receiving, place, stream);
            let tell = tell.clone();
            thread::spawn(move || {
                receiver.run(|event| match tell.send(event) {
                    Ok(()) => Heard::Yes,
                    Err(_) => Heard::NoLonger,
                });
            });
        }
        let manner = Manner {
            pacer: Arc::new(Pacer::new(bandwidth, Arc::default(), Arc::default())),
            hashes: KeepHashes::No,
            coded: Some(Arc::default()),
            alike: Some(match &known {
                None => Alike::new(source.pages(), [9; 32]).with_deltas(6),
                Some(known) => {
                    let summary = Summary::new(known.summary()).unwrap();
                    let alike = Alike::with(source.pages(), known.hasher(), summary);
                    alike.with_disks(Arc::clone(known) as Arc<dyn DiskBlocks>).with_deltas(6)
                }
            }),
        };
        let pool = SenderPool::start(links, &source, &manner).unwrap();
        Self { source, destination, pool, arrivals: brought, events, streams, round: 0 }
    }

    /// Sends these pages, and tells how; returns when the destination has them.
    fn send(&mut self, pages: PageSet, absent: PageSet) -> PagesByCoding {
        self.send_if(pages, absent, true)
    }

    /// The same, in a round in which nothing, or something, may lack.
    fn send_if(&mut self, pages: PageSet, absent: PageSet, may_lack: bool) -> PagesByCoding {
        let some = |set: PageSet| (!set.is_empty()).then(|| Arc::new(set));
        let sends = Sends {
            round: self.round,
            pages: Arc::new(pages),
            suspects: None,
            absent: some(absent),
            until: None,
            owed: None,
            may_lack,
        };
        self.pool.send(&sends);
        let sent = self.pool.wait().unwrap();
        let mut marks = 0;
        while marks < self.streams {
            match self.events.recv_timeout(PATIENCE).expect("the destination does something") {
                StreamEvent::Mark { round, .. } => {
                    assert_eq!(round, self.round);
                    marks += 1;
                }
                StreamEvent::Progress => {}
                StreamEvent::Ended { stream, error } => panic!("stream {stream}: {error}"),
            }
        }
        self.round += 1;
        sent.pages
    }

    /// What the destination lacks, which must be sent again.
    fn lacking(&self) -> PageSet {
        let mut lacking = PageSet::empty(self.source.pages());
        for (first, count) in self.arrivals.lacking() {
            let pages = self.pool.lacking(PageRun::new(first, count));
            pages.into_iter().for_each(|page| lacking.insert(page));
        }
        lacking
    }

    fn assert_equal(&self) {
        self.assert_equal_but_for(&PageSet::empty(self.source.pages()));
    }

    fn assert_equal_but_for(&self, lacking: &PageSet) {
        let (mut here, mut there) = ([0; PAGE_SIZE], [0; PAGE_SIZE]);
        for page in (0..PAGES).map(PageNumber) {
            self.source.read(page, &mut here).unwrap();
            self.destination.read(page, &mut there).unwrap();
            assert!(here == there || lacking.contains(page), "page {page} differs");
        }
    }
}

/// What becomes of a page.
#[derive(Clone, Copy, Debug)]
enum Write {
    /// All of its bytes are this.
    Fill(u8),
    /// Noise, of this seed.
    Noise(u8),
    /// A few of its bytes, from this one on, are noise of this seed; the others stay as they are.
    Part(u16, u8),
    /// The guest gives it back.
    Discard,
}

fn write() -> impl Strategy<Value = Write> {
    prop_oneof![
        4 => (0u8..4).prop_map(Write::Fill),
        2 => (0u8..4).prop_map(Write::Noise),
        3 => (0..4000u16, 0u8..4).prop_map(|(at, seed)| Write::Part(at, seed)),
        1 => Just(Write::Discard),
    ]
}

fn page_of(write: Write) -> Option<[u8; PAGE_SIZE]> {
    match write {
        Write::Fill(byte) => Some([byte; PAGE_SIZE]),
        Write::Noise(seed) => Some(std::array::from_fn(|index| {
            let mixed =
                (index as u64 + 1 + u64::from(seed) * 4096).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            (mixed >> 43).to_le_bytes()[0]
        })),
        Write::Part(at, seed) => {
            let mut page = [0; PAGE_SIZE];
            write_part(&mut page, at, seed);
            Some(page)
        }
        Write::Discard => None,
    }
}

fn write_part(page: &mut [u8; PAGE_SIZE], at: u16, seed: u8) {
    page[usize::from(at)..][..90].fill(seed.wrapping_mul(37) + 1);
}

/// What has become of a page that the destination had.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Fine,
    Damaged,
    Gone,
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![3 => Just(Fate::Fine), 1 => Just(Fate::Damaged), 1 => Just(Fate::Gone)]
}

/// Pages that the destination had: every other as a block of a disk, of which the source knows.
#[derive(Debug)]
struct Had(Vec<([u8; PAGE_SIZE], Fate)>);

impl Had {
    fn place(&self, hash: ContentHash) -> Option<usize> {
        self.0.iter().position(|(page, _)| KnownPages::hasher(self).hash(page) == hash)
    }

    fn is_on_disk(place: usize) -> bool {
        place % 2 == 1
    }

    fn read(&self, place: usize, page: &mut [u8; PAGE_SIZE]) -> bool {
        let (had, fate) = &self.0[place];
        *page = *had;
        match fate {
            Fate::Fine => true,
            Fate::Damaged => {
                page[77] ^= 1;
                true
            }
            Fate::Gone => false,
        }
    }
}

impl KnownPages for Had {
    fn hasher(&self) -> ContentHasher {
        ContentHasher::new([8; 32])
    }

    fn summary(&self) -> Vec<u64> {
        let told = (0..).zip(&self.0).filter(|(place, _)| !Self::is_on_disk(*place));
        let halves = told.map(|(_, (page, _))| self.hasher().hash(page).half());
        halves.collect::<BTreeSet<u64>>().into_iter().collect()
    }

    fn read(&self, hash: ContentHash, page: &mut [u8; PAGE_SIZE]) -> bool {
        self.place(hash).is_some_and(|place| self.read(place, page))
    }

    fn has_disks(&self) -> bool {
        true
    }

    fn read_block(&self, block: DiskBlock, page: &mut [u8; PAGE_SIZE]) -> bool {
        self.read(usize::try_from(block.number).unwrap(), page)
    }
}

impl DiskBlocks for Had {
    fn find(&self, hash: ContentHash) -> Option<DiskBlock> {
        let place = self.place(hash).filter(|place| Self::is_on_disk(*place))?;
        Some(DiskBlock { disk: 0, number: place as u64 })
    }

    fn len(&self) -> usize {
        self.0.len()
    }
}

/// The pages of a round, and what of them no longer exists.
fn write_all(streams: &Streams, writes: Vec<(u64, u64, Write)>) -> (PageSet, PageSet) {
    let mut dirty = PageSet::empty(streams.source.pages());
    for (first, count, write) in writes {
        let run = PageRun::new(first, count.min(PAGES - first));
        for page in (run.first.0..run.first.0 + run.count.0).map(PageNumber) {
            let content = match write {
                Write::Part(at, seed) => {
                    let mut content = [0; PAGE_SIZE];
                    streams.source.read(page, &mut content).unwrap();
                    write_part(&mut content, at, seed);
                    Some(content)
                }
                _ => page_of(write),
            };
            match content {
                Some(content) => streams.source.write(page, &content).unwrap(),
                None => streams.source.punch(PageRun::new(page.0, 1)).unwrap(),
            }
        }
        dirty.insert_run(run);
    }
    let populated = streams.source.populated().unwrap();
    let mut absent = dirty.clone();
    absent.subtract(&populated);
    dirty.subtract(&absent);
    (dirty, absent)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn both_memories_are_equal_after_every_round(
        streams in 1u16..4,
        slow in any::<bool>(),
        rounds in prop::collection::vec(
            prop::collection::vec((0..PAGES, 1..60u64, write()), 1..12), 1..5,
        ),
    ) {
        let cluster = Cluster::new();
        let mut streams = Streams::new(&cluster, streams, slow.then_some(20_000_000));
        for writes in rounds {
            let (dirty, absent) = write_all(&streams, writes);
            streams.send(dirty, absent);
            streams.assert_equal();
        }
    }

    #[test]
    fn what_the_destination_had_may_be_damaged_or_gone(
        streams in 1u16..4,
        had in prop::collection::vec((write(), fate()), 1..6),
        rounds in prop::collection::vec(
            prop::collection::vec((0..PAGES, 1..60u64, write()), 1..12), 1..4,
        ),
    ) {
        let had = had.into_iter().filter_map(|(write, fate)| Some((page_of(write)?, fate)));
        let known = Arc::new(Had(had.collect()));
        let cluster = Cluster::new();
        let mut streams = Streams::with(&cluster, streams, Some(20_000_000), Some(known));
        let mut lacking = PageSet::empty(streams.source.pages());
        for writes in rounds {
            let (mut dirty, absent) = write_all(&streams, writes);
            lacking.subtract(&absent);
            dirty.union_with(&lacking);
            streams.send(dirty, absent);
            lacking = streams.lacking();
            streams.assert_equal_but_for(&lacking);
        }
        let none = PageSet::empty(streams.source.pages());
        let last = streams.send_if(lacking, none, false);
        prop_assert_eq!(last.got_there().0, 0);
        prop_assert_eq!(streams.arrivals.lacking(), []);
        streams.assert_equal();
    }
}

#[test]
fn what_the_destination_has_is_sent_as_hashes_and_what_it_lacks_once_more() {
    // On both streams.
    const APART: u64 = CHUNK_PAGES / 2;
    let pages: Vec<_> = (0..5).map(|seed| page_of(Write::Noise(seed)).unwrap()).collect();
    let fates = [Fate::Fine, Fate::Fine, Fate::Damaged, Fate::Damaged];
    let known = Had(pages.iter().copied().zip(fates).collect());
    let cluster = Cluster::new();
    let mut streams = Streams::with(&cluster, 2, Some(20_000_000), Some(Arc::new(known)));
    for (page, content) in (0..).zip(&pages) {
        streams.source.write(PageNumber(page * APART), content).unwrap();
    }
    let none = PageSet::empty(streams.source.pages());
    let populated = streams.source.populated().unwrap();
    let first = streams.send(populated, none.clone());
    let ways = |sent: &PagesByCoding| [sent.known.0, sent.on_disk.0, (sent.raw + sent.coded).0];
    assert_eq!(ways(&first), [2, 2, 1], "{first:?}");
    let lacking = streams.lacking();
    let damaged = [2, 3].map(|page| PageNumber(page * APART));
    assert_eq!(lacking.iter().collect::<Vec<_>>(), damaged);
    let second = streams.send(lacking, none);
    assert_eq!(ways(&second), [0, 0, 2], "{second:?}");
    assert_eq!(streams.arrivals.lacking(), []);
    streams.assert_equal();
}

#[test]
fn what_is_there_already_is_not_sent_again() {
    let cluster = Cluster::new();
    let mut streams = Streams::new(&cluster, 2, Some(20_000_000));
    let page = page_of(Write::Noise(1)).unwrap();
    let all = PageSet::full(streams.source.pages());
    let none = PageSet::empty(streams.source.pages());
    streams.source.write(PageNumber(0), &page.repeat(usize_of(PAGES))).unwrap();
    let first = streams.send(all.clone(), none.clone());
    streams.assert_equal();
    assert_eq!((first.raw + first.coded).0 + first.same.0, PAGES);
    assert_eq!((first.raw + first.coded).0, 1, "{first:?}");
    let again = streams.send(all, none);
    assert_eq!(again.unchanged.0, PAGES, "{again:?}");
    streams.assert_equal();
}

/// What a receiver says of these frames, sent as stream 0 of two.
fn refused(frames: &[(PageFrame, &[u8])]) -> ReceiveError {
    received(&memory(), frames)
}

/// The same, of one that writes into this memory.
fn received(memory: &Arc<GuestMemory>, frames: &[(PageFrame, &[u8])]) -> ReceiveError {
    let bytes: Vec<u8> = frames
        .iter()
        .flat_map(|(frame, payload)| [&frame.encode()[..], payload].concat())
        .collect();
    let memory = Arc::clone(memory);
    let arrivals = Arc::new(Arrivals::new(memory.pages(), 2));
    // The other stream has nothing in this round.
    arrivals.ended(1);
    let following = Following::new(Arc::clone(&memory), channel().0);
    let mut ended = None;
    let place = Place { memory, following, arrivals, known: None };
    PageReceiver::new(bytes.as_slice(), place, 0).run(|event| {
        if let StreamEvent::Ended { error, .. } = event {
            ended = Some(error);
        }
        Heard::Yes
    });
    ended.expect("a stream ends")
}

#[test]
fn references_that_lie_are_refused() {
    let same = PageFrame::Same(PageRun::new(3, 1));
    let to = |page, comes| Reference { page: PageNumber(page), comes }.encode();
    let never = refused(&[(same, &to(CHUNK_PAGES, true))]);
    assert!(matches!(never, ReceiveError::NeverCame { base } if base.0 == CHUNK_PAGES), "{never}");
    let beyond = refused(&[(same, &to(PAGES, false))]);
    assert!(matches!(beyond, ReceiveError::Misplaced { .. }), "{beyond}");
    let elsewhere = PageFrame::Same(PageRun::new(CHUNK_PAGES, 1));
    let misplaced = refused(&[(elsewhere, &to(0, false))]);
    assert!(matches!(misplaced, ReceiveError::Misplaced { .. }), "{misplaced}");
    // Nothing was offered.
    let hash = PageFrame::Known(PageRun::new(3, 1));
    let unknown = refused(&[(hash, &[7; 16])]);
    assert!(matches!(unknown, ReceiveError::Misplaced { .. }), "{unknown}");
    let block = PageFrame::OnDisk(PageRun::new(3, 1));
    let unread = refused(&[(block, &[7; 24])]);
    assert!(matches!(unread, ReceiveError::Misplaced { .. }), "{unread}");
    // One that the destination has, or that this stream brought, is none.
    let fine = refused(&[(same, &to(CHUNK_PAGES, false)), (same, &to(0, true))]);
    assert!(matches!(fine, ReceiveError::Io(_)), "{fine}");
}

#[test]
fn of_pages_that_change_again_and_again_only_that_is_sent() {
    let cluster = Cluster::new();
    let mut streams = Streams::new(&cluster, 2, Some(20_000_000));
    let none = || PageSet::empty(streams.source.pages());
    let (absent, mut hot) = (none(), none());
    hot.insert_run(PageRun::new(CHUNK_PAGES - 20, 40));
    let mut contents: Vec<_> = (0..40).map(|seed| page_of(Write::Noise(seed)).unwrap()).collect();
    let mut changed = Vec::new();
    for round in 0..5_u8 {
        for (page, content) in hot.iter().zip(&mut contents) {
            write_part(content, u16::from(round) * 700, round);
            streams.source.write(page, content).unwrap();
        }
        let sent = streams.send(hot.clone(), absent.clone());
        changed.push((sent.changed.0, (sent.raw + sent.coded).0));
        streams.assert_equal();
    }
    assert_eq!(changed, [(0, 40), (0, 40), (40, 0), (40, 0), (40, 0)]);
    // What the destination has of one is not what the source believes: it notices, and says so.
    let spoilt = PageNumber(CHUNK_PAGES);
    streams.destination.write(spoilt, &[1; PAGE_SIZE]).unwrap();
    for (page, content) in hot.iter().zip(&mut contents) {
        write_part(content, 3000, 9);
        streams.source.write(page, content).unwrap();
    }
    streams.send(hot.clone(), absent.clone());
    let lacking = streams.lacking();
    assert_eq!(lacking.iter().collect::<Vec<_>>(), [spoilt]);
    streams.send(lacking, absent);
    assert_eq!(streams.arrivals.lacking(), []);
    streams.assert_equal();
}

#[test]
fn pages_that_look_alike_are_coded_together_wherever_they_lie() {
    let cluster = Cluster::new();
    let mut streams = Streams::new(&cluster, 1, Some(20_000_000));
    for page in 0..PAGES {
        let number = u8::try_from(page % 251).unwrap() + 1;
        let mut content = [0; PAGE_SIZE];
        match page % 3 {
            0 => content[usize::from(number)..][..9].fill(number),
            1 => {}
            _ => content = page_of(Write::Noise(number)).unwrap(),
        }
        streams.source.write(PageNumber(page), &content).unwrap();
    }
    let all = PageSet::full(streams.source.pages());
    let none = PageSet::empty(streams.source.pages());
    let sent = streams.send(all, none);
    streams.assert_equal();
    // Each coder is tried on as many pages that are mostly zero as lie in fifty; they go as one run.
    assert!(sent.coded.0 >= 16 * Coder::ALL.len() as u64, "{sent:?}");
}

#[test]
fn a_code_is_of_the_pages_whose_bits_are_set() {
    let pages = [[5; PAGE_SIZE], [6; PAGE_SIZE], [7; PAGE_SIZE]];
    let mut code = vec![0; code_bytes_max(pages.len())];
    let length = Encoders::default().encode(Coder::Lz4, &pages, &mut code);
    let frame = |length| PageFrame::Coded { run: PageRun::new(3, 9), coder: Coder::Lz4, length };
    let with = |bits: [u8; 2]| [&bits[..], &code[..length]].concat();
    let coded = frame(u32::try_from(length).unwrap());
    let memory = memory();
    let fine = received(&memory, &[(coded, &with([0b1001_0000, 1]))]);
    assert!(matches!(fine, ReceiveError::Io(_)), "{fine}");
    let mut page = [0; PAGE_SIZE];
    for (number, byte) in [(6, 0), (7, 5), (8, 0), (9, 0), (10, 6), (11, 7), (12, 0)] {
        memory.read(PageNumber(number), &mut page).unwrap();
        assert_eq!(page, [byte; PAGE_SIZE], "page {number}");
    }
    let fewer = refused(&[(coded, &with([0b1000_0000, 1]))]);
    assert!(matches!(fewer, ReceiveError::Code { .. }), "{fewer}");
    let more = refused(&[(coded, &with([0b1111_0000, 1]))]);
    assert!(matches!(more, ReceiveError::Code { .. }), "{more}");
    // The bits beyond the ninth are of no page.
    let none = refused(&[(coded, &with([0, 0b10]))]);
    assert!(matches!(none, ReceiveError::CodeOfNone { .. }), "{none}");
}

#[test]
fn deltas_that_lie_are_refused() {
    let delta = |length| PageFrame::Changed { run: PageRun::new(3, 1), length };
    let mut page = [0; PAGE_SIZE];
    page[5] = 1;
    let hasher = LineHasher::new(1);
    let lines = hasher.changed(&mut hasher.fingerprints(&[0; PAGE_SIZE]), &page);
    let mut bytes = Vec::new();
    delta::encode(&page, lines, &mut bytes);
    let length = u32::try_from(bytes.len()).unwrap();
    let fine = refused(&[(delta(length), &bytes)]);
    assert!(matches!(fine, ReceiveError::Io(_)), "{fine}");
    let cut = refused(&[(delta(length - 1), &bytes)]);
    assert!(matches!(cut, ReceiveError::Delta { .. }), "{cut}");
    let long = refused(&[(delta(length + 1), &[&bytes[..], &[0]].concat())]);
    assert!(matches!(long, ReceiveError::Delta { .. }), "{long}");
}
