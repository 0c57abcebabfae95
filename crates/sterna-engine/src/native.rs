//! What hypervisors send each other while they copy a guest by themselves, carried between their unix
//! sockets and connections of the move.
//!
//! ```text
//!   QEMU ─ unix ─ agent ═══ TLS, role native ═══ agent ─ unix ─ QEMU
//! ```
//!
//! Both directions are carried, a piece at a time, so that neither side's memory fills where the other
//! is slow. A direction that ends is ended on the other side; a link that breaks ends both.

use crate::link::{Link, ReadHalf, SocketControl, WriteHalf, split};
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use sterna_proto::limits::STREAMS_MAX;
use sterna_proto::message::{NativeMode, Offer};
use sterna_vmm::{Compression, NativeWay};

/// Bytes carried at once.
const PIECE_BYTES: usize = 256 << 10;

/// Streams that are granted to an offer, and so to what its hypervisor connects.
#[must_use]
pub fn streams(offer: &Offer) -> u16 {
    offer.streams.clamp(1, STREAMS_MAX)
}

/// What a mode means where so many streams are agreed upon; `None` for one that is not known here.
#[must_use]
pub fn way(mode: NativeMode, streams: u16) -> Option<NativeWay> {
    let channels = u8::try_from(mode.page_channels(streams)).unwrap_or(u8::MAX).max(1);
    match mode {
        NativeMode::PreCopy => Some(NativeWay::PreCopy),
        NativeMode::Xbzrle => Some(NativeWay::Xbzrle),
        NativeMode::Multifd => {
            Some(NativeWay::Multifd { channels, compression: Compression::None })
        }
        NativeMode::MultifdZstd => {
            Some(NativeWay::Multifd { channels, compression: Compression::Zstd })
        }
        NativeMode::Unknown => None,
    }
}

/// Whose fault it is that a connection broke.
#[derive(Debug)]
pub(crate) enum Broken {
    /// The link's.
    Link(io::Error),
    /// The hypervisor's of this side: it no longer takes what is sent to it.
    Hypervisor(io::Error),
}

/// Ends connections from another thread, those that are yet to come too.
#[derive(Debug, Default)]
pub(crate) struct Cuts(Mutex<Connections>);

#[derive(Debug, Default)]
struct Connections {
    ended: bool,
    all: Vec<Ends>,
}

/// Both ends of what is carried.
#[derive(Debug)]
struct Ends {
    link: SocketControl,
    inner: UnixStream,
}

impl Ends {
    fn cut(&self) {
        self.link.shut_down();
        // An error says that it is down already.
        let _ = self.inner.shutdown(Shutdown::Both);
    }
}

impl Cuts {
    fn lock(&self) -> std::sync::MutexGuard<'_, Connections> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of a connection; one that comes after the end is ended.
    fn add(&self, ends: Ends) {
        let mut connections = self.lock();
        if connections.ended {
            ends.cut();
        } else {
            connections.all.push(ends);
        }
    }

    /// Ends all connections, for good.
    pub(crate) fn end(&self) {
        let mut connections = self.lock();
        connections.ended = true;
        connections.all.drain(..).for_each(|ends| ends.cut());
    }

    /// Whether they have been ended.
    pub(crate) fn is_ended(&self) -> bool {
        self.lock().ended
    }
}

/// Carries all that comes on either until both directions have ended. What breaks is `told` before the
/// hypervisor can notice.
pub(crate) fn carry(
    link: Link,
    inner: &UnixStream,
    cuts: &Cuts,
    told: impl Fn(Broken) + Sync,
) -> io::Result<()> {
    let ends = || -> io::Result<Ends> {
        Ok(Ends { link: link.socket.control()?, inner: inner.try_clone()? })
    };
    let own = ends()?;
    cuts.add(ends()?);
    let (mut write, read) = split(link, None)?;
    let broken = AtomicBool::new(false);
    let breaks = |error: Broken| {
        let of_link = matches!(error, Broken::Link(_));
        // What breaks after that is because of it.
        if !broken.swap(true, Ordering::AcqRel) {
            told(error);
        }
        if of_link {
            own.cut();
        }
    };
    thread::scope(|scope| {
        let breaks = &breaks;
        thread::Builder::new()
            .name("native-in".into())
            .spawn_scoped(scope, move || carry_in(read, inner, breaks))?;
        // The half that writes ends the connection when it is dropped, so it stays until both
        // directions have ended.
        if let Err(error) = carry_out(inner, &mut write) {
            breaks(Broken::Link(error));
        }
        Ok(())
    })
}

/// From the link to the hypervisor. What that no longer takes is passed over until the connection is
/// ended: the other side shall hear why from whom it was told, not from a connection that broke.
fn carry_in(mut link: ReadHalf, mut inner: &UnixStream, breaks: impl Fn(Broken)) {
    let mut piece = vec![0; PIECE_BYTES];
    let mut takes = true;
    loop {
        match link.read(&mut piece) {
            Ok(0) => {
                // It may have gone already.
                let _ = inner.shutdown(Shutdown::Write);
                return;
            }
            Ok(count) if takes => {
                if let Err(error) = inner.write_all(&piece[..count]) {
                    takes = false;
                    breaks(Broken::Hypervisor(error));
                }
            }
            Ok(_) => {}
            Err(error) => return breaks(Broken::Link(error)),
        }
    }
}

/// From the hypervisor to the link.
fn carry_out(mut inner: &UnixStream, link: &mut WriteHalf) -> io::Result<()> {
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        // A hypervisor that is gone has sent all that it will.
        let count = inner.read(&mut piece).unwrap_or(0);
        if count == 0 {
            return link.finish();
        }
        link.send(&piece[..count])?;
    }
}
