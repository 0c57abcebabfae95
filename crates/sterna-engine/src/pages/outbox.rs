//! What a stream sends, small frames together.
//!
//! Pages of unlike content lie side by side in a guest, so most frames have few pages. Each by itself would
//! cost a record of TLS, a call of the kernel and a packet at this end, and all of these at the other.

use super::{Coding, Pacer};
use crate::link::Link;
use std::io::{self, IoSlice, Write};
use std::sync::Arc;
use sterna_page::PageCount;

/// As much is handed over at once: a record of TLS, and few enough bytes that neither the link nor the receiver is idle
/// while they come together.
const BYTES: usize = 16 << 10;

/// A payload of so many bytes is not copied, but handed over from where it is.
const LARGE: usize = 16 << 10;

/// The frames of one stream on their way to its connection.
#[derive(Debug)]
pub(super) struct Outbox {
    pub(super) link: Link,
    pacer: Arc<Pacer>,
    frames: Vec<u8>,
    /// Pages whose content these carry.
    pages: PageCount,
}

impl Outbox {
    pub(super) fn new(link: Link, pacer: &Arc<Pacer>) -> Self {
        let frames = Vec::with_capacity(BYTES + LARGE);
        Self { link, pacer: Arc::clone(pacer), frames, pages: PageCount::ZERO }
    }

    /// Sends a frame with the content of so many pages, sooner or later.
    pub(super) fn push(
        &mut self,
        header: &[u8],
        payload: &[u8],
        pages: PageCount,
        coding: Option<&mut Coding>,
    ) -> io::Result<()> {
        self.frames.extend_from_slice(header);
        self.pages += pages;
        if payload.len() >= LARGE {
            return self.write(payload, coding);
        }
        self.frames.extend_from_slice(payload);
        if self.frames.len() >= BYTES { self.write(&[], coding) } else { Ok(()) }
    }

    /// The same of the code that was just made, after what says of which pages it is.
    pub(super) fn push_code(
        &mut self,
        header: &[u8],
        bits: &[u8],
        bytes: usize,
        (pages, coding): (PageCount, &mut Coding),
    ) -> io::Result<()> {
        for part in [header, bits, coding.code(bytes)] {
            self.frames.extend_from_slice(part);
        }
        self.pages += pages;
        if self.frames.len() >= BYTES { self.write(&[], Some(coding)) } else { Ok(()) }
    }

    /// Sends all that is still here.
    pub(super) fn flush(&mut self, coding: Option<&mut Coding>) -> io::Result<()> {
        if !self.frames.is_empty() {
            self.write(&[], coding)?;
        }
        self.link.flush()
    }

    /// Hands over what is here, and then these bytes.
    fn write(&mut self, last: &[u8], coding: Option<&mut Coding>) -> io::Result<()> {
        let bytes = self.frames.len() + last.len();
        let pages = std::mem::take(&mut self.pages);
        let Self { link, pacer, frames, .. } = self;
        let mut write = || {
            pacer.pace(bytes as u64);
            write_all(link, frames, last)
        };
        let written = match coding {
            Some(coding) => coding.measured(bytes, pages, write),
            None => write(),
        };
        self.frames.clear();
        written
    }
}

fn write_all(link: &mut Link, first: &[u8], last: &[u8]) -> io::Result<()> {
    let mut slices = [IoSlice::new(first), IoSlice::new(last)];
    let mut slices = &mut slices[..];
    while !slices.is_empty() {
        match link.write_vectored(slices)? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            written => IoSlice::advance_slices(&mut slices, written),
        }
    }
    Ok(())
}
