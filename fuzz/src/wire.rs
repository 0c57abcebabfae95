//! The wire but for page frames: preambles, control frames and their messages.

use crate::Verdict;
use serde::{Serialize, de::DeserializeOwned};
use std::fmt::Debug;
use sterna_engine::fuzzing::known_pages as hear;
use sterna_engine::fuzzing::{Frame, control_stream as read_stream};
use sterna_page::PageCount;
use sterna_page::sent::{CONTENT_HASH_BYTES, ContentHash};
use sterna_page::{PAGE_SIZE_BYTES, PageNumber, PageRun, RamLayout};
use sterna_proto::control::{
    ControlHeader, ControlKind, HEADER_BYTES, Numbering, decode_message, encode_message,
};
use sterna_proto::inquiry::{Answer, Inquiry};
use sterna_proto::known::{KNOWN_HEADER_BYTES, KnownHeader};
use sterna_proto::limits::{DEVICE_STATE_BYTES_MAX, MESSAGE_BYTES_MAX, REASONS_MAX};
use sterna_proto::message::{Envelope, ToDestination, ToSource};
use sterna_proto::preamble::{
    ANSWER_BYTES, PREAMBLE_BYTES, Preamble, PreambleAnswer, VERSION_MAX, VERSION_MIN,
};
use sterna_vmm::DeviceStateKind;

/// The first bytes of a connection, from whoever made it.
pub(crate) fn preamble(data: &[u8]) -> Verdict {
    let Some(bytes) = data.first_chunk::<PREAMBLE_BYTES>() else { return Verdict::Refused };
    let Ok(preamble) = Preamble::decode(bytes) else { return Verdict::Refused };
    assert_eq!(preamble.encode(), *bytes, "{preamble:?} says all that was in its bytes");
    let version = preamble.version();
    assert!((preamble.version_min..=preamble.version_max).contains(&version));
    assert!((VERSION_MIN..=VERSION_MAX).contains(&version));
    Verdict::Accepted
}

/// The first bytes from whoever accepted a connection.
pub(crate) fn preamble_answer(data: &[u8]) -> Verdict {
    let Some(bytes) = data.first_chunk::<ANSWER_BYTES>() else { return Verdict::Refused };
    let Ok(version) = PreambleAnswer::decode(bytes) else { return Verdict::Refused };
    assert!((VERSION_MIN..=VERSION_MAX).contains(&version));
    assert_eq!(PreambleAnswer::Welcome { version }.encode(), *bytes);
    Verdict::Accepted
}

/// A message to the destination.
pub(crate) fn to_destination(data: &[u8]) -> Verdict {
    let Some(envelope) = message::<Envelope<ToDestination>>(data) else { return Verdict::Refused };
    if let ToDestination::Offer(offer) = &envelope.body {
        layout(&offer.layout);
    }
    Verdict::Accepted
}

/// A message to the source.
pub(crate) fn to_source(data: &[u8]) -> Verdict {
    let Some(envelope) = message::<Envelope<ToSource>>(data) else { return Verdict::Refused };
    if let ToSource::Refuse { reasons } = &envelope.body {
        assert!(reasons.len() <= REASONS_MAX, "{} reasons", reasons.len());
    }
    Verdict::Accepted
}

/// A question before a move.
pub(crate) fn inquiry(data: &[u8]) -> Verdict {
    let Some(inquiry) = message::<Inquiry>(data) else { return Verdict::Refused };
    layout(&inquiry.offer.layout);
    Verdict::Accepted
}

/// What a destination tells of the pages that it has; the first byte says how many the guest has.
pub(crate) fn known_pages(data: &[u8]) -> Verdict {
    let Some((pages, data)) = data.split_first() else { return Verdict::Refused };
    let pages = PageCount((*pages).into());
    let Some((key, summary)) = hear(data, pages) else { return Verdict::Refused };
    let count = summary.len() as u64;
    assert!(count <= pages.0);
    assert!(data.starts_with(&KnownHeader { key, count }.encode()));
    let halves = &data[KNOWN_HEADER_BYTES..][..summary.len() * 8];
    for half in halves.as_chunks().0.iter().copied().map(u64::from_le_bytes) {
        let mut hash = [0; CONTENT_HASH_BYTES];
        hash[..8].copy_from_slice(&half.to_le_bytes());
        assert!(summary.holds(ContentHash::decode(hash)));
    }
    Verdict::Accepted
}

/// The answer to it.
pub(crate) fn inquiry_answer(data: &[u8]) -> Verdict {
    let Some(answer) = message::<Answer>(data) else { return Verdict::Refused };
    assert!(answer.reasons.len() <= REASONS_MAX, "{} reasons", answer.reasons.len());
    Verdict::Accepted
}

/// Reads a message that came in a frame, and makes sure that it survives being sent on.
fn message<M>(data: &[u8]) -> Option<M>
where
    M: Serialize + DeserializeOwned + PartialEq + Debug,
{
    let message: M = decode_message(data).ok()?;
    // Written in full it may be longer than it came: the limit is then the sender's to heed.
    if let Ok(written) = encode_message(&message) {
        assert!(u32::try_from(written.len()).is_ok_and(|length| length <= MESSAGE_BYTES_MAX));
        let again: M = decode_message(&written).unwrap_or_else(|error| {
            panic!("{} is not read again: {error:?}", String::from_utf8_lossy(&written))
        });
        assert_eq!(again, message);
    }
    Some(message)
}

/// A layout that was accepted holds its own pages, in order, and no others.
fn layout(layout: &RamLayout) {
    let mut next = PageNumber(0);
    for (run, block) in layout.block_runs().zip(layout.blocks()) {
        assert_eq!(run.first, next, "blocks follow one another");
        assert_eq!(run.count.0.checked_mul(PAGE_SIZE_BYTES), Some(block.size_bytes));
        assert!(run.count.0 > 0 && layout.holds(run));
        next = run.end().expect("a layout is within the number space");
    }
    assert_eq!(next.0, layout.pages().0);
    assert!(!layout.holds(PageRun { first: next, count: sterna_page::PageCount(1) }));
}

/// A whole control connection, after its preamble, in either direction.
pub(crate) fn control_stream(data: &[u8]) -> Verdict {
    let to_destination = one_direction::<Envelope<ToDestination>>(data);
    let to_source = one_direction::<Envelope<ToSource>>(data);
    Verdict::of(to_destination + to_source > 0)
}

/// Reads a control connection; answers with how many frames it brought.
fn one_direction<M>(data: &[u8]) -> usize
where
    M: Serialize + DeserializeOwned + PartialEq + Debug,
{
    let frames: Vec<Frame<M>> = read_stream(data);
    let headers = headers(data);
    assert!(frames.len() <= headers, "{} frames of {headers}", frames.len());
    let sent: Option<Vec<u8>> = send(&frames);
    if let Some(sent) = sent {
        assert_eq!(read_stream::<M>(sent.as_slice()), frames, "sent again");
    }
    frames.len()
}

/// How many whole frames with good headers and numbers in order `data` has, repeated ones aside.
fn headers(data: &[u8]) -> usize {
    let (mut rest, mut last) = (data, 0);
    while let Some((header, after)) = rest.split_first_chunk::<HEADER_BYTES>() {
        let Ok(header) = ControlHeader::decode(header) else { break };
        let max = match header.kind {
            ControlKind::Message => MESSAGE_BYTES_MAX,
            ControlKind::DeviceState { .. } => DEVICE_STATE_BYTES_MAX,
        };
        assert!(header.length <= max, "{header:?}");
        let length = usize::try_from(header.length).expect("a length fits the address space");
        match after.get(length..) {
            Some(next) if header.number <= last + 1 => rest = next,
            Some(_) | None => break,
        }
        last = last.max(header.number);
    }
    usize::try_from(last).expect("as many frames as fit the data")
}

/// Sends frames as the engine does; `None` if one is too long to be sent.
fn send<M: Serialize>(frames: &[Frame<M>]) -> Option<Vec<u8>> {
    let (mut stream, mut numbering) = (Vec::new(), Numbering::default());
    for frame in frames {
        let (kind, body) = match frame {
            Frame::Message(message) => (ControlKind::Message, encode_message(message).ok()?),
            Frame::State(state) => {
                let state_type = match state.kind {
                    DeviceStateKind::QemuVmstate => 1,
                    DeviceStateKind::Synthetic => 2,
                };
                (ControlKind::DeviceState { state_type }, state.bytes.clone())
            }
        };
        let length = u32::try_from(body.len()).ok()?;
        let number = numbering.number_next();
        stream.extend(ControlHeader { kind, length, number }.encode());
        stream.extend(body);
    }
    Some(stream)
}
