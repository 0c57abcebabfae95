//! The decoders of this crate for the fuzz targets; no part of its interface.

use crate::destination::{Arrivals, Following};
use crate::link::{Received, receive};
use crate::pages::{Heard, PageReceiver, Place, ReceiveError, StreamEvent, known};
use serde::de::DeserializeOwned;
use std::io::Read;
use std::sync::Arc;
use std::sync::mpsc::channel;
use sterna_page::PageCount;
use sterna_page::known::{KnownPages, Summary};
use sterna_proto::control::Numbering;
use sterna_sys::memory::GuestMemory;
use sterna_vmm::DeviceState;

/// What came over a control connection.
#[derive(Clone, Debug, PartialEq)]
pub enum Frame<M> {
    /// A message.
    Message(M),
    /// A device state.
    State(DeviceState),
}

/// Everything that `stream` carries as a control connection, up to its end or the first frame that
/// is refused.
pub fn control_stream<M: DeserializeOwned>(mut stream: impl Read) -> Vec<Frame<M>> {
    let mut numbering = Numbering::default();
    let next = || {
        Some(match receive(&mut stream, &mut numbering).ok()? {
            Received::Message(message) => Frame::Message(message),
            Received::State(state) => Frame::State(state),
        })
    };
    std::iter::from_fn(next).collect()
}

/// How a page stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PagesEnd {
    /// There was no more of it.
    Cut,
    /// A frame was refused.
    Refused,
    /// Guest RAM could not be written.
    Memory,
}

/// Writes everything that `bytes` carries as page stream `stream` of `streams` into `memory`, up to
/// its end or the first frame that is refused; this host has the pages of `known`. Answers with the
/// rounds whose marks have arrived.
pub fn page_stream(
    bytes: impl Read,
    memory: Arc<GuestMemory>,
    known: Arc<dyn KnownPages>,
    (stream, streams): (u16, u16),
) -> (Vec<u32>, Option<PagesEnd>) {
    let (mut rounds, mut end) = (Vec::new(), None);
    let arrivals = Arc::new(Arrivals::new(memory.pages(), streams));
    (0..streams).filter(|other| *other != stream).for_each(|other| arrivals.lost(other));
    let following = Following::new(Arc::clone(&memory), channel().0);
    let place = Place { memory, following, arrivals, known: Some(known) };
    PageReceiver::new(bytes, place, stream).run(|event| {
        match event {
            StreamEvent::Mark { round, .. } => rounds.push(round),
            StreamEvent::Progress => {}
            StreamEvent::Ended { error, .. } => {
                end = Some(match error {
                    ReceiveError::Io(_) => PagesEnd::Cut,
                    ReceiveError::Frame(_)
                    | ReceiveError::Misplaced { .. }
                    | ReceiveError::NeverCame { .. }
                    | ReceiveError::Code { .. }
                    | ReceiveError::CodeOfNone { .. }
                    | ReceiveError::Delta { .. } => PagesEnd::Refused,
                    ReceiveError::Memory(_) => PagesEnd::Memory,
                });
            }
        }
        Heard::Yes
    });
    (rounds, end)
}

/// What a destination tells of the pages that it has, to the source of a guest of `pages` pages.
pub fn known_pages(bytes: impl Read, pages: PageCount) -> Option<([u8; 32], Summary)> {
    let (hasher, summary) = known::hear(bytes, pages).ok()?;
    Some((hasher.key(), summary))
}
