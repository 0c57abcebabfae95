//! One of each coder, made when it is first used.

use super::{
    CodeError, Coder, Decode, Encode, Lz4, Lz4Decoder, PageBytes, Sparse, Strength, Words, Zstd,
    ZstdDecoder,
};

/// The encoders of one connection.
#[derive(Debug, Default)]
pub struct Encoders {
    sparse: Sparse,
    words: Words,
    lz4: Option<Lz4>,
    fast: Option<Zstd>,
    strong: Option<Zstd>,
}

impl Encoders {
    /// Makes a coder's tables, if it has none: its first code then takes no longer than the others.
    pub fn prepare(&mut self, coder: Coder) {
        let _ = self.encoder(coder);
    }

    /// As [`Encode::encode`], by this coder.
    pub fn encode(&mut self, coder: Coder, pages: &[PageBytes], into: &mut [u8]) -> usize {
        self.encoder(coder).encode(pages, into)
    }

    fn encoder(&mut self, coder: Coder) -> &mut dyn Encode {
        match coder {
            Coder::Sparse => &mut self.sparse,
            Coder::Words => &mut self.words,
            Coder::Lz4 => self.lz4.get_or_insert_default(),
            Coder::ZstdFast => self.fast.get_or_insert_with(|| Zstd::new(Strength::Fast)),
            Coder::ZstdStrong => self.strong.get_or_insert_with(|| Zstd::new(Strength::Strong)),
        }
    }
}

/// The decoders at the other end of it.
#[derive(Debug, Default)]
pub struct Decoders {
    fast: Option<ZstdDecoder>,
    strong: Option<ZstdDecoder>,
}

impl Decoders {
    /// As [`Decode::decode`], by this coder's decoder.
    ///
    /// # Errors
    /// When `code` is not the code of so many pages.
    pub fn decode(
        &mut self,
        coder: Coder,
        code: &[u8],
        pages: &mut [PageBytes],
    ) -> Result<(), CodeError> {
        let decoder: &mut dyn Decode = match coder {
            Coder::Sparse => &mut Sparse,
            Coder::Words => &mut Words,
            Coder::Lz4 => &mut Lz4Decoder,
            Coder::ZstdFast => self.fast.get_or_insert_default(),
            Coder::ZstdStrong => self.strong.get_or_insert_default(),
        };
        decoder.decode(code, pages)
    }
}
