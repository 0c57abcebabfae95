//! Zstandard: strings that are there again in the last mebibyte of what was coded, and fewer bits for
//! what is frequent.
//!
//! One frame lasts as long as its encoder: each run is coded by what was learnt of all before, so short
//! runs cost little more than long ones. In return every run must reach the decoder, in order.

use super::{CodeError, Decode, Encode, PageBytes};
use zstd::stream::raw::{CParameter, DParameter, Decoder, Encoder, InBuffer, Operation, OutBuffer};

/// How far back a string may be, as a power of two in bytes. Both ends hold so much.
const WINDOW_LOG: u32 = 20;

/// How much is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strength {
    /// For links that a core keeps up with.
    Fast,
    /// For links that leave a core time.
    Strong,
}

impl Strength {
    /// The library's level.
    fn level(self) -> i32 {
        match self {
            Self::Fast => 1,
            Self::Strong => 6,
        }
    }
}

/// Codes runs of pages, each by all before.
pub struct Zstd {
    encoder: Encoder<'static>,
}

impl std::fmt::Debug for Zstd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Zstd")
    }
}

impl Zstd {
    /// One that has coded nothing.
    ///
    /// # Panics
    /// When there is no memory for it.
    #[must_use]
    pub fn new(strength: Strength) -> Self {
        let mut encoder = Encoder::new(strength.level()).expect("a level of the library");
        encoder.set_parameter(CParameter::WindowLog(WINDOW_LOG)).expect("a window of the library");
        // The library makes its tables when it is first given something, if only nothing.
        let (mut nothing, mut none) = (InBuffer::around(&[]), OutBuffer::around(&mut [][..]));
        encoder.run(&mut nothing, &mut none).expect("nothing can be coded");
        Self { encoder }
    }
}

impl Encode for Zstd {
    fn encode(&mut self, pages: &[PageBytes], into: &mut [u8]) -> usize {
        let mut input = InBuffer::around(pages.as_flattened());
        let mut output = OutBuffer::around(into);
        let room = "there is room for the longest code";
        while input.pos() < input.src.len() {
            self.encoder.run(&mut input, &mut output).expect(room);
        }
        assert_eq!(self.encoder.flush(&mut output).expect(room), 0, "{room}");
        output.pos()
    }
}

/// Restores what one [`Zstd`] coded, run by run. A few bytes after a code are taken for the beginning of
/// the next.
pub struct ZstdDecoder {
    decoder: Decoder<'static>,
}

impl std::fmt::Debug for ZstdDecoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ZstdDecoder")
    }
}

impl Default for ZstdDecoder {
    fn default() -> Self {
        Self::new()
    }
}

impl ZstdDecoder {
    /// One for an encoder that has coded nothing. It never holds more than the encoder's window,
    /// whatever it is given.
    ///
    /// # Panics
    /// When there is no memory for it.
    #[must_use]
    pub fn new() -> Self {
        let mut decoder = Decoder::new().expect("a decoder needs only memory");
        decoder.set_parameter(DParameter::WindowLogMax(WINDOW_LOG)).expect("a window that is one");
        Self { decoder }
    }
}

impl Decode for ZstdDecoder {
    fn decode(&mut self, code: &[u8], pages: &mut [PageBytes]) -> Result<(), CodeError> {
        let bytes = pages.as_flattened_mut();
        let length = bytes.len();
        let mut input = InBuffer::around(code);
        let mut output = OutBuffer::around(bytes);
        while input.pos() < code.len() {
            let before = (input.pos(), output.pos());
            self.decoder.run(&mut input, &mut output).map_err(|_| CodeError::Malformed)?;
            if before == (input.pos(), output.pos()) {
                return Err(CodeError::Long);
            }
        }
        if output.pos() < length {
            return Err(CodeError::Short);
        }
        // All of a code that was flushed is there by now, unless it is that of more pages.
        let more: &mut [u8] = &mut [0];
        let mut output = OutBuffer::around(more);
        match self.decoder.run(&mut InBuffer::around(&[]), &mut output) {
            Ok(_) if output.pos() == 0 => Ok(()),
            _ => Err(CodeError::Long),
        }
    }
}
