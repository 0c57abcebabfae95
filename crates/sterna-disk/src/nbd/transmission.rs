//! Requests and their answers, once the disk is open.

use super::handshake::take;
use super::{Client, NbdError, PAYLOAD_BYTES_MAX};
use std::io::{self, Read, Write};

const REQUEST: u32 = 0x2560_9513;
const SIMPLE_REPLY: u32 = 0x6744_6698;
const CHUNK: u32 = 0x668e_33ef;

/// The last chunk of an answer.
const DONE: u16 = 1;

const NOTHING: u16 = 0;
const DATA: u16 = 1;
const ZEROES: u16 = 2;
const STATUS: u16 = 5;
/// All kinds from here on are errors.
const ERRORS: u16 = 1 << 15;

/// Bytes of an error's words at most, with what stands before and after them.
const ERROR_BYTES_MAX: usize = 8 << 10;
/// Bytes of a status at most: that of a million blocks.
const STATUS_BYTES_MAX: usize = 8 << 20;

/// What can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Read,
    Write,
    Disconnect,
    Flush,
    WriteZeroes,
    Status,
}

impl Operation {
    fn number(self) -> u16 {
        match self {
            Self::Read => 0,
            Self::Write => 1,
            Self::Disconnect => 2,
            Self::Flush => 3,
            Self::WriteZeroes => 6,
            Self::Status => 7,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Read => "reading",
            Self::Write | Self::WriteZeroes => "writing",
            Self::Disconnect => "closing",
            Self::Flush => "flushing",
            Self::Status => "asking what is there",
        }
    }
}

/// What a chunk of an answer carries.
pub(super) enum Part {
    /// Content at this byte of the disk; so many bytes of it come now, and are to be read.
    Data { offset: u64, length: usize },
    /// So many zeroes at this byte of the disk.
    Zeroes { offset: u64, length: u64 },
    /// Of the context with this number, from where it was asked for: lengths and flags, four bytes each.
    Status { context: u32, extents: Vec<u8> },
}

impl<S: Read + Write> Client<S> {
    /// Reads what is at `offset` into all of `buffer`.
    ///
    /// # Errors
    /// When it is not on the disk, the disk fails, or the connection; or when the server breaks the protocol.
    pub fn read(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), NbdError> {
        self.check(offset, buffer.len() as u64)?;
        let mut at = offset;
        for piece in buffer.chunks_mut(PAYLOAD_BYTES_MAX) {
            self.read_piece(at, piece)?;
            at += piece.len() as u64;
        }
        Ok(())
    }

    fn read_piece(&mut self, offset: u64, piece: &mut [u8]) -> Result<(), NbdError> {
        let operation = Operation::Read;
        self.ask(operation, offset, u32_of(piece.len() as u64)?, &[])?;
        // In order, as QEMU answers, so that none comes twice and none is missing.
        let mut came = 0_usize;
        self.answer(operation, offset, |stream, part| {
            let (at, length) = match part {
                Part::Data { offset, length } => (offset, length),
                Part::Zeroes { offset, length } => {
                    (offset, usize::try_from(length).unwrap_or(usize::MAX))
                }
                Part::Status { .. } => return Err(NbdError::Protocol("a status as content")),
            };
            let asked = (at == offset + came as u64).then(|| came.checked_add(length)).flatten();
            let within = asked.and_then(|end| piece.get_mut(came..end));
            let within = within.ok_or(NbdError::Protocol("content that was not asked for"))?;
            came += length;
            match part {
                Part::Zeroes { .. } => within.fill(0),
                _ => stream.read_exact(within)?,
            }
            Ok(())
        })?;
        match came == piece.len() {
            true => Ok(()),
            false => Err(NbdError::Protocol("content is missing")),
        }
    }

    /// Writes `data` at `offset`. It is durable after [`Client::flush`].
    ///
    /// # Errors
    /// As [`Client::read`].
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), NbdError> {
        self.check(offset, data.len() as u64)?;
        let mut at = offset;
        for piece in data.chunks(PAYLOAD_BYTES_MAX) {
            let operation = Operation::Write;
            self.ask(operation, at, u32_of(piece.len() as u64)?, piece)?;
            self.answer(operation, at, nothing)?;
            at += piece.len() as u64;
        }
        Ok(())
    }

    /// Makes zeroes of `length` bytes at `offset`; the server need keep nothing for them.
    ///
    /// # Errors
    /// As [`Client::read`].
    pub fn write_zeroes(&mut self, offset: u64, length: u64) -> Result<(), NbdError> {
        // As long as any server takes, and whole blocks.
        const PIECE: u64 = 1 << 30;
        self.check(offset, length)?;
        let (mut at, end) = (offset, offset + length);
        while at < end {
            let piece = PIECE.min(end - at);
            let operation = Operation::WriteZeroes;
            self.ask(operation, at, u32_of(piece)?, &[])?;
            self.answer(operation, at, nothing)?;
            at += piece;
        }
        Ok(())
    }

    /// Makes all durable that was written.
    ///
    /// # Errors
    /// As [`Client::read`].
    pub fn flush(&mut self) -> Result<(), NbdError> {
        self.ask(Operation::Flush, 0, 0, &[])?;
        self.answer(Operation::Flush, 0, nothing)
    }

    /// Says that no more will be asked.
    pub(super) fn disconnect(&mut self) -> Result<(), NbdError> {
        self.ask(Operation::Disconnect, 0, 0, &[])
    }

    pub(super) fn check(&self, offset: u64, length: u64) -> Result<(), NbdError> {
        let size = self.export.size_bytes;
        match offset.checked_add(length) {
            Some(end) if end <= size => Ok(()),
            _ => Err(NbdError::Outside { offset, length, size }),
        }
    }

    pub(super) fn ask(
        &mut self,
        operation: Operation,
        offset: u64,
        length: u32,
        payload: &[u8],
    ) -> Result<(), NbdError> {
        self.cookie += 1;
        let mut header = Vec::with_capacity(28);
        header.extend(REQUEST.to_be_bytes());
        header.extend(0u16.to_be_bytes());
        header.extend(operation.number().to_be_bytes());
        header.extend(self.cookie.to_be_bytes());
        header.extend(offset.to_be_bytes());
        header.extend(length.to_be_bytes());
        self.stream.write_all(&header)?;
        self.stream.write_all(payload)?;
        Ok(())
    }

    /// Reads an answer to its end, and gives its parts to `each`.
    pub(super) fn answer(
        &mut self,
        operation: Operation,
        offset: u64,
        mut each: impl FnMut(&mut S, Part) -> Result<(), NbdError>,
    ) -> Result<(), NbdError> {
        let failed = |error: u32| {
            let error = io::Error::from_raw_os_error(i32::try_from(error).unwrap_or(i32::MAX));
            NbdError::Disk { operation: operation.name(), offset, error }
        };
        let mut failure = None;
        loop {
            match u32::from_be_bytes(take(&mut self.stream)?) {
                SIMPLE_REPLY => {
                    let error = u32::from_be_bytes(take(&mut self.stream)?);
                    self.expect_cookie()?;
                    return match error {
                        // Content would follow, of which nobody says how much.
                        0 if matches!(operation, Operation::Read | Operation::Status) => {
                            Err(NbdError::Protocol("an answer without structure"))
                        }
                        0 => Ok(()),
                        error => Err(failed(error)),
                    };
                }
                CHUNK => {}
                _ => return Err(NbdError::Protocol("an answer that is none")),
            }
            let flags = u16::from_be_bytes(take(&mut self.stream)?);
            let kind = u16::from_be_bytes(take(&mut self.stream)?);
            self.expect_cookie()?;
            let length = u32::from_be_bytes(take(&mut self.stream)?);
            let length = usize::try_from(length).unwrap_or(usize::MAX);
            match kind {
                NOTHING if length == 0 && flags & DONE != 0 => {}
                DATA if (9..=8 + PAYLOAD_BYTES_MAX).contains(&length) => {
                    let offset = u64::from_be_bytes(take(&mut self.stream)?);
                    each(&mut self.stream, Part::Data { offset, length: length - 8 })?;
                }
                ZEROES if length == 12 => {
                    let offset = u64::from_be_bytes(take(&mut self.stream)?);
                    let length = u64::from(u32::from_be_bytes(take(&mut self.stream)?));
                    each(&mut self.stream, Part::Zeroes { offset, length })?;
                }
                STATUS if (12..=4 + STATUS_BYTES_MAX).contains(&length) && length % 8 == 4 => {
                    let context = u32::from_be_bytes(take(&mut self.stream)?);
                    let mut extents = vec![0; length - 4];
                    self.stream.read_exact(&mut extents)?;
                    each(&mut self.stream, Part::Status { context, extents })?;
                }
                kind if kind & ERRORS != 0 && (4..=ERROR_BYTES_MAX).contains(&length) => {
                    let error = u32::from_be_bytes(take(&mut self.stream)?);
                    self.stream.read_exact(&mut vec![0; length - 4])?;
                    // The first says most.
                    failure.get_or_insert_with(|| failed(error));
                }
                _ => return Err(NbdError::Protocol("a part of an answer that is none")),
            }
            if flags & DONE != 0 {
                return failure.map_or(Ok(()), Err);
            }
        }
    }

    fn expect_cookie(&mut self) -> Result<(), NbdError> {
        match u64::from_be_bytes(take(&mut self.stream)?) == self.cookie {
            true => Ok(()),
            false => Err(NbdError::Protocol("an answer to another request")),
        }
    }
}

/// For answers that carry nothing.
fn nothing<S>(_: &mut S, _: Part) -> Result<(), NbdError> {
    Err(NbdError::Protocol("an answer with more than was asked for"))
}

pub(super) fn u32_of(length: u64) -> Result<u32, NbdError> {
    u32::try_from(length).map_err(|_| NbdError::Protocol("we ask for too much at once"))
}
