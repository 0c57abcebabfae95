//! How a connection begins: what is served is named, and what the client knows is agreed on.

use super::{Export, NbdError};
use std::io::{Read, Write};

const GREETING: u64 = u64::from_be_bytes(*b"NBDMAGIC");
const OPTION: u64 = u64::from_be_bytes(*b"IHAVEOPT");
const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;

/// Flags of both sides: fixed newstyle, and no padding.
const HANDSHAKE_FLAGS: u16 = 1 | 2;

const GO: u32 = 7;
const STRUCTURED_REPLY: u32 = 8;
const SET_META_CONTEXT: u32 = 10;

const ACK: u32 = 1;
const INFO: u32 = 3;
const META_CONTEXT: u32 = 4;
const ERROR: u32 = 1 << 31;

/// The kind of [`INFO`] with size and flags.
const INFO_EXPORT: u16 = 0;

const HAS_FLAGS: u16 = 1;
const READ_ONLY: u16 = 1 << 1;
const SEND_FLUSH: u16 = 1 << 2;
const SEND_WRITE_ZEROES: u16 = 1 << 6;

/// Bytes of a reply's data at most. Names and messages are below 4 KiB by the protocol.
const DATA_BYTES_MAX: usize = 16 << 10;
/// Replies to one option at most. A server may tell of things that nobody asked for.
const REPLIES_MAX: usize = 64;

/// Agrees on everything. Returns what is served, and the numbers of `contexts`.
pub(super) fn perform(
    stream: &mut (impl Read + Write),
    name: &str,
    contexts: &[&str],
) -> Result<(Export, Vec<u32>), NbdError> {
    greet(stream)?;
    ask(stream, STRUCTURED_REPLY, &[])?;
    finish(stream, STRUCTURED_REPLY, "structured replies", |_, _| Ok(()))?;
    let contexts = match contexts {
        [] => Vec::new(),
        _ => choose_contexts(stream, name, contexts)?,
    };
    Ok((go(stream, name)?, contexts))
}

fn greet(stream: &mut (impl Read + Write)) -> Result<(), NbdError> {
    let (greeting, option) = (u64::from_be_bytes(take(stream)?), u64::from_be_bytes(take(stream)?));
    let flags = u16::from_be_bytes(take(stream)?);
    if (greeting, option) != (GREETING, OPTION) {
        return Err(NbdError::Protocol("it does not greet as an NBD server of today"));
    }
    if flags & HANDSHAKE_FLAGS != HANDSHAKE_FLAGS {
        return Err(NbdError::Protocol("it knows no fixed newstyle negotiation"));
    }
    stream.write_all(&u32::from(HANDSHAKE_FLAGS).to_be_bytes())?;
    Ok(())
}

fn choose_contexts(
    stream: &mut (impl Read + Write),
    name: &str,
    contexts: &[&str],
) -> Result<Vec<u32>, NbdError> {
    let mut data = text(name)?;
    data.extend(count(contexts.len())?);
    for context in contexts {
        data.extend(text(context)?);
    }
    ask(stream, SET_META_CONTEXT, &data)?;
    let mut chosen = vec![None; contexts.len()];
    finish(stream, SET_META_CONTEXT, "block status", |kind, data| {
        let (META_CONTEXT, Some((number, name))) = (kind, data.split_first_chunk()) else {
            return Err(NbdError::Protocol("an answer about contexts that is none"));
        };
        // What was not asked for is of no use.
        let place = contexts.iter().position(|context| context.as_bytes() == name);
        if let Some(place) = place {
            chosen[place] = Some(u32::from_be_bytes(*number));
        }
        Ok(())
    })?;
    let chosen = chosen.into_iter().zip(contexts);
    chosen.map(|(number, name)| number.ok_or_else(|| NbdError::NoContext((*name).into()))).collect()
}

fn go(stream: &mut (impl Read + Write), name: &str) -> Result<Export, NbdError> {
    let mut data = text(name)?;
    // No particular information.
    data.extend(0u16.to_be_bytes());
    ask(stream, GO, &data)?;
    let mut export = None;
    finish(stream, GO, "the export", |kind, data| {
        let (INFO, Some((info, data))) = (kind, data.split_first_chunk()) else {
            return Err(NbdError::Protocol("an answer about the export that is none"));
        };
        if u16::from_be_bytes(*info) == INFO_EXPORT {
            export = Some(read_export(data)?);
        }
        Ok(())
    })?;
    export.ok_or(NbdError::Protocol("it does not say what it serves"))
}

fn read_export(data: &[u8]) -> Result<Export, NbdError> {
    let wrong = || NbdError::Protocol("what it serves is not described as it must be");
    let (size, flags) = data.split_first_chunk().ok_or_else(wrong)?;
    let flags = u16::from_be_bytes(flags.try_into().map_err(|_| wrong())?);
    let has = |flag| flags & HAS_FLAGS != 0 && flags & flag != 0;
    Ok(Export {
        size_bytes: u64::from_be_bytes(*size),
        writable: !has(READ_ONLY),
        writes_zeroes: has(SEND_WRITE_ZEROES),
        flushes: has(SEND_FLUSH),
    })
}

/// A length and a text of so many bytes.
fn text(text: &str) -> Result<Vec<u8>, NbdError> {
    let mut data = count(text.len())?.to_vec();
    data.extend(text.as_bytes());
    Ok(data)
}

fn count(count: usize) -> Result<[u8; 4], NbdError> {
    let count = u32::try_from(count).map_err(|_| NbdError::Protocol("we have a name too long"))?;
    Ok(count.to_be_bytes())
}

fn ask(stream: &mut impl Write, option: u32, data: &[u8]) -> Result<(), NbdError> {
    let mut request = OPTION.to_be_bytes().to_vec();
    request.extend(option.to_be_bytes());
    request.extend(count(data.len())?);
    request.extend(data);
    stream.write_all(&request)?;
    Ok(())
}

/// Reads replies until the last, and gives all others to `each`, as their kind and data.
fn finish(
    stream: &mut impl Read,
    option: u32,
    what: &'static str,
    mut each: impl FnMut(u32, &[u8]) -> Result<(), NbdError>,
) -> Result<(), NbdError> {
    for _ in 0..REPLIES_MAX {
        let magic = u64::from_be_bytes(take(stream)?);
        let answered = u32::from_be_bytes(take(stream)?);
        if (magic, answered) != (OPTION_REPLY, option) {
            return Err(NbdError::Protocol("an answer to something else"));
        }
        let kind = u32::from_be_bytes(take(stream)?);
        let length = usize::try_from(u32::from_be_bytes(take(stream)?)).unwrap_or(usize::MAX);
        if length > DATA_BYTES_MAX {
            return Err(NbdError::Protocol("an answer that is too long"));
        }
        let mut data = vec![0; length];
        stream.read_exact(&mut data)?;
        match kind {
            ACK => return Ok(()),
            kind if kind & ERROR != 0 => {
                let said = String::from_utf8_lossy(&data).into_owned();
                return Err(NbdError::Refused { what, said });
            }
            kind => each(kind, &data)?,
        }
    }
    Err(NbdError::Protocol("answers without end"))
}

/// So many bytes.
pub(super) fn take<const N: usize>(stream: &mut impl Read) -> Result<[u8; N], NbdError> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}
