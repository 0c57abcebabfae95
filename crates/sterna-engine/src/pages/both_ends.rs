//! Both ends of page streams, over real connections: whatever is written, both memories are equal.

#![allow(clippy::unwrap_used, reason = "functions of a test")]

#[path = "../../tests/kit/identities.rs"]
mod identities;

use super::{
    Alike, CHUNK_PAGES, Heard, KeepHashes, Manner, Pacer, PageReceiver, ReceiveError, SenderPool,
    Sends, StreamEvent, usize_of,
};
use crate::destination::{Arrivals, Following};
use crate::link::{Link, Meter};
use identities::Cluster;
use proptest::prelude::*;
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;
use sterna_core::receipt::PagesByCoding;
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
    events: Receiver<StreamEvent>,
    streams: u16,
    round: u32,
}

impl Streams {
    fn new(cluster: &Cluster, streams: u16, bandwidth: Option<u64>) -> Self {
        let (source, destination) = (memory(), memory());
        let (tell, events) = channel();
        let arrivals = Arc::new(Arrivals::new(destination.pages(), streams));
        let mut links = Vec::new();
        for stream in 0..streams {
            let (sending, receiving) = connection(cluster, stream);
            links.push(sending);
            let following = Following::new(Arc::clone(&destination), channel().0);
            let (memory, arrivals) = (Arc::clone(&destination), Arc::clone(&arrivals));
            let receiver = PageReceiver::new(receiving, memory, following, arrivals, stream);
            let tell = tell.clone();
            thread::spawn(move || {
                receiver.run(|event| match tell.send(event) {
                    Ok(()) => Heard::Yes,
                    Err(_) => Heard::NoLonger,
                });
            });
        }
        let manner = Manner {
            pacer: Arc::new(Pacer::new(bandwidth, Arc::default())),
            hashes: KeepHashes::No,
            coded: Some(Arc::default()),
            alike: Some(Alike::new(source.pages(), [9; 32])),
        };
        let pool = SenderPool::start(links, &source, &manner).unwrap();
        Self { source, destination, pool, events, streams, round: 0 }
    }

    /// Sends these pages, and tells how; returns when the destination has them.
    fn send(&mut self, pages: PageSet, absent: PageSet) -> PagesByCoding {
        let some = |set: PageSet| (!set.is_empty()).then(|| Arc::new(set));
        let sends = Sends {
            round: self.round,
            pages: Arc::new(pages),
            suspects: None,
            absent: some(absent),
            until: None,
            owed: None,
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

    fn assert_equal(&self) {
        let (mut here, mut there) = ([0; PAGE_SIZE], [0; PAGE_SIZE]);
        for page in (0..PAGES).map(PageNumber) {
            self.source.read(page, &mut here).unwrap();
            self.destination.read(page, &mut there).unwrap();
            assert!(here == there, "page {page} differs");
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
    /// The guest gives it back.
    Discard,
}

fn write() -> impl Strategy<Value = Write> {
    prop_oneof![
        4 => (0u8..4).prop_map(Write::Fill),
        2 => (0u8..4).prop_map(Write::Noise),
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
        Write::Discard => None,
    }
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
            let mut dirty = PageSet::empty(streams.source.pages());
            for (first, count, write) in writes {
                let run = PageRun::new(first, count.min(PAGES - first));
                match page_of(write) {
                    Some(page) => {
                        let bytes = page.repeat(usize_of(run.count.0));
                        streams.source.write(run.first, &bytes).unwrap();
                    }
                    None => streams.source.punch(run).unwrap(),
                }
                dirty.insert_run(run);
            }
            let populated = streams.source.populated().unwrap();
            let mut absent = dirty.clone();
            absent.subtract(&populated);
            dirty.subtract(&absent);
            streams.send(dirty, absent);
            streams.assert_equal();
        }
    }
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
    let bytes: Vec<u8> = frames
        .iter()
        .flat_map(|(frame, payload)| [&frame.encode()[..], payload].concat())
        .collect();
    let memory = memory();
    let arrivals = Arc::new(Arrivals::new(memory.pages(), 2));
    // The other stream has nothing in this round.
    arrivals.ended(1);
    let following = Following::new(Arc::clone(&memory), channel().0);
    let mut ended = None;
    PageReceiver::new(bytes.as_slice(), memory, following, arrivals, 0).run(|event| {
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
    // One that the destination has, or that this stream brought, is none.
    let fine = refused(&[(same, &to(CHUNK_PAGES, false)), (same, &to(0, true))]);
    assert!(matches!(fine, ReceiveError::Io(_)), "{fine}");
}
